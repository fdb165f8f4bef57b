"""Copies of one content cut to the outline that the best of them proves."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from copymove.copies import Copy
from copymove.geometry import invert_affine
from copymove.growth import region_from_mask
from copymove.measurements import measure_pair
from copymove.regions import Region, overlap_area, region_of_mask, warp_region
from copymove.scoring import calibrated_score, feature_vector, score_threshold
from copymove.search import SearchState
from copymove.verification import MIN_AREA, MIN_MARGINS, is_sufficient

MIN_BETTER = 0.1  # by which the fine structure (Fisher's transform) must agree better within another copy's outline


REST_RESIDUAL = 2.0  # times as much as inside that a copy must differ beyond an outline to be cut to it


MIN_COMMON = (0.7, 1.25)  # share of an outline that a copy must hold to be cut to it, and how much larger it must be


def share_outlines(search: SearchState) -> None:
    """Cut what grew beyond a better proven copy of its content down to that, where it agrees better there.

    Tiles, ripples and bricks fit beside a copy too, and of several copies one grows further over them than another.
    """
    threshold = score_threshold(search.settings.target_fpr)
    order = sorted(range(len(search.copies)), key=lambda k: -search.copies[k].score)
    for place, k in enumerate(order):
        if search.copies[k].kind != "exact" and not search.late():
            better = [copy for b in order[:place] if (copy := search.copies[b]).score >= threshold]
            search.copies[k], search.evidence[k] = _within_outline(search, k, better, threshold)


def _within_outline(
    search: SearchState, k: int, better: Sequence[Copy], threshold: float
) -> tuple[Copy, dict[str, float]]:
    """A copy and its measures within the first outline of these where it agrees better; as they are without any."""
    copy, features, shape = search.copies[k], search.evidence[k], search.canvas.shape
    for known in itertools.chain.from_iterable((other.source, other.target) for other in better):
        mask = _common(copy, known, shape)
        if mask is None:
            continue
        evidence = measure_pair(search.canvas, region_from_mask(copy.affine, mask), MIN_MARGINS[0])
        if evidence is None or not is_sufficient(evidence):
            continue
        beyond = copy.source.full(shape) & (cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0)
        rest = beyond.any() and measure_pair(search.canvas, region_from_mask(copy.affine, beyond))
        if rest and rest.residual < REST_RESIDUAL * evidence.residual:
            continue
        votes, support = (round(math.exp(features[name])) for name in ("votes", "support"))
        told = feature_vector(evidence, votes, support, features["median_ncc"], search.canvas.noise)
        score = calibrated_score(told)
        agrees = (
            told["fine_ncc"] >= features["fine_ncc"] + MIN_BETTER and told["fine_margin"] >= features["fine_margin"]
        )
        source = region_of_mask(evidence.mask, evidence.x, evidence.y)
        target = warp_region(source, copy.affine, shape)
        if agrees and target is not None and score >= min(copy.score, threshold):
            return replace(copy, ncc=evidence.local_ncc, score=score, source=source, target=target), told
    return copy, features


def _common(copy: Copy, outline: Region, shape: tuple[int, int]) -> np.ndarray | None:
    """Mask (H, W) bool of a copy's source within an outline that lies in its source or target; None unless smaller."""
    for region, back in ((copy.source, None), (copy.target, invert_affine(copy.affine))):
        area = outline.mask.sum()
        if overlap_area(outline, region) < MIN_COMMON[0] * area or region.mask.sum() < MIN_COMMON[1] * area:
            continue
        there = outline if back is None else warp_region(outline, back, shape)
        mask = copy.source.full(shape) & there.full(shape) if there else None
        if mask is not None and mask.sum() >= MIN_AREA:
            return mask
    return None
