"""Points and objects around which patches are compared."""

from collections.abc import Sequence

import cv2
import numpy as np

SURROUND_SIGMA = 4.0  # surroundings that an extremum is compared with, standard deviation in pixels


def blob_points(
    grey: np.ndarray, sigmas: Sequence[float], limit: int, factor: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Extrema of the difference of Gaussians at each scale: points (n, 2) and radii (n,) = factor * sigma.

    They lie where the content puts them, so a copy has the same ones within half a pixel, also in smooth regions
    where SIFT finds no orientation. Of each scale the `limit` that stand out most from their surroundings: the
    strongest ones would all lie in the parts of an image that are rich in contrast.
    """
    points, radii = [], []
    for sigma in sigmas:
        response = cv2.GaussianBlur(grey, (0, 0), sigma) - cv2.GaussianBlur(grey, (0, 0), 1.6 * sigma)
        side = 2 * max(round(0.8 * sigma), 1) + 1
        square = np.ones((side, side), np.uint8)
        peak = (response == cv2.dilate(response, square)) & (response > 0.15)
        peak |= (response == cv2.erode(response, square)) & (response < -0.15)
        peak[:2], peak[-2:], peak[:, :2], peak[:, -2:] = False, False, False, False
        ys, xs = np.nonzero(peak)
        if len(ys) > limit:
            around = np.sqrt(cv2.GaussianBlur(response * response, (0, 0), SURROUND_SIGMA)) + 0.1
            clearest = np.argpartition(-np.abs(response / around)[ys, xs], limit)[:limit]
            ys, xs = ys[clearest], xs[clearest]
        points.append(np.stack([xs, ys], axis=1).astype(float))
        radii.append(np.full(len(xs), factor * sigma))
    return np.concatenate(points), np.concatenate(radii)


def object_points(grey: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2) and radii (n,) of what stands out from its surroundings, bright or dark, at several levels.

    The radius follows the object's area, so that a scaled copy gets a patch of its own scale.
    """
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    found = []
    for window in (31, 81):
        background = cv2.blur(smooth, (window, window))
        contrast = smooth - background
        spread = max(float(contrast.std()), 1.0)
        for sign in (1, -1):
            for level in (0.25, 0.8, 1.6):
                binary = (sign * contrast > level * spread).astype(np.uint8)
                binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
                _, _, stats, centres = cv2.connectedComponentsWithStats(binary, connectivity=4)
                area, w, h = stats[1:, 4], stats[1:, 2], stats[1:, 3]
                good = (area > 60) & (area < 6000) & (np.maximum(w, h) < 5 * np.minimum(w, h)) & (area > 0.3 * w * h)
                radius = np.sqrt(area[good] / np.pi)
                found.append(np.column_stack([centres[1:][good], 1.15 * radius + 2]))
    objects = np.concatenate(found)
    if len(objects) > limit:  # an even choice over the levels
        objects = objects[np.linspace(0, len(objects) - 1, limit).astype(int)]
    return objects[:, :2], objects[:, 2]
