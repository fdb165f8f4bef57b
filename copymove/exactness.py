"""Exactness: how much better a pair agrees at its place than two pixels beside it.

Copies that were pasted without resampling differ from their source by rounding and a smooth change of brightness only,
so their finest structure agrees at exactly one place, however weak it is.
"""

import cv2
import numba
import numpy as np

from copymove.geometry import Box, on_jpeg_grid
from copymove.image_features import ImageFeatures
from copymove.morphology import subsample_pixels

NEAR_EXACT = 1.3  # exactness from which a copy counts as identical but for shading and rounding
ROUNDING = 0.15  # squared grey levels by which rounding alone makes identical content differ
MIN_DISTINCT_RATIO = 2.2  # least ratio of the differences 2 px off and at the place; below it the exactness is 0
MIN_EXACT_PIXELS = 40  # least number of pixels that the exactness is computed from
MAX_FLAT_SHARE = 0.15  # of a region's pixels, whose 3 x 3 neighbourhood has one grey value: drawings have more
MAX_EQUAL_SHARE = 0.45  # of a region's pixels that equal the next one: compression leaves more
MAX_EQUAL_SHARE_ON_GRID = 0.25  # the same where the map takes JPEG's blocks of 8 x 8 pixels onto such blocks


@numba.njit(cache=True)
def pixel_exactness(
    high_pass: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray, max_residual_share: float = 1.0
) -> float:
    """Half the logarithm of the difference to the partner 2 px off its place over that at its place.

    A difference is the third quartile over the pixels of (source - gain * partner) squared, plus ROUNDING; 2 px off it
    is the smallest of the 16 places around.

    Args:
        high_pass: (H, W) float32, what is finer than FINE_SIGMA; NaN where it must not be compared.
        affine: (2, 3) float64, pixel (x, y, 1) -> partner pixel.
        xs, ys: (n,) int64, the pixels that are compared.
        max_residual_share: share of the pixels' squared structure that may differ at the place.
    Returns:
        The exactness; 0 where the map is not one of whole pixels and right angles, where fewer than MIN_EXACT_PIXELS
        can be compared, where too much differs, or where the ratio is under MIN_DISTINCT_RATIO.
    """
    linear, shift, found = _right_angle_map(affine, xs, ys)
    if not found:
        return 0.0
    own = np.empty(len(xs), np.float32)
    partner = np.empty(len(xs), np.float32)
    squares = np.empty(len(xs), np.float32)
    count, gain, power, residual = _pair_at(high_pass, linear, shift, xs, ys, own, partner)
    if count < MIN_EXACT_PIXELS or residual > max_residual_share * power:
        return 0.0
    third_quartile = (3 * count) // 4
    _squared_differences(own[:count], partner[:count], gain, squares)
    at_place = np.partition(squares[:count], third_quartile)[third_quartile] + ROUNDING
    beside = np.inf
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            if max(abs(dx), abs(dy)) < 2:
                continue
            moved = shift + np.array([dx, dy])
            count, gain, _, _ = _pair_at(high_pass, linear, moved, xs, ys, own, partner)
            if count < MIN_EXACT_PIXELS:
                return 0.0
            third_quartile = (3 * count) // 4
            _squared_differences(own[:count], partner[:count], gain, squares)
            # Counting is quicker than the quartile, and most pairs end here.
            small = 0
            for i in range(count):
                small += squares[i] + ROUNDING < MIN_DISTINCT_RATIO * at_place
            if small > third_quartile:
                return 0.0
            beside = min(beside, np.partition(squares[:count], third_quartile)[third_quartile] + ROUNDING)
    return max(0.5 * np.log(beside / at_place), 0.0)


@numba.njit(cache=True)
def _right_angle_map(affine: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Linear part (2, 2) and shift (2,) int64 of the map of whole pixels and right angles that this one is.

    And whether there is one: near these pixels, and not the identity.
    """
    n = len(xs)
    cx = 0.0
    cy = 0.0
    for i in range(n):
        cx += xs[i] / n
        cy += ys[i] / n
    linear = np.zeros((2, 2), np.int64)
    shift = np.zeros(2, np.int64)
    for r in range(2):
        for c in range(2):
            linear[r, c] = round(affine[r, c])
            if abs(affine[r, c] - linear[r, c]) > 0.05:
                return linear, shift, False
        moved = affine[r, 0] * cx + affine[r, 1] * cy + affine[r, 2] - linear[r, 0] * cx - linear[r, 1] * cy
        shift[r] = round(moved)
        if abs(moved - shift[r]) > 0.4:
            return linear, shift, False
    determinant = linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0]
    return linear, shift, abs(determinant) == 1 and max(abs(shift[0]), abs(shift[1])) >= 1


@numba.njit(cache=True)
def _pair_at(
    high_pass: np.ndarray,
    linear: np.ndarray,
    shift: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    own: np.ndarray,
    partner: np.ndarray,
) -> tuple[int, float, float, float]:
    """Fill `own` and `partner` with the values of the pixels that have both.

    Returns:
        How many there are, the least-squares gain of own ~ gain * partner (at least 0), the sum of the squares of
        `own`, and of it what the partner does not explain.
    """
    height, width = high_pass.shape
    count = 0
    power = product = partner_power = 0.0
    for i in range(len(xs)):
        px = linear[0, 0] * xs[i] + linear[0, 1] * ys[i] + shift[0]
        py = linear[1, 0] * xs[i] + linear[1, 1] * ys[i] + shift[1]
        if 0 <= px < width and 0 <= py < height:
            a, b = high_pass[ys[i], xs[i]], high_pass[py, px]
            if np.isnan(a) or np.isnan(b):
                continue
            own[count] = a
            partner[count] = b
            power += a * a
            product += a * b
            partner_power += b * b
            count += 1
    gain = max(product, 0.0) / max(partner_power, 1e-6)
    return count, gain, power, power - gain * product


@numba.njit(cache=True)
def _squared_differences(own: np.ndarray, partner: np.ndarray, gain: float, squares: np.ndarray) -> None:
    """Fill the beginning of `squares` with (own - gain * partner) squared."""
    for i in range(len(own)):
        squares[i] = (own[i] - gain * partner[i]) ** 2


def region_exactness(image_features: ImageFeatures, affine: np.ndarray, core: np.ndarray, box: Box) -> float:
    """Exactness over a region's inside `core` (h, w) bool in a window; see `pixel_exactness`.

    0 also where the region is flat, as drawings are, or has many equal neighbours, as strongly compressed areas have.
    """
    x0, y0, x1, y1 = box
    grey, square = image_features.grey[y0:y1, x0:x1], np.ones((3, 3), np.uint8)
    flat = cv2.dilate(grey, square) == cv2.erode(grey, square)
    equal = grey == np.roll(grey, 1, axis=1)
    ys, xs = np.nonzero(core)
    on_grid = on_jpeg_grid(affine, np.array([xs.mean() + x0, ys.mean() + y0]))
    max_equal = MAX_EQUAL_SHARE_ON_GRID if on_grid else MAX_EQUAL_SHARE
    if flat[core].mean() > MAX_FLAT_SHARE or equal[core].mean() > max_equal:
        return 0.0
    return float(pixel_exactness(image_features.high_pass, affine, *subsample_pixels(core, box)))
