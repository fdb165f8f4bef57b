"""Measures of an aligned pair: what the score is made of."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.boundary import extend_shaded_boundary, sharpen_boundary
from copymove.correlation_maps import fit_gain, local_ncc, ncc_lead, pearson, zero_mean_ncc
from copymove.exactness import NEAR_EXACT, region_exactness
from copymove.growth import GrownRegion
from copymove.image_features import COARSE_SIGMA, FINE_SIGMA, ImageFeatures, blur
from copymove.morphology import ellipse, erode_keeping
from copymove.warping import aligned_pair, resolution_level, warp_to_template

MARGIN_SIDE = 64  # half the side of the window that margins are measured on, in pixels


@dataclass(frozen=True)
class PairMeasurements:
    """A verified pair in the frame of its coarser partner (the template)."""

    affine: np.ndarray  # (2, 3): template pixel (x, y, 1) -> partner pixel
    x: int  # left edge of the window in the image
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool: the template's region in that window
    fine_ncc: float  # correlation of the fine structure over the region's informative pixels
    grain_ncc: float  # correlation there of what is finer than a pixel's neighbours: noise, which only a copy shares
    fine_ncc_p80: float  # local fine correlation that a fifth of those pixels exceed: the outline may be too wide
    grain_ncc_p80: float  # the same for the grain
    band_ncc: float  # correlation of the middle band over the region
    local_ncc: float  # median of the local correlation over the region
    informative_pixels: int  # pixels that the fine structure was compared on
    texture: float  # standard deviation of the fine structure there, in grey levels
    second_peak: (
        float  # best correlation of the fine structure at another offset: near `fine` for edges and true repeats
    )
    ring_ncc: float  # correlation of the fine structure just outside of the region
    exactness: float  # by how much less it differs from its source at its place than 2 px off; 0: resampled, or flat
    fine_margin: float  # mean lead of the local fine correlation over the best at 2 to 3 px off: look-alikes have none
    middle_margin: float  # the same for the middle band, at 2 to 4 px off
    residual: float  # strength of what is left in the middle band after alignment, over the image's noise
    boundary_contrast: float  # what is left just outside of the region, over what is left inside


def measure_pair(canvas: ImageFeatures, grown: GrownRegion, min_lead: float = -1.0) -> PairMeasurements | None:
    """Evidence over a region; None where its fine structure leads by less than `min_lead` at its place, unless exact.

    The outline is sharpened only then: drawn where the difference begins, it would make a difference there for
    look-alikes too.
    """
    affine, region, box = grown.affine, grown.region, grown.box
    x0, y0, x1, y1 = box
    template, partner, valid = aligned_pair(canvas, affine, box)
    level = resolution_level(affine)
    fine_a = canvas.fine[0, y0:y1, x0:x1]
    fine_b = warp_to_template(canvas.fine[level], affine, box, cv2.INTER_CUBIC)
    told = canvas.informative[y0:y1, x0:x1] & warp_to_template(canvas.informative, affine, box, cv2.INTER_NEAREST)
    core = erode_keeping(region, 120)
    compared = core & (told > 0)
    exactness = region_exactness(canvas, affine, core, box)
    fine_margin = ncc_margin(fine_a, fine_b, compared if compared.any() else core, 9, 3, 1)
    if exactness <= NEAR_EXACT and fine_margin < min_lead:
        return None
    local = local_ncc(template, partner, valid, canvas.noise)
    ring = (cv2.dilate(region.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0) & valid & (told > 0)
    ring &= cv2.dilate(region.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    band_a = blur(template, 0.7) - blur(template, COARSE_SIGMA)
    band_b = blur(partner, 0.7) - blur(partner, COARSE_SIGMA)
    seen = region & (told > 0)
    grain_a, grain_b = canvas.grain[y0:y1, x0:x1], warp_to_template(canvas.grain, affine, box, cv2.INTER_CUBIC)
    rough = template - blur(template, FINE_SIGMA)
    middle_a, middle_b = (blur(v, 0.8) - blur(v, 2.5) for v in (template, partner))
    gain, offset = fit_gain(template[core], partner[core])
    left = template - gain * partner - offset
    left_middle = middle_a - gain * middle_b
    rim = (cv2.dilate(region.astype(np.uint8), ellipse(9)) > 0) & ~(cv2.dilate(region.astype(np.uint8), ellipse(3)) > 0)
    rim &= valid
    mask = sharpen_boundary(template, partner, valid, region)
    if exactness > NEAR_EXACT:
        mask = extend_shaded_boundary(template, partner, valid, mask)
    return PairMeasurements(
        affine=affine,
        x=x0,
        y=y0,
        mask=mask,
        fine_ncc=pearson(fine_a[compared], fine_b[compared]),
        grain_ncc=pearson(grain_a[compared], grain_b[compared]),
        fine_ncc_p80=_core_ncc(fine_a, fine_b, seen),
        grain_ncc_p80=_core_ncc(grain_a, grain_b, seen),
        band_ncc=pearson(band_a[core], band_b[core]),
        local_ncc=float(np.median(local[core])),
        informative_pixels=int(seen.sum()),
        texture=float(rough[compared].std()) if compared.any() else 0.0,
        second_peak=_second_peak(fine_a, fine_b, compared if compared.any() else region),
        ring_ncc=pearson(fine_a[ring], fine_b[ring]),
        exactness=exactness,
        fine_margin=fine_margin,
        middle_margin=ncc_margin(middle_a, middle_b, compared if compared.any() else core, 13, 4, 2),
        residual=(float(left_middle[core].std()) + 0.3) / canvas.noise,
        boundary_contrast=(float(np.abs(left[rim]).mean() if rim.any() else 0.0) + 0.5)
        / (float(np.abs(left[core]).mean()) + 0.5),
    )


def ncc_margin(a: np.ndarray, b: np.ndarray, seen: np.ndarray, window: int, reach: int, step: int) -> float:
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
    return float(ncc_lead(a, b, window, offsets)[seen].mean())


def _core_ncc(a: np.ndarray, b: np.ndarray, seen: np.ndarray) -> float:
    """80th percentile of the local correlation over the pixels seen; 0 without any."""
    return float(np.percentile(zero_mean_ncc(a, b, COARSE_SIGMA / 2)[seen], 80)) if seen.any() else 0.0


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
