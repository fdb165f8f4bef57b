"""Copies in one image, proven on its pixels.

The steps of a search: leave out what is drawn and not recorded; find bit-identical copies; propose candidates and align
them on small discs; verify the best of them over their whole regions, which measures and scores them; accept those
above the threshold that are not merely repeats; look for further places of these; refine their masks; group them into
instances.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from config import MatchingSettings
from copymove.content import recorded_mask
from copymove.copies import Copy, SearchResult, VerifiedCopy, group_copies
from copymove.dihedral import apply_dihedral, canonical_orientation, undo_orientation
from copymove.exact_copies import find_exact_copies
from copymove.image_features import ImageFeatures, compute_features
from copymove.mask_refiner import refine_mask
from copymove.proposals import MAX_FURTHER, PROPOSERS, further_candidates, region_proposals
from copymove.regions import overlap_area, region_of_mask, warp_region
from copymove.scoring import score_threshold
from copymove.shared_outlines import share_outlines
from copymove.shortlist import ScreenedCandidates, leading_out_of, screen_proposals
from copymove.suppression import suppress_repeats
from copymove.time_budget import TimeBudget
from copymove.verification import SearchProgress, verify_candidates

MIN_SIDE = 24  # side in pixels below which an image is not searched: it holds too little to prove anything
MAX_TOUCHING = 0.1  # share of a refined mask that may overlap its own copy


def detect_copies(image: np.ndarray, settings: MatchingSettings, regions: Sequence[np.ndarray] = ()) -> SearchResult:
    """Duplicated contents of one image, with the evidence for them.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: masks (H, W) bool, each with two or more parts that may be copies of each other. They are searched
            more thoroughly; what is found there needs the same proof.
    Raises:
        ValueError: the image or a region has another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    for region in regions:
        if region.shape != image.shape[:2] or region.dtype != bool:
            raise ValueError(f"a region must be {image.shape[:2]} bool, not {region.shape} {region.dtype}")
    orientation = canonical_orientation(image)
    # One thread: images run in parallel over processes, and small matrix products are slower with more threads.
    with threadpool_limits(1):
        _compile()
        found = detect_in_orientation(
            apply_dihedral(image, orientation), settings, [apply_dihedral(region, orientation) for region in regions]
        )
    return undo_orientation(found, orientation, image.shape[:2])


@functools.cache
def _compile() -> None:
    """Let numba compile what a search calls, or load it: right after installation that takes longer than a search."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 1.0)
    image[50:90, 50:90] = image[5:45, 5:45] // 2 + 60  # a copy that is found, but not as a bit-identical one
    detect_in_orientation(image, MatchingSettings(search_budget=math.inf, content="all"), [])


def detect_in_orientation(
    image: np.ndarray, settings: MatchingSettings, regions: Sequence[np.ndarray] = ()
) -> SearchResult:
    """As `detect_copies`, but searched in the orientation in which the image is given."""
    budget = TimeBudget(settings.search_budget)
    shape = image.shape[:2]
    if min(shape) < MIN_SIDE:
        return SearchResult((), True)
    recorded = recorded_mask(image) if settings.content == "recorded" else None
    if recorded is not None and not recorded.any():
        return SearchResult((), True, searched=0.0)
    image_features = compute_features(image, recorded)
    if image_features.grey.min() == image_features.grey.max():
        return SearchResult((), True)
    threshold = score_threshold(settings.target_fpr)
    progress = SearchProgress()
    if "exact" in settings.matching_kinds:
        with budget.stage("exact"):
            progress = functools.reduce(SearchProgress.with_copy, find_exact_copies(image, image_features), progress)
    screened = _propose(image_features, settings, regions, budget)
    limit = settings.max_candidates * (1 + len(regions))
    with budget.stage("verification"):
        progress = _verify(image_features, screened, progress, limit, threshold, budget)
    accepted = _accept(progress, threshold)
    if accepted and not budget.is_spent() and settings.matching_kinds != ("exact",):
        with budget.stage("further copies"):
            proven = group_copies([verified.copy for verified in accepted], shape)
            further = screen_proposals(image_features, "dense", further_candidates(image_features, proven))
            again = [further, *(leading_out_of(part, proven) for part in screened)]
            progress = _verify(image_features, again, progress, MAX_FURTHER, threshold, budget)
        accepted = _accept(progress, threshold)
    with budget.stage("outlines"):
        refined = [refine_copy(image_features, verified.copy, budget) for verified in accepted]
    instances = tuple(group_copies(refined, shape))
    seconds = budget.stages | {"all": budget.elapsed()}
    searched = 1.0 if recorded is None else float(recorded.mean())
    return SearchResult(instances, budget.complete, seconds, _by_score(progress.verified), searched)


def _propose(
    image_features: ImageFeatures, settings: MatchingSettings, regions: Sequence[np.ndarray], budget: TimeBudget
) -> list[ScreenedCandidates]:
    """The candidates of every search that is on, aligned on their discs."""
    screened = []
    for kind, propose in PROPOSERS.items():
        if kind in settings.matching_kinds and not budget.is_spent():
            with budget.stage(kind):
                screened.append(screen_proposals(image_features, kind, propose(image_features, settings)))
    for region in regions:
        if not budget.is_spent():
            with budget.stage("regions"):
                for kind, candidates in region_proposals(image_features, region):
                    screened.append(screen_proposals(image_features, kind, candidates))
    return screened


def _verify(
    image_features: ImageFeatures,
    screened: Sequence[ScreenedCandidates],
    progress: SearchProgress,
    limit: int,
    threshold: float,
    budget: TimeBudget,
) -> SearchProgress:
    """Verify the best candidates, and cut all copies to the outlines of better ones."""
    progress = verify_candidates(image_features, screened, progress, limit, budget)
    return replace(progress, verified=share_outlines(image_features, progress.verified, threshold, budget))


def _by_score(verified: Sequence[VerifiedCopy]) -> tuple[VerifiedCopy, ...]:
    return tuple(sorted(verified, key=lambda each: -each.copy.score))


def _accept(progress: SearchProgress, threshold: float) -> list[VerifiedCopy]:
    """The copies that count as found, best first: those above the threshold that are not merely repeats."""
    return suppress_repeats([each for each in _by_score(progress.verified) if each.copy.score >= threshold])


def refine_copy(image_features: ImageFeatures, copy: Copy, budget: TimeBudget) -> Copy:
    """A copy with the mask that the network draws; as it is where it is bit-identical or the time is over."""
    if copy.kind == "exact" or budget.is_spent():
        return copy
    drawn = refine_mask(image_features, copy.affine, copy.source.full(image_features.shape))
    source = region_of_mask(*drawn) if drawn else None
    target = source and warp_region(source, copy.affine, image_features.shape)
    # Source and copy may touch where they lie side by side, but neither may grow over the other.
    if not target or overlap_area(source, target) > max(
        MAX_TOUCHING * source.mask.sum(), overlap_area(copy.source, copy.target)
    ):
        return copy
    return replace(copy, source=source, target=target)
