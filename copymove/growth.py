"""Growth: from an aligned disc to the whole region that agrees."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.correlation_maps import fit_gain, local_ncc, ncc_margin_map, zero_mean_ncc
from copymove.exactness import NEAR_EXACT, pixel_exactness
from copymove.geometry import Box, nearest_integer_map, transform_points
from copymove.image_features import ImageFeatures, blur
from copymove.lucas_kanade import refine_affine
from copymove.morphology import (
    MAX_POINTS,
    close_with_disc,
    component_with_most,
    disc_in_window,
    ellipse,
    erode_keeping,
    fill_holes,
    subsample_pixels,
)
from copymove.screening import MIN_INFORMATIVE_OF_REGION, fine_ncc
from copymove.warping import aligned_pair, fine_pair, resolution_level

MAX_GROWTH_STEPS = 8  # times that the window doubles or the map is refined
SETTLED = 0.7  # pixels that a refinement moves a corner of the window at most for the map to count as settled
MIN_REFINED_PIXELS = 60  # of a region's inside, to refine the map on it
MIN_AFFINE_PIXELS = 300  # of the same, to refine all six parameters and not shift, rotation and scale only
REFINEMENT_STEPS = 15
MIN_REFINED_NCC = 0.2  # NCC after refinement below which the map stays as it was
INTEGER_EXACTNESS = 0.7  # exactness from which a copy was not resampled: its map is rounded to whole pixels
SMALL_EDGE_NCC = 0.55  # least mean of plain and fine local NCC on the outline of a small region
LARGE_EDGE_NCC = 0.45  # the same of a region over LARGE_AREA, beside which chance agreement weighs less
LARGE_AREA = 3000  # pixels
EDGE_SIGMA = 1.3  # window, in pixels, of the plain local NCC on the outline
EDGE_FINE_SIGMA = 1.8  # the same of the fine local NCC
MARGIN_WINDOW = 9  # side of the window, in pixels, in which a part's margin over other offsets is measured
MARGIN_OFFSETS = [(dy, dx) for dy in (-3, 0, 3) for dx in (-3, 0, 3) if dy or dx]  # the other offsets, in pixels
MIN_MARGIN = 0.15  # least mean margin of a part: edges and ripples have none
MIN_PART = 25  # least pixels of a part
MIN_JOIN_REACH, MAX_JOIN_REACH = 15, 20  # half of the gaps over which parts of a copy are joined, in pixels
MEASURE_MARGIN = 16  # pixels around a region that its measures look at


@dataclass(frozen=True)
class GrownRegion:
    """A candidate that grew to a region, in the frame of its coarser partner (the template)."""

    affine: np.ndarray  # (2, 3): template pixel (x, y, 1) -> partner pixel
    region: np.ndarray  # (h, w) bool
    box: Box  # its window in the image


def grow_region(
    image_features: ImageFeatures,
    affine: np.ndarray,
    centre: np.ndarray,
    radius: float,
    min_fine: float,
    min_local: float = 0.6,
) -> GrownRegion | None:
    """Grow an aligned disc to the region that agrees, and refine the map as it grows.

    Args:
        affine: (2, 3), template pixel -> partner pixel; scale at least about 1, as `screen_candidates` returns it.
        centre: (2,), (x, y) of the disc in the template's frame. radius: in pixels.
        min_fine: NCC of the fine structure under which a region isn't worth its measures.
        min_local: local NCC of a pixel that agrees.
    Returns:
        The region with its refined map; None where there is none, or its fine structure does not agree.
    """
    region, half = None, max(int(2.5 * radius), 24)
    for _ in range(MAX_GROWTH_STEPS):
        box = _window(centre, half, image_features.shape)
        template, partner, valid = aligned_pair(image_features, affine, box)
        local = local_ncc(template, partner, valid, image_features.noise)
        region = _agreeing_component(local > min_local, valid, (centre[0] - box[0], centre[1] - box[1]), radius)
        if region is None:
            return None
        refined = _refine_on_region(image_features, affine, region & (local > 0.5 * (1 + min_local)), box)
        moved = _largest_move(affine, refined, box)
        affine = refined
        touches = _touches_window(region, box, image_features.shape)
        if not touches and moved < SETTLED:
            break
        if touches:
            half *= 2
            if not _fine_structure_agrees(image_features, affine, region, box, min_fine):
                return None
    if not _fine_structure_agrees(image_features, affine, region, box, min_fine):
        return None
    if pixel_exactness(image_features.high_pass, affine, *subsample_pixels(region, box)) > INTEGER_EXACTNESS:
        ys, xs = np.nonzero(region)
        affine = nearest_integer_map(affine, np.array([xs.mean() + box[0], ys.mean() + box[1]]))
    region, box = _crop_with_margin(region, box, 0, image_features.shape)
    region, box = _redraw_region(image_features, affine, region, box, centre, radius)
    return GrownRegion(affine, *_crop_with_margin(region, box, MEASURE_MARGIN, image_features.shape))


def region_from_mask(affine: np.ndarray, mask: np.ndarray) -> GrownRegion:
    """A region that is given as a mask (H, W) bool of the whole image, with its map (2, 3)."""
    whole = (0, 0, mask.shape[1], mask.shape[0])
    return GrownRegion(affine, *_crop_with_margin(mask, whole, MEASURE_MARGIN, mask.shape))


def _window(centre: np.ndarray, half: int, shape: tuple[int, int]) -> Box:
    """The square of `half` pixels to each side of the centre, cut at the image's border."""
    x, y = round(float(centre[0])), round(float(centre[1]))
    return max(x - half, 0), max(y - half, 0), min(x + half + 1, shape[1]), min(y + half + 1, shape[0])


def _agreeing_component(
    agree: np.ndarray, valid: np.ndarray, centre: tuple[float, float], radius: float
) -> np.ndarray | None:
    """Connected region (h, w) bool of agreement (h, w) bool that holds at least a quarter of the candidate's disc."""
    agree = cv2.morphologyEx(agree.astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    agree = cv2.morphologyEx(agree, cv2.MORPH_CLOSE, ellipse(5))
    agree[~valid] = 0  # closing must not bridge a gutter
    _, labels = cv2.connectedComponents(agree, connectivity=4)
    disc = disc_in_window(agree.shape, centre, max(radius, 5))
    region, held = component_with_most(labels, disc)
    if held < max(0.25 * disc.sum(), 1):
        return None
    return fill_holes(region) & valid


def _refine_on_region(image_features: ImageFeatures, affine: np.ndarray, region: np.ndarray, box: Box) -> np.ndarray:
    """Map refined on a region's inside: at its edge the band-pass mixes in what lies outside."""
    ys, xs = np.nonzero(erode_keeping(region, 150))
    if len(xs) < MIN_REFINED_PIXELS:
        return affine
    if len(xs) > MAX_POINTS:
        keep = np.linspace(0, len(xs) - 1, MAX_POINTS).astype(int)
        xs, ys = xs[keep], ys[keep]
    band_pass = image_features.narrow_band_pass
    full = len(xs) > MIN_AFFINE_PIXELS
    refined, ncc = refine_affine(band_pass, band_pass, xs + box[0], ys + box[1], affine, REFINEMENT_STEPS, full)
    return refined if ncc > MIN_REFINED_NCC else affine


def _largest_move(affine: np.ndarray, other: np.ndarray, box: Box) -> float:
    """Largest difference in x or y, in pixels, between two maps at the window's corners."""
    corners = np.array([[box[0], box[1]], [box[2], box[3]], [box[0], box[3]], [box[2], box[1]]], float)
    return float(np.abs(transform_points(other, corners) - transform_points(affine, corners)).max())


def _touches_window(region: np.ndarray, box: Box, shape: tuple[int, int]) -> bool:
    """Whether the region reaches a side of the window that is not the image's border."""
    return bool(
        (region[0].any() and box[1] > 0)
        or (region[-1].any() and box[3] < shape[0])
        or (region[:, 0].any() and box[0] > 0)
        or (region[:, -1].any() and box[2] < shape[1])
    )


def _fine_structure_agrees(
    image_features: ImageFeatures, affine: np.ndarray, region: np.ndarray, box: Box, min_fine: float
) -> bool:
    """Whether a region's fine structure agrees nearly well enough, or exactly, before the costlier measures."""
    xs, ys = subsample_pixels(region, box, 4000)
    partner = image_features.fine[resolution_level(affine)]
    fine = fine_ncc(
        image_features.fine[0], partner, image_features.informative, affine, xs, ys, MIN_INFORMATIVE_OF_REGION
    )
    if fine >= 0.8 * min_fine:
        return True
    return pixel_exactness(image_features.high_pass, affine, *subsample_pixels(region, box)) > NEAR_EXACT


def _crop_with_margin(region: np.ndarray, box: Box, margin: int, shape: tuple[int, int]) -> tuple[np.ndarray, Box]:
    """A region and its window, cut or widened to `margin` pixels around the region, inside the image (H, W)."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    tight = box[0] + left, box[1] + top, box[0] + right, box[1] + bottom
    wide = _widen(tight, margin, shape)
    return _place(region[top:bottom, left:right], tight, wide), wide


def _widen(box: Box, margin: int, shape: tuple[int, int]) -> Box:
    """The window with `margin` more pixels on each side, cut at the image's border."""
    return (
        max(box[0] - margin, 0),
        max(box[1] - margin, 0),
        min(box[2] + margin, shape[1]),
        min(box[3] + margin, shape[0]),
    )


def _place(region: np.ndarray, box: Box, larger: Box) -> np.ndarray:
    """The region (h, w) bool of one window in a larger window."""
    placed = np.zeros((larger[3] - larger[1], larger[2] - larger[0]), bool)
    placed[box[1] - larger[1] : box[3] - larger[1], box[0] - larger[0] : box[2] - larger[0]] = region
    return placed


def _redraw_region(
    image_features: ImageFeatures, affine: np.ndarray, region: np.ndarray, box: Box, centre: np.ndarray, radius: float
) -> tuple[np.ndarray, Box]:
    """The region drawn with a sharper window than it grew with, and a window with room for it.

    It consists of the parts that agree, and of what lies between them where the grey values fit: a copied rectangle of
    dark background and cells agrees on the cells only. The old region is kept where the new one would be less than a
    quarter of it.
    """
    height, width = region.shape
    # Further for a large region than for a cell.
    join = int(np.clip(0.5 * np.sqrt(region.sum()), MIN_JOIN_REACH, MAX_JOIN_REACH))
    larger = _widen(box, max(join, height // 2, width // 2), image_features.shape)
    region = _place(region, box, larger)
    template, partner, valid = aligned_pair(image_features, affine, larger)
    fine_a, fine_b = fine_pair(image_features, affine, larger)
    plain_ncc = local_ncc(template, partner, valid, image_features.noise, EDGE_SIGMA)
    ncc = np.where(valid, 0.5 * zero_mean_ncc(fine_a, fine_b, EDGE_FINE_SIGMA) + 0.5 * plain_ncc, -1)
    min_ncc = LARGE_EDGE_NCC if region.sum() > LARGE_AREA else SMALL_EDGE_NCC
    similar = _similar_pixels(template, partner, region, image_features.noise)
    margin = ncc_margin_map(fine_a, fine_b, MARGIN_WINDOW, MARGIN_OFFSETS)
    agree = _agreeing_parts(ncc > min_ncc, similar, margin)
    between = close_with_disc(agree, join) & similar & valid
    joined = cv2.morphologyEx((between | (agree > 0)).astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    _, labels = cv2.connectedComponents(joined, connectivity=4)
    disc = disc_in_window(region.shape, (centre[0] - larger[0], centre[1] - larger[1]), max(radius, 5))
    component, held = component_with_most(labels, disc)
    redrawn = fill_holes(component) & valid if held else region
    return (redrawn if redrawn.sum() > 0.25 * region.sum() else region), larger


def _similar_pixels(template: np.ndarray, partner: np.ndarray, region: np.ndarray, noise: float) -> np.ndarray:
    """Where the pair differs, (h, w) bool, no more than about twice as much as in the region or as the noise."""
    gain, offset = fit_gain(template[region], partner[region])
    residual = blur((template - gain * partner - offset) ** 2, 1.5)
    return residual < 4 * max(noise**2, float(np.median(residual[region])))


def _agreeing_parts(agree: np.ndarray, similar: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Those connected parts, (h, w) uint8, of the agreement of which most pixels are similar, and that fit here only.

    Args:
        agree, similar: (h, w) bool. margin: (h, w) float32 from `ncc_margin_map`: edges and ripples have none, for they
            fit onto themselves when they are moved along, and so don't show where a copy ends.
    """
    agree = cv2.morphologyEx(agree.astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(agree, connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    similar_area, total_margin = (np.bincount(labels.ravel(), v.ravel(), count) for v in (similar, margin))
    kept = (similar_area > 0.5 * area) & (total_margin > MIN_MARGIN * area) & (area >= MIN_PART)
    kept[0] = False  # the background
    return kept[labels].astype(np.uint8)
