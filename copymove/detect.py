"""Copies in one image, proven on the pixels."""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from config import MatchingSettings
from copymove.copies import Copy, SearchResult, group_copies
from copymove.dihedral import apply_dihedral, canonical_orientation, undo_orientation
from copymove.image_features import compute_features
from copymove.mask_refiner import refine_mask
from copymove.proposals import (
    MAX_FURTHER,
    dense_proposals,
    find_exact_copies,
    further_candidates,
    keypoint_proposals,
    object_proposals,
    region_proposals,
)
from copymove.regions import overlap_area, region_of_mask, warp_region
from copymove.scoring import score_threshold
from copymove.search import SearchState
from copymove.shared_outlines import share_outlines
from copymove.suppression import suppress_repeats
from copymove.verification import leading_out_of, screen_proposals, verify_candidates

MIN_SIDE = 24  # smaller images hold nothing that could be proven


MAX_TOUCHING = 0.1  # share of a drawn outline that may overlap its own copy


def detect_copies(image: np.ndarray, settings: MatchingSettings, regions: Sequence[np.ndarray] = ()) -> SearchResult:
    """Duplicated contents of one image, with their proof.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: masks (H, W) bool, each with two or more parts that may be copies of each other: searched more
            thoroughly, proven in the same way.
    Raises:
        ValueError: the image or a region has another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    for region in regions:
        if region.shape != image.shape[:2] or region.dtype != bool:
            raise ValueError(f"a region must be {image.shape[:2]} bool, not {region.shape} {region.dtype}")
    way = canonical_orientation(image)
    # One core each: images run in parallel over processes, and small matrix products lose by more threads.
    with threadpool_limits(1):
        _compile()
        found = _detect_in_orientation(
            apply_dihedral(image, way), settings, [apply_dihedral(region, way) for region in regions]
        )
    return undo_orientation(found, way, image.shape[:2])


@functools.cache
def _compile() -> None:
    """Have numba compile what a search calls, or load it: after installation that takes longer than a search may."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 1.0)
    image[50:90, 50:90] = image[5:45, 5:45] // 2 + 60  # found, but not as identical
    _detect_in_orientation(image, MatchingSettings(search_budget=math.inf), [])


def _detect_in_orientation(
    image: np.ndarray, settings: MatchingSettings, regions: Sequence[np.ndarray]
) -> SearchResult:
    start = time.perf_counter()
    if min(image.shape[:2]) < MIN_SIDE:
        return SearchResult((), True)
    search = SearchState(compute_features(image), settings, start + settings.search_budget)
    grey = np.clip(search.canvas.grey, 0, 255).astype(np.uint8)
    if grey.min() == grey.max():
        return SearchResult((), True)
    if "exact" in settings.matching_kinds:
        with search.timed("exact"):
            find_exact_copies(search, image)
    proposers = {
        "keypoints": lambda: keypoint_proposals(search, grey),
        "objects": lambda: object_proposals(search),
        "dense": lambda: dense_proposals(search),
    }
    screened = []
    for kind, propose in proposers.items():
        if kind in settings.matching_kinds and not search.late():
            with search.timed(kind):
                screened.append(screen_proposals(search, kind, propose()))
    for region in regions:
        if not search.late():
            with search.timed("regions"):
                screened.extend(
                    screen_proposals(search, kind, found) for kind, found in region_proposals(search, grey, region)
                )
    with search.timed("verification"):
        verify_candidates(search, screened, settings.max_candidates * (1 + len(regions)))
        share_outlines(search)
    copies, features, kept = _rank_copies(search)
    if kept and not search.late() and settings.matching_kinds != ("exact",):
        with search.timed("further copies"):
            proven = group_copies([copies[k] for k in kept], image.shape[:2])
            again = [screen_proposals(search, "dense", further_candidates(search, proven))]
            again += [leading_out_of(part, proven) for part in screened]
            verify_candidates(search, again, MAX_FURTHER)
            share_outlines(search)
        copies, features, kept = _rank_copies(search)
    with search.timed("outlines"):
        drawn = [_refine_mask(search, copies[k]) for k in kept]
    instances = group_copies(drawn, image.shape[:2])
    search.seconds["all"] = time.perf_counter() - start
    return SearchResult(tuple(instances), search.complete, search.seconds, copies, features)


def _refine_mask(search: SearchState, copy: Copy) -> Copy:
    """A proven copy with its outline drawn anew; as it is where the network sees none or time is over."""
    if copy.kind == "exact" or search.late():
        return copy
    drawn = refine_mask(search.canvas, copy.affine, copy.source.full(search.canvas.shape))
    source = drawn and region_of_mask(*drawn)
    target = source and warp_region(source, copy.affine, search.canvas.shape)
    # Two that lie side by side may touch, but neither grows over the other.
    if not target or overlap_area(source, target) > max(
        MAX_TOUCHING * source.mask.sum(), overlap_area(copy.source, copy.target)
    ):
        return copy
    return replace(copy, source=source, target=target)


def _rank_copies(search: SearchState) -> tuple[tuple[Copy, ...], tuple[dict[str, float], ...], list[int]]:
    """Every verified copy, best first, what the calibration looked at, and which of them are kept."""
    order = sorted(range(len(search.copies)), key=lambda i: -search.copies[i].score)
    copies = tuple(search.copies[i] for i in order)
    features = tuple(search.evidence[i] for i in order)
    threshold = score_threshold(search.settings.target_fpr)
    kept = [k for k, copy in enumerate(copies) if copy.score >= threshold]
    return copies, features, suppress_repeats(kept, copies, features)
