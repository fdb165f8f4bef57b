"""Copies of one content are cut to the outline that the best of them proves."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from copymove.copies import Copy, VerifiedCopy
from copymove.geometry import invert_affine
from copymove.growth import region_from_mask
from copymove.image_features import ImageFeatures
from copymove.measurements import measure_pair
from copymove.regions import Region, overlap_area, region_of_mask, warp_region
from copymove.scoring import calibrated_score, feature_vector
from copymove.time_budget import TimeBudget
from copymove.verification import MIN_AREA, MIN_MARGINS, is_sufficient

MIN_BETTER = 0.1  # by which the feature `fine_ncc` must be higher within the other copy's outline
REST_RESIDUAL = 2.0  # times as much as inside that source and copy must differ beyond the outline
MIN_HELD = 0.7  # share of the outline that a copy must hold to be cut to it
MIN_LARGER = 1.25  # times as large as the outline that the copy must be


def share_outlines(
    image_features: ImageFeatures, verified: Sequence[VerifiedCopy], threshold: float, budget: TimeBudget
) -> tuple[VerifiedCopy, ...]:
    """Cut copies that grew too far to the outline of a better copy of the same content, where they agree better there.

    Tiles, ripples and bricks beside a copy agree as well, and of several copies one grows further over them than
    another. Copies stay in their order.

    Args:
        threshold: score that a better copy needs.
    """
    shared = list(verified)
    by_score = sorted(range(len(shared)), key=lambda k: -shared[k].copy.score)
    for place, k in enumerate(by_score):
        if shared[k].copy.kind != "exact" and not budget.is_spent():
            better = [copy for b in by_score[:place] if (copy := shared[b].copy).score >= threshold]
            shared[k] = _within_outline(image_features, shared[k], better, threshold)
    return tuple(shared)


def _within_outline(
    image_features: ImageFeatures, verified: VerifiedCopy, better: Sequence[Copy], threshold: float
) -> VerifiedCopy:
    """A copy within the first region of these better ones where it agrees better; as it is where there is none."""
    for outline in itertools.chain.from_iterable((copy.source, copy.target) for copy in better):
        mask = _common_mask(verified.copy, outline, image_features.shape)
        cut = None if mask is None else _cut_to(image_features, verified, mask)
        if cut is not None and cut.copy.score >= min(verified.copy.score, threshold):
            return cut
    return verified


def _cut_to(image_features: ImageFeatures, verified: VerifiedCopy, mask: np.ndarray) -> VerifiedCopy | None:
    """A copy cut to a mask (H, W) bool in its source; None where it does not agree better there."""
    copy, features, shape = verified.copy, verified.features, image_features.shape
    measurements = measure_pair(image_features, region_from_mask(copy.affine, mask), MIN_MARGINS[0])
    if measurements is None or not is_sufficient(measurements):
        return None
    beyond = copy.source.full(shape) & (cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0)
    rest = measure_pair(image_features, region_from_mask(copy.affine, beyond)) if beyond.any() else None
    if rest is not None and rest.residual < REST_RESIDUAL * measurements.residual:
        return None
    new = feature_vector(measurements, verified.proposal, image_features.noise)
    source = region_of_mask(measurements.mask, measurements.x, measurements.y)
    target = warp_region(source, copy.affine, shape)
    agrees = new["fine_ncc"] >= features["fine_ncc"] + MIN_BETTER and new["fine_margin"] >= features["fine_margin"]
    if not agrees or target is None:
        return None
    score = calibrated_score(new)
    cut = replace(copy, ncc=measurements.local_ncc, score=score, source=source, target=target)
    return replace(verified, copy=cut, features=new)


def _common_mask(copy: Copy, outline: Region, shape: tuple[int, int]) -> np.ndarray | None:
    """Mask (H, W) bool of the part of a copy's source within an outline that lies in its source or in its target.

    None where the copy does not hold the outline, or is hardly larger than that.
    """
    for region, back in ((copy.source, None), (copy.target, invert_affine(copy.affine))):
        area = outline.mask.sum()
        if overlap_area(outline, region) < MIN_HELD * area or region.mask.sum() < MIN_LARGER * area:
            continue
        there = outline if back is None else warp_region(outline, back, shape)
        mask = copy.source.full(shape) & there.full(shape) if there else None
        if mask is not None and mask.sum() >= MIN_AREA:
            return mask
    return None
