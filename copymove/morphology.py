"""Operations on masks."""

import cv2
import numpy as np

from copymove.geometry import Box

MAX_POINTS = 1500  # pixels of a region that an alignment or an exactness is computed from


def erode_keeping(region: np.ndarray, min_pixels: int) -> np.ndarray:
    """Region (h, w) bool without its edge; the edge is at most 4 px wide and leaves at least `min_pixels`.

    The region itself where even an edge of 1 px is too much.
    """
    for size in (9, 7, 5, 3):
        inside = cv2.erode(region.astype(np.uint8), np.ones((size, size), np.uint8), borderValue=0) > 0
        if inside.sum() >= min_pixels:
            return inside
    return region


def close_with_disc(mask: np.ndarray, radius: int) -> np.ndarray:
    """Closing (h, w) bool of a mask (h, w) uint8 by a disc, as if there were nothing outside of the window."""
    # Two distance transforms take a tenth of the time of a morphology with so large a disc.
    padded = cv2.copyMakeBorder(1 - mask, *(radius + 1,) * 4, cv2.BORDER_CONSTANT, value=1)
    dilated = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < radius + 0.5
    closed = cv2.distanceTransform(dilated.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > radius + 0.5
    return closed[radius + 1 : -radius - 1, radius + 1 : -radius - 1]


def ellipse(size: int) -> np.ndarray:
    """Structuring element (size, size) uint8: a disc of that diameter in pixels."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def fill_holes(region: np.ndarray) -> np.ndarray:
    """Region (h, w) bool with its holes filled, but for those larger than a fifth of it.

    Flat parts of a copied content have no correlation of their own, and so leave holes.
    """
    background = (~region).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    x, y, w, h, area = stats.T
    inside = (x > 0) & (y > 0) & (x + w < region.shape[1]) & (y + h < region.shape[0])
    small = inside & (area < 0.2 * region.sum() + 20)
    small[0] = False  # the region itself
    return region | small[labels]


def component_with_most(labels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, int]:
    """The component (h, w) bool that has the most of the chosen pixels (h, w) bool, and how many of them it has.

    Args:
        labels: (h, w) int32 as cv2.connectedComponents makes them; 0 is the background and is never the answer.
    """
    votes = np.bincount(labels[chosen], minlength=1)
    votes[0] = 0
    return labels == votes.argmax(), int(votes.max())


def disc_in_window(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """Pixels (h, w) bool of a disc around (x, y), both in the window's coordinates."""
    ys, xs = np.ogrid[: shape[0], : shape[1]]
    return (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= radius**2


def subsample_pixels(region: np.ndarray, box: Box, max_pixels: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (n,) int64, in the image, of every k-th pixel of a region (h, w) bool.

    Args:
        box: the region's window in the image, (left, top, right, bottom).
        max_pixels: k is chosen so that there are fewer than twice this many.
    """
    ys, xs = np.nonzero(region)
    step = max(len(xs) // max_pixels, 1)
    return xs[::step] + box[0], ys[::step] + box[1]
