"""Aligning a region with its supposed copy on the pixels, and measuring how alike the two are.

Every candidate of every search ends here. `screen` refines many candidates at once on a small disc around each
(compiled, about 0.02 ms each); `grow` takes one of them to its full region, and `measure` collects the evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numba
import numpy as np

from exact import on_grid
from panels import find_gutters

FINE_SIGMA = 1.5  # what is coarser than this is removed before the fine structure is compared, in pixels
GRAIN_SIGMA = 0.7  # the same for the finest structure
EDGE_SIGMA = 1.3  # window of the local correlation that draws the outline, in pixels
EDGE_LOCAL = (0.55, 0.45)  # mean of that and of the local fine correlation on the outline of small and large regions
LARGE_AREA = 3000  # pixels from which a region is large: chance agreement next to it weighs less
AWAY = [(dy, dx) for dy in (-3, 0, 3) for dx in (-3, 0, 3) if dy or dx]  # offsets that a part of an outline must beat
EDGE_REACH = 4  # pixels by which an outline may move where the difference says so
EDGE_TRUST = 0.2  # log-likelihood ratio that a pixel's depth inside the outline is worth, per pixel
MIN_LEAD = 0.15  # mean lead over those of the local fine correlation
JOIN_REACH = (15, 20)  # parts of one copy are joined over gaps of up to twice this, in pixels: least, most
NARROW_SIGMA = 2.5  # the same for the last alignment
COARSE_SIGMA = 6.0  # what is coarser than this is removed before aligning, in pixels
MAX_RADIUS = 24  # of the disc a candidate is screened on, in pixels
MAX_POINTS = 1500  # pixels used by one refinement
DISC_POINTS = 120  # pixels of a disc that its exactness is judged by
MIN_SEEN = (0.2, 0.1)  # least share of informative pixels of a disc, and of a region
MIN_FIRST = 0.3  # correlation of the middle band on a disc below which a candidate isn't refined
MEASURE_MARGIN = 16  # room around a region that its measures look at, in pixels
MARGIN_SIDE = 64  # half the side of the window that margins are measured on, in pixels
NEAR_EXACT = 1.3  # exactness from which a copy is identical but for shading and rounding, however smooth it is
ROUNDING = 0.15  # squared grey levels by which rounding alone makes identical things differ
SHADED = 12.0  # variance of what is left over that of its finest structure from which a copy is shaded
SHADED_REACH = 8  # pixels by which the outline of a shaded copy may grow
SNAP = 0.7  # exactness from which a copy was not resampled: its map is one of whole pixels
MOST_LEFT = 0.4  # share of a disc's finest structure that may be left for its exactness to be measured
LEAST_TOLD = 2.2  # times its difference at its place that a region needs at 2 px off for its exactness to be told
MIN_EXACT = 40  # pixels that exactness is judged by
MAX_FLAT = (0.15, 0.45, 0.25)  # shares of flat pixels, and of pixels equal to the next, also on the grid of JPEG blocks
LEVELS = (1.0, 1.3, 1.7, 2.2)  # scales for which the sharper partner is blurred to the other's resolution


@dataclass(frozen=True)
class Canvas:
    """One picture as the alignment needs it; (H, W) float32 where nothing else is said."""

    grey: np.ndarray  # 0 to 255
    band: np.ndarray  # without noise and without what is coarser than COARSE_SIGMA
    narrow: np.ndarray  # the same with NARROW_SIGMA: its window reaches less over a region's edge
    rough: np.ndarray  # what is finer than FINE_SIGMA, as it is; NaN next to what is drawn in black or white
    levels: np.ndarray  # (len(LEVELS), H, W): grey as it would look after shrinking by LEVELS
    fine: np.ndarray  # (len(LEVELS), H, W): fine structure of each level, brought to equal strength everywhere
    grain: np.ndarray  # what is finer than GRAIN_SIGMA, brought to equal strength
    informative: np.ndarray  # (H, W) uint8: 1 where there is fine structure that is not a drawing's
    gutters: np.ndarray | None  # (H, W) uint8: 1 between the panels of a composed figure; None without any
    noise: float  # standard deviation of the fine structure in the quietest parts

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grey.shape


@dataclass(frozen=True)
class Grown:
    """A candidate that grew to a region, in the frame of its coarser partner (the template)."""

    affine: np.ndarray  # (2, 3): template pixel (x, y, 1) -> partner pixel
    region: np.ndarray  # (h, w) bool
    box: tuple[int, int, int, int]  # its window in the picture: left, top, right, bottom


@dataclass(frozen=True)
class Evidence:
    """A verified pair in the frame of its coarser partner (the template)."""

    affine: np.ndarray  # (2, 3): template pixel (x, y, 1) -> partner pixel
    x: int  # left edge of the window in the picture
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool: the template's region in that window
    fine: float  # correlation of the fine structure over the region's informative pixels
    grain: float  # correlation there of what is finer than a pixel's neighbours: noise, which only a copy shares
    fine_core: float  # local fine correlation that a fifth of those pixels exceed: the outline may be too wide
    grain_core: float  # the same for the grain
    band: float  # correlation of the middle band over the region
    local: float  # median of the local correlation over the region
    informative: int  # pixels that the fine structure was compared on
    texture: float  # standard deviation of the fine structure there, in grey levels
    second: float  # best correlation of the fine structure at another offset: near `fine` for edges and true repeats
    around: float  # correlation of the fine structure just outside of the region
    exactness: float  # by how much less it differs from its source at its place than 2 px off; 0: resampled, or flat
    fine_margin: float  # mean lead of the local fine correlation over the best at 2 to 3 px off: look-alikes have none
    middle_margin: float  # the same for the middle band, at 2 to 4 px off
    residual: float  # strength of what is left in the middle band after alignment, over the picture's noise
    jump: float  # what is left just outside of the region, over what is left inside


def prepare(image: np.ndarray) -> Canvas:
    """Canvas of a picture (H, W, 3) uint8 RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
    band = smooth - cv2.GaussianBlur(grey, (0, 0), COARSE_SIGMA)
    narrow = smooth - cv2.GaussianBlur(grey, (0, 0), NARROW_SIGMA)
    levels = np.stack([grey] + [cv2.GaussianBlur(grey, (0, 0), 0.5 * float(np.sqrt(s * s - 1))) for s in LEVELS[1:]])
    rough = grey - cv2.GaussianBlur(grey, (0, 0), FINE_SIGMA)
    strength = np.abs(rough)
    size = (max(grey.shape[1] // 8, 1), max(grey.shape[0] // 8, 1))
    noise = max(float(np.percentile(cv2.resize(strength, size, interpolation=cv2.INTER_AREA), 10)) * 1.25, 0.5)
    fine = np.stack([equalised(level, grey, FINE_SIGMA * s) for level, s in zip(levels, LEVELS, strict=True)])
    busy = cv2.GaussianBlur(strength * strength, (0, 0), 2.0) > 0.25**2
    flat, steps = _drawn(image)
    informative = (busy & ~flat & ~steps & ~_one_dimensional(grey)).astype(np.uint8)
    rough[steps] = np.nan
    grain = equalised(grey, grey, GRAIN_SIGMA)
    found = find_gutters(grey)
    gutters = found.view(np.uint8) if found.any() else None
    return Canvas(grey, band, narrow, rough, levels, fine, grain, informative, gutters, noise)


def equalised(level: np.ndarray, grey: np.ndarray, sigma: float) -> np.ndarray:
    """Fine structure divided by its local strength: else one strong edge would outvote all of the grain."""
    fine = level - cv2.GaussianBlur(grey, (0, 0), sigma)
    local = cv2.GaussianBlur(fine * fine, (0, 0), 2 * sigma)
    return fine / np.sqrt(local + 0.3**2)


def _drawn(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a picture is drawn and not recorded: text, bars, arrows, frames and gutters, with their surroundings.

    Either the area next to it has one colour to the bit (the first mask), or black or white begins within one pixel
    (the second).
    """
    square = np.ones((3, 3), np.uint8)
    high, low = cv2.dilate(image, square), cv2.erode(image, square)
    spread = (high - low).max(axis=2)
    flat = cv2.morphologyEx((spread <= 1).astype(np.uint8), cv2.MORPH_OPEN, square)
    steps = (spread > 90) & ((high.min(axis=2) > 235) | (low.max(axis=2) < 14))
    steps = cv2.dilate(steps.astype(np.uint8), np.ones((9, 9), np.uint8))
    return cv2.dilate(flat, np.ones((7, 7), np.uint8)) > 0, steps > 0


def _one_dimensional(grey: np.ndarray, limit: float = 0.92) -> np.ndarray:
    """Where all gradients point one way (coherence of the structure tensor): an edge fits onto every other edge."""
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(v, (0, 0), 3.0) for v in (gx * gx, gy * gy, gx * gy))
    return np.hypot(xx - yy, 2 * xy) > limit * (xx + yy)


def scale_of(affine: np.ndarray) -> float:
    """Length that a pixel has after the map (geometric mean of both axes)."""
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def invert(affine: np.ndarray) -> np.ndarray:
    """Inverse of an affine map (2, 3), or of many (n, 2, 3)."""
    (a, b), (c, d) = affine[..., 0, :2].T, affine[..., 1, :2].T
    linear = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2) / (a * d - b * c)[..., None, None]
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Places (n, 2) of points (n, 2), both as (x, y)."""
    return points @ affine[:, :2].T + affine[:, 2]


def whole_map(affine: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The map (2, 3) of whole pixels and right angles nearest to this one at a point (2,); or of many (n, ...)."""
    linear = np.rint(affine[..., :2])
    shift = np.rint(np.einsum("...ij,...j->...i", affine[..., :2] - linear, point) + affine[..., 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)


# Compiled core --------------------------------------------------------------------------------------------------


@numba.njit(cache=True, fastmath=True)
def _sample(image: np.ndarray, x: float, y: float) -> float:
    """Bilinear value; the nearest inside outside of the picture."""
    height, width = image.shape
    x = min(max(x, 0.0), width - 1.001)
    y = min(max(y, 0.0), height - 1.001)
    i = int(y)
    j = int(x)
    a = y - i
    b = x - j
    return (1 - a) * ((1 - b) * image[i, j] + b * image[i, j + 1]) + a * (
        (1 - b) * image[i + 1, j] + b * image[i + 1, j + 1]
    )


@numba.njit(cache=True)
def _cholesky(matrix: np.ndarray) -> None:
    """Lower Cholesky factor in place of a small positive definite matrix, whose lower half is read."""
    for k in range(len(matrix)):
        for m in range(k + 1):
            total = matrix[k, m]
            for p in range(m):
                total -= matrix[k, p] * matrix[m, p]
            matrix[k, m] = np.sqrt(max(total, 1e-12)) if k == m else total / matrix[m, m]


@numba.njit(cache=True)
def _solve(factor: np.ndarray, values: np.ndarray) -> None:
    """Solve with a lower Cholesky factor, in place."""
    n = len(values)
    for k in range(n):
        for p in range(k):
            values[k] -= factor[k, p] * values[p]
        values[k] /= factor[k, k]
    for k in range(n - 1, -1, -1):
        for p in range(k + 1, n):
            values[k] -= factor[p, k] * values[p]
        values[k] /= factor[k, k]


@numba.njit(cache=True, fastmath=True)
def _refine(
    template: np.ndarray,
    partner: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    affine: np.ndarray,
    steps: int,
    full: bool,
) -> float:
    """Gauss-Newton on the zero-mean normalised difference, over the given template pixels; changes `affine`.

    With partner(A(x)) ~ template(x), the template's gradient tells which small affine motion B of the template
    explains what is left, and A becomes A(1 + B). `full`: six parameters, else shift, rotation, scale. Returns the
    correlation; -1 where there is no texture or the map leaves the picture.
    """
    n = len(xs)
    count = 6 if full else 4
    values = np.empty(n)
    warped = np.empty(n)
    jacobian = np.empty((n, count))
    height, width = partner.shape
    cx = 0.0
    cy = 0.0
    mean = 0.0
    for i in range(n):
        cx += xs[i]
        cy += ys[i]
        values[i] = template[ys[i], xs[i]]
        mean += values[i]
    cx /= n
    cy /= n
    mean /= n
    power = 0.0
    extent = 1.0
    for i in range(n):
        values[i] -= mean
        power += values[i] * values[i]
        extent = max(extent, abs(xs[i] - cx), abs(ys[i] - cy))
    power = np.sqrt(power / n)
    if power < 1e-3:
        return -1.0
    for i in range(n):
        x, y = xs[i], ys[i]
        gx = (template[y, min(x + 1, template.shape[1] - 1)] - template[y, max(x - 1, 0)]) / (2 * power)
        gy = (template[min(y + 1, template.shape[0] - 1), x] - template[max(y - 1, 0), x]) / (2 * power)
        u = (x - cx) / extent
        v = (y - cy) / extent
        jacobian[i, 0] = gx
        jacobian[i, 1] = gy
        if full:
            jacobian[i, 2] = gx * u
            jacobian[i, 3] = gx * v
            jacobian[i, 4] = gy * u
            jacobian[i, 5] = gy * v
        else:
            jacobian[i, 2] = gx * u + gy * v
            jacobian[i, 3] = gy * u - gx * v
        values[i] /= power
    normal = np.zeros((count, count))
    for i in range(n):
        for k in range(count):
            for m in range(k + 1):
                normal[k, m] += jacobian[i, k] * jacobian[i, m]
    for k in range(count):
        normal[k, k] *= 1 + 1e-4
        normal[k, k] += 1e-6 * n
    _cholesky(normal)
    motion = np.zeros(count)
    best = -1.0
    kept = affine.copy()
    for _ in range(steps + 1):
        mean = 0.0
        outside = 0
        for i in range(n):
            px = affine[0, 0] * xs[i] + affine[0, 1] * ys[i] + affine[0, 2]
            py = affine[1, 0] * xs[i] + affine[1, 1] * ys[i] + affine[1, 2]
            if px < 0 or py < 0 or px > width - 1 or py > height - 1:
                outside += 1
            warped[i] = _sample(partner, px, py)
            mean += warped[i]
        if outside * 3 > n:
            break
        mean /= n
        power = 0.0
        for i in range(n):
            warped[i] -= mean
            power += warped[i] * warped[i]
        power = np.sqrt(power / n)
        if power < 1e-3:
            break
        correlation = 0.0
        for i in range(n):
            warped[i] /= power
            correlation += warped[i] * values[i]
        correlation /= n
        if correlation < best - 0.02:
            break
        gain = correlation - best
        if correlation > best:
            best = correlation
            kept[:] = affine
        if gain < 1e-4:
            break
        motion[:] = 0
        for i in range(n):
            left = values[i] - warped[i]
            for k in range(count):
                motion[k] += jacobian[i, k] * left
        _solve(normal, motion)
        bx = motion[0]
        by = motion[1]
        if full:
            a, b, c, d = motion[2] / extent, motion[3] / extent, motion[4] / extent, motion[5] / extent
        else:
            a, b, c, d = motion[2] / extent, -motion[3] / extent, motion[3] / extent, motion[2] / extent
        size = max(abs(bx), abs(by), max(abs(a) + abs(b), abs(c) + abs(d)) * extent)
        if size > 3.0:  # a longer step than the gradient is good for
            bx, by, a, b, c, d = bx * 3 / size, by * 3 / size, a * 3 / size, b * 3 / size, c * 3 / size, d * 3 / size
        # x -> x + (bx, by) + [[a, b], [c, d]] (x - centre), then the old map.
        tx = bx - a * cx - b * cy
        ty = by - c * cx - d * cy
        for r in range(2):
            p, q = affine[r, 0], affine[r, 1]
            affine[r, 0] = p * (1 + a) + q * c
            affine[r, 1] = p * b + q * (1 + d)
            affine[r, 2] += p * tx + q * ty
    affine[:] = kept
    return best


@numba.njit(cache=True, fastmath=True)
def _disc(x: float, y: float, radius: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a disc inside the picture; of a large one a quarter, evenly spread."""
    r = int(radius)
    xs = np.empty((2 * r + 1) ** 2, np.int64)
    ys = np.empty((2 * r + 1) ** 2, np.int64)
    n = 0
    jx = round(x)
    jy = round(y)
    step = 1 + (radius > 12)  # every second pixel in both directions is enough of a large disc
    for dy in range(-r, r + 1, step):
        for dx in range(-r, r + 1, step):
            if dx * dx + dy * dy <= radius * radius:
                px = jx + dx
                py = jy + dy
                if 1 <= px < width - 1 and 1 <= py < height - 1:
                    xs[n] = px
                    ys[n] = py
                    n += 1
    return xs[:n], ys[:n]


@numba.njit(cache=True, fastmath=True)
def _fine_correlation(
    template: np.ndarray,
    partner: np.ndarray,
    informative: np.ndarray,
    affine: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    share: float,
) -> float:
    """Correlation of the fine structure over the informative ones of these template pixels; -1 below a share."""
    saa = 0.0
    sbb = 0.0
    sab = 0.0
    n = 0
    height, width = informative.shape
    for i in range(len(xs)):
        x = xs[i]
        y = ys[i]
        px = affine[0, 0] * x + affine[0, 1] * y + affine[0, 2]
        py = affine[1, 0] * x + affine[1, 1] * y + affine[1, 2]
        if px < 0 or py < 0 or px > width - 1 or py > height - 1:
            continue
        if informative[y, x] == 0 or informative[int(py + 0.5), int(px + 0.5)] == 0:
            continue
        a = template[y, x]
        b = _sample(partner, px, py)
        saa += a * a
        sbb += b * b
        sab += a * b
        n += 1
    if n < 40 or n < share * len(xs) or saa < 1e-6 or sbb < 1e-6:
        return -1.0
    return sab / np.sqrt(saa * sbb)


@numba.njit(cache=True, fastmath=True)
def _first_look(band: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> float:
    """Correlation on every third of these pixels, before any refinement: most candidates end here."""
    n = (len(xs) + 2) // 3
    sa = sb = saa = sbb = sab = 0.0
    for k in range(n):
        x = xs[3 * k]
        y = ys[3 * k]
        a = band[y, x]
        b = _sample(
            band,
            affine[0, 0] * x + affine[0, 1] * y + affine[0, 2],
            affine[1, 0] * x + affine[1, 1] * y + affine[1, 2],
        )
        sa += a
        sb += b
        saa += a * a
        sbb += b * b
        sab += a * b
    power = (saa - sa * sa / n) * (sbb - sb * sb / n)
    return (sab - sa * sb / n) / np.sqrt(power) if power > 1e-6 else -1.0


@numba.njit(cache=True)
def _exactness(rough: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray, most_left: float = 1.0) -> float:
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
            small += squares[i] + ROUNDING < LEAST_TOLD * (here + ROUNDING)
        if step >= 0 and small > (3 * count) // 4:
            return 0.0  # the quartile is among them: too little to tell anything
        quartile = np.partition(squares[:count], (3 * count) // 4)[(3 * count) // 4]
        if step < 0:
            here = quartile
        else:
            away = min(away, quartile)
    return max(0.5 * np.log((away + ROUNDING) / (here + ROUNDING)), 0.0)


@numba.njit(cache=True, nogil=True)
def _screen(
    band: np.ndarray,
    rough: np.ndarray,
    fine: np.ndarray,
    informative: np.ndarray,
    affines: np.ndarray,
    centres: np.ndarray,
    radii: np.ndarray,
    steps: int,
) -> np.ndarray:
    """Refine every candidate in place; (n, 3): correlation of middle band and fine structure, and exactness."""
    height, width = band.shape
    out = np.full((len(affines), 3), -1.0)
    for i in range(len(affines)):
        xs, ys = _disc(centres[i, 0], centres[i, 1], radii[i], height, width)
        if len(xs) < 60:
            continue
        if _first_look(band, affines[i], xs, ys) < MIN_FIRST:
            continue
        out[i, 0] = _refine(band, band, xs, ys, affines[i], steps, False)
        if out[i, 0] < 0.5:
            continue
        few = max(len(xs) // DISC_POINTS, 1)
        out[i, 2] = _exactness(rough, affines[i], xs[::few], ys[::few], MOST_LEFT)
        scale = np.sqrt(abs(affines[i, 0, 0] * affines[i, 1, 1] - affines[i, 0, 1] * affines[i, 1, 0]))
        level = 0
        while level < len(LEVELS) - 1 and scale > 0.5 * (LEVELS[level] + LEVELS[level + 1]):
            level += 1
        out[i, 1] = _fine_correlation(fine[0], fine[level], informative, affines[i], xs, ys, MIN_SEEN[0])
    return out


def screen(
    canvas: Canvas, affines: np.ndarray, centres: np.ndarray, radii: np.ndarray, steps: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Refine candidates on small discs.

    Args:
        affines: (n, 2, 3) float64, pixel (x, y, 1) -> supposed copy.
        centres: (n, 2) float64 (x, y) of the discs, before the map.
        radii: (n,) float64 in pixels, before the map.
    Returns:
        Refined maps, centres and radii in the frame of the coarser partner (scale at least 1), and (n, 3):
        correlations of the middle band and of the fine structure, and exactness; -1 where alignment failed.
    """
    affines, centres, radii = affines.astype(np.float64), centres.astype(np.float64), radii.astype(np.float64)
    scales = np.sqrt(np.abs(np.linalg.det(affines[:, :, :2])))
    shrinks = scales < 1 / 1.05
    moved = np.einsum("nij,nj->ni", affines[:, :, :2], centres) + affines[:, :, 2]
    centres[shrinks] = moved[shrinks]
    affines[shrinks] = invert(affines[shrinks])
    radii[shrinks] *= scales[shrinks]
    radii = np.clip(radii, 6, MAX_RADIUS)
    before = affines.copy()
    values = _screen(canvas.band, canvas.rough, canvas.fine, canvas.informative, affines, centres, radii, steps)
    # A map that ran away from its candidate is not an alignment.
    moved = np.linalg.norm(
        np.einsum("nij,nj->ni", affines[:, :, :2] - before[:, :, :2], centres) + affines[:, :, 2] - before[:, :, 2],
        axis=1,
    )
    change = np.sqrt(
        np.abs(np.linalg.det(affines[:, :, :2])) / np.maximum(np.abs(np.linalg.det(before[:, :, :2])), 1e-9)
    )
    values[(moved > 0.7 * radii + 4) | (change > 1.5) | (change < 1 / 1.5)] = -1
    return affines, centres, radii, values


# Growing one candidate to its region ----------------------------------------------------------------------------


def grow(
    canvas: Canvas, affine: np.ndarray, centre: np.ndarray, radius: float, min_fine: float, min_local: float = 0.6
) -> Grown | None:
    """Grow an aligned disc to the region that agrees, refining the map as it grows; None where nothing holds.

    Args:
        affine: (2, 3), scale at least about 1 (as `screen` returns it).
        centre: (x, y) of the disc in the template's frame.
        min_fine: correlation of the fine structure under which a region isn't worth its measures.
    """
    affine = affine.copy()
    height, width = canvas.shape
    half = max(int(2.5 * radius), 24)
    region = None
    for _ in range(8):
        box = _window(centre, half, (height, width))
        template, partner, valid = pair(canvas, affine, box)
        local = _local_correlation(template, partner, valid, canvas.noise)
        region = _agreeing(local, valid, (centre[0] - box[0], centre[1] - box[1]), radius, min_local)
        if region is None:
            return None
        refined = _refine_region(canvas, affine, region & (local > 0.5 * (1 + min_local)), box)
        corners = np.array([[box[0], box[1]], [box[2], box[3]], [box[0], box[3]], [box[2], box[1]]], float)
        settled = float(np.abs(apply(refined, corners) - apply(affine, corners)).max())
        affine = refined
        touches = _touches(region, box, (height, width))
        if not touches and settled < 0.7:
            break
        if touches:
            half *= 2
            if not _worth(canvas, affine, region, box, min_fine):
                return None
    if not _worth(canvas, affine, region, box, min_fine):
        return None
    if _exactness(canvas.rough, affine, *_some_pixels(region, box)) > SNAP:
        ys, xs = np.nonzero(region)
        affine = whole_map(affine, np.array([xs.mean() + box[0], ys.mean() + box[1]]))
    region, box = _outline(canvas, affine, *_cropped(region, box, 0, canvas.shape), centre, radius)
    return Grown(affine, *_cropped(region, box, MEASURE_MARGIN, canvas.shape))


def from_mask(affine: np.ndarray, mask: np.ndarray) -> Grown:
    """A region given as a mask (H, W) bool of the whole picture."""
    return Grown(affine, *_cropped(mask, (0, 0, mask.shape[1], mask.shape[0]), MEASURE_MARGIN, mask.shape))


def _worth(
    canvas: Canvas, affine: np.ndarray, region: np.ndarray, box: tuple[int, int, int, int], min_fine: float
) -> bool:
    """Whether a region's fine structure agrees, before the costlier rest."""
    xs, ys = _some_pixels(region, box, 4000)
    partner = canvas.fine[level_of(affine)]
    fine = _fine_correlation(canvas.fine[0], partner, canvas.informative, affine, xs, ys, MIN_SEEN[1])
    return fine >= 0.8 * min_fine or _exactness(canvas.rough, affine, *_some_pixels(region, box)) > NEAR_EXACT


def _some_pixels(region: np.ndarray, box: tuple[int, ...], most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows in the picture of a region's pixels, evenly chosen where there are more."""
    ys, xs = np.nonzero(region)
    step = max(len(xs) // most, 1)
    return xs[::step] + box[0], ys[::step] + box[1]


def _told_exactness(canvas: Canvas, affine: np.ndarray, core: np.ndarray, box: tuple[int, ...]) -> float:
    """Exactness over a region; 0 where it is flat, as drawings are, or has the few values of compressed areas."""
    x0, y0, x1, y1 = box
    grey, square = canvas.grey[y0:y1, x0:x1], np.ones((3, 3), np.uint8)
    flat = cv2.dilate(grey, square) == cv2.erode(grey, square)
    equal = grey == np.roll(grey, 1, axis=1)
    ys, xs = np.nonzero(core)
    grid = on_grid(affine, np.array([xs.mean() + x0, ys.mean() + y0]))
    if flat[core].mean() > MAX_FLAT[0] or equal[core].mean() > MAX_FLAT[2 if grid else 1]:
        return 0.0
    return float(_exactness(canvas.rough, affine, *_some_pixels(core, box)))


def _cropped(
    region: np.ndarray, box: tuple[int, int, int, int], margin: int, shape: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Region and window with as much room around the region as `margin`, inside the picture (height, width)."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    y0, y1 = max(box[1] + int(rows[0]) - margin, 0), min(box[1] + int(rows[-1]) + 1 + margin, shape[0])
    x0, x1 = max(box[0] + int(columns[0]) - margin, 0), min(box[0] + int(columns[-1]) + 1 + margin, shape[1])
    inside = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    wide = np.zeros((y1 - y0, x1 - x0), bool)
    top, left = box[1] + int(rows[0]) - y0, box[0] + int(columns[0]) - x0
    wide[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return wide, (x0, y0, x1, y1)


def _refine_region(
    canvas: Canvas, affine: np.ndarray, region: np.ndarray, box: tuple[int, int, int, int]
) -> np.ndarray:
    """Map refined on a region's inside, away from its edge, where the band-pass mixes in what lies outside."""
    ys, xs = np.nonzero(_inside(region, 150))
    if len(xs) < 60:
        return affine
    if len(xs) > MAX_POINTS:
        keep = np.linspace(0, len(xs) - 1, MAX_POINTS).astype(int)
        xs, ys = xs[keep], ys[keep]
    refined = affine.copy()
    value = _refine(canvas.narrow, canvas.narrow, xs + box[0], ys + box[1], refined, 15, len(xs) > 300)
    return refined if value > 0.2 else affine


def _inside(region: np.ndarray, least: int) -> np.ndarray:
    """Region without its edge, as wide an edge as leaves `least` pixels; the region itself where that is too much."""
    for size in (9, 7, 5, 3):
        inside = cv2.erode(region.astype(np.uint8), np.ones((size, size), np.uint8), borderValue=0) > 0
        if inside.sum() >= least:
            return inside
    return region


def _window(centre: np.ndarray, half: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) around the centre, cut at the picture's border."""
    x, y = round(float(centre[0])), round(float(centre[1]))
    return max(x - half, 0), max(y - half, 0), min(x + half + 1, shape[1]), min(y + half + 1, shape[0])


def _touches(region: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]) -> bool:
    """Whether the region reaches a side of the window that is not the picture's border."""
    return bool(
        (region[0].any() and box[1] > 0)
        or (region[-1].any() and box[3] < shape[0])
        or (region[:, 0].any() and box[0] > 0)
        or (region[:, -1].any() and box[2] < shape[1])
    )


def pair(
    canvas: Canvas, affine: np.ndarray, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Template and aligned partner (h, w) float32 in the window, and where both lie inside a panel of the picture."""
    x0, y0, x1, y1 = box
    partner = warped(canvas.levels[level_of(affine)], affine, box, cv2.INTER_CUBIC)
    xs, ys = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]
    a = affine.astype(np.float32)
    px = a[0, 0] * xs + a[0, 1] * ys + a[0, 2]
    py = a[1, 0] * xs + a[1, 1] * ys + a[1, 2]
    valid = (px >= 0) & (py >= 0) & (px <= canvas.shape[1] - 1) & (py <= canvas.shape[0] - 1)
    # A pixel that maps next to itself is no copy.
    valid &= (px - xs) ** 2 + (py - ys) ** 2 > 6**2
    if canvas.gutters is not None:
        there = warped(canvas.gutters, affine, box, cv2.INTER_NEAREST)
        valid &= (canvas.gutters[y0:y1, x0:x1] | there) == 0
    return canvas.grey[y0:y1, x0:x1], partner, valid


def level_of(affine: np.ndarray) -> int:
    """Which of LEVELS brings the partner to the template's resolution."""
    return int(np.argmin(np.abs(np.array(LEVELS) - scale_of(affine))))


def warped(values: np.ndarray, affine: np.ndarray, box: tuple[int, ...], flags: int) -> np.ndarray:
    """Values (H, W) at the partner's places of the template's window."""
    shifted = affine.copy()
    shifted[:, 2] += affine[:, :2] @ (box[0], box[1])
    size = (box[2] - box[0], box[3] - box[1])
    return cv2.warpAffine(values, shifted, size, flags=flags | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values (h, w) float32 under a Gaussian window; beyond the edges they go on as they end."""
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _local_correlation(
    template: np.ndarray, partner: np.ndarray, valid: np.ndarray, noise: float, sigma: float = 2.5
) -> np.ndarray:
    """Zero-mean normalised correlation (h, w) float32 in a Gaussian window; drawn to 0 where there is no texture."""
    a, b = template - template.mean(), partner - partner.mean()
    ma, mb = blur(a, sigma), blur(b, sigma)
    va = np.maximum(blur(a * a, sigma) - ma * ma, 0)
    vb = np.maximum(blur(b * b, sigma) - mb * mb, 0)
    cov = blur(a * b, sigma) - ma * mb
    floor = 0.5 * noise * noise
    return np.where(valid, cov / np.sqrt((va + floor) * (vb + floor)), -1).astype(np.float32)


def _agreeing(
    local: np.ndarray,
    valid: np.ndarray,
    centre: tuple[float, float],
    radius: float,
    min_local: float,
) -> np.ndarray | None:
    """Connected region of agreement that holds (or lies next to) the candidate's disc; (h, w) bool."""
    agree = (local > min_local).astype(np.uint8)
    agree = cv2.morphologyEx(agree, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    agree = cv2.morphologyEx(agree, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    agree[~valid] = 0  # closing must not bridge a gutter
    count, labels = cv2.connectedComponents(agree, connectivity=4)
    if count < 2:
        return None
    ys, xs = np.ogrid[: local.shape[0], : local.shape[1]]
    disc = (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= max(radius, 5) ** 2
    votes = np.bincount(labels[disc], minlength=count)
    votes[0] = 0
    if votes.max() < 0.25 * disc.sum():
        return None
    region = labels == votes.argmax()
    return fill_holes(region, 0.2) & valid


def _outline(
    canvas: Canvas,
    affine: np.ndarray,
    region: np.ndarray,
    box: tuple[int, int, int, int],
    centre: np.ndarray,
    radius: float,
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Final region and its window: the parts that agree, and what lies between them as far as its grey values fit.

    A sharper window than for growing. A copied rectangle of dark background and cells agrees on the cells only; the
    background between them is taken in where it differs no more than the agreeing parts do.
    """
    height, width = region.shape
    join = int(np.clip(0.5 * np.sqrt(region.sum()), *JOIN_REACH))  # further for a large region than for a cell
    reach = max(join, height // 2, width // 2)
    x0, y0 = max(box[0] - reach, 0), max(box[1] - reach, 0)
    x1, y1 = min(box[2] + reach, canvas.shape[1]), min(box[3] + reach, canvas.shape[0])
    wide = np.zeros((y1 - y0, x1 - x0), bool)
    wide[box[1] - y0 : box[1] - y0 + height, box[0] - x0 : box[0] - x0 + width] = region
    box = (x0, y0, x1, y1)
    template, partner, valid = pair(canvas, affine, box)
    fine_a = canvas.fine[0, y0:y1, x0:x1]
    fine_b = warped(canvas.fine[level_of(affine)], affine, box, cv2.INTER_CUBIC)
    plain = _local_correlation(template, partner, valid, canvas.noise, EDGE_SIGMA)
    score = np.where(valid, 0.5 * _fine_map(fine_a, fine_b, 1.8) + 0.5 * plain, -1)
    edge = EDGE_LOCAL[int(wide.sum() > LARGE_AREA)]
    agree = cv2.morphologyEx((score > edge).astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    gain, offset = _gain(template[wide], partner[wide])
    left = blur((template - gain * partner - offset) ** 2, 1.5)
    similar = left < 4 * max(canvas.noise**2, float(np.median(left[wide])))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(agree, connectivity=4)
    fitting = np.bincount(labels.ravel(), similar.ravel(), count) > 0.5 * stats[:, 4]
    # Edges and ripples fit onto themselves when moved along: they don't show where a copy ends.
    fitting &= np.bincount(labels.ravel(), _lead(fine_a, fine_b, 9, AWAY).ravel(), count) > MIN_LEAD * stats[:, 4]
    agree = (fitting & (stats[:, 4] >= 25) & (np.arange(count) > 0))[labels].astype(np.uint8)
    between = _closed(agree, join) & similar & valid
    full = cv2.morphologyEx((between | (agree > 0)).astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    _, labels = cv2.connectedComponents(full, connectivity=4)
    ys, xs = np.ogrid[: y1 - y0, : x1 - x0]
    disc = (xs - (centre[0] - x0)) ** 2 + (ys - (centre[1] - y0)) ** 2 <= max(radius, 5) ** 2
    votes = np.bincount(labels[disc], minlength=1)
    votes[0] = 0
    outline = fill_holes(labels == votes.argmax(), 0.2) & valid if votes.max() else wide
    return (outline if outline.sum() > 0.25 * wide.sum() else wide), box


def _sharpened(template: np.ndarray, partner: np.ndarray, valid: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Outline decided again along its edge by the aligned difference: windows of correlation reach over it.

    Of each pixel near the edge: how much likelier its difference is inside, where it is a share of the local
    variance, than outside, where the variances of two strangers add up; the nearer to the edge, the more it counts.
    """
    core = _inside(outline, 40)
    gain, offset = _gain(template[core], partner[core])
    moved = gain * partner + offset
    left = (template - moved) ** 2
    mean_a, mean_b = blur(template, 2.0), blur(moved, 2.0)
    strange = np.maximum(blur(template**2 + moved**2, 2.0) - mean_a**2 - mean_b**2, 0) + (mean_a - mean_b) ** 2
    # The median of squares is 0.455 of their mean where they are a Gaussian's: strong outliers don't count.
    share = float(np.median(left[core])) / 0.455 / max(float(np.median(strange[core])), 1e-6)
    inner = share * strange + 0.3
    outer = inner + strange
    told = 0.5 * (np.log(outer / inner) - left * (1 / inner - 1 / outer))
    told = blur(np.clip(told, -3, 3), 1.2)
    depth = cv2.distanceTransform(np.pad(outline, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    depth -= cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, 5)
    sharp = np.where(np.abs(depth) > EDGE_REACH, outline, told + EDGE_TRUST * (depth + 1) > 0) & valid
    sharp = cv2.morphologyEx(sharp.astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(sharp, connectivity=4)
    if count < 2 or 2 * stats[1:, 4].max() < outline.sum():
        return outline
    return fill_holes(labels == 1 + stats[1:, 4].argmax(), 0.2) & valid


def _shaded_outline(template: np.ndarray, partner: np.ndarray, valid: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Outline of a copy that differs by shading and rounding, as seamless cloning leaves it.

    The shading makes its edge look like a stranger's to `_sharpened`; the finest structure tells them apart.
    """
    core = _inside(outline, 40)
    rough, moved = (v - blur(v, 1.0) for v in (template, partner))
    moved *= _gain(rough[outline], moved[outline])[0]
    left = (rough - moved) ** 2
    gain, offset = _gain(template[core], partner[core])
    if (template - gain * partner - offset)[core].var() < SHADED * (left[core].mean() + ROUNDING):
        return outline
    inner = max(float(np.median(left[core])) / 0.455, ROUNDING)  # as in `_sharpened`
    outer = inner + blur(rough**2 + moved**2, 2.0)
    told = blur(np.clip(0.5 * (np.log(outer / inner) - left * (1 / inner - 1 / outer)), -2, 2), 1.2)
    near = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, 5) < SHADED_REACH
    grown = cv2.morphologyEx((outline | ((told > 0) & near & valid)).astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    _, labels = cv2.connectedComponents(grown, connectivity=4)
    votes = np.bincount(labels[outline])
    votes[0] = 0
    return fill_holes(labels == votes.argmax(), 0.2) & valid if votes.any() else outline


def _closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """Closing (h, w) bool of a mask uint8 by a disc, as if nothing lay around the window."""
    # Two distance transforms take a tenth of the time of a morphology with so large a disc.
    padded = cv2.copyMakeBorder(1 - mask, *(radius + 1,) * 4, cv2.BORDER_CONSTANT, value=1)
    wide = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < radius + 0.5
    deep = cv2.distanceTransform(wide.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > radius + 0.5
    return deep[radius + 1 : -radius - 1, radius + 1 : -radius - 1]


def ellipse(size: int) -> np.ndarray:
    """Structuring element (size, size) uint8: a disc of that diameter in pixels."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def fill_holes(region: np.ndarray, share: float) -> np.ndarray:
    """Fill holes smaller than a share of the region: flat parts of a content have no correlation of their own."""
    background = (~region).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    x, y, w, h, area = stats.T
    inside = (x > 0) & (y > 0) & (x + w < region.shape[1]) & (y + h < region.shape[0])
    small = inside & (area < share * region.sum() + 20)
    small[0] = False  # the region itself
    return region | small[labels]


def _correlate(a: np.ndarray, b: np.ndarray) -> float:
    """Zero-mean normalised correlation of two lists of values; 0 without variance."""
    if len(a) < 10:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a * a).mean() * (b * b).mean()))
    return float((a * b).mean() / power) if power > 1e-3 else 0.0


def measure(canvas: Canvas, grown: Grown, min_lead: float = -1.0) -> Evidence | None:
    """Evidence over a region; None where its fine structure leads by less than `min_lead` at its place, unless exact.

    The outline is sharpened only then: drawn where the difference begins, it would make a difference there for
    look-alikes too.
    """
    affine, region, box = grown.affine, grown.region, grown.box
    x0, y0, x1, y1 = box
    template, partner, valid = pair(canvas, affine, box)
    level = level_of(affine)
    fine_a = canvas.fine[0, y0:y1, x0:x1]
    fine_b = warped(canvas.fine[level], affine, box, cv2.INTER_CUBIC)
    told = canvas.informative[y0:y1, x0:x1] & warped(canvas.informative, affine, box, cv2.INTER_NEAREST)
    core = _inside(region, 120)
    compared = core & (told > 0)
    exactness = _told_exactness(canvas, affine, core, box)
    fine_margin = _margin(fine_a, fine_b, compared if compared.any() else core, 9, 3, 1)
    if exactness <= NEAR_EXACT and fine_margin < min_lead:
        return None
    local = _local_correlation(template, partner, valid, canvas.noise)
    ring = (cv2.dilate(region.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0) & valid & (told > 0)
    ring &= cv2.dilate(region.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    band_a = blur(template, 0.7) - blur(template, COARSE_SIGMA)
    band_b = blur(partner, 0.7) - blur(partner, COARSE_SIGMA)
    seen = region & (told > 0)
    grain_a, grain_b = canvas.grain[y0:y1, x0:x1], warped(canvas.grain, affine, box, cv2.INTER_CUBIC)
    rough = template - blur(template, FINE_SIGMA)
    middle_a, middle_b = (blur(v, 0.8) - blur(v, 2.5) for v in (template, partner))
    gain, offset = _gain(template[core], partner[core])
    left = template - gain * partner - offset
    left_middle = middle_a - gain * middle_b
    rim = (cv2.dilate(region.astype(np.uint8), ellipse(9)) > 0) & ~(cv2.dilate(region.astype(np.uint8), ellipse(3)) > 0)
    rim &= valid
    mask = _sharpened(template, partner, valid, region)
    if exactness > NEAR_EXACT:
        mask = _shaded_outline(template, partner, valid, mask)
    return Evidence(
        affine=affine,
        x=x0,
        y=y0,
        mask=mask,
        fine=_correlate(fine_a[compared], fine_b[compared]),
        grain=_correlate(grain_a[compared], grain_b[compared]),
        fine_core=_core(fine_a, fine_b, seen),
        grain_core=_core(grain_a, grain_b, seen),
        band=_correlate(band_a[core], band_b[core]),
        local=float(np.median(local[core])),
        informative=int(seen.sum()),
        texture=float(rough[compared].std()) if compared.any() else 0.0,
        second=_second_peak(fine_a, fine_b, compared if compared.any() else region),
        around=_correlate(fine_a[ring], fine_b[ring]),
        exactness=exactness,
        fine_margin=fine_margin,
        middle_margin=_margin(middle_a, middle_b, compared if compared.any() else core, 13, 4, 2),
        residual=(float(left_middle[core].std()) + 0.3) / canvas.noise,
        jump=(float(np.abs(left[rim]).mean() if rim.any() else 0.0) + 0.5) / (float(np.abs(left[core]).mean()) + 0.5),
    )


def _gain(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Least-squares (gain, offset) with a ~ gain * b + offset."""
    mean_a, mean_b = float(a.mean()), float(b.mean())
    gain = float(((a - mean_a) * (b - mean_b)).sum() / max(float(((b - mean_b) ** 2).sum()), 1e-6))
    return gain, mean_a - gain * mean_b


def _margin(a: np.ndarray, b: np.ndarray, seen: np.ndarray, window: int, reach: int, step: int) -> float:
    """How far the local correlation (h, w) leads over its best at 2 to `reach` px off, mean over the pixels seen.

    A copy agrees at one place only, everywhere by the same map; two things of one kind agree about as well when they
    are moved a little, here in this direction and there in that.
    """
    ys, xs = np.nonzero(seen)
    y, x = int(np.median(ys)), int(np.median(xs))  # a window in the middle is enough of a large region
    top, left = max(y - MARGIN_SIDE, 0), max(x - MARGIN_SIDE, 0)
    part = np.s_[top : y + MARGIN_SIDE, left : x + MARGIN_SIDE]
    a, b, seen = a[part], b[part], seen[part]
    if not seen.any():
        return 0.0
    steps = range(-reach, reach + 1, step)
    offsets = [(dy, dx) for dy in steps for dx in steps if max(abs(dy), abs(dx)) >= 2]
    return float(_lead(a, b, window, offsets)[seen].mean())


def _lead(a: np.ndarray, b: np.ndarray, window: int, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Local correlation (h, w) of two structures, less the best of it where `b` is moved by one of (dy, dx)."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REPLICATE)

    height, width = a.shape
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    weight, weight_b = (1 / np.sqrt(smooth(v * v) + 1e-3) for v in (a, b))
    padded, weight_there = (cv2.copyMakeBorder(v, *(reach,) * 4, cv2.BORDER_REPLICATE) for v in (b, weight_b))
    elsewhere = np.full(a.shape, -np.inf, np.float32)
    for dy, dx in offsets:
        moved = np.s_[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        np.maximum(elsewhere, smooth(a * padded[moved]) * weight_there[moved], out=elsewhere)
    return weight * (smooth(a * b) * weight_b - elsewhere)


def _fine_map(a: np.ndarray, b: np.ndarray, sigma: float) -> np.ndarray:
    """Local correlation (h, w) of two structures whose mean is 0 everywhere."""
    return blur(a * b, sigma) / np.sqrt(blur(a * a, sigma) * blur(b * b, sigma) + 0.02)


def _core(a: np.ndarray, b: np.ndarray, seen: np.ndarray) -> float:
    """80th percentile of the local correlation over the pixels seen; 0 without any."""
    return float(np.percentile(_fine_map(a, b, COARSE_SIGMA / 2)[seen], 80)) if seen.any() else 0.0


def _second_peak(template: np.ndarray, partner: np.ndarray, region: np.ndarray) -> float:
    """Best correlation of the region's middle with the partner at another offset: true repeats have one near 1."""
    ys, xs = np.nonzero(region)
    y, x = int(np.median(ys)), int(np.median(xs))
    half = int(min(24, max(5, 0.35 * np.sqrt(len(xs)))))
    patch = template[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
    reach = 2 * half + 8
    top, left = max(y - half - reach, 0), max(x - half - reach, 0)
    area = partner[top : y + half + reach + 1, left : x + half + reach + 1]
    if patch.std() < 1e-3 or area.shape[0] <= patch.shape[0] or area.shape[1] <= patch.shape[1]:
        return 0.0
    scores = cv2.matchTemplate(np.ascontiguousarray(area), np.ascontiguousarray(patch), cv2.TM_CCOEFF_NORMED)
    cy, cx = max(y - half, 0) - top, max(x - half, 0) - left
    ys, xs = np.ogrid[: scores.shape[0], : scores.shape[1]]
    scores[(np.abs(ys - cy) <= max(half // 2, 4)) & (np.abs(xs - cx) <= max(half // 2, 4))] = -1
    return float(np.nan_to_num(scores).max(initial=-1.0))
