"""Regions of geometric shape: rectangles, polygons, ellipses and blobs."""

import math

import cv2
import numpy as np

from forgery.composition import Composition, Source


def draw_shape(composition: Composition, kind: str, area: float, rng: np.random.Generator) -> Source:
    """A region of about `area` pixels at a random place of a random panel."""
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
    """(N, 2) float64 corners x, y of a closed outline of any size."""
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
    if kind == "blob":  # a circle whose radius is changed by a few waves
        for order in range(2, 7):
            radius += rng.uniform(0, 0.45 / order) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    points[:, 1] *= rng.uniform(0.5, 1.0)
    angle = rng.uniform(0, np.pi)
    return points @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _fill(outline: np.ndarray) -> np.ndarray:
    """The filled outline as a mask (h, w) bool without empty borders."""
    points = outline - outline.min(axis=0)
    size = np.maximum(np.ceil(points.max(axis=0)).astype(int), 1) + 1
    mask = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, shift=4)  # in sixteenths of a pixel
    return crop_to_mask(mask.astype(bool))[0]


def crop_to_mask(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The mask without its empty borders, and x, y of its new corner in the old one."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return mask[y : y + height, x : x + width], x, y
