"""The partner of a region, warped onto it."""

import cv2
import numpy as np

from copymove.geometry import scale_factor
from copymove.image_features import LEVELS, ImageFeatures


def aligned_pair(
    canvas: ImageFeatures, affine: np.ndarray, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Template and aligned partner (h, w) float32 in the window, and where both lie inside a panel of the image."""
    x0, y0, x1, y1 = box
    partner = warp_to_template(canvas.levels[resolution_level(affine)], affine, box, cv2.INTER_CUBIC)
    xs, ys = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]
    a = affine.astype(np.float32)
    px = a[0, 0] * xs + a[0, 1] * ys + a[0, 2]
    py = a[1, 0] * xs + a[1, 1] * ys + a[1, 2]
    valid = (px >= 0) & (py >= 0) & (px <= canvas.shape[1] - 1) & (py <= canvas.shape[0] - 1)
    # A pixel that maps next to itself is no copy.
    valid &= (px - xs) ** 2 + (py - ys) ** 2 > 6**2
    if canvas.gutters is not None:
        there = warp_to_template(canvas.gutters, affine, box, cv2.INTER_NEAREST)
        valid &= (canvas.gutters[y0:y1, x0:x1] | there) == 0
    return canvas.grey[y0:y1, x0:x1], partner, valid


def resolution_level(affine: np.ndarray) -> int:
    """Which of LEVELS brings the partner to the template's resolution."""
    return int(np.argmin(np.abs(np.array(LEVELS) - scale_factor(affine))))


def warp_to_template(values: np.ndarray, affine: np.ndarray, box: tuple[int, ...], flags: int) -> np.ndarray:
    """Values (H, W) at the partner's places of the template's window."""
    shifted = affine.copy()
    shifted[:, 2] += affine[:, :2] @ (box[0], box[1])
    size = (box[2] - box[0], box[3] - box[1])
    return cv2.warpAffine(values, shifted, size, flags=flags | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
