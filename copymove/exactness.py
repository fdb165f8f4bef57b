"""How nearly identical a pair is at its place: copies pasted without resampling differ by rounding only."""

import cv2
import numba
import numpy as np

from copymove.geometry import on_jpeg_grid
from copymove.image_features import ImageFeatures

MAX_POINTS = 1500  # pixels used by one refinement


NEAR_EXACT = 1.3  # exactness from which a copy is identical but for shading and rounding, however smooth it is


ROUNDING = 0.15  # squared grey levels by which rounding alone makes identical things differ


SNAP = 0.7  # exactness from which a copy was not resampled: its map is one of whole pixels


MIN_DISTINCT_RATIO = (
    2.2  # times its difference at its place that a region needs at 2 px off for its exactness to be told
)


MIN_EXACT = 40  # pixels that exactness is judged by


MAX_FLAT = (0.15, 0.45, 0.25)  # shares of flat pixels, and of pixels equal to the next, also on the grid of JPEG blocks


@numba.njit(cache=True)
def disc_exactness(
    rough: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray, most_left: float = 1.0
) -> float:
    """Half the log of how much more these pixels differ from the copy's at 2 px off than at their place.

    Differences are those of the finest structure, in squared grey levels, up to one gain, at their third quartile. A
    copy that was pasted without resampling, however shaded or blended, differs by rounding alone there. 0 where the map
    is none of whole pixels and right angles, or too few pixels were recorded and not drawn.
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
                return 0.0
        moved = affine[r, 0] * cx + affine[r, 1] * cy + affine[r, 2] - linear[r, 0] * cx - linear[r, 1] * cy
        shift[r] = round(moved)
        if abs(moved - shift[r]) > 0.4:
            return 0.0
    if abs(linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0]) != 1 or max(abs(shift[0]), abs(shift[1])) < 1:
        return 0.0
    height, width = rough.shape
    own = np.empty(n, np.float32)
    there = np.empty(n, np.float32)
    squares = np.empty(n, np.float32)
    here = 0.0
    away = np.inf
    for step in range(-1, 25):  # the place itself, then the ring of 2 px around it
        dx, dy = (0, 0) if step < 0 else (step % 5 - 2, step // 5 - 2)
        if step >= 0 and max(abs(dx), abs(dy)) < 2:
            continue
        count = 0
        power = product = power_there = 0.0
        for i in range(n):
            px = linear[0, 0] * xs[i] + linear[0, 1] * ys[i] + shift[0] + dx
            py = linear[1, 0] * xs[i] + linear[1, 1] * ys[i] + shift[1] + dy
            if 0 <= px < width and 0 <= py < height and rough[ys[i], xs[i]] == rough[ys[i], xs[i]]:
                a, b = rough[ys[i], xs[i]], rough[py, px]
                if b != b:  # NaN
                    continue
                own[count] = a
                there[count] = b
                power += a * a
                product += a * b
                power_there += b * b
                count += 1
        if count < MIN_EXACT:
            return 0.0
        gain = max(product, 0.0) / max(power_there, 1e-6)
        if step < 0 and power - gain * product > most_left * power:
            return 0.0  # most end here
        small = 0
        for i in range(count):
            squares[i] = (own[i] - gain * there[i]) ** 2
            small += squares[i] + ROUNDING < MIN_DISTINCT_RATIO * (here + ROUNDING)
        if step >= 0 and small > (3 * count) // 4:
            return 0.0  # the quartile is among them: too little to tell anything
        quartile = np.partition(squares[:count], (3 * count) // 4)[(3 * count) // 4]
        if step < 0:
            here = quartile
        else:
            away = min(away, quartile)
    return max(0.5 * np.log((away + ROUNDING) / (here + ROUNDING)), 0.0)


def subsample_pixels(region: np.ndarray, box: tuple[int, ...], most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows in the image of a region's pixels, evenly chosen where there are more."""
    ys, xs = np.nonzero(region)
    step = max(len(xs) // most, 1)
    return xs[::step] + box[0], ys[::step] + box[1]


def region_exactness(canvas: ImageFeatures, affine: np.ndarray, core: np.ndarray, box: tuple[int, ...]) -> float:
    """Exactness over a region; 0 where it is flat, as drawings are, or has the few values of compressed areas."""
    x0, y0, x1, y1 = box
    grey, square = canvas.grey[y0:y1, x0:x1], np.ones((3, 3), np.uint8)
    flat = cv2.dilate(grey, square) == cv2.erode(grey, square)
    equal = grey == np.roll(grey, 1, axis=1)
    ys, xs = np.nonzero(core)
    grid = on_jpeg_grid(affine, np.array([xs.mean() + x0, ys.mean() + y0]))
    if flat[core].mean() > MAX_FLAT[0] or equal[core].mean() > MAX_FLAT[2 if grid else 1]:
        return 0.0
    return float(disc_exactness(canvas.rough, affine, *subsample_pixels(core, box)))
