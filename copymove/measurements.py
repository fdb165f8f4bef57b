"""Measures of an aligned pair: what the score is made of."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.boundary import extend_shaded_boundary, sharpen_boundary
from copymove.correlation_maps import fit_gain, local_ncc, ncc_margin_map, pearson, zero_mean_ncc
from copymove.exactness import NEAR_EXACT, region_exactness
from copymove.growth import GrownRegion
from copymove.image_features import COARSE_SIGMA, FINE_SIGMA, SMOOTHING_SIGMA, ImageFeatures, blur
from copymove.morphology import ellipse, erode_keeping
from copymove.warping import aligned_pair, fine_pair, informative_pair, warp_to_template

MARGIN_HALF_SIDE = 64  # of the window in the middle of a region that margins are measured in, in pixels
MIDDLE_SIGMAS = (0.8, 2.5)  # between which the middle band lies, in pixels


@dataclass(frozen=True)
class PairMeasurements:
    """Measures of an aligned pair, in the frame of its coarser partner (the template).

    NCC is normalised cross-correlation, in [-1, 1]. The core is the region without its edge; the compared pixels are
    those of the core where both partners are informative.
    """

    affine: np.ndarray  # (2, 3): template pixel (x, y, 1) -> partner pixel
    x: int  # left edge of the window in the image
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool: the template's region in that window, its boundary sharpened
    fine_ncc: float  # NCC of the fine structure over the compared pixels
    grain_ncc: float  # the same of the grain: noise, which only a copy shares
    fine_ncc_p80: float  # 80th percentile of the local fine NCC: a region that is too wide hardly lowers it
    grain_ncc_p80: float  # the same of the grain
    band_ncc: float  # NCC of the band-pass over the core
    local_ncc: float  # median over the core of the local NCC of the grey values
    informative_pixels: int  # pixels of the region where both partners are informative
    texture: float  # standard deviation of the fine structure over the compared pixels, in grey levels
    second_peak: float  # highest NCC of the region's middle at another offset: near `fine_ncc` where things repeat
    ring_ncc: float  # NCC of the fine structure just outside of the region
    exactness: float  # see `pixel_exactness`; 0 where the copy was resampled or is flat
    fine_margin: float  # mean margin of the local NCC of the fine structure, 2 to 3 px off; look-alikes have none
    middle_margin: float  # the same of the middle band, 2 to 4 px off
    residual: float  # standard deviation of the middle band's difference over the core, over the image's noise
    boundary_contrast: float  # mean absolute difference just outside of the region, over that in its core


@dataclass(frozen=True)
class _AlignedRegion:
    """A grown region and its partner, warped onto it; (h, w) float32 where nothing else is said."""

    template: np.ndarray  # grey values
    partner: np.ndarray
    fine: tuple[np.ndarray, np.ndarray]  # fine structure of both
    valid: np.ndarray  # (h, w) bool, as of `aligned_pair`
    informative: np.ndarray  # (h, w) bool: in both
    region: np.ndarray  # (h, w) bool
    core: np.ndarray  # (h, w) bool: the region without its edge
    noise: float  # of the image, in grey levels

    @property
    def compared(self) -> np.ndarray:
        """Informative pixels of the core, (h, w) bool."""
        return self.core & self.informative


def measure_pair(
    image_features: ImageFeatures, grown: GrownRegion, min_margin: float = -1.0
) -> PairMeasurements | None:
    """Measures of a region; None where its `fine_margin` is under `min_margin` and it is not nearly exact.

    The boundary is sharpened after everything else was measured: it is drawn where the difference begins, so that it
    would give look-alikes a contrast there too.
    """
    pair = _align(image_features, grown)
    exactness = region_exactness(image_features, grown.affine, pair.core, grown.box)
    inside = pair.compared if pair.compared.any() else pair.core
    fine_margin = ncc_margin(*pair.fine, inside, 9, 3, 1)
    if exactness <= NEAR_EXACT and fine_margin < min_margin:
        return None
    x0, y0, x1, y1 = grown.box
    partner_grain = warp_to_template(image_features.grain, grown.affine, grown.box, cv2.INTER_CUBIC)
    grain = image_features.grain[y0:y1, x0:x1], partner_grain
    middle = _band(pair.template, *MIDDLE_SIGMAS), _band(pair.partner, *MIDDLE_SIGMAS)
    return PairMeasurements(
        affine=grown.affine,
        x=x0,
        y=y0,
        mask=_sharpened_mask(pair, exactness),
        exactness=exactness,
        fine_margin=fine_margin,
        middle_margin=ncc_margin(*middle, inside, 13, 4, 2),
        second_peak=_second_peak(*pair.fine, pair.compared if pair.compared.any() else pair.region),
        **_correlations(pair, grain),
        **_amounts_of_structure(pair),
        **_differences(pair, middle),
    )


def _align(image_features: ImageFeatures, grown: GrownRegion) -> _AlignedRegion:
    """The region's window with everything that is measured in it."""
    affine, box = grown.affine, grown.box
    template, partner, valid = aligned_pair(image_features, affine, box)
    return _AlignedRegion(
        template=template,
        partner=partner,
        fine=fine_pair(image_features, affine, box),
        valid=valid,
        informative=informative_pair(image_features, affine, box),
        region=grown.region,
        core=erode_keeping(grown.region, 120),
        noise=image_features.noise,
    )


def _correlations(pair: _AlignedRegion, grain: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Normalised cross-correlations inside the region and around it.

    Args:
        grain: grain (h, w) float32 of both partners.
    """
    compared, informative_region = pair.compared, pair.region & pair.informative
    band_a, band_b = (_band(v, SMOOTHING_SIGMA, COARSE_SIGMA) for v in (pair.template, pair.partner))
    ring = _ring(pair.region, np.ones((7, 7), np.uint8), np.ones((13, 13), np.uint8)) & pair.valid & pair.informative
    local = local_ncc(pair.template, pair.partner, pair.valid, pair.noise)
    return {
        "fine_ncc": pearson(*(v[compared] for v in pair.fine)),
        "grain_ncc": pearson(*(v[compared] for v in grain)),
        "fine_ncc_p80": _local_ncc_p80(*pair.fine, informative_region),
        "grain_ncc_p80": _local_ncc_p80(*grain, informative_region),
        "band_ncc": pearson(band_a[pair.core], band_b[pair.core]),
        "local_ncc": float(np.median(local[pair.core])),
        "ring_ncc": pearson(*(v[ring] for v in pair.fine)),
    }


def _amounts_of_structure(pair: _AlignedRegion) -> dict[str, float]:
    """How much there is to compare."""
    high_pass = pair.template - blur(pair.template, FINE_SIGMA)
    return {
        "informative_pixels": int((pair.region & pair.informative).sum()),
        "texture": float(high_pass[pair.compared].std()) if pair.compared.any() else 0.0,
    }


def _differences(pair: _AlignedRegion, middle: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """What differs after the partner was brought to the template's brightness and contrast.

    Args:
        middle: middle band (h, w) float32 of both partners.
    """
    core = pair.core
    gain, offset = fit_gain(pair.template[core], pair.partner[core])
    difference = np.abs(pair.template - gain * pair.partner - offset)
    middle_difference = middle[0] - gain * middle[1]
    ring = _ring(pair.region, ellipse(3), ellipse(9)) & pair.valid
    outside = float(difference[ring].mean()) if ring.any() else 0.0
    return {
        "residual": (float(middle_difference[core].std()) + 0.3) / pair.noise,
        "boundary_contrast": (outside + 0.5) / (float(difference[core].mean()) + 0.5),
    }


def _sharpened_mask(pair: _AlignedRegion, exactness: float) -> np.ndarray:
    """The region (h, w) bool with its boundary drawn by the difference."""
    mask = sharpen_boundary(pair.template, pair.partner, pair.valid, pair.region)
    if exactness > NEAR_EXACT:
        mask = extend_shaded_boundary(pair.template, pair.partner, pair.valid, mask)
    return mask


def _band(values: np.ndarray, finest: float, coarsest: float) -> np.ndarray:
    """Values (h, w) float32 between two Gaussians, given by their standard deviations in pixels."""
    return blur(values, finest) - blur(values, coarsest)


def _ring(region: np.ndarray, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Pixels (h, w) bool that the region reaches by the outer structuring element and not by the inner one."""
    mask = region.astype(np.uint8)
    return (cv2.dilate(mask, outer) > 0) & (cv2.dilate(mask, inner) == 0)


def ncc_margin(a: np.ndarray, b: np.ndarray, inside: np.ndarray, window: int, reach: int, step: int) -> float:
    """Mean over a region of the local NCC's margin over its best at 2 to `reach` px off.

    A copy agrees at one place only, everywhere by the same map. Two things of one kind agree about as well when they
    are moved a little, here in this direction and there in that.

    Args:
        a, b: (h, w) float32 structures with a local mean of 0. inside: (h, w) bool, not empty.
        window: side of the square that the local NCC is computed in. reach, step: of the offsets; all in pixels.
    """
    ys, xs = np.nonzero(inside)
    y, x = int(np.median(ys)), int(np.median(xs))  # a window in the middle is enough of a large region
    top, left = max(y - MARGIN_HALF_SIDE, 0), max(x - MARGIN_HALF_SIDE, 0)
    middle = np.s_[top : y + MARGIN_HALF_SIDE, left : x + MARGIN_HALF_SIDE]
    a, b, inside = a[middle], b[middle], inside[middle]
    if not inside.any():
        return 0.0
    steps = range(-reach, reach + 1, step)
    offsets = [(dy, dx) for dy in steps for dx in steps if max(abs(dy), abs(dx)) >= 2]
    return float(ncc_margin_map(a, b, window, offsets)[inside].mean())


def _local_ncc_p80(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """80th percentile over the pixels inside of the local NCC of two structures; 0 without any."""
    return float(np.percentile(zero_mean_ncc(a, b, COARSE_SIGMA / 2)[inside], 80)) if inside.any() else 0.0


def _second_peak(template: np.ndarray, partner: np.ndarray, inside: np.ndarray) -> float:
    """Highest NCC of the region's middle with the partner at another offset; repeats by nature have one near 1."""
    ys, xs = np.nonzero(inside)
    y, x = int(np.median(ys)), int(np.median(xs))
    half = int(min(24, max(5, 0.35 * np.sqrt(len(xs)))))
    reach = 2 * half + 8
    patch = template[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
    top, left = max(y - half - reach, 0), max(x - half - reach, 0)
    area = partner[top : y + half + reach + 1, left : x + half + reach + 1]
    if patch.std() < 1e-3 or area.shape[0] <= patch.shape[0] or area.shape[1] <= patch.shape[1]:
        return 0.0
    ncc = cv2.matchTemplate(np.ascontiguousarray(area), np.ascontiguousarray(patch), cv2.TM_CCOEFF_NORMED)
    own_y, own_x = max(y - half, 0) - top, max(x - half, 0) - left
    near = max(half // 2, 4)  # pixels around its own place that are no other offset
    ys, xs = np.ogrid[: ncc.shape[0], : ncc.shape[1]]
    ncc[(np.abs(ys - own_y) <= near) & (np.abs(xs - own_x) <= near)] = -1
    return float(np.nan_to_num(ncc).max(initial=-1.0))
