"""What is copied: the choice of a source in an image."""

import math

import cv2
import numpy as np

from config import SynthesisSettings
from forgery.composition import Composition, Source
from forgery.draws import draw_index
from forgery.objects import find_objects
from forgery.shapes import draw_shape

KIND_WEIGHTS = {"object": 0.40, "blob": 0.16, "ellipse": 0.10, "rectangle": 0.20, "polygon": 0.14, "panel": 1.2}
OBJECT_SHARE = 0.02  # cells and bands are small: they seldom make up more than this share of an image
MIN_STRUCTURE = 6.0  # least standard deviation of the smoothed grey values of a content, of 255
MIN_TEXTURED = 0.25  # least share of a content where its grey values change by more than `MIN_SLOPE`
MIN_SLOPE = 1.5  # grey levels per pixel


def draw_kind(
    composition: Composition, settings: SynthesisSettings, area: float, simple: bool, rng: np.random.Generator
) -> str | None:
    """Kind of a content of about `area` pixels; None where no kind is possible.

    Panels are copied in composed figures only. With `simple` objects and panels are left out, if other kinds are
    allowed.
    """
    kinds = [kind for kind in settings.content_kinds if kind != "panel" or composition.composed]
    if simple:
        kinds = [kind for kind in kinds if kind not in ("object", "panel")] or kinds
    if not kinds:
        return None
    rare = min(1.0, OBJECT_SHARE * composition.owner.size / area)
    return kinds[draw_index([KIND_WEIGHTS[kind] * (rare if kind == "object" else 1) for kind in kinds], rng)]


def find_source(
    composition: Composition, kind: str, area: float, weight: float, rng: np.random.Generator
) -> Source | None:
    """The most structured of a few free regions of about `area` pixels, or None if all have too little structure.

    `weight`, 0 to 1, lowers the least structure that is required.
    """
    if kind == "object":
        candidates = find_objects(composition, area, rng)
    elif kind == "panel":
        candidates = [_draw_panel_part(composition, area, rng) for _ in range(2)]
    else:
        candidates = [draw_shape(composition, kind, area, rng) for _ in range(4)]
    best, best_structure = None, weight * MIN_STRUCTURE
    for source in candidates:
        x, y, width, height = source.box
        if min(width, height) < composition.smallest or max(width, height) > composition.largest:
            continue
        if composition.covered(x, y, source.mask).any():
            continue
        deviation, textured = _measure_structure(composition.pixels[y : y + height, x : x + width], source.mask)
        if deviation > best_structure and textured > weight * MIN_TEXTURED:
            best, best_structure = source, deviation
    return best


def _measure_structure(pixels: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the grey values inside the mask, and the share of the mask where they change.

    Both are measured after smoothing, so that noise alone counts little.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), 1.2).astype(np.float32)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8))
    return float(grey[mask].std()), float((slope[mask] > MIN_SLOPE).mean())


def _draw_panel_part(composition: Composition, area: float, rng: np.random.Generator) -> Source:
    """A whole panel, or a rectangle of about `area` pixels in one of its corners, at least a twentieth of it."""
    left, top, width, height = composition.boxes[rng.integers(len(composition.boxes))]
    share = max(0.05, area / (width * height))
    w, h = width, height
    many = len(composition.boxes) >= 6  # then two whole panels are at most a third of the image
    if share < 0.4 and not (many and rng.random() < 0.35):
        if rng.random() < 0.3:  # a strip over the whole height or width, as when two exposures overlap
            w, h = (int(width * share), height) if rng.random() < 0.5 else (width, int(height * share))
        else:
            stretch = math.exp(rng.uniform(-0.4, 0.4))
            w, h = int(width * math.sqrt(share) * stretch), int(height * math.sqrt(share) / stretch)
        w, h = min(width, max(w, composition.smallest)), min(height, max(h, composition.smallest))
    x = left + int(rng.integers(2)) * (width - w)
    y = top + int(rng.integers(2)) * (height - h)
    return Source("panel", (x, y, w, h), np.ones((h, w), bool))
