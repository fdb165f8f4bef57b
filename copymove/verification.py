"""Verification: candidates are aligned over their whole regions, measured, scored, and kept where they hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from copymove.copies import Copy, ProposalStatistics, VerifiedCopy
from copymove.exactness import NEAR_EXACT
from copymove.geometry import invert_affine, nearest_integer_map, transform_points
from copymove.growth import GrownRegion, grow_region
from copymove.image_features import ImageFeatures
from copymove.measurements import PairMeasurements, measure_pair
from copymove.regions import (
    Region,
    is_same_region,
    overlap_area,
    points_in_mask,
    region_of_mask,
    subtract_region,
    warp_region,
)
from copymove.scoring import calibrated_score, feature_vector, is_near_exact
from copymove.shortlist import MIN_FINE_NCC, ScreenedCandidates, verification_order
from copymove.time_budget import TimeBudget
from copymove.visited import VisitedTransforms

MIN_MARGINS = (0.06, 0.05)  # of the fine structure and of the middle band, whatever else speaks for a copy
MIN_AREA = 80  # least number of pixels of a region: informative ones, or any where it is identical but for rounding
MIN_FILLED = 0.12  # share of a region that must be informative: less is a frame or a gutter
MAX_SECOND_PEAK = 0.75  # of the fine correlation, both after Fisher's transform: more at another offset is a repeat
NEAR_EXACT_LIKENESS = math.atanh(0.98)  # fine correlation of copies that differ by shading and rounding only
MAX_EXACT_MAPS = 6  # most maps under which one content may be identical but for rounding: more is a pattern
MAX_OVERLAP = 0.3  # share of a region that may lie in its own copy, before the two are taken apart
MIN_OF_CHAIN = 0.3  # share of a region that must remain after that; in a row of many equal things little remains
SAME_PLACE = 3.0  # pixels within which a candidate agrees with a map
SAME_MAP = 6.0  # pixels within which two copies have one map


@dataclass(frozen=True)
class SearchProgress:
    """What is verified so far, and the maps that need no further look."""

    verified: tuple[VerifiedCopy, ...] = ()  # in the order in which they were found
    visited: VisitedTransforms = field(default_factory=VisitedTransforms)

    def with_copy(self, verified: VerifiedCopy) -> "SearchProgress":
        """Add a copy; its map counts as visited."""
        return SearchProgress((*self.verified, verified), self.visited.with_copy(verified.copy))


def verify_candidates(
    image_features: ImageFeatures,
    screened: Sequence[ScreenedCandidates],
    progress: SearchProgress,
    limit: int,
    budget: TimeBudget,
) -> SearchProgress:
    """Verify the best candidates of all searches, each map once, until `limit` of them or the time are used up."""
    for part, row in verification_order(image_features, screened):
        if limit == 0 or budget.is_spent():
            break
        affine, centre = part.affines[row], part.centres[row]
        if (affine, centre) in progress.visited:
            continue
        limit -= 1
        visited = progress.visited.with_candidate(affine, centre)
        visited = visited.with_candidate(invert_affine(affine), part.partners[row])
        grown = grow_region(image_features, affine, centre, float(part.radii[row]), MIN_FINE_NCC)
        if grown is not None:
            visited = visited.with_region(grown.affine, *grown.box[:2], grown.region)
        progress = replace(progress, visited=visited)
        found = grown and verify_region(image_features, grown, part, int(part.votes[row]), screened)
        if found and not any(is_same_copy(known.copy, found.copy) for known in progress.verified):
            progress = progress.with_copy(found)
    return progress


def verify_region(
    image_features: ImageFeatures,
    grown: GrownRegion,
    part: ScreenedCandidates,
    votes: int,
    screened: Sequence[ScreenedCandidates],
) -> VerifiedCopy | None:
    """Measure and score the region that a candidate grew to; None where it cannot be a copy.

    Args:
        part: the candidates of the search that proposed it.
        votes: of the candidate.
        screened: the candidates of all searches.
    """
    measurements = measure_pair(image_features, grown, MIN_MARGINS[0])
    if measurements is None or not is_sufficient(measurements) or is_pattern(measurements, screened):
        return None
    places = count_support(measurements, part.centres, part.partners)
    proposal = ProposalStatistics(votes, places, part.median_ncc)
    features = feature_vector(measurements, proposal, image_features.noise)
    likeness = max(features["fine_ncc_p80"], NEAR_EXACT_LIKENESS if is_near_exact(features) else 0.0)
    if features["second_peak"] > MAX_SECOND_PEAK * likeness:
        return None
    pair = separate_pair(measurements, image_features.shape)
    if pair is None:
        return None
    score = calibrated_score(features)
    copy = Copy(part.kind, measurements.affine, max(votes, places), measurements.local_ncc, score, *pair)
    return VerifiedCopy(copy, features, proposal)


def is_sufficient(measurements: PairMeasurements) -> bool:
    """Whether there is enough to judge a region by, and it agrees better at its place than next to it."""
    if measurements.exactness > NEAR_EXACT:
        return bool(measurements.mask.sum() >= MIN_AREA)
    margins = (measurements.fine_margin, measurements.middle_margin)
    return (
        measurements.fine_ncc > MIN_FINE_NCC
        and measurements.informative_pixels >= MIN_AREA
        and measurements.informative_pixels > MIN_FILLED * measurements.mask.sum()
        and all(margin >= least for margin, least in zip(margins, MIN_MARGINS, strict=True))
    )


def is_pattern(measurements: PairMeasurements, screened: Sequence[ScreenedCandidates]) -> bool:
    """Whether a region is identical, but for rounding, at so many places that it is a pattern or a drawing."""
    if measurements.exactness < NEAR_EXACT:
        return False
    maps = []
    for part in screened:
        inside = points_in_mask(measurements.mask, part.centres, measurements.x, measurements.y)
        same = inside & (part.exactness > NEAR_EXACT)
        maps.append(nearest_integer_map(part.affines[same], part.centres[same]))
    return len(np.unique(np.concatenate(maps), axis=0)) > MAX_EXACT_MAPS


def count_support(measurements: PairMeasurements, centres: np.ndarray, partners: np.ndarray) -> int:
    """Number of places of a region at which candidates agree with its map, in either direction.

    Args:
        centres, partners: (n, 2) float64, both ends (x, y) of the candidates of one search.
    """
    places = set()
    for points, others in ((centres, partners), (partners, centres)):
        inside = points_in_mask(measurements.mask, points, measurements.x, measurements.y)
        apart = np.abs(transform_points(measurements.affine, points[inside]) - others[inside]).max(axis=1)
        places.update(map(tuple, (points[inside][apart < SAME_PLACE] // 4).astype(int)))  # one per square of 4 x 4 px
    return len(places)


def separate_pair(measurements: PairMeasurements, shape: tuple[int, int]) -> tuple[Region, Region] | None:
    """Source and copy of a measured region in an image (height, width); None where it is no pair of two things.

    Where copies lie side by side, a region can hold a copy and that one's own copy, and overlaps with its target. Then
    the source is what lies in the region only. In a row of more than three equal things little of it remains.
    """
    source = region_of_mask(measurements.mask, measurements.x, measurements.y)
    target = warp_region(source, measurements.affine, shape)
    if target is not None and overlap_area(source, target) > MAX_OVERLAP * source.mask.sum():
        whole, source = source, subtract_region(source, target)
        if source is None or source.mask.sum() < MIN_OF_CHAIN * whole.mask.sum():
            return None
        target = warp_region(source, measurements.affine, shape)
    return None if target is None else (source, target)


def is_same_copy(known: Copy, copy: Copy) -> bool:
    """Whether a known copy joins the same two regions, or larger ones, by the same map, in either direction."""
    source, target = copy.source, copy.target
    if source.mask.sum() > 2 * known.source.mask.sum():
        return False
    for a, b, affine in (
        (known.source, known.target, known.affine),
        (known.target, known.source, invert_affine(known.affine)),
    ):
        if is_same_region(a, source) and is_same_region(b, target):
            # The maps are compared in the middle of what the boxes of both sources share.
            x = (max(a.x, source.x) + min(a.x + a.mask.shape[1], source.x + source.mask.shape[1])) / 2
            y = (max(a.y, source.y) + min(a.y + a.mask.shape[0], source.y + source.mask.shape[0])) / 2
            middle = np.array([[x, y]])
            if np.abs(transform_points(affine, middle) - transform_points(copy.affine, middle)).max() < SAME_MAP:
                return True
    return False
