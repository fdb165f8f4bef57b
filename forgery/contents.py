"""What is copied: a source region in an image."""

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

KIND_WEIGHTS = {"object": 0.40, "blob": 0.16, "ellipse": 0.10, "rectangle": 0.20, "polygon": 0.14, "panel": 1.2}


MIN_STRUCTURE = 6.0  # least standard deviation of the smoothed grey values of a content, of 255


MIN_VISIBLE = 0.6  # least visible share of every source and copy in the end
MIN_TEXTURED = 0.25  # least share of a content where its grey values change by over 1.5 a pixel


@dataclass
class Composition:
    """The image while it is worked on. `owner`: number of the source or copy that shows at a pixel, else 0."""

    pixels: np.ndarray  # (H, W, 3) uint8
    owner: np.ndarray  # (H, W) int16
    boxes: list[tuple[int, int, int, int]]  # x, y, width, height of the panels; the whole image when not composed
    smallest: int  # limits of a region's side in pixels of this image, before any resize
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
class Source:
    kind: str
    box: tuple[int, int, int, int]
    mask: np.ndarray  # (height, width) bool within the box


def find_source(
    composition: Composition, kind: str, area: float, weight: float, rng: np.random.Generator
) -> Source | None:
    """The most structured of a few free regions of about `area` pixels, or None. `weight` lowers what is asked for."""
    if kind == "object":
        candidates = _objects(composition, area, rng)
    elif kind == "panel":
        candidates = [_panel_part(composition, area, rng) for _ in range(2)]
    else:
        candidates = [_shape(composition, kind, area, rng) for _ in range(4)]
    best, best_structure = None, weight * MIN_STRUCTURE
    for source in candidates:
        x, y, width, height = source.box
        if min(width, height) < composition.smallest or max(width, height) > composition.largest:
            continue
        if composition.covered(x, y, source.mask).any():
            continue
        deviation, textured = _structure(composition.pixels[y : y + height, x : x + width], source.mask)
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


def _shape(composition: Composition, kind: str, area: float, rng: np.random.Generator) -> Source:
    """A geometric region of about `area` pixels at a random place of a random panel."""
    left, top, width, height = composition.boxes[rng.integers(len(composition.boxes))]
    outline = _outline(kind, rng)
    outline *= math.sqrt(area / max(cv2.contourArea(outline.astype(np.float32)), 1e-6))
    outline *= max(1.0, (composition.smallest + 1) / np.ptp(outline, axis=0).min())
    room = np.array([min(0.75 * width, composition.largest), min(0.75 * height, composition.largest)])
    outline *= min(1.0, *((np.maximum(room, composition.smallest + 1) - 1) / np.ptp(outline, axis=0)))
    mask = _fill(outline)
    x = left + int(rng.integers(max(0, width - mask.shape[1]) + 1))
    y = top + int(rng.integers(max(0, height - mask.shape[0]) + 1))
    return Source(kind, (x, y, mask.shape[1], mask.shape[0]), mask)


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
    return tight(mask.astype(bool))[0]


def tight(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Mask without its empty borders, and the x, y of what is left."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return mask[y : y + height, x : x + width], x, y


def _panel_part(composition: Composition, area: float, rng: np.random.Generator) -> Source:
    """A whole panel, or a rectangle of about `area` pixels in one of its corners, at least a twentieth of it."""
    left, top, width, height = composition.boxes[rng.integers(len(composition.boxes))]
    share = max(0.05, area / (width * height))
    w, h = width, height
    small = len(composition.boxes) >= 6  # so that two whole panels are no more than a third of the image
    if share < 0.4 and not (small and rng.random() < 0.35):
        if rng.random() < 0.3:  # a strip over the whole height or width, as when two exposures overlap
            w, h = (int(width * share), height) if rng.random() < 0.5 else (width, int(height * share))
        else:
            stretch = math.exp(rng.uniform(-0.4, 0.4))
            w, h = int(width * math.sqrt(share) * stretch), int(height * math.sqrt(share) / stretch)
        w, h = min(width, max(w, composition.smallest)), min(height, max(h, composition.smallest))
    x = left + int(rng.integers(2)) * (width - w)
    y = top + int(rng.integers(2)) * (height - h)
    return Source("panel", (x, y, w, h), np.ones((h, w), bool))


def _objects(composition: Composition, area: float, rng: np.random.Generator) -> list[Source]:
    """Cells, bands and the like of at most about `area` pixels, cut along their outline.

    Works in a window of at most 352 x 352 pixels, made coarser for large objects, so that the time is bounded.
    """
    left, top, width, height = composition.boxes[rng.integers(len(composition.boxes))]
    low = 1.2 * composition.smallest
    high = max(low, min(math.sqrt(area), 0.8 * composition.largest, 0.4 * min(width, height)))
    side = math.exp(math.log(low) + rng.random() ** 0.5 * math.log(high / low))
    coarse = max(1.0, side / 36)
    w, h = min(width, int(352 * coarse)), min(height, int(352 * coarse))
    x, y = left + int(rng.integers(width - w + 1)), top + int(rng.integers(height - h + 1))
    window = composition.pixels[y : y + h, x : x + w]
    if coarse > 1:
        window = cv2.resize(window, (round(w / coarse), round(h / coarse)), interpolation=cv2.INTER_AREA)
    zoom = np.array([w / window.shape[1], h / window.shape[0]])
    area = (side / coarse) ** 2
    limits = composition.smallest / coarse, composition.largest / coarse
    found = []
    for mask, corner in _outlined(_segment(window, area, even=rng.random() < 0.5), limits, area, rng):
        size = np.round(np.array(mask.shape[::-1]) * zoom).astype(int)
        mask, dx, dy = tight(cv2.resize(mask * np.uint8(255), size.tolist(), interpolation=cv2.INTER_LINEAR) > 127)
        place = np.array([x + dx, y + dy]) + np.round(np.array(corner) * zoom).astype(int)
        if (place + mask.shape[::-1] <= (left + width, top + height)).all():
            found.append(Source("object", (int(place[0]), int(place[1]), mask.shape[1], mask.shape[0]), mask))
    return found


def _segment(window: np.ndarray, area: float, even: bool) -> np.ndarray:
    """(h, w) int32 labels of the objects in an image: 0 background, 1..n; Otsu threshold, then watershed.

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
