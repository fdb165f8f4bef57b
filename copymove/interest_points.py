"""The points and objects around which patches are compared."""

from collections.abc import Sequence

import cv2
import numpy as np

SURROUND_SIGMA = 4.0  # standard deviation in pixels of the window that an extremum is compared with
MIN_RESPONSE = 0.15  # least strength of an extremum in grey levels
OBJECT_WINDOWS = (31, 81)  # sides in pixels of the windows whose mean is an object's background
OBJECT_LEVELS = (0.25, 0.8, 1.6)  # contrast that an object needs, in standard deviations of the contrast
OBJECT_AREA = (60, 6000)  # pixels that an object has: more than the first, fewer than the second


def blob_points(
    grey: np.ndarray, sigmas: Sequence[float], limit: int, factor: float = 6.0, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Extrema of the difference of Gaussians at several scales.

    Their places depend on the content alone, so a copy has the same ones within half a pixel, also in smooth regions
    where SIFT finds no orientation.

    Args:
        grey: (H, W) float32, 0 to 255.
        sigmas: scales in pixels.
        limit: most extrema of each scale: those that stand out most from their surroundings. The strongest ones would
            all lie in the parts of an image that are rich in contrast.
        factor: radius over sigma.
        mask: (H, W) bool where extrema count; everywhere when None.
    Returns:
        Points (n, 2) float64 (x, y) and radii (n,) float64 in pixels.
    """
    points, radii = [], []
    for sigma in sigmas:
        response = cv2.GaussianBlur(grey, (0, 0), sigma) - cv2.GaussianBlur(grey, (0, 0), 1.6 * sigma)
        side = 2 * max(round(0.8 * sigma), 1) + 1
        square = np.ones((side, side), np.uint8)
        peak = (response == cv2.dilate(response, square)) & (response > MIN_RESPONSE)
        peak |= (response == cv2.erode(response, square)) & (response < -MIN_RESPONSE)
        peak[:2], peak[-2:], peak[:, :2], peak[:, -2:] = False, False, False, False
        if mask is not None:
            peak &= mask
        ys, xs = np.nonzero(peak)
        if len(ys) > limit:
            usual = np.sqrt(cv2.GaussianBlur(response * response, (0, 0), SURROUND_SIGMA)) + 0.1
            clearest = np.argpartition(-np.abs(response / usual)[ys, xs], limit)[:limit]
            ys, xs = ys[clearest], xs[clearest]
        points.append(np.stack([xs, ys], axis=1).astype(float))
        radii.append(np.full(len(xs), factor * sigma))
    return np.concatenate(points), np.concatenate(radii)


def object_points(grey: np.ndarray, limit: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Objects that are brighter or darker than their background, at several levels of contrast.

    Args:
        grey: (H, W) float32, 0 to 255.
        limit: most objects, evenly chosen over the levels.
        mask: (H, W) bool where the centres of objects count; everywhere when None.
    Returns:
        Centres (n, 2) float64 (x, y) and radii (n,) float64 in pixels. The radius follows the object's area, so that a
        scaled copy gets a patch of its own scale.
    """
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    found = []
    for window in OBJECT_WINDOWS:
        background = cv2.blur(smooth, (window, window))
        contrast = smooth - background
        spread = max(float(contrast.std()), 1.0)
        for sign in (1, -1):
            for level in OBJECT_LEVELS:
                binary = (sign * contrast > level * spread).astype(np.uint8)
                binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
                _, _, stats, centres = cv2.connectedComponentsWithStats(binary, connectivity=4)
                area, w, h = stats[1:, 4], stats[1:, 2], stats[1:, 3]
                good = (area > OBJECT_AREA[0]) & (area < OBJECT_AREA[1])
                good &= (np.maximum(w, h) < 5 * np.minimum(w, h)) & (area > 0.3 * w * h)
                radius = np.sqrt(area[good] / np.pi)
                found.append(np.column_stack([centres[1:][good], 1.15 * radius + 2]))
    objects = np.concatenate(found)
    if mask is not None:
        x, y = objects[:, :2].astype(int).T
        objects = objects[mask[y, x]]
    if len(objects) > limit:
        objects = objects[np.linspace(0, len(objects) - 1, limit).astype(int)]
    return objects[:, :2], objects[:, 2]
