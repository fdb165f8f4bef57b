"""Paste a copy of a source: warp it, find a place for it, blend it in."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from forgery.changes import Change
from forgery.composition import Box, Composition, Source
from forgery.shapes import crop_to_mask

MIN_DIFFERENCE = 4.0  # least mean change that a paste makes to the pixels it covers, of 255
MIN_CORRELATION = 0.6  # least correlation of a blended copy with its content
MAX_COVERED = 0.1  # largest share of a copy that may lie on other sources and copies
MARGIN = 6  # pixels of context around a paste, which Poisson blending needs


@dataclass(frozen=True)
class Cutout:
    """A source's pixels, with context around it, as they were before any of its copies were pasted."""

    pixels: np.ndarray  # (h, w, 3) uint8
    corner: tuple[int, int]  # x, y of its first pixel in the image


def cut_source(pixels: np.ndarray, box: Box, scale: float) -> Cutout:
    """The box with as much context as copies that are scaled down to `scale` can need."""
    x, y, width, height = box
    margin = math.ceil(1.5 * MARGIN / min(scale, 1.0)) + 2  # 1.5: the diagonal of a square, rounded up
    x0, y0 = max(0, x - margin), max(0, y - margin)
    return Cutout(pixels[y0 : y + height + margin, x0 : x + width + margin].copy(), (x0, y0))


def add_copy(
    composition: Composition,
    source: Source,
    cutout: Cutout,
    change: Change,
    blending: str,
    difference: float,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """Paste one copy and return its record; None if there is no place where it shows.

    It shows where it changes the pixels by `difference` (of 255) in the mean and where the blending leaves it similar
    to its source. The record: `affine`, 2 x 3, from pixels x, y of the source to those of the copy; `box` x, y, width,
    height; `size` width, height; the fields of `Change`; `blending`.
    """
    content, mask, affine = _warp(cutout, source, change)
    height, width = mask.shape
    if min(height, width) < composition.smallest or max(height, width) > composition.largest:
        return None
    for x, y in _find_places(composition, source.kind, content, mask, rng):
        pixels = blend(composition.pixels, content, mask, x, y, blending)
        before = composition.pixels[y : y + height, x : x + width]
        old, new = before[mask].astype(np.float32), pixels[mask].astype(np.float32)
        if np.abs(new - old).mean() < difference:
            continue
        # Blending into very different surroundings can leave hardly anything of the content.
        if blending != "hard" and _correlation(new, content[MARGIN:-MARGIN, MARGIN:-MARGIN][mask]) < MIN_CORRELATION:
            continue
        before[mask] = pixels[mask]
        composition.add_region(x, y, mask)
        affine[:, 2] += (x, y)
        record = {"affine": affine.tolist(), "box": [x, y, width, height], "size": [width, height]}
        return record | dataclasses.asdict(change) | {"blending": blending}
    return None


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of the grey values of two lists of colours (n, 3); 0 where one of them is constant."""
    a, b = a.mean(axis=1), b.mean(axis=1)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else 0.0


def _warp(cutout: Cutout, source: Source, change: Change) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The changed source.

    Returns its pixels (h + 2 MARGIN, w + 2 MARGIN, 3) uint8 with context around, its mask (h, w) bool, and the 2 x 3
    matrix from pixels of the image to pixels of the mask. Its translation is a whole number of pixels wherever the
    rest of the matrix consists of whole numbers, so that copies that are unchanged, mirrored or rotated by right
    angles are identical to the bit.
    """
    x, y, width, height = source.box
    linear = change.linear()
    w, h = np.ceil(np.abs(linear) @ (width, height) - 1e-6).astype(int)
    centre = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    affine = np.column_stack([linear, np.array([(w - 1) / 2, (h - 1) / 2]) - linear @ centre])

    x0, y0 = cutout.corner
    shape = np.zeros(cutout.pixels.shape[:2], np.uint8)
    shape[y - y0 : y - y0 + height, x - x0 : x - x0 + width][source.mask] = 255
    from_cutout = affine.copy()
    from_cutout[:, 2] += linear @ cutout.corner + MARGIN
    size = (int(w) + 2 * MARGIN, int(h) + 2 * MARGIN)
    interpolation = cv2.INTER_LINEAR if change.scale < 1 else cv2.INTER_CUBIC
    content = cv2.warpAffine(cutout.pixels, from_cutout, size, flags=interpolation, borderMode=cv2.BORDER_REFLECT_101)
    mask = cv2.warpAffine(shape, from_cutout, size, flags=cv2.INTER_LINEAR)[MARGIN:-MARGIN, MARGIN:-MARGIN] > 127
    mask, dx, dy = crop_to_mask(mask)
    content = content[dy : dy + mask.shape[0] + 2 * MARGIN, dx : dx + mask.shape[1] + 2 * MARGIN]
    affine[:, 2] -= (dx, dy)
    return change.recolour(content, content[MARGIN:-MARGIN, MARGIN:-MARGIN][mask]), mask, affine


def _find_places(
    composition: Composition, kind: str, content: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Places x, y where the copy fits and does not cover too much of other regions.

    They are sorted by how similar their surroundings are to those of the source, the most similar first.
    """
    height, width = mask.shape
    wide = np.pad(mask, MARGIN).astype(np.uint8)
    rows, columns = np.nonzero(cv2.dilate(wide, np.ones((7, 7), np.uint8)) - wide)  # a ring three pixels wide
    step = 1 + len(rows) // 400
    rows, columns = rows[::step], columns[::step]
    home = content[rows, columns].astype(np.float32)
    places = []
    for _ in range(24):
        left, top, box_width, box_height = composition.boxes[rng.integers(len(composition.boxes))]
        free_x, free_y = box_width - width, box_height - height
        if free_x < 0 or free_y < 0:
            continue
        if kind == "panel":  # in a corner of the panel
            x, y = left + int(rng.integers(2)) * free_x, top + int(rng.integers(2)) * free_y
        else:
            x, y = left + int(rng.integers(free_x + 1)), top + int(rng.integers(free_y + 1))
        covered = composition.covered(x, y, mask)
        if covered.sum() > MAX_COVERED * mask.sum() or not composition.may_cover(covered):
            continue
        ring = _with_margin(composition.pixels, x, y, width, height)[rows, columns].astype(np.float32)
        mean_difference = np.abs(ring.mean(axis=0) - home.mean(axis=0)).mean()
        deviation_difference = np.abs(ring.std(axis=0) - home.std(axis=0)).mean()
        places.append((float(mean_difference + deviation_difference), x, y))
        if len(places) == (16 if kind == "object" else 4):
            break
    return [(x, y) for _, x, y in sorted(places)]


def _with_margin(pixels: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """The box with `MARGIN` pixels around it; beyond the border of the image its mirror image."""
    total_height, total_width = pixels.shape[:2]
    x0, y0, x1, y1 = x - MARGIN, y - MARGIN, x + width + MARGIN, y + height + MARGIN
    patch = pixels[max(0, y0) : y1, max(0, x0) : x1]
    borders = (max(0, -y0), max(0, y1 - total_height), max(0, -x0), max(0, x1 - total_width))
    return cv2.copyMakeBorder(patch, *borders, cv2.BORDER_REFLECT_101) if any(borders) else patch


def blend(pixels: np.ndarray, content: np.ndarray, mask: np.ndarray, x: int, y: int, blending: str) -> np.ndarray:
    """The pixels of an image after a paste, within the mask's box.

    Args:
        pixels: (H, W, 3) uint8, the image; it is not changed.
        content: (h + 2 MARGIN, w + 2 MARGIN, 3) uint8, what is pasted, with context around.
        mask: (h, w) bool.
        x, y: corner of the mask in the image.
        blending: "hard", "feathered", or "poisson" (Perez, Gangnet and Blake 2003).
    Returns:
        (h, w, 3) uint8. What it holds outside of the mask is not to be used.
    """
    height, width = mask.shape
    inner = content[MARGIN:-MARGIN, MARGIN:-MARGIN]
    if blending == "hard":
        return inner
    if blending == "feathered":
        # The copy fades within its own outline, so that nothing outside of the mask changes.
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        weight = np.clip(depth / (1 + max(1.5, min(height, width) / 12)), 0, 1)[..., None]
        before = pixels[y : y + height, x : x + width]
        return np.round(inner * weight + before * (1 - weight)).astype(np.uint8)
    # seamlessClone shrinks the mask by three pixels and keeps what is outside; it needs a border around the mask.
    target = _with_margin(pixels, x, y, width, height)
    grown = cv2.dilate(np.pad(mask, MARGIN).astype(np.uint8) * 255, np.ones((3, 3), np.uint8), iterations=3)
    left, top, grown_width, grown_height = cv2.boundingRect(grown)
    centre = (left + grown_width // 2, top + grown_height // 2)
    cloned = cv2.seamlessClone(
        np.ascontiguousarray(content), np.ascontiguousarray(target), grown, centre, cv2.NORMAL_CLONE
    )
    return cloned[MARGIN:-MARGIN, MARGIN:-MARGIN]
