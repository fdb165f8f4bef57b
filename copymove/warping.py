"""The partner of a region, warped onto it."""

import cv2
import numpy as np

from copymove.geometry import Box, scale_factor
from copymove.image_features import LEVELS, ImageFeatures

MIN_SHIFT = 6  # pixels that a pixel's partner must be away from it


def aligned_pair(
    image_features: ImageFeatures, affine: np.ndarray, box: Box
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey values of a window and of its partner warped onto it.

    Args:
        affine: (2, 3), template pixel (x, y, 1) -> partner pixel.
        box: the template's window in the image, (left, top, right, bottom).
    Returns:
        Template and partner (h, w) float32, 0 to 255, and valid (h, w) bool: where the partner lies inside the image
        and MIN_SHIFT away, and both lie inside a panel.
    """
    x0, y0, x1, y1 = box
    partner = warp_to_template(image_features.scale_space[resolution_level(affine)], affine, box, cv2.INTER_CUBIC)
    xs, ys = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]
    a = affine.astype(np.float32)
    px = a[0, 0] * xs + a[0, 1] * ys + a[0, 2]
    py = a[1, 0] * xs + a[1, 1] * ys + a[1, 2]
    valid = (px >= 0) & (py >= 0) & (px <= image_features.shape[1] - 1) & (py <= image_features.shape[0] - 1)
    valid &= (px - xs) ** 2 + (py - ys) ** 2 > MIN_SHIFT**2
    if image_features.gutters is not None:
        partner_gutters = warp_to_template(image_features.gutters, affine, box, cv2.INTER_NEAREST)
        valid &= (image_features.gutters[y0:y1, x0:x1] | partner_gutters) == 0
    return image_features.grey[y0:y1, x0:x1], partner, valid


def informative_pair(image_features: ImageFeatures, affine: np.ndarray, box: Box) -> np.ndarray:
    """Where both a window and its partner hold informative structure, (h, w) bool; arguments as of `aligned_pair`."""
    x0, y0, x1, y1 = box
    partner = warp_to_template(image_features.informative, affine, box, cv2.INTER_NEAREST)
    return (image_features.informative[y0:y1, x0:x1] & partner) > 0


def fine_pair(image_features: ImageFeatures, affine: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Fine structure (h, w) float32 of a window and of its partner; arguments as of `aligned_pair`."""
    x0, y0, x1, y1 = box
    partner = image_features.fine[resolution_level(affine)]
    return image_features.fine[0, y0:y1, x0:x1], warp_to_template(partner, affine, box, cv2.INTER_CUBIC)


def resolution_level(affine: np.ndarray) -> int:
    """Index of the one of LEVELS that brings the partner to the template's resolution."""
    return int(np.argmin(np.abs(np.array(LEVELS) - scale_factor(affine))))


def warp_to_template(values: np.ndarray, affine: np.ndarray, box: Box, flags: int) -> np.ndarray:
    """Values (H, W) of an image at the partners of the window's pixels, (h, w).

    Args:
        flags: how OpenCV interpolates; beyond the border the last value is repeated.
    """
    shifted = affine.copy()
    shifted[:, 2] += affine[:, :2] @ (box[0], box[1])
    size = (box[2] - box[0], box[3] - box[1])
    return cv2.warpAffine(values, shifted, size, flags=flags | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
