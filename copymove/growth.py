"""From an aligned disc to the whole region that agrees."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.correlation_maps import fit_gain, local_ncc, ncc_lead, zero_mean_ncc
from copymove.exactness import MAX_POINTS, NEAR_EXACT, SNAP, disc_exactness, subsample_pixels
from copymove.geometry import nearest_integer_map, transform_points
from copymove.image_features import ImageFeatures, blur
from copymove.lucas_kanade import refine_affine
from copymove.morphology import close_with_disc, ellipse, erode_keeping, fill_holes
from copymove.screening import MIN_INFORMATIVE, fine_ncc
from copymove.warping import aligned_pair, resolution_level, warp_to_template

EDGE_SIGMA = 1.3  # window of the local correlation that draws the outline, in pixels


EDGE_LOCAL = (0.55, 0.45)  # mean of that and of the local fine correlation on the outline of small and large regions


LARGE_AREA = 3000  # pixels from which a region is large: chance agreement next to it weighs less


LEAD_OFFSETS = [
    (dy, dx) for dy in (-3, 0, 3) for dx in (-3, 0, 3) if dy or dx
]  # offsets that a part of an outline must beat


MIN_LEAD = 0.15  # mean lead over those of the local fine correlation


JOIN_REACH = (15, 20)  # parts of one copy are joined over gaps of up to twice this, in pixels: least, most


MEASURE_MARGIN = 16  # room around a region that its measures look at, in pixels


@dataclass(frozen=True)
class GrownRegion:
    """A candidate that grew to a region, in the frame of its coarser partner (the template)."""

    affine: np.ndarray  # (2, 3): template pixel (x, y, 1) -> partner pixel
    region: np.ndarray  # (h, w) bool
    box: tuple[int, int, int, int]  # its window in the image: left, top, right, bottom


def grow_region(
    canvas: ImageFeatures,
    affine: np.ndarray,
    centre: np.ndarray,
    radius: float,
    min_fine: float,
    min_local: float = 0.6,
) -> GrownRegion | None:
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
        template, partner, valid = aligned_pair(canvas, affine, box)
        local = local_ncc(template, partner, valid, canvas.noise)
        region = _agreeing_component(local, valid, (centre[0] - box[0], centre[1] - box[1]), radius, min_local)
        if region is None:
            return None
        refined = _refine_region(canvas, affine, region & (local > 0.5 * (1 + min_local)), box)
        corners = np.array([[box[0], box[1]], [box[2], box[3]], [box[0], box[3]], [box[2], box[1]]], float)
        settled = float(np.abs(transform_points(refined, corners) - transform_points(affine, corners)).max())
        affine = refined
        touches = _touches_window(region, box, (height, width))
        if not touches and settled < 0.7:
            break
        if touches:
            half *= 2
            if not _is_worth_measuring(canvas, affine, region, box, min_fine):
                return None
    if not _is_worth_measuring(canvas, affine, region, box, min_fine):
        return None
    if disc_exactness(canvas.rough, affine, *subsample_pixels(region, box)) > SNAP:
        ys, xs = np.nonzero(region)
        affine = nearest_integer_map(affine, np.array([xs.mean() + box[0], ys.mean() + box[1]]))
    region, box = _final_region(canvas, affine, *_crop_with_margin(region, box, 0, canvas.shape), centre, radius)
    return GrownRegion(affine, *_crop_with_margin(region, box, MEASURE_MARGIN, canvas.shape))


def region_from_mask(affine: np.ndarray, mask: np.ndarray) -> GrownRegion:
    """A region given as a mask (H, W) bool of the whole image."""
    return GrownRegion(
        affine, *_crop_with_margin(mask, (0, 0, mask.shape[1], mask.shape[0]), MEASURE_MARGIN, mask.shape)
    )


def _is_worth_measuring(
    canvas: ImageFeatures, affine: np.ndarray, region: np.ndarray, box: tuple[int, int, int, int], min_fine: float
) -> bool:
    """Whether a region's fine structure agrees, before the costlier rest."""
    xs, ys = subsample_pixels(region, box, 4000)
    partner = canvas.fine[resolution_level(affine)]
    fine = fine_ncc(canvas.fine[0], partner, canvas.informative, affine, xs, ys, MIN_INFORMATIVE[1])
    return fine >= 0.8 * min_fine or disc_exactness(canvas.rough, affine, *subsample_pixels(region, box)) > NEAR_EXACT


def _crop_with_margin(
    region: np.ndarray, box: tuple[int, int, int, int], margin: int, shape: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Region and window with as much room around the region as `margin`, inside the image (height, width)."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    y0, y1 = max(box[1] + int(rows[0]) - margin, 0), min(box[1] + int(rows[-1]) + 1 + margin, shape[0])
    x0, x1 = max(box[0] + int(columns[0]) - margin, 0), min(box[0] + int(columns[-1]) + 1 + margin, shape[1])
    inside = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    wide = np.zeros((y1 - y0, x1 - x0), bool)
    top, left = box[1] + int(rows[0]) - y0, box[0] + int(columns[0]) - x0
    wide[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return wide, (x0, y0, x1, y1)


def _refine_region(
    canvas: ImageFeatures, affine: np.ndarray, region: np.ndarray, box: tuple[int, int, int, int]
) -> np.ndarray:
    """Map refined on a region's inside, away from its edge, where the band-pass mixes in what lies outside."""
    ys, xs = np.nonzero(erode_keeping(region, 150))
    if len(xs) < 60:
        return affine
    if len(xs) > MAX_POINTS:
        keep = np.linspace(0, len(xs) - 1, MAX_POINTS).astype(int)
        xs, ys = xs[keep], ys[keep]
    refined = affine.copy()
    value = refine_affine(canvas.narrow, canvas.narrow, xs + box[0], ys + box[1], refined, 15, len(xs) > 300)
    return refined if value > 0.2 else affine


def _window(centre: np.ndarray, half: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) around the centre, cut at the image's border."""
    x, y = round(float(centre[0])), round(float(centre[1]))
    return max(x - half, 0), max(y - half, 0), min(x + half + 1, shape[1]), min(y + half + 1, shape[0])


def _touches_window(region: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]) -> bool:
    """Whether the region reaches a side of the window that is not the image's border."""
    return bool(
        (region[0].any() and box[1] > 0)
        or (region[-1].any() and box[3] < shape[0])
        or (region[:, 0].any() and box[0] > 0)
        or (region[:, -1].any() and box[2] < shape[1])
    )


def _agreeing_component(
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


def _final_region(
    canvas: ImageFeatures,
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
    template, partner, valid = aligned_pair(canvas, affine, box)
    fine_a = canvas.fine[0, y0:y1, x0:x1]
    fine_b = warp_to_template(canvas.fine[resolution_level(affine)], affine, box, cv2.INTER_CUBIC)
    plain = local_ncc(template, partner, valid, canvas.noise, EDGE_SIGMA)
    score = np.where(valid, 0.5 * zero_mean_ncc(fine_a, fine_b, 1.8) + 0.5 * plain, -1)
    edge = EDGE_LOCAL[int(wide.sum() > LARGE_AREA)]
    agree = cv2.morphologyEx((score > edge).astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    gain, offset = fit_gain(template[wide], partner[wide])
    left = blur((template - gain * partner - offset) ** 2, 1.5)
    similar = left < 4 * max(canvas.noise**2, float(np.median(left[wide])))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(agree, connectivity=4)
    fitting = np.bincount(labels.ravel(), similar.ravel(), count) > 0.5 * stats[:, 4]
    # Edges and ripples fit onto themselves when moved along: they don't show where a copy ends.
    fitting &= (
        np.bincount(labels.ravel(), ncc_lead(fine_a, fine_b, 9, LEAD_OFFSETS).ravel(), count) > MIN_LEAD * stats[:, 4]
    )
    agree = (fitting & (stats[:, 4] >= 25) & (np.arange(count) > 0))[labels].astype(np.uint8)
    between = close_with_disc(agree, join) & similar & valid
    full = cv2.morphologyEx((between | (agree > 0)).astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    _, labels = cv2.connectedComponents(full, connectivity=4)
    ys, xs = np.ogrid[: y1 - y0, : x1 - x0]
    disc = (xs - (centre[0] - x0)) ** 2 + (ys - (centre[1] - y0)) ** 2 <= max(radius, 5) ** 2
    votes = np.bincount(labels[disc], minlength=1)
    votes[0] = 0
    outline = fill_holes(labels == votes.argmax(), 0.2) & valid if votes.max() else wide
    return (outline if outline.sum() > 0.25 * wide.sum() else wide), box
