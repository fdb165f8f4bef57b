"""Regions that are objects of the image: cells, bands and the like, cut along their outline."""

import math

import cv2
import numpy as np
from scipy.ndimage import find_objects as find_label_boxes
from skimage.segmentation import watershed

from forgery.composition import Composition, Source
from forgery.shapes import crop_to_mask

WINDOW = 352  # side of the window that is searched, in pixels after it was made coarser
OBJECT_SIDE = 36  # a window with larger objects than this is made coarser until they are as large, in pixels
BORDER = 3  # pixels around an object: its soft edge, and room to dilate its mask


def find_objects(composition: Composition, area: float, rng: np.random.Generator) -> list[Source]:
    """Up to six objects of a random size of at most about `area` pixels.

    They are searched in a window of limited size, which is made coarser for large objects, so that the time is
    bounded.
    """
    left, top, width, height = composition.boxes[rng.integers(len(composition.boxes))]
    low = 1.2 * composition.smallest
    high = max(low, min(math.sqrt(area), 0.8 * composition.largest, 0.4 * min(width, height)))
    side = math.exp(math.log(low) + rng.random() ** 0.5 * math.log(high / low))
    coarse = max(1.0, side / OBJECT_SIDE)
    w, h = min(width, int(WINDOW * coarse)), min(height, int(WINDOW * coarse))
    x, y = left + int(rng.integers(width - w + 1)), top + int(rng.integers(height - h + 1))
    window = composition.pixels[y : y + h, x : x + w]
    if coarse > 1:
        window = cv2.resize(window, (round(w / coarse), round(h / coarse)), interpolation=cv2.INTER_AREA)
    zoom = np.array([w / window.shape[1], h / window.shape[0]])
    area = (side / coarse) ** 2
    limits = composition.smallest / coarse, composition.largest / coarse
    labels = _segment(window, area, even=rng.random() < 0.5)
    found = []
    for mask, corner in _compact_objects(labels, limits, area, rng):
        size = np.round(np.array(mask.shape[::-1]) * zoom).astype(int)
        full = cv2.resize(mask * np.uint8(255), size.tolist(), interpolation=cv2.INTER_LINEAR) > 127
        full, dx, dy = crop_to_mask(full)
        place = np.array([x + dx, y + dy]) + np.round(np.array(corner) * zoom).astype(int)
        if (place + full.shape[::-1] <= (left + width, top + height)).all():
            found.append(Source("object", (int(place[0]), int(place[1]), full.shape[1], full.shape[0]), full))
    return found


def _segment(window: np.ndarray, area: float, even: bool) -> np.ndarray:
    """(h, w) int32 labels of the objects in an image, 0 background, 1..n, by Otsu's threshold and a watershed.

    Holes under half the `area` of an object are filled. With `even` the illumination is made even first, which
    brings out faint objects beside bright ones.
    """
    _, deviation = cv2.meanStdDev(window)
    smooth = cv2.GaussianBlur(window[..., int(deviation.argmax())], (0, 0), 1.0)
    if even:
        relative = smooth.astype(np.float32) - cv2.blur(smooth, (101, 101))
        bright = np.mean(relative**3) > 0  # the objects are the long tail of the values
        smooth = np.clip(4 * (relative if bright else -relative), 0, 255).astype(np.uint8)
    _, binary = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if binary.mean() > 127:  # objects, dark or bright, are the smaller part
        binary = 255 - binary
    _, gaps, measures, _ = cv2.connectedComponentsWithStats(255 - binary)
    binary[measures[gaps, cv2.CC_STAT_AREA] < area / 2] = 255  # the pale centre of a cell belongs to the cell
    binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    distance = cv2.GaussianBlur(cv2.distanceTransform(binary, cv2.DIST_L2, 5), (0, 0), 1.5)
    peaks = (distance >= cv2.dilate(distance, np.ones((15, 15), np.uint8))) & (distance > 2)
    _, markers = cv2.connectedComponents(peaks.astype(np.uint8))
    return watershed(-distance, markers, mask=binary > 0)


def _compact_objects(
    labels: np.ndarray, limits: tuple[float, float], area: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Up to six objects of about `area` pixels: masks (h, w) uint8 that include the soft edge, and their corners x, y.

    Objects that are ragged, crowded or cut by the border of the window are left out.

    Args:
        limits: smallest and largest side.
    """
    count = np.bincount(labels.ravel())
    found = []
    for i, box in enumerate(find_label_boxes(labels), start=1):
        if box is None or not area / 8 <= count[i] <= area * 3:
            continue
        sides = [s.stop - s.start + 4 for s in box]
        inside = all(s.start >= BORDER and s.stop <= n - BORDER for s, n in zip(box, labels.shape, strict=True))
        if inside and limits[0] <= min(sides) and max(sides) <= limits[1]:
            found.append((abs(math.log(count[i] / area)), i, box))
    nearest = sorted(found)[:16]
    objects = []
    for _, i, box in (nearest[k] for k in rng.permutation(len(nearest))):
        mask = np.pad(labels[box] == i, BORDER).astype(np.uint8)
        outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
        compact = cv2.contourArea(outline) > 0.85 * cv2.contourArea(cv2.convexHull(outline))
        mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
        y, x = (s.start - BORDER for s in box)
        surroundings = labels[y : y + mask.shape[0], x : x + mask.shape[1]][mask == 0]
        if compact and (surroundings == 0).mean() > 0.7:
            objects.append((mask, (x, y)))
    return objects[:6]
