"""Many candidates refined at once on small discs, compiled."""

import numba
import numpy as np

from copymove.exactness import disc_exactness
from copymove.geometry import invert_affine
from copymove.image_features import LEVELS, ImageFeatures
from copymove.lucas_kanade import refine_affine, sample_bilinear

MAX_RADIUS = 24  # of the disc a candidate is screened on, in pixels


DISC_POINTS = 120  # pixels of a disc that its exactness is judged by


MIN_INFORMATIVE = (0.2, 0.1)  # least share of informative pixels of a disc, and of a region


MIN_FIRST_NCC = 0.3  # correlation of the middle band on a disc below which a candidate isn't refined


MAX_RESIDUAL_SHARE = 0.4  # share of a disc's finest structure that may be left for its exactness to be measured


@numba.njit(cache=True, fastmath=True)
def _disc(x: float, y: float, radius: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a disc inside the image; of a large one a quarter, evenly spread."""
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
def fine_ncc(
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
        b = sample_bilinear(partner, px, py)
        saa += a * a
        sbb += b * b
        sab += a * b
        n += 1
    if n < 40 or n < share * len(xs) or saa < 1e-6 or sbb < 1e-6:
        return -1.0
    return sab / np.sqrt(saa * sbb)


@numba.njit(cache=True, fastmath=True)
def _coarse_ncc(band: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> float:
    """Correlation on every third of these pixels, before any refinement: most candidates end here."""
    n = (len(xs) + 2) // 3
    sa = sb = saa = sbb = sab = 0.0
    for k in range(n):
        x = xs[3 * k]
        y = ys[3 * k]
        a = band[y, x]
        b = sample_bilinear(
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
        if _coarse_ncc(band, affines[i], xs, ys) < MIN_FIRST_NCC:
            continue
        out[i, 0] = refine_affine(band, band, xs, ys, affines[i], steps, False)
        if out[i, 0] < 0.5:
            continue
        few = max(len(xs) // DISC_POINTS, 1)
        out[i, 2] = disc_exactness(rough, affines[i], xs[::few], ys[::few], MAX_RESIDUAL_SHARE)
        scale = np.sqrt(abs(affines[i, 0, 0] * affines[i, 1, 1] - affines[i, 0, 1] * affines[i, 1, 0]))
        level = 0
        while level < len(LEVELS) - 1 and scale > 0.5 * (LEVELS[level] + LEVELS[level + 1]):
            level += 1
        out[i, 1] = fine_ncc(fine[0], fine[level], informative, affines[i], xs, ys, MIN_INFORMATIVE[0])
    return out


def screen_candidates(
    canvas: ImageFeatures, affines: np.ndarray, centres: np.ndarray, radii: np.ndarray, steps: int = 12
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
    affines[shrinks] = invert_affine(affines[shrinks])
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
