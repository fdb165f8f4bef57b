"""A copy of a source: changed, placed, blended in."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from config import SynthesisSettings
from forgery.contents import MIN_VISIBLE, Composition, Source, tight

TRANSFORM_WEIGHTS = {"rotation": 0.4, "right-angle": 0.3, "scale": 0.35, "mirror": 0.35, "recolour": 0.4}


MIN_DIFFERENCE = 4.0  # least mean change that a paste makes to the pixels it covers, of 255


MIN_LIKENESS = 0.6  # least correlation of a blended copy with its content


PAD = 6  # context around a paste in pixels, which Poisson blending needs


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


@dataclass(frozen=True)
class Cutout:
    """A source's pixels as they were before any of its copies, with context around."""

    pixels: np.ndarray  # (h, w, 3) uint8
    corner: tuple[int, int]  # x, y of its first pixel in the image


def draw_change(settings: SynthesisSettings, kind: str, rng: np.random.Generator) -> Change:
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


def cut_source(pixels: np.ndarray, box: tuple[int, int, int, int], scale: float) -> Cutout:
    """The box with as much context as copies down to `scale` can need."""
    x, y, width, height = box
    margin = math.ceil(1.5 * PAD / min(scale, 1.0)) + 2  # 1.5: a diagonal
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
    """Paste one copy and return its record; None if it finds no place where it shows.

    It shows where it changes the pixels by `difference` in the mean and the blending leaves it like its source.
    """
    content, mask, affine = _warp(cutout, source, change)
    height, width = mask.shape
    if min(height, width) < composition.smallest or max(height, width) > composition.largest:
        return None
    for x, y in _places(composition, source.kind, content, mask, rng):
        pixels = _blend(composition.pixels, content, mask, x, y, blending)
        before = composition.pixels[y : y + height, x : x + width]
        old, new = before[mask].astype(np.float32), pixels[mask].astype(np.float32)
        if np.abs(new - old).mean() < difference:
            continue
        # Blending into a very different place can leave hardly anything of the content.
        if blending != "hard" and _likeness(new, content[PAD:-PAD, PAD:-PAD][mask]) < MIN_LIKENESS:
            continue
        before[mask] = pixels[mask]
        composition.claim(x, y, mask)
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


def _warp(cutout: Cutout, source: Source, change: Change) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transformed source.

    Returns its pixels (h + 2 PAD, w + 2 PAD, 3) uint8 with context around, its mask (h, w) bool, and the 2 x 3
    matrix from pixels of the image to pixels of the mask. The translation is whole pixels wherever the rest of
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
    mask, dx, dy = tight(mask)
    content = content[dy : dy + mask.shape[0] + 2 * PAD, dx : dx + mask.shape[1] + 2 * PAD]
    affine[:, 2] -= (dx, dy)
    if change.contrast != 1.0 or change.brightness != 0.0:
        mean = content[PAD:-PAD, PAD:-PAD][mask].mean()
        recoloured = (content.astype(np.float32) - mean) * change.contrast + mean + change.brightness
        content = np.clip(np.round(recoloured), 0, 255).astype(np.uint8)
    return content, mask, affine


def _places(
    composition: Composition, kind: str, content: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Places x, y where the copy fits and covers no other region too much; those like its old surroundings first."""
    height, width = mask.shape
    wide = np.pad(mask, PAD).astype(np.uint8)
    rows, columns = np.nonzero(cv2.dilate(wide, np.ones((7, 7), np.uint8)) - wide)  # a ring three pixels wide
    step = 1 + len(rows) // 400
    rows, columns = rows[::step], columns[::step]
    home = content[rows, columns].astype(np.float32)
    enough = MIN_VISIBLE * np.array(composition.sizes)
    places = []
    for _ in range(24):
        left, top, box_width, box_height = composition.boxes[rng.integers(len(composition.boxes))]
        free_x, free_y = box_width - width, box_height - height
        if free_x < 0 or free_y < 0:
            continue
        if kind == "panel":  # flush with the panel's corner
            x, y = left + int(rng.integers(2)) * free_x, top + int(rng.integers(2)) * free_y
        else:
            x, y = left + int(rng.integers(free_x + 1)), top + int(rng.integers(free_y + 1))
        covered = composition.covered(x, y, mask)
        if covered.sum() > 0.1 * mask.sum() or (np.array(composition.visible) - covered < enough).any():
            continue
        ring = _surrounded(composition.pixels, x, y, width, height)[rows, columns].astype(np.float32)
        unlike = (
            np.abs(ring.mean(axis=0) - home.mean(axis=0)).mean() + np.abs(ring.std(axis=0) - home.std(axis=0)).mean()
        )
        places.append((float(unlike), x, y))
        if len(places) == (16 if kind == "object" else 4):
            break
    return [(x, y) for _, x, y in sorted(places)]


def _surrounded(pixels: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """The box with PAD pixels around it; beyond the image's border it is mirrored."""
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
