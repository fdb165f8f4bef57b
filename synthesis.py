"""Copy-move forgeries with exact instance masks, made out of authentic pictures.

    python synthesis.py --authentic DIR --out DIR --count 2000 --seed 0
    python synthesis.py --authentic DIR --out DIR --content-kinds object --min-copy-pixels 20 --max-copy-pixels 60

The second makes single cells of 20 to 60 pixels only; all limits and kinds are options below.
Writes OUT/authentic/<id>.png, OUT/forged/<id>.png, OUT/masks/<id>.npy (uint8 0/1, K x H x W) and beside every
picture <id>.json: what was copied where, with affine matrices, and `base`, the group of authentic pictures it
was made from. Pictures with the same `base` may share pixels and belong into the same split. OUT/synthesis.json keeps
the settings; a run that was stopped goes on with --resume and ends with the same files.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import config
from config import InputError, SynthesisSettings, SynthesizeSettings
from distributed import follow_parent

MIN_SIDE = 32  # smallest picture that can be forged, in pixels
ATTEMPTS = 24  # tries for one content before the picture counts as one without anything to copy

# Forged pictures of Recod.ai/LUC: the share of the picture inside masks at the 5th, 25th, 50th, 75th and 95th
# percentile is 0.0026, 0.0075, 0.027, 0.081, 0.185. The targets differ a little: what is too large to find a place
# shrinks, and what is under the smallest side grows. CONTENT_PROBABILITIES: one, two, three, four in a picture.
SHARE_PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SHARES = (0.0010, 0.0026, 0.0060, 0.025, 0.092, 0.20, 0.33)
CONTENT_PROBABILITIES = (0.679, 0.255, 0.063, 0.003)
COPY_PROBABILITIES = (0.72, 0.16, 0.07, 0.05)  # copies of one content; ours, the data set gives no such number

KIND_WEIGHTS = {"object": 0.40, "blob": 0.16, "ellipse": 0.10, "rectangle": 0.20, "polygon": 0.14, "panel": 1.2}
TRANSFORM_WEIGHTS = {"rotation": 0.4, "right-angle": 0.3, "scale": 0.35, "mirror": 0.35, "recolour": 0.4}
DEGRADATION_WEIGHTS = {"jpeg": 0.7, "noise": 0.3, "blur": 0.3, "resize": 0.4}
GRIDS = ((1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4))  # rows, columns of composed figures
GRID_WEIGHTS = (1, 1, 2, 3, 3, 3, 3, 2)

MIN_STRUCTURE = 6.0  # least standard deviation of the smoothed grey values of a content, of 255
MIN_TEXTURED = 0.25  # least share of a content where its grey values change by over 1.5 a pixel
MIN_DIFFERENCE = 4.0  # least mean change that a paste makes to the pixels it covers, of 255
MIN_LIKENESS = 0.6  # least correlation of a blended copy with its content
MIN_VISIBLE = 0.6  # least visible share of every source and copy in the end
PAD = 6  # context around a paste in pixels, which Poisson blending needs


@dataclass(frozen=True)
class Forgery:
    """A finished picture and its truth.

    image: (H, W, 3) uint8 RGB. masks: (K, H, W) bool, one per content: the visible pixels of its source and of
    all its copies; K = 0 for an authentic picture. record: JSON types; boxes are [x, y, width, height] and
    `affine` is 2 x 3, source pixel (x, y, 1) -> copy pixel, both in pixels of the finished picture.
    """

    image: np.ndarray
    masks: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """What a copy gets: mirrored left to right, turned clockwise, scaled, then contrast and brightness."""

    rotation: float = 0.0  # degrees, clockwise on the screen
    scale: float = 1.0
    mirrored: bool = False
    brightness: float = 0.0  # added, of 255
    contrast: float = 1.0  # factor about the content's mean

    def linear(self) -> np.ndarray:
        """(2, 2) float64 matrix; exact for multiples of 90 degrees."""
        angle = math.radians(self.rotation)
        cosine, sine = math.cos(angle), math.sin(angle)
        if self.rotation % 90 == 0:
            cosine, sine = round(cosine), round(sine)
        flip = -1.0 if self.mirrored else 1.0
        return self.scale * np.array([[flip * cosine, -sine], [flip * sine, cosine]], dtype=np.float64)


@dataclass
class _Picture:
    """The picture while it is worked on. `owner`: number of the source or copy that shows at a pixel, else 0."""

    pixels: np.ndarray  # (H, W, 3) uint8
    owner: np.ndarray  # (H, W) int16
    boxes: list[tuple[int, int, int, int]]  # x, y, width, height of the panels; the whole picture when not composed
    smallest: int  # limits of a region's side in pixels of this picture, before any resize
    largest: float
    sizes: list[int] = field(
        default_factory=lambda: [0]
    )  # pixels of every source and copy when it was made; [0] unused
    visible: list[int] = field(default_factory=lambda: [0])  # how many of them still show
    contents: list[dict[str, Any]] = field(default_factory=list)

    @property
    def composed(self) -> bool:
        return len(self.boxes) > 1

    def covered(self, x: int, y: int, mask: np.ndarray) -> np.ndarray:
        """Visible pixels of every source and copy that the mask, laid with its corner at x, y, would cover."""
        counts = np.bincount(self.owner[y : y + mask.shape[0], x : x + mask.shape[1]][mask], minlength=len(self.sizes))
        counts[0] = 0
        return counts

    def claim(self, x: int, y: int, mask: np.ndarray) -> None:
        """Enter a new source or copy, on top of all others."""
        self.visible = (np.array(self.visible) - self.covered(x, y, mask)).tolist()
        self.owner[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = len(self.sizes)
        self.sizes.append(int(mask.sum()))
        self.visible.append(self.sizes[-1])


@dataclass(frozen=True)
class _Source:
    kind: str
    box: tuple[int, int, int, int]
    mask: np.ndarray  # (height, width) bool within the box


@dataclass(frozen=True)
class _Cutout:
    """A source's pixels as they were before any of its copies, with context around."""

    pixels: np.ndarray  # (h, w, 3) uint8
    corner: tuple[int, int]  # x, y of its first pixel in the picture


def forge(
    image: np.ndarray,
    settings: SynthesisSettings,
    rng: np.random.Generator,
    forged: bool = True,
    panels: Sequence[np.ndarray] = (),
) -> Forgery:
    """Turn an authentic picture into a copy-move forgery; the same `rng` state gives the same forgery.

    image and panels: (H, W, 3) uint8 RGB. With `panel_probability` the picture becomes a composed figure made of
    pieces of `image` and `panels`, no piece used twice. With forged=False the same is done without any copy.
    A picture in which nothing can be copied so that it shows (all black, say) comes back with K = 0 and
    `record["forged"]` false. Raises ValueError for a picture that is too small or of another type, InputError
    for settings out of range.
    """
    _check_settings(settings)
    _check_pictures([image, *panels], settings)
    plan = _draw_degradation(settings, rng, image.shape)
    factor = plan["resize"] or 1.0
    smallest = math.ceil(settings.min_copy_pixels / factor) + (factor != 1.0)
    largest = math.inf if settings.max_copy_pixels is None else settings.max_copy_pixels / factor - (factor != 1.0)

    pixels, boxes, pieces = image.copy(), [(0, 0, image.shape[1], image.shape[0])], []
    if rng.random() < settings.panel_probability:
        composed = _compose([image, *panels], max(2 * smallest, 40), rng)
        if composed is not None:
            pixels, boxes, pieces = composed
    picture = _Picture(pixels, np.zeros(pixels.shape[:2], np.int16), boxes, smallest, largest)
    if forged:
        _add_contents(picture, settings, rng)
    if picture.composed:
        _annotate(picture, rng)
    return _finish(picture, plan, pieces, rng)


def _check_pictures(images: Sequence[np.ndarray], settings: SynthesisSettings) -> None:
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a picture is {image.dtype} of shape {image.shape}; it must be uint8 (H, W, 3)")
    height, width = images[0].shape[:2]
    least = max(MIN_SIDE, settings.min_copy_pixels + 2)
    if min(height, width) < least or max(height, width) < 2 * settings.min_copy_pixels:
        raise ValueError(
            f"the picture has {width} x {height} pixels, too small for two regions of {settings.min_copy_pixels} "
            f"pixels; it needs {least} in the one direction and {max(least, 2 * settings.min_copy_pixels)} in the other"
        )


def _check_settings(settings: SynthesisSettings) -> None:
    for name, known in (
        ("content_kinds", config.ContentKind),
        ("copy_transforms", config.CopyTransform),
        ("copy_blendings", config.CopyBlending),
        ("degradations", config.Degradation),
    ):
        unknown = set(getattr(settings, name)) - set(typing.get_args(known))
        if unknown:
            raise InputError(f"{name} has {sorted(unknown)}; known: {', '.join(typing.get_args(known))}")
    if not settings.content_kinds or not settings.copy_blendings:
        raise InputError("content_kinds and copy_blendings need at least one entry each")
    for name in ("transform_probability", "panel_probability", "degrade_probability"):
        if not 0 <= getattr(settings, name) <= 1:
            raise InputError(f"{name} is {getattr(settings, name)}; allowed: 0 to 1")
    for name, weights in (("max_contents", CONTENT_PROBABILITIES), ("max_copies", COPY_PROBABILITIES)):
        if not 1 <= getattr(settings, name) <= len(weights):
            raise InputError(f"{name} is {getattr(settings, name)}; allowed: 1 to {len(weights)}")
    lowest, highest = settings.min_copy_pixels, settings.max_copy_pixels
    if lowest < 4 or (highest is not None and highest < lowest):
        raise InputError(f"copies of {lowest} to {highest} pixels; min_copy_pixels must be at least 4, and the smaller")
    if not 0 < settings.min_scale <= settings.max_scale:
        raise InputError(f"scales {settings.min_scale} to {settings.max_scale}; they must be above 0 and in order")
    lowest, highest = settings.min_jpeg_quality, settings.max_jpeg_quality
    if not 1 <= lowest <= highest <= 100:
        raise InputError(f"JPEG qualities {lowest} to {highest}; allowed: 1 to 100, in order")


# ---------------------------------------------------------------- contents


def _add_contents(picture: _Picture, settings: SynthesisSettings, rng: np.random.Generator) -> None:
    """Copy 1 to max_contents contents; their area together follows SHARES."""
    count = 1 + _draw(CONTENT_PROBABILITIES[: settings.max_contents], rng)
    share = math.exp(np.interp(rng.random(), SHARE_PROBABILITIES, np.log(SHARES)))
    parts = rng.uniform(0.5, 1.5, count)
    total = share * picture.owner.size
    for area in total * parts / parts.sum():
        for attempt in range(ATTEMPTS):
            if _add_content(picture, settings, area, attempt / ATTEMPTS, rng):
                break


def _add_content(
    picture: _Picture, settings: SynthesisSettings, area: float, ease: float, rng: np.random.Generator
) -> bool:
    """Choose a source and paste its copies, all together of about `area` pixels.

    `ease`, 0 to 1, grows with the attempts: smaller regions, simpler shapes, less structure. Returns False, with the
    picture unchanged, if there is no such source or no copy finds a place.
    """
    kinds = [k for k in settings.content_kinds if k != "panel" or picture.composed]
    if ease > 0.2:
        kinds = [k for k in kinds if k not in ("object", "panel")] or kinds
    if not kinds:
        return False
    # Cells and bands are small: they seldom make up a large share of the picture.
    rare = min(1.0, 0.02 * picture.owner.size / area)
    kind = kinds[_draw([KIND_WEIGHTS[k] * (rare if k == "object" else 1) for k in kinds], rng)]
    copies = 1 + _draw(COPY_PROBABILITIES[: settings.max_copies], rng)
    changes = [_draw_change(settings, kind, rng) for _ in range(copies)]
    weight = 1 if ease < 0.7 else 0.5
    source = _find_source(picture, kind, area * 0.05**ease / (1 + sum(c.scale**2 for c in changes)), weight, rng)
    if source is None:
        return False
    cutout = _cut(picture.pixels, source.box, min(change.scale for change in changes))
    first = len(picture.sizes)
    picture.claim(*source.box[:2], source.mask)
    records = []
    for change in changes:
        blending = "hard" if kind == "panel" else settings.copy_blendings[rng.integers(len(settings.copy_blendings))]
        record = _add_copy(picture, source, cutout, change, blending, weight * MIN_DIFFERENCE, rng)
        if record is not None:
            records.append(record)
    if not records:
        picture.owner[picture.owner == first] = 0
        picture.sizes.pop()
        picture.visible.pop()
        return False
    origin = {"box": list(source.box), "size": list(source.box[2:])}
    numbers = list(range(first, len(picture.sizes)))
    picture.contents.append({"kind": kind, "source": origin, "copies": records, "numbers": numbers})
    return True


def _find_source(picture: _Picture, kind: str, area: float, weight: float, rng: np.random.Generator) -> _Source | None:
    """The most structured of a few free regions of about `area` pixels, or None. `weight` lowers what is asked for."""
    if kind == "object":
        candidates = _objects(picture, area, rng)
    elif kind == "panel":
        candidates = [_panel_part(picture, area, rng) for _ in range(2)]
    else:
        candidates = [_shape(picture, kind, area, rng) for _ in range(4)]
    best, best_structure = None, weight * MIN_STRUCTURE
    for source in candidates:
        x, y, width, height = source.box
        if min(width, height) < picture.smallest or max(width, height) > picture.largest:
            continue
        if picture.covered(x, y, source.mask).any():
            continue
        deviation, textured = _structure(picture.pixels[y : y + height, x : x + width], source.mask)
        if deviation > best_structure and textured > weight * MIN_TEXTURED:
            best, best_structure = source, deviation
    return best


def _structure(pixels: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the grey values inside the mask, and the share of it where they change.

    Both after smoothing, so that noise alone counts little.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), 1.2).astype(np.float32)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8))
    return float(grey[mask].std()), float((slope[mask] > 1.5).mean())


def _shape(picture: _Picture, kind: str, area: float, rng: np.random.Generator) -> _Source:
    """A geometric region of about `area` pixels at a random place of a random panel."""
    left, top, width, height = picture.boxes[rng.integers(len(picture.boxes))]
    outline = _outline(kind, rng)
    outline *= math.sqrt(area / max(cv2.contourArea(outline.astype(np.float32)), 1e-6))
    outline *= max(1.0, (picture.smallest + 1) / np.ptp(outline, axis=0).min())
    room = np.array([min(0.75 * width, picture.largest), min(0.75 * height, picture.largest)])
    outline *= min(1.0, *((np.maximum(room, picture.smallest + 1) - 1) / np.ptp(outline, axis=0)))
    mask = _fill(outline)
    x = left + int(rng.integers(max(0, width - mask.shape[1]) + 1))
    y = top + int(rng.integers(max(0, height - mask.shape[0]) + 1))
    return _Source(kind, (x, y, mask.shape[1], mask.shape[0]), mask)


def _outline(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(N, 2) float64 corners x, y of a closed outline of arbitrary size."""
    if kind == "rectangle":
        ratio = math.exp(rng.uniform(-0.9, 0.9))
        return np.array([[0, 0], [ratio, 0], [ratio, 1], [0, 1]], dtype=np.float64)
    if kind == "polygon":
        corners = int(rng.integers(4, 9))
        angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners
        radius = rng.uniform(0.5, 1.0, corners)
    else:
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        radius = np.ones_like(angles)
    if kind == "blob":
        for order in range(2, 7):
            radius += rng.uniform(0, 0.45 / order) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    points[:, 1] *= rng.uniform(0.5, 1.0)
    turn = rng.uniform(0, np.pi)
    return points @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])


def _fill(outline: np.ndarray) -> np.ndarray:
    """Filled outline as a (h, w) bool mask without empty borders."""
    points = outline - outline.min(axis=0)
    size = np.maximum(np.ceil(points.max(axis=0)).astype(int), 1) + 1
    mask = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return _tight(mask.astype(bool))[0]


def _tight(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Mask without its empty borders, and the x, y of what is left."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return mask[y : y + height, x : x + width], x, y


def _panel_part(picture: _Picture, area: float, rng: np.random.Generator) -> _Source:
    """A whole panel, or a rectangle of about `area` pixels in one of its corners, at least a twentieth of it."""
    left, top, width, height = picture.boxes[rng.integers(len(picture.boxes))]
    share = max(0.05, area / (width * height))
    w, h = width, height
    small = len(picture.boxes) >= 6  # so that two whole panels are no more than a third of the picture
    if share < 0.4 and not (small and rng.random() < 0.35):
        if rng.random() < 0.3:  # a strip over the whole height or width, as when two exposures overlap
            w, h = (int(width * share), height) if rng.random() < 0.5 else (width, int(height * share))
        else:
            stretch = math.exp(rng.uniform(-0.4, 0.4))
            w, h = int(width * math.sqrt(share) * stretch), int(height * math.sqrt(share) / stretch)
        w, h = min(width, max(w, picture.smallest)), min(height, max(h, picture.smallest))
    x = left + int(rng.integers(2)) * (width - w)
    y = top + int(rng.integers(2)) * (height - h)
    return _Source("panel", (x, y, w, h), np.ones((h, w), bool))


def _objects(picture: _Picture, area: float, rng: np.random.Generator) -> list[_Source]:
    """Cells, bands and the like of at most about `area` pixels, cut along their outline.

    Works in a window of at most 352 x 352 pixels, made coarser for large objects, so that the time is bounded.
    """
    left, top, width, height = picture.boxes[rng.integers(len(picture.boxes))]
    low = 1.2 * picture.smallest
    high = max(low, min(math.sqrt(area), 0.8 * picture.largest, 0.4 * min(width, height)))
    side = math.exp(math.log(low) + rng.random() ** 0.5 * math.log(high / low))
    coarse = max(1.0, side / 36)
    w, h = min(width, int(352 * coarse)), min(height, int(352 * coarse))
    x, y = left + int(rng.integers(width - w + 1)), top + int(rng.integers(height - h + 1))
    window = picture.pixels[y : y + h, x : x + w]
    if coarse > 1:
        window = cv2.resize(window, (round(w / coarse), round(h / coarse)), interpolation=cv2.INTER_AREA)
    zoom = np.array([w / window.shape[1], h / window.shape[0]])
    area = (side / coarse) ** 2
    limits = picture.smallest / coarse, picture.largest / coarse
    found = []
    for mask, corner in _outlined(_segment(window, area, even=rng.random() < 0.5), limits, area, rng):
        size = np.round(np.array(mask.shape[::-1]) * zoom).astype(int)
        mask, dx, dy = _tight(cv2.resize(mask * np.uint8(255), size.tolist(), interpolation=cv2.INTER_LINEAR) > 127)
        place = np.array([x + dx, y + dy]) + np.round(np.array(corner) * zoom).astype(int)
        if (place + mask.shape[::-1] <= (left + width, top + height)).all():
            found.append(_Source("object", (int(place[0]), int(place[1]), mask.shape[1], mask.shape[0]), mask))
    return found


def _segment(window: np.ndarray, area: float, even: bool) -> np.ndarray:
    """(h, w) int32 labels of the objects in a picture: 0 background, 1..n; Otsu threshold, then watershed.

    Holes under half the `area` of an object are filled. With `even` the illumination is made even first, which
    brings out faint objects beside bright ones.
    """
    from skimage.segmentation import watershed

    _, deviation = cv2.meanStdDev(window)
    smooth = cv2.GaussianBlur(window[..., int(deviation.argmax())], (0, 0), 1.0)
    if even:
        relative = smooth.astype(np.float32) - cv2.blur(smooth, (101, 101))
        bright = np.mean(relative**3) > 0  # the long tail of the values is the objects
        smooth = np.clip(4 * (relative if bright else -relative), 0, 255).astype(np.uint8)
    _, binary = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if binary.mean() > 127:  # objects are the smaller part, dark or bright
        binary = 255 - binary
    _, gaps, measures, _ = cv2.connectedComponentsWithStats(255 - binary)
    binary[measures[gaps, cv2.CC_STAT_AREA] < area / 2] = 255  # a pale centre belongs to the cell
    binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    distance = cv2.GaussianBlur(cv2.distanceTransform(binary, cv2.DIST_L2, 5), (0, 0), 1.5)
    peaks = (distance >= cv2.dilate(distance, np.ones((15, 15), np.uint8))) & (distance > 2)
    _, markers = cv2.connectedComponents(peaks.astype(np.uint8))
    return watershed(-distance, markers, mask=binary > 0)


def _outlined(
    labels: np.ndarray, limits: tuple[float, float], area: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Up to six compact objects, those nearest to `area` first: mask with the soft edge around it, and its corner.

    `limits`: smallest and largest side. Ragged objects, crowded ones and those cut by the border are left out.
    """
    from scipy.ndimage import find_objects

    count = np.bincount(labels.ravel())
    found = []
    for i, box in enumerate(find_objects(labels), start=1):
        if box is None or not area / 8 <= count[i] <= area * 3:
            continue
        sides = [s.stop - s.start + 4 for s in box]
        inside = all(s.start >= 3 and s.stop <= n - 3 for s, n in zip(box, labels.shape, strict=True))
        if inside and limits[0] <= min(sides) and max(sides) <= limits[1]:
            found.append((abs(math.log(count[i] / area)), i, box))
    near = sorted(found)[:16]
    objects = []
    for _, i, box in (near[k] for k in rng.permutation(len(near))):
        mask = np.pad(labels[box] == i, 3).astype(np.uint8)
        outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
        compact = cv2.contourArea(outline) > 0.85 * cv2.contourArea(cv2.convexHull(outline))
        mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
        around = labels[box[0].start - 3 : box[0].stop + 3, box[1].start - 3 : box[1].stop + 3][mask == 0]
        if compact and (around == 0).mean() > 0.7:
            objects.append((mask, (box[1].start - 3, box[0].start - 3)))
    return objects[:6]


# ---------------------------------------------------------------- copies


def _draw_change(settings: SynthesisSettings, kind: str, rng: np.random.Generator) -> Change:
    allowed = [t for t in settings.copy_transforms if kind != "panel" or t != "rotation"]
    if rng.random() >= settings.transform_probability or not allowed:
        return Change()
    chosen = {t for t in allowed if rng.random() < TRANSFORM_WEIGHTS[t]}
    chosen = chosen or {allowed[rng.integers(len(allowed))]}
    rotation = 0.0
    if "rotation" in chosen:
        rotation = float(np.round(rng.uniform(5, 355), 2))
    elif "right-angle" in chosen:
        rotation = float(rng.choice([90, 180, 270]))
    return Change(
        rotation=rotation,
        scale=float(np.exp(rng.uniform(*np.log([settings.min_scale, settings.max_scale]))))
        if "scale" in chosen
        else 1.0,
        mirrored="mirror" in chosen,
        brightness=float(np.round(rng.uniform(-25, 25), 2)) if "recolour" in chosen else 0.0,
        contrast=float(np.round(rng.uniform(0.8, 1.25), 3)) if "recolour" in chosen else 1.0,
    )


def _cut(pixels: np.ndarray, box: tuple[int, int, int, int], scale: float) -> _Cutout:
    """The box with as much context as copies down to `scale` can need."""
    x, y, width, height = box
    margin = math.ceil(1.5 * PAD / min(scale, 1.0)) + 2  # 1.5: a diagonal
    x0, y0 = max(0, x - margin), max(0, y - margin)
    return _Cutout(pixels[y0 : y + height + margin, x0 : x + width + margin].copy(), (x0, y0))


def _add_copy(
    picture: _Picture,
    source: _Source,
    cutout: _Cutout,
    change: Change,
    blending: str,
    difference: float,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """Paste one copy and return its record; None if it finds no place where it shows.

    It shows where it changes the pixels by `difference` in the mean and the blending leaves it like its source.
    """
    content, mask, affine = _warp(cutout, source, change)
    height, width = mask.shape
    if min(height, width) < picture.smallest or max(height, width) > picture.largest:
        return None
    for x, y in _places(picture, source.kind, content, mask, rng):
        pixels = _blend(picture.pixels, content, mask, x, y, blending)
        before = picture.pixels[y : y + height, x : x + width]
        old, new = before[mask].astype(np.float32), pixels[mask].astype(np.float32)
        if np.abs(new - old).mean() < difference:
            continue
        # Blending into a very different place can leave hardly anything of the content.
        if blending != "hard" and _likeness(new, content[PAD:-PAD, PAD:-PAD][mask]) < MIN_LIKENESS:
            continue
        before[mask] = pixels[mask]
        picture.claim(x, y, mask)
        affine[:, 2] += (x, y)
        record = {"affine": affine.tolist(), "box": [x, y, width, height], "size": [width, height]}
        return record | dataclasses.asdict(change) | {"blending": blending}
    return None


def _likeness(pixels: np.ndarray, content: np.ndarray) -> float:
    """Correlation of the grey values of two lists of colours (n, 3); 0 where one of them is flat."""
    a, b = pixels.mean(axis=1), content.mean(axis=1)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else 0.0


def _warp(cutout: _Cutout, source: _Source, change: Change) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transformed source.

    Returns its pixels (h + 2 PAD, w + 2 PAD, 3) uint8 with context around, its mask (h, w) bool, and the 2 x 3
    matrix from pixels of the picture to pixels of the mask. The translation is whole pixels wherever the rest of
    the matrix is, so that plain, mirrored and quarter-turned copies are identical to the bit.
    """
    x, y, width, height = source.box
    linear = change.linear()
    w, h = np.ceil(np.abs(linear) @ (width, height) - 1e-6).astype(int)
    centre = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    affine = np.column_stack([linear, np.array([(w - 1) / 2, (h - 1) / 2]) - linear @ centre])

    x0, y0 = cutout.corner
    shape = np.zeros(cutout.pixels.shape[:2], np.uint8)
    shape[y - y0 : y - y0 + height, x - x0 : x - x0 + width][source.mask] = 255
    local = affine.copy()
    local[:, 2] += linear @ cutout.corner + PAD
    size = (int(w) + 2 * PAD, int(h) + 2 * PAD)
    interpolation = cv2.INTER_LINEAR if change.scale < 1 else cv2.INTER_CUBIC
    content = cv2.warpAffine(cutout.pixels, local, size, flags=interpolation, borderMode=cv2.BORDER_REFLECT_101)
    mask = cv2.warpAffine(shape, local, size, flags=cv2.INTER_LINEAR)[PAD:-PAD, PAD:-PAD] > 127
    mask, dx, dy = _tight(mask)
    content = content[dy : dy + mask.shape[0] + 2 * PAD, dx : dx + mask.shape[1] + 2 * PAD]
    affine[:, 2] -= (dx, dy)
    if change.contrast != 1.0 or change.brightness != 0.0:
        mean = content[PAD:-PAD, PAD:-PAD][mask].mean()
        recoloured = (content.astype(np.float32) - mean) * change.contrast + mean + change.brightness
        content = np.clip(np.round(recoloured), 0, 255).astype(np.uint8)
    return content, mask, affine


def _places(
    picture: _Picture, kind: str, content: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Places x, y where the copy fits and covers no other region too much; those like its old surroundings first."""
    height, width = mask.shape
    wide = np.pad(mask, PAD).astype(np.uint8)
    rows, columns = np.nonzero(cv2.dilate(wide, np.ones((7, 7), np.uint8)) - wide)  # a ring three pixels wide
    step = 1 + len(rows) // 400
    rows, columns = rows[::step], columns[::step]
    home = content[rows, columns].astype(np.float32)
    enough = MIN_VISIBLE * np.array(picture.sizes)
    places = []
    for _ in range(24):
        left, top, box_width, box_height = picture.boxes[rng.integers(len(picture.boxes))]
        free_x, free_y = box_width - width, box_height - height
        if free_x < 0 or free_y < 0:
            continue
        if kind == "panel":  # flush with the panel's corner
            x, y = left + int(rng.integers(2)) * free_x, top + int(rng.integers(2)) * free_y
        else:
            x, y = left + int(rng.integers(free_x + 1)), top + int(rng.integers(free_y + 1))
        covered = picture.covered(x, y, mask)
        if covered.sum() > 0.1 * mask.sum() or (np.array(picture.visible) - covered < enough).any():
            continue
        ring = _surrounded(picture.pixels, x, y, width, height)[rows, columns].astype(np.float32)
        unlike = (
            np.abs(ring.mean(axis=0) - home.mean(axis=0)).mean() + np.abs(ring.std(axis=0) - home.std(axis=0)).mean()
        )
        places.append((float(unlike), x, y))
        if len(places) == (16 if kind == "object" else 4):
            break
    return [(x, y) for _, x, y in sorted(places)]


def _surrounded(pixels: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """The box with PAD pixels around it; beyond the picture's border it is mirrored."""
    total_height, total_width = pixels.shape[:2]
    x0, y0, x1, y1 = x - PAD, y - PAD, x + width + PAD, y + height + PAD
    patch = pixels[max(0, y0) : y1, max(0, x0) : x1]
    borders = (max(0, -y0), max(0, y1 - total_height), max(0, -x0), max(0, x1 - total_width))
    return cv2.copyMakeBorder(patch, *borders, cv2.BORDER_REFLECT_101) if any(borders) else patch


def _blend(pixels: np.ndarray, content: np.ndarray, mask: np.ndarray, x: int, y: int, blending: str) -> np.ndarray:
    """(h, w, 3) uint8: the box at x, y after the paste. Outside the mask it means nothing."""
    height, width = mask.shape
    inner = content[PAD:-PAD, PAD:-PAD]
    if blending == "hard":
        return inner
    if blending == "feathered":
        # The copy fades within its own outline, so that nothing outside the mask changes.
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        weight = np.clip(depth / (1 + max(1.5, min(height, width) / 12)), 0, 1)[..., None]
        before = pixels[y : y + height, x : x + width]
        return np.round(inner * weight + before * (1 - weight)).astype(np.uint8)
    # seamlessClone shrinks the mask by three pixels and keeps what is outside; it wants a border around the mask.
    target = _surrounded(pixels, x, y, width, height)
    grown = cv2.dilate(np.pad(mask, PAD).astype(np.uint8) * 255, np.ones((3, 3), np.uint8), iterations=3)
    left, top, grown_width, grown_height = cv2.boundingRect(grown)
    centre = (left + grown_width // 2, top + grown_height // 2)
    cloned = cv2.seamlessClone(
        np.ascontiguousarray(content), np.ascontiguousarray(target), grown, centre, cv2.NORMAL_CLONE
    )
    return cloned[PAD:-PAD, PAD:-PAD]


# ---------------------------------------------------------------- composed figures


def _compose(
    images: Sequence[np.ndarray], min_side: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[dict[str, Any]]] | None:
    """A figure of equal panels in a grid, about as large as the first picture.

    Every panel is a piece of one of the pictures; pieces never share a pixel, so that the figure has no copies.
    Returns pixels, the panels' boxes and where each came from; None if panels of `min_side` pixels do not fit.
    """
    height, width = images[0].shape[:2]
    room = min(height * width * rng.uniform(0.8, 1.6), 4e6)
    ratio = float(rng.choice([1.0, 1.0, 4 / 3, 3 / 4]))  # width to height of a panel
    for index in [_draw(GRID_WEIGHTS, rng), *range(len(GRIDS) - 1, -1, -1)]:
        rows, columns = GRIDS[index]
        pieces = _pieces(images, rows * columns, rng)
        # No more than 1.3 times finer than the pictures are: empty magnification is no figure.
        limit = min(min(w / ratio, h) for _, (_, _, w, h) in pieces) * 1.3
        cell_height = int(min(math.sqrt(room / (rows * columns) / ratio), limit))
        cell_width = int(cell_height * ratio)
        if min(cell_height, cell_width) >= min_side:
            break
    else:
        return None
    gap = int(rng.integers(2, max(3, cell_height // 12) + 1))
    canvas = np.full(
        (rows * (cell_height + gap) + gap, columns * (cell_width + gap) + gap, 3),
        255 if rng.random() < 0.8 else 0,
        np.uint8,
    )
    boxes, origins = [], []
    for (row, column), (number, piece) in zip(itertools.product(range(rows), range(columns)), pieces, strict=True):
        x, y = gap + column * (cell_width + gap), gap + row * (cell_height + gap)
        origin = _crop(piece, ratio, rng)
        left, top, w, h = origin
        cut = images[number][top : top + h, left : left + w]
        shrinks = w > cell_width
        canvas[y : y + cell_height, x : x + cell_width] = cv2.resize(
            cut, (cell_width, cell_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        boxes.append((x, y, cell_width, cell_height))
        origins.append({"box": list(boxes[-1]), "picture": number, "origin": list(origin)})
    return canvas, boxes, origins


def _pieces(
    images: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """`count` disjoint boxes over the pictures: always the largest one is halved."""
    pieces = [(i, (0, 0, image.shape[1], image.shape[0])) for i, image in enumerate(images[:count])]
    while len(pieces) < count:
        at = max(range(len(pieces)), key=lambda i: pieces[i][1][2] * pieces[i][1][3])
        number, (x, y, width, height) = pieces.pop(at)
        if width >= height:
            half = width // 2
            pieces += [(number, (x, y, half, height)), (number, (x + half, y, width - half, height))]
        else:
            half = height // 2
            pieces += [(number, (x, y, width, half)), (number, (x, y + half, width, height - half))]
    return [pieces[i] for i in rng.permutation(count)]


def _crop(piece: tuple[int, int, int, int], ratio: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of the given width to height somewhere in the piece."""
    x, y, width, height = piece
    h = min(height, width / ratio) * rng.uniform(0.8, 1.0)
    w, h = max(1, int(h * ratio)), max(1, int(h))
    return x + int(rng.integers(width - w + 1)), y + int(rng.integers(height - h + 1)), w, h


def _annotate(picture: _Picture, rng: np.random.Generator) -> None:
    """Letters, arrows and scale bars, as in published figures. What they cover is no longer visible.

    A mark that would hide too much of a source or copy is left out.
    """
    lettered, barred = rng.random() < 0.7, rng.random() < 0.5
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if rng.random() < 0.5 else "abcdefghijklmnopqrstuvwxyz"
    for letter, (x, y, width, height) in zip(letters, picture.boxes, strict=False):
        panel = picture.pixels[y : y + height, x : x + width]
        style = ((255,) * 3 if panel.mean() < 140 else (0,) * 3, max(1, min(width, height) // 80))  # colour, thickness
        unit = max(6, min(width, height) // 10)  # height of a letter in pixels
        marks = []
        if lettered:
            marks.append(partial(_draw_letter, letter=letter, unit=unit, style=style))
        if barred:
            marks.append(partial(_draw_bar, length=int(width * rng.uniform(0.15, 0.3)), unit=unit, style=style))
        for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.2 else 0):
            tip = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height)
            marks.append(partial(_draw_arrow, tip=tip, angle=rng.uniform(0, 2 * np.pi), unit=unit, style=style))
        for draw in marks:
            marked = panel.copy()
            draw(marked)
            changed = (marked != panel).any(axis=2)
            left = np.array(picture.visible) - picture.covered(x, y, changed)
            if (left >= MIN_VISIBLE * np.array(picture.sizes)).all():
                panel[changed] = marked[changed]
                picture.owner[y : y + height, x : x + width][changed] = 0
                picture.visible = left.tolist()


_Style = tuple[tuple[int, int, int], int]


def _draw_letter(panel: np.ndarray, letter: str, unit: int, style: _Style) -> None:
    at = (unit // 3, unit + unit // 3)
    cv2.putText(panel, letter, at, cv2.FONT_HERSHEY_SIMPLEX, unit / 22, style[0], style[1], cv2.LINE_AA)


def _draw_bar(panel: np.ndarray, length: int, unit: int, style: _Style) -> None:
    right, bottom = panel.shape[1] - unit // 2, panel.shape[0] - unit // 2
    cv2.rectangle(panel, (right - length, bottom - style[1]), (right, bottom), style[0], cv2.FILLED)


def _draw_arrow(panel: np.ndarray, tip: tuple[float, float], angle: float, unit: int, style: _Style) -> None:
    tail = (tip[0] + 1.5 * unit * math.cos(angle), tip[1] + 1.5 * unit * math.sin(angle))
    ends = [tuple(int(v) for v in point) for point in (tail, tip)]
    cv2.arrowedLine(panel, *ends, style[0], style[1], cv2.LINE_AA, tipLength=0.4)


# ---------------------------------------------------------------- the finished picture


def _draw_degradation(settings: SynthesisSettings, rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the finished picture goes through; None means not at all."""
    plan: dict[str, Any] = {"resize": None, "blur_sigma": None, "noise_sigma": None, "jpeg_quality": None}
    if rng.random() >= settings.degrade_probability or not settings.degradations:
        return plan
    chosen = {d for d in settings.degradations if rng.random() < DEGRADATION_WEIGHTS[d]}
    chosen = chosen or {settings.degradations[rng.integers(len(settings.degradations))]}
    if "resize" in chosen:
        # Two regions of the smallest size still fit into the picture before it shrinks.
        least = max(
            0.5, 2.5 * settings.min_copy_pixels / max(shape[:2]), 1.25 * settings.min_copy_pixels / min(shape[:2])
        )
        plan["resize"] = float(np.round(rng.uniform(min(least, 1.0), 1.5), 3))
    if "blur" in chosen:
        plan["blur_sigma"] = float(np.round(rng.uniform(0.4, 1.2), 2))
    if "noise" in chosen:
        plan["noise_sigma"] = float(np.round(rng.uniform(1, 6), 2))
    if "jpeg" in chosen:
        plan["jpeg_quality"] = int(rng.integers(settings.min_jpeg_quality, settings.max_jpeg_quality + 1))
    return plan


def _finish(picture: _Picture, plan: dict[str, Any], pieces: list[dict[str, Any]], rng: np.random.Generator) -> Forgery:
    """Degrade the picture, and bring masks, boxes and matrices to its final size."""
    height, width = picture.owner.shape
    size = (width, height)
    if plan["resize"] is not None:
        size = (max(1, round(width * plan["resize"])), max(1, round(height * plan["resize"])))
    image = _degrade(picture.pixels, size, plan, rng)
    owner = picture.owner
    if size != (width, height):
        owner = cv2.resize(owner, size, interpolation=cv2.INTER_NEAREST_EXACT)
    zoom = np.array([size[0] / width, size[1] / height])
    masks = np.zeros((len(picture.contents), size[1], size[0]), bool)
    contents = []
    for mask, content in zip(masks, picture.contents, strict=True):
        mask[:] = np.isin(owner, content["numbers"])
        contents.append(
            {
                "kind": content["kind"],
                "source": _resized(content["source"], zoom),
                "copies": [_resized(copy, zoom) for copy in content["copies"]],
            }
        )
    record = {
        "forged": bool(contents),
        "size": list(size),
        "contents": contents,
        "panels": [_resized(piece, zoom) for piece in pieces],
    }
    return Forgery(image, masks, record | plan)


def _resized(entry: dict[str, Any], zoom: np.ndarray) -> dict[str, Any]:
    """A record's box, size and matrix after the picture grew by `zoom` (x, y)."""
    scaled = dict(entry)
    for name in ("box", "size"):
        if name in entry:
            scaled[name] = [round(v) for v in np.array(entry[name]) * np.resize(zoom, len(entry[name]))]
    if "affine" in entry:
        # Pixel centres: x' = zoom (x + 1/2) - 1/2 on both sides of the map.
        to_final = np.array([[zoom[0], 0, zoom[0] / 2 - 0.5], [0, zoom[1], zoom[1] / 2 - 0.5], [0, 0, 1]])
        affine = np.vstack([entry["affine"], [0, 0, 1]])
        scaled["affine"] = (to_final @ affine @ np.linalg.inv(to_final))[:2].tolist()
    return scaled


def _degrade(pixels: np.ndarray, size: tuple[int, int], plan: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Resize, blur, noise and JPEG, in this order, as far as planned."""
    if size != (pixels.shape[1], pixels.shape[0]):
        shrinks = size[0] < pixels.shape[1]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if plan["blur_sigma"] is not None:
        pixels = cv2.GaussianBlur(pixels, (0, 0), plan["blur_sigma"])
    if plan["noise_sigma"] is not None:
        grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
        noise = rng.standard_normal((*pixels.shape[:2], 1 if grey else 3), np.float32) * np.float32(plan["noise_sigma"])
        pixels = np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
    if plan["jpeg_quality"] is not None:
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, plan["jpeg_quality"]])
        pixels = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return pixels


def _draw(weights: Sequence[float], rng: np.random.Generator) -> int:
    """Index drawn with probability proportional to its weight."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


# ---------------------------------------------------------------- a folder of forgeries

RUN_ONLY = ("authentic", "out", "workers", "resume")  # settings that do not change what is made
TRIES = 12  # authentic pictures tried for one forgery before the run stops


@dataclass(frozen=True)
class _Job:
    """One picture to write."""

    settings: SynthesizeSettings
    number: int
    groups: list[list[Path]]  # tried in this order; the first of each is the picture that is forged
    bases: list[str]  # name of each group

    @property
    def forged(self) -> bool:
        return self.number < self.settings.count

    @property
    def files(self) -> list[Path]:
        """Record, picture and, of a forgery, masks."""
        folder, name = self.settings.out / ("forged" if self.forged else "authentic"), f"{self.number:06d}"
        masks = [self.settings.out / "masks" / f"{name}.npy"] if self.forged else []
        return [folder / f"{name}.json", folder / f"{name}.png", *masks]

    @property
    def done(self) -> bool:
        """Whether the files are there. A power cut may leave empty ones."""
        return all(path.exists() and path.stat().st_size for path in self.files)


def group(paths: Sequence[Path], size: int) -> list[list[Path]]:
    """Cut the pictures into groups of at most `size` from one folder, in the order of their names.

    Neighbours in name are often frames of one series: they stay together, and so in one split.
    """
    groups = []
    for _, members in itertools.groupby(sorted(paths, key=lambda p: (p.parent, p.name)), key=lambda p: p.parent):
        members = list(members)
        groups += [members[i : i + size] for i in range(0, len(members), size)]
    return groups


def main(settings: SynthesizeSettings) -> None:
    """Write `count` forgeries and the authentic pictures beside them."""
    from tqdm import tqdm

    from dataset import find_pictures

    if settings.count < 1 or settings.workers < 1 or settings.group_size < 1:
        raise InputError("count, workers and group_size must be at least 1")
    paths = [picture.image for picture in find_pictures(settings.authentic) if picture.forged is False]
    if not paths:
        raise InputError(f"{settings.authentic} holds no authentic pictures; give the folder that does")
    _prepare(settings, paths)
    jobs = _jobs(settings, paths)
    left = [job for job in jobs if not job.done]
    left_out: set[str] = set()
    with tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="picture", desc="synthesis") as bar:
        for reasons in _map(_write, left, settings.workers):
            left_out.update(reasons)
            bar.update()
    print(f"{settings.count} forged and {len(jobs) - settings.count} authentic pictures in {settings.out}")
    for reason in sorted(left_out):
        print(f"left out: {reason}")


def _prepare(settings: SynthesizeSettings, paths: Sequence[Path]) -> None:
    """Make the folder, or check that the run in it can go on, which needs the same settings and pictures."""
    own = {name: value for name, value in config.to_dict(settings).items() if name not in RUN_ONLY}
    names = "\n".join(str(path.relative_to(settings.authentic)) for path in paths)
    now = {"settings": own, "pictures": hashlib.sha256(os.fsencode(names)).hexdigest()}
    saved = settings.out / "synthesis.json"
    if not settings.resume:
        if settings.out.exists() and any(settings.out.iterdir()):
            raise InputError(f"{settings.out} is not empty; go on with --resume, or give a new folder")
        config.write_json(saved, now)
        return
    if not saved.exists():
        raise InputError(f"--resume: there is no run in {settings.out} ({saved.name} is missing); start without it")
    if config.read_json(saved) != now:
        raise InputError(f"--resume with other settings or pictures than in {saved}; give the same, or another --out")
    for left in settings.out.glob("*/.*.tmp"):  # of a process that was killed
        left.unlink()


def _jobs(settings: SynthesizeSettings, paths: Sequence[Path]) -> list[_Job]:
    """Every authentic picture is used as often as every other one, in an order that the seed shuffles."""
    choices = []
    for members in group(paths, settings.group_size):
        base = "__".join(members[0].relative_to(settings.authentic).with_suffix("").parts)
        choices += [(base, [path, *(other for other in members if other != path)]) for path in members]
    order = np.random.default_rng(settings.seed).permutation(len(choices))
    authentic = settings.count if settings.authentic_count is None else settings.authentic_count
    jobs = []
    for number in range(settings.count + authentic):
        tried = [choices[order[(number + i) % len(order)]] for i in range(min(TRIES, len(order)))]
        jobs.append(_Job(settings, number, [members for _, members in tried], [base for base, _ in tried]))
    return jobs


def _map(function: Callable[[_Job], list[str]], jobs: Sequence[_Job], workers: int) -> Iterator[list[str]]:
    """Results of all jobs, in processes of their own when there is more than one worker."""
    if workers == 1:
        yield from map(function, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    follow_parent()


def _write(job: _Job) -> list[str]:
    """Make one picture and write its files; returns which authentic pictures were left out, and why."""
    settings, left_out = job.settings, []
    for attempt, (base, paths) in enumerate(zip(job.bases, job.groups, strict=True)):
        images = _read(paths, settings.skip_unreadable, left_out)
        if paths[0] not in images:
            continue
        rng = np.random.default_rng([settings.seed, job.number, attempt])
        names = [str(path.relative_to(settings.authentic)) for path in images]
        image, *panels = images.values()
        try:
            forgery = forge(image, settings.synthesis, rng, job.forged, panels)
        except InputError:
            raise
        except ValueError as fault:
            left_out.append(f"{paths[0]}: {fault}")
            continue
        if forgery.record["forged"] == job.forged:
            _save(forgery, job, {"base": base, "pictures": names})
            return left_out
    raise InputError(
        f"no picture to make number {job.number} of: {len(job.groups)} were tried, among them {job.groups[0][0]}; "
        f"give larger or more structured pictures, or allow more content_kinds. {'; '.join(left_out[:3])}"
    )


def _read(paths: Sequence[Path], skip_unreadable: bool, left_out: list[str]) -> dict[Path, np.ndarray]:
    from reading import read_image

    images = {}
    for path in paths:
        try:
            images[path] = read_image(path)
        except InputError as fault:
            if not skip_unreadable:
                raise InputError(f"{fault}. Remove it, or give --skip-unreadable") from None
            left_out.append(str(fault))
    return images


def _save(forgery: Forgery, job: _Job, origin: dict[str, Any]) -> None:
    record, picture, *masks = job.files
    _, data = cv2.imencode(".png", forgery.image[..., ::-1])
    text = json.dumps(forgery.record | origin, indent=2) + "\n"
    # Many small files: waiting for the disk would take longer than making them, and --resume makes empty ones again.
    config.write_whole(record, lambda path: path.write_text(text), lasting=False)
    config.write_whole(picture, lambda path: path.write_bytes(data), lasting=False)
    for path in masks:
        config.write_whole(path, lambda path: _save_array(path, forgery.masks), lasting=False)


def _save_array(path: Path, masks: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to a bare path
        np.save(file, masks.astype(np.uint8))


if __name__ == "__main__":
    config.run(main, SynthesizeSettings)
