"""Screening: many candidates refined and compared at once, each on a small disc, compiled."""

from dataclasses import dataclass

import numba
import numpy as np

from copymove.exactness import pixel_exactness
from copymove.geometry import invert_affine
from copymove.image_features import LEVELS, ImageFeatures
from copymove.lucas_kanade import refine_affine, sample_bilinear

MAX_RADIUS = 24  # of the disc that a candidate is screened on, in pixels
MIN_RADIUS = 6
MIN_DISC_PIXELS = 60  # pixels of a disc inside the image below which its candidate isn't screened
EXACTNESS_PIXELS = 120  # pixels of a disc that its exactness is computed from
MAX_RESIDUAL_SHARE = 0.4  # share of a disc's finest structure that may differ for its exactness to be computed
MIN_FIRST_NCC = 0.3  # NCC of the band-pass on a disc below which a candidate isn't refined
MIN_REFINED_NCC = 0.5  # the same after refinement, below which it isn't compared any further
MIN_INFORMATIVE_OF_DISC = 0.2  # least share of informative pixels of a disc
MIN_INFORMATIVE_OF_REGION = 0.1  # the same of a region
MIN_FINE_PIXELS = 40  # least number of informative pixels that a fine NCC is computed from
MAX_CHANGE_OF_SCALE = 1.5  # by refinement; beyond it the map has run away from its candidate


@dataclass(frozen=True)
class AlignedDiscs:
    """Candidates refined on their discs, each in the frame of its coarser partner (the template); all float64.

    Measures are -1 where the alignment failed before they could be computed.
    """

    affines: np.ndarray  # (n, 2, 3): template pixel (x, y, 1) -> partner pixel; scale about 1 or more
    centres: np.ndarray  # (n, 2): centre (x, y) of the template's disc
    radii: np.ndarray  # (n,): its radius in pixels
    band_ncc: np.ndarray  # (n,): NCC of the band-pass
    fine_ncc: np.ndarray  # (n,): NCC of the fine structure
    exactness: np.ndarray  # (n,): see `pixel_exactness`


@numba.njit(cache=True, fastmath=True)
def _disc(x: float, y: float, radius: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (n,) int64 of a disc's pixels inside the image; of a disc over 12 px every second of both."""
    r = int(radius)
    xs = np.empty((2 * r + 1) ** 2, np.int64)
    ys = np.empty((2 * r + 1) ** 2, np.int64)
    n = 0
    jx = round(x)
    jy = round(y)
    step = 1 + (radius > 12)
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
    min_share: float,
) -> float:
    """NCC of the fine structure over those of the template's pixels that are informative in both partners.

    Args:
        template, partner: (H, W) float32, fine structure of the image at both resolutions.
        informative: (H, W) uint8.
        affine: (2, 3) float64, template pixel (x, y, 1) -> partner pixel.
        xs, ys: (n,) int64, the template's pixels.
        min_share: of the pixels that must be informative.
    Returns:
        The NCC; -1 with fewer pixels than that or than MIN_FINE_PIXELS, or without any structure.
    """
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
    if n < MIN_FINE_PIXELS or n < min_share * len(xs) or saa < 1e-6 or sbb < 1e-6:
        return -1.0
    return sab / np.sqrt(saa * sbb)


@numba.njit(cache=True, fastmath=True)
def _first_ncc(band_pass: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> float:
    """NCC of the band-pass (H, W) on every third of these pixels, before any refinement: most candidates end here."""
    n = (len(xs) + 2) // 3
    sa = sb = saa = sbb = sab = 0.0
    for k in range(n):
        x = xs[3 * k]
        y = ys[3 * k]
        a = band_pass[y, x]
        b = sample_bilinear(
            band_pass,
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
    band_pass: np.ndarray,
    high_pass: np.ndarray,
    fine: np.ndarray,
    informative: np.ndarray,
    affines: np.ndarray,
    centres: np.ndarray,
    radii: np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Refined maps (n, 2, 3), and values (n, 3): NCC of the band-pass, NCC of the fine structure, and exactness."""
    height, width = band_pass.shape
    refined = affines.copy()
    values = np.full((len(affines), 3), -1.0)
    for i in range(len(affines)):
        xs, ys = _disc(centres[i, 0], centres[i, 1], radii[i], height, width)
        if len(xs) < MIN_DISC_PIXELS:
            continue
        if _first_ncc(band_pass, affines[i], xs, ys) < MIN_FIRST_NCC:
            continue
        affine, values[i, 0] = refine_affine(band_pass, band_pass, xs, ys, affines[i], steps, False)
        refined[i] = affine
        if values[i, 0] < MIN_REFINED_NCC:
            continue
        every = max(len(xs) // EXACTNESS_PIXELS, 1)
        values[i, 2] = pixel_exactness(high_pass, affine, xs[::every], ys[::every], MAX_RESIDUAL_SHARE)
        scale = np.sqrt(abs(affine[0, 0] * affine[1, 1] - affine[0, 1] * affine[1, 0]))
        level = 0
        while level < len(LEVELS) - 1 and scale > 0.5 * (LEVELS[level] + LEVELS[level + 1]):
            level += 1
        values[i, 1] = fine_ncc(fine[0], fine[level], informative, affine, xs, ys, MIN_INFORMATIVE_OF_DISC)
    return refined, values


def screen_candidates(
    image_features: ImageFeatures, affines: np.ndarray, centres: np.ndarray, radii: np.ndarray, steps: int = 12
) -> AlignedDiscs:
    """Refine candidates on small discs, and compare them there.

    Args:
        affines: (n, 2, 3), pixel (x, y, 1) -> supposed copy; inverted first where the copy is the coarser partner.
        centres: (n, 2), (x, y) of the discs, before the map.
        radii: (n,) in pixels, before the map.
        steps: of the refinement, at most.
    """
    affines, centres, radii = affines.astype(np.float64), centres.astype(np.float64), radii.astype(np.float64)
    scales = np.sqrt(np.abs(np.linalg.det(affines[:, :, :2])))
    shrinks = scales < 1 / 1.05
    partners = np.einsum("nij,nj->ni", affines[:, :, :2], centres) + affines[:, :, 2]
    centres[shrinks] = partners[shrinks]
    affines[shrinks] = invert_affine(affines[shrinks])
    radii[shrinks] *= scales[shrinks]
    radii = np.clip(radii, MIN_RADIUS, MAX_RADIUS)
    refined, values = _screen(
        image_features.band_pass,
        image_features.high_pass,
        image_features.fine,
        image_features.informative,
        affines,
        centres,
        radii,
        steps,
    )
    values[_ran_away(affines, refined, centres, radii)] = -1
    return AlignedDiscs(refined, centres, radii, *values.T)


def _ran_away(affines: np.ndarray, refined: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which (n,) bool of the refined maps have left their candidate: they are the alignment of something else."""
    difference = refined - affines
    moved = np.linalg.norm(np.einsum("nij,nj->ni", difference[:, :, :2], centres) + difference[:, :, 2], axis=1)
    before, after = (np.abs(np.linalg.det(maps[:, :, :2])) for maps in (affines, refined))
    change = np.sqrt(after / np.maximum(before, 1e-9))
    return (moved > 0.7 * radii + 4) | (change > MAX_CHANGE_OF_SCALE) | (change < 1 / MAX_CHANGE_OF_SCALE)
