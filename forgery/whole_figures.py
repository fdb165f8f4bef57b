"""Whole figures as papers have them, with exact truth of what each pixel is.

    figure = make_figure(photographs, rng)
    figure.image        # (H, W, 3) uint8 RGB, as printed: resampled, JPEG once or twice, or neither
    figure.kinds        # (H, W) uint8 of PIXEL_KINDS: ground, photo, blot, gel, drawing, text

Rows of micrographs with letters, scale bars and arrows; charts; blots as stacked strips with names beside them; gels;
schematics, tables, text; channel rows with their merge; insets. Labels that lie over a photograph are drawing or text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageDraw

from config import PIXEL_KINDS
from forgery.blots import make_blot, make_gel
from forgery.drawings import DRAWINGS, LETTERS, chart, font, phrase

GROUND, PHOTO, BLOT, GEL, DRAWING, TEXT = range(len(PIXEL_KINDS))


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: its kind, a name of PIXEL_KINDS, and its box (x, y, width, height) in pixels."""

    kind: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Figure:
    """A whole figure; see the top of this file."""

    image: np.ndarray
    kinds: np.ndarray
    panels: tuple[Panel, ...]
    scale: float  # side of a pixel of the figure as it was composed, in pixels of the finished one


@dataclass
class Page:
    """A figure while it is composed."""

    pixels: np.ndarray  # (H, W, 3) uint8
    kinds: np.ndarray  # (H, W) uint8
    panels: list[Panel] = field(default_factory=list)

    def put(self, image: np.ndarray, x: int, y: int, kind: int, labels: np.ndarray | None = None) -> None:
        """Lay a panel (h, w, 3) at (x, y); `labels` (h, w) uint8: what lies over it, 0 where nothing does."""
        height, width = image.shape[:2]
        self.pixels[y : y + height, x : x + width] = image
        kinds = np.full((height, width), kind, np.uint8)
        if labels is not None:
            kinds[labels > 0] = labels[labels > 0]
        self.kinds[y : y + height, x : x + width] = kinds
        self.panels.append(Panel(PIXEL_KINDS[kind], (x, y, width, height)))

    def write(
        self, text: str, x: float, y: float, size: int, colour: tuple[int, int, int] = (0, 0, 0), face: int = 0
    ) -> None:
        """Write text with its upper left corner at (x, y); its box counts as text."""
        left, top, right, bottom = (round(v) for v in font(size, face).getbbox(text))
        height, width = self.kinds.shape
        x0, y0 = max(round(x) + left, 0), max(round(y) + top, 0)
        x1, y1 = min(round(x) + right, width), min(round(y) + bottom, height)
        if x1 <= x0 or y1 <= y0:
            return
        canvas = Image.fromarray(self.pixels[y0:y1, x0:x1])
        ImageDraw.Draw(canvas).text((round(x) - x0, round(y) - y0), text, fill=colour, font=font(size, face))
        self.pixels[y0:y1, x0:x1] = np.asarray(canvas)
        self.kinds[y0:y1, x0:x1] = TEXT


# Panels -----------------------------------------------------------------------------------------------------------


def micrograph(photographs: Sequence[np.ndarray], height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A crop of one of the photographs (H, W, 3) uint8 at this size, in another contrast or tint, or inverted."""
    source = photographs[rng.integers(len(photographs))]
    share = float(rng.uniform(0.25, 1.0))
    ratio = width / height
    crop_h = max(int(min(source.shape[0], source.shape[1] / ratio) * share), 8)
    crop_w = max(int(crop_h * ratio), 8)
    y, x = (int(rng.integers(0, max(n - c, 0) + 1)) for n, c in zip(source.shape[:2], (crop_h, crop_w), strict=True))
    crop = source[y : y + crop_h, x : x + crop_w]
    shrinks = crop.shape[0] > height
    image = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        image = image[:, ::-1]
    if rng.random() < 0.35:  # as another stain or channel shows it
        grey = image.mean(axis=2)
        grey = 255 - grey if rng.random() < 0.4 else grey
        tint = np.array(
            [(1, 1, 1), (1, 0.05, 0.05), (0.05, 1, 0.05), (0.1, 0.2, 1), (1, 0.1, 1), (0.1, 1, 1)][rng.integers(6)]
        )
        image = grey[..., None] * tint
    gain, offset = float(rng.uniform(0.7, 1.3)), float(rng.uniform(-25, 25))
    return np.clip(image.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)


def label_photo(image: np.ndarray, letter: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a letter, a scale bar, arrows over a photograph in place; returns what lies where (h, w) uint8."""
    height, width = image.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    white = rng.random() < (0.8 if image.mean() < 140 else 0.25)
    colour = (255, 255, 255) if white else (0, 0, 0)
    size = int(np.clip(min(height, width) * rng.uniform(0.07, 0.16), 8, 40))
    if rng.random() < 0.5:
        page = Page(image, labels)
        text = letter if rng.random() < 0.7 else phrase(rng, 1)
        corner = (4, 2) if rng.random() < 0.8 else (4, height - 1.4 * size)
        if rng.random() < 0.2:
            cv2.rectangle(
                image,
                (0, int(corner[1])),
                (int(size * (0.6 * len(text) + 0.6)), int(corner[1] + 1.3 * size)),
                (255,) * 3,
                -1,
            )
            labels[int(corner[1]) : int(corner[1] + 1.3 * size), : int(size * (0.6 * len(text) + 0.6))] = TEXT
            colour = (0, 0, 0)
        page.write(text, *corner, size, colour, int(rng.integers(5)))
    if rng.random() < 0.4:
        length, thick = int(width * rng.uniform(0.12, 0.3)), max(int(height * 0.015), 2)
        x, y = width - length - max(width // 25, 3), height - thick - max(height // 25, 3)
        cv2.rectangle(image, (x, y), (x + length, y + thick), colour, -1)
        labels[y : y + thick + 1, x : x + length + 1] = DRAWING
        if rng.random() < 0.3:
            Page(image, labels).write(
                f"{rng.choice([5, 10, 20, 50, 100])} µm", x, y - 1.2 * size * 0.7, max(int(size * 0.7), 7), colour
            )
    for _ in range(int(rng.choice([0, 0, 0, 1, 3]))):
        tip = (int(rng.integers(width)), int(rng.integers(height)))
        angle, reach = rng.uniform(0, 2 * np.pi), max(min(height, width) * rng.uniform(0.06, 0.15), 6)
        tail = (int(tip[0] + reach * np.cos(angle)), int(tip[1] + reach * np.sin(angle)))
        shade, thick = colour if rng.random() < 0.7 else (255, 220, 0), max(int(reach / 10), 1)
        drawn = np.zeros((height, width), np.uint8)
        cv2.arrowedLine(drawn, tail, tip, 255, thick, cv2.LINE_AA, tipLength=0.4)
        share = (drawn / 255.0)[..., None]
        image[:] = (image * (1 - share) + np.array(shade) * share).astype(np.uint8)
        labels[cv2.dilate(drawn, np.ones((3, 3), np.uint8)) > 0] = DRAWING
    return labels


@dataclass(frozen=True)
class Style:
    """What one figure draws alike."""

    gap: int  # between panels of a row, pixels
    ground: tuple[int, int, int]
    ink: tuple[int, int, int]
    letter: int  # size of the panel letters, pixels
    face: int
    frame: int  # width of the frames round panels, pixels; 0: none


def photo_row(
    page: Page,
    box: tuple[int, int, int, int],
    photographs: Sequence[np.ndarray],
    style: Style,
    rng: np.random.Generator,
) -> None:
    """Photographs side by side, perhaps as channels with their merge, perhaps with an inset."""
    x0, y0, width, height = box
    count = int(np.clip(round(width / height * rng.uniform(0.7, 1.5)), 1, 7))
    side = (width - (count - 1) * style.gap) // count
    if side < 24:
        return
    channels = count >= 3 and rng.random() < 0.2
    same = micrograph(photographs, height, side, rng) if channels else None
    total = np.zeros((height, side, 3), np.float32)
    for k in range(count):
        if channels and k < count - 1:
            tint = np.array([(0.1, 0.2, 1), (0.05, 1, 0.05), (1, 0.05, 0.05), (1, 1, 1)][k % 4])
            image = (
                np.roll(same, int(rng.integers(-9, 9)), 1).mean(axis=2)[..., None] * tint * rng.uniform(0.4, 1)
            ).astype(np.uint8)
            total += image
        elif channels:
            image = np.clip(total, 0, 255).astype(np.uint8)
        else:
            image = micrograph(photographs, height, side, rng)
        if not channels and rng.random() < 0.12 and side > 80:  # an enlarged detail in the corner
            inner = cv2.resize(
                image[height // 3 : height // 2, side // 3 : side // 2],
                (side // 3, height // 3),
                interpolation=cv2.INTER_CUBIC,
            )
            image = image.copy()
            image[-height // 3 :, -(side // 3) :][: inner.shape[0], : inner.shape[1]] = inner[
                : image[-height // 3 :].shape[0]
            ]
        image = np.ascontiguousarray(image)
        labels = label_photo(image, LETTERS[k % 26].lower(), rng)
        if style.frame:
            cv2.rectangle(image, (0, 0), (side - 1, height - 1), style.ink, style.frame)
        page.put(image, x0 + k * (side + style.gap), y0, PHOTO, labels)


def chart_row(
    page: Page, box: tuple[int, int, int, int], charts: Sequence[np.ndarray], rng: np.random.Generator
) -> None:
    """Charts side by side: drawn now, or out of those that were drawn before, resized and in other colours."""
    x0, y0, width, height = box
    count = int(np.clip(round(width / height / rng.uniform(0.9, 1.8)), 1, 5))
    side = width // count
    if side < 60 or height < 50:
        return
    for k in range(count):
        if len(charts) == 0:
            drawn = chart(side - 6, height, rng)[:height, : side - 6]
        else:
            drawn = charts[rng.integers(len(charts))][..., rng.permutation(3)]
            drawn = cv2.resize(drawn, (side - 6, height), interpolation=cv2.INTER_AREA)
        page.put(drawn, x0 + k * side, y0, DRAWING)


def blot_block(page: Page, box: tuple[int, int, int, int], style: Style, rng: np.random.Generator) -> None:
    """Strips of a blot stacked, with names beside and signs above the lanes."""
    x0, y0, width, height = box
    size = int(np.clip(height / rng.uniform(8, 20), 8, 26))
    left = int(width * rng.uniform(0.08, 0.2))
    strips = int(np.clip(round((height - 2 * size) / (width * rng.uniform(0.08, 0.22))), 1, 7))
    gap = max(int(style.gap * 0.5), 2)
    tall = (height - 2 * size - (strips - 1) * gap) // strips
    wide = int((width - left) * rng.uniform(0.55, 0.95))
    lanes = int(rng.integers(2, 13))
    if tall < 12 or wide < 12 * lanes:
        return
    for lane in range(lanes):
        page.write(
            str(rng.choice(["+", "-", "1", "2", "C", "WT"])),
            x0 + left + (lane + 0.4) * wide / lanes,
            y0,
            size,
            style.ink,
        )
    for k in range(strips):
        strip = np.ascontiguousarray(make_blot((tall, wide), lanes, rng).image)
        y = y0 + 2 * size + k * (tall + gap)
        if rng.random() < 0.7:
            cv2.rectangle(strip, (0, 0), (wide - 1, tall - 1), (0, 0, 0), 1)
        page.put(strip, x0 + left, y, BLOT)
        name = phrase(rng, 1)[:9]
        page.write(
            name,
            x0 + left - font(size, style.face).getlength(name) - 4,
            y + tall / 2 - size / 2,
            size,
            style.ink,
            style.face,
        )
        if rng.random() < 0.5:
            page.write(
                f"{rng.integers(15, 250)} kDa",
                x0 + left + wide + 4,
                y + tall / 2 - size / 2,
                size,
                style.ink,
                style.face,
            )


def gel_block(page: Page, box: tuple[int, int, int, int], style: Style, rng: np.random.Generator) -> None:
    """A gel with numbers above the lanes and sizes beside the ladder."""
    x0, y0, width, height = box
    size = int(np.clip(height / 18, 8, 24))
    lanes = int(rng.integers(3, 16))
    wide = int(np.clip((height - 2 * size) * rng.uniform(0.7, 1.6), 10 * lanes, width - 4 * size))
    if wide < 8 * lanes or height < 5 * size:
        return
    left = x0 + int(rng.integers(3 * size, max(width - wide, 3 * size) + 1))
    wide = min(wide, page.kinds.shape[1] - left)
    for lane in range(lanes):
        page.write(str(lane + 1), left + (lane + 0.35) * wide / lanes, y0, size, style.ink)
    gel = make_gel((height - 2 * size, wide), lanes, rng)
    page.put(gel.image, left, y0 + 2 * size, GEL)
    for k in range(int(rng.integers(0, 6))):
        page.write(
            str(rng.choice([250, 500, 750, 1000, 2000])),
            left - 3 * size,
            y0 + 2 * size + (k + 1) * (height - 2 * size) / 7,
            size,
            style.ink,
        )


def drawing_row(
    page: Page, box: tuple[int, int, int, int], photographs: Sequence[np.ndarray], rng: np.random.Generator
) -> None:
    """A schematic, a table, a formula, text or a screenshot; a schematic may hold a photograph."""
    x0, y0, width, height = box
    name = rng.choice(["schematic", "schematic", "table", "formula", "text", "screenshot"])
    if height < 40 or width < 60:
        return
    page.put(DRAWINGS[name](width, height, rng)[:height, :width], x0, y0, TEXT if name == "text" else DRAWING)
    if name in ("schematic", "screenshot") and rng.random() < 0.4:
        side = int(min(width, height) * rng.uniform(0.2, 0.45))
        if side >= 24:
            image = np.ascontiguousarray(micrograph(photographs, side, side, rng))
            x, y = x0 + int(rng.integers(0, width - side + 1)), y0 + int(rng.integers(0, height - side + 1))
            page.put(image, x, y, PHOTO)


# Figures ----------------------------------------------------------------------------------------------------------


def make_figure(
    photographs: Sequence[np.ndarray], rng: np.random.Generator, charts: Sequence[np.ndarray] = (), printed: bool = True
) -> Figure:
    """A figure made of these photographs (H, W, 3) uint8 RGB; the same arguments give the same figure.

    Args:
        charts: charts (h, w, 3) uint8 RGB that were drawn before; new ones are drawn where there are none, which takes
            most of the time.
        printed: resample and compress it as journals do.
    """
    width, height = int(rng.uniform(500, 1700)), int(rng.uniform(350, 1700))
    dark = rng.random() < 0.06
    style = Style(
        int(rng.choice([2, 4, 8, 14, 24])),
        (0, 0, 0) if dark else (255, 255, 255),
        (255, 255, 255) if dark else (0, 0, 0),
        int(rng.uniform(12, 34)),
        int(rng.integers(5)),
        int(rng.choice([0, 0, 0, 1, 2])),
    )
    page = Page(np.full((height, width, 3), style.ground, np.uint8), np.zeros((height, width), np.uint8))
    rows: list[Callable[[tuple[int, int, int, int]], None]] = [
        lambda box: photo_row(page, box, photographs, style, rng),
        lambda box: chart_row(page, box, charts, rng),
        lambda box: blot_block(page, box, style, rng),
        lambda box: gel_block(page, box, style, rng),
        lambda box: drawing_row(page, box, photographs, rng),
    ]
    mixture = rng.dirichlet([0.9, 0.7, 0.5, 0.35, 0.35])  # one figure holds mostly one kind of thing
    margin, y, letter = int(rng.integers(0, 30)), int(rng.integers(0, 20)), 0
    while y < height - 60:
        tall = int(np.clip(rng.uniform(0.1, 0.55) * width, 60, 560))
        tall = min(tall, height - y)
        parts = 1 if width < 700 or rng.random() < 0.6 else 2
        for part in range(parts):
            x = margin + part * (width // parts)
            lettered = rng.random() < 0.6
            top = y + (style.letter + 6 if lettered else 0)
            box = (x, top, width // parts - 2 * margin - (style.gap if parts > 1 else 0), y + tall - top)
            if box[2] > 60 and box[3] > 40:
                rows[rng.choice(len(rows), p=mixture)](box)
                if lettered:
                    page.write(LETTERS[letter % 26], x, y, style.letter, style.ink, style.face)
                    letter += 1
        y += tall + int(rng.integers(4, 40))
    return print_figure(page, rng) if printed else Figure(page.pixels, page.kinds, tuple(page.panels), 1.0)


def print_figure(page: Page, rng: np.random.Generator) -> Figure:
    """Resampled and compressed, with the truth brought along."""
    height, width = page.kinds.shape
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(2.2)))) if rng.random() < 0.6 else 1.0
    scale = min(scale, (5e6 / (height * width)) ** 0.5)
    image, kinds = page.pixels, page.kinds
    if scale != 1.0:
        size = (max(round(width * scale), 8), max(round(height * scale), 8))
        image = cv2.resize(
            image,
            size,
            interpolation=cv2.INTER_AREA if scale < 1 else int(rng.choice([cv2.INTER_CUBIC, cv2.INTER_LINEAR])),
        )
        kinds = cv2.resize(kinds, size, interpolation=cv2.INTER_NEAREST)
    for _ in range(int(rng.choice([0, 1, 1, 2]))):
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])
        image = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    panels = tuple(Panel(p.kind, tuple(round(v * scale) for v in p.box)) for p in page.panels)
    return Figure(image, kinds, panels, scale)
