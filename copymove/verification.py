"""Verification: candidates aligned over their whole regions, measured and kept."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from copymove.candidates import Candidates
from copymove.copies import Copy, Instance
from copymove.exactness import NEAR_EXACT
from copymove.geometry import invert_affine, nearest_integer_map, transform_points
from copymove.growth import grow_region
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
from copymove.scoring import calibrated_score, feature_vector
from copymove.screening import MAX_RADIUS, screen_candidates
from copymove.search import SearchState
from copymove.suppression import is_near_exact

MIN_FINE_NCC = 0.25  # correlation of the fine structure that a candidate needs to be verified


MAX_SECOND_PEAK = 0.75  # likeness at another offset over that at its place: what repeats by its nature has more


MIN_MARGINS = (0.06, 0.05)  # of the fine structure and the middle band, whatever else speaks for a copy


MIN_OF_CHAIN = 0.3  # share of a region that overlaps its own copy by which the two must differ: three side by side


MAX_RESCREENED = 1000  # candidates that are also looked at on large discs


MIN_FILLED = 0.12  # share of a region that must be informative: less is a frame or a gutter


NEAR_EXACT_LIKENESS = math.atanh(0.98)  # of copies that differ by shading and rounding only


MIN_EXACTNESS = 0.4  # of a disc from which candidates are also looked at in the order of their exactness


MAX_EXACT_MAPS = 6  # maps under which one content may be identical but for rounding


MIN_AREA = 80  # least number of informative pixels of a region


@dataclass(frozen=True)
class ScreenedCandidates:
    """Candidates of one search, aligned on their discs, that are worth a closer look."""

    kind: str
    affines: np.ndarray  # (n, 2, 3)
    centres: np.ndarray  # (n, 2)
    radii: np.ndarray  # (n,)
    partners: np.ndarray  # (n, 2): where the maps take the centres
    votes: np.ndarray  # (n,) int64
    rank: np.ndarray  # (n,): higher is better
    exactness: np.ndarray  # (n,): of the discs, as `Evidence.exactness`
    median_ncc: float  # fine correlation that this search's candidates have in this image


def screen_proposals(search: SearchState, kind: str, proposed: Candidates) -> ScreenedCandidates:
    affines, centres, radii, values = screen_candidates(
        search.canvas, proposed.affines, proposed.centres, proposed.radii
    )
    near_exact = values[:, 2] > NEAR_EXACT
    rank = values[:, 1] + 0.3 * values[:, 0] + 0.02 * np.minimum(proposed.votes, 20)
    screened = values[:, 1][values[:, 1] > -1]
    median_ncc = float(np.median(screened)) if len(screened) else 0.0
    good = np.flatnonzero((values[:, 0] > 0.6) & ((values[:, 1] > MIN_FINE_NCC) | near_exact))
    partners = np.einsum("nij,nj->ni", affines[good, :, :2], centres[good]) + affines[good, :, 2]
    chosen = (numbers[good] for numbers in (proposed.votes, rank, values[:, 2]))
    return ScreenedCandidates(kind, affines[good], centres[good], radii[good], partners, *chosen, median_ncc)


def leading_out_of(screened: ScreenedCandidates, instances: Sequence[Instance]) -> ScreenedCandidates:
    """Those of them that lead from what is proven to somewhere else, or back."""
    proven = np.logical_or.reduce([instance.mask for instance in instances])
    chosen = points_in_mask(proven, screened.centres) != points_in_mask(proven, screened.partners)
    return replace(screened, **{k: v[chosen] for k, v in vars(screened).items() if isinstance(v, np.ndarray)})


def verify_candidates(search: SearchState, screened: Sequence[ScreenedCandidates], most: int) -> None:
    """Verify the best candidates of all searches over their regions, each map once, and keep what holds."""
    order = sorted(
        ((part.rank[i], p, i) for p, part in enumerate(screened) for i in range(len(part.rank))),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    order = interleave_rankings(search.canvas, screened, order)
    known, left = search.known, most
    for _, p, i in order:
        if not left or search.late():
            break
        part = screened[p]
        affine, centre = part.affines[i], part.centres[i]
        if (affine, centre) in known:
            continue
        left -= 1
        known.add_candidate(affine, centre)
        known.add_candidate(invert_affine(affine), part.partners[i])
        grown = grow_region(search.canvas, affine, centre, float(part.radii[i]), MIN_FINE_NCC)
        if grown is None:
            continue
        # It may be a poor map that is not kept: only what agrees with it well is passed over.
        known.add_region(grown.affine, *grown.box[:2], grown.region, 1.5)
        evidence = measure_pair(search.canvas, grown, MIN_MARGINS[0])
        if evidence and is_sufficient(evidence) and not _repeats_too_often(evidence, screened):
            support = count_support(evidence, part.centres, part.partners)
            features = feature_vector(evidence, int(part.votes[i]), support, part.median_ncc, search.canvas.noise)
            likeness = max(features["fine_ncc_p80"], NEAR_EXACT_LIKENESS if is_near_exact(features) else 0.0)
            if features["second_peak"] <= MAX_SECOND_PEAK * likeness and _keep(search, part.kind, evidence, features):
                known.add_copy(search.copies[-1])


def is_sufficient(evidence: PairMeasurements) -> bool:
    """Whether there is enough to judge a region by, and it leads at its place."""
    if evidence.exactness > NEAR_EXACT:
        return bool(evidence.mask.sum() >= MIN_AREA)
    margins = (evidence.fine_margin, evidence.middle_margin)
    return (
        evidence.fine_ncc > MIN_FINE_NCC
        and evidence.informative_pixels >= MIN_AREA
        and evidence.informative_pixels > MIN_FILLED * evidence.mask.sum()
        and all(margin >= least for margin, least in zip(margins, MIN_MARGINS, strict=True))
    )


def _repeats_too_often(evidence: PairMeasurements, screened: Sequence[ScreenedCandidates]) -> bool:
    """Whether what is identical but for rounding lies at too many places to be copies: a pattern or a drawing."""
    if evidence.exactness < NEAR_EXACT:
        return False
    maps = []
    for part in screened:
        same = points_in_mask(evidence.mask, part.centres, evidence.x, evidence.y) & (part.exactness > NEAR_EXACT)
        maps.append(nearest_integer_map(part.affines[same], part.centres[same]))
    return len(np.unique(np.concatenate(maps), axis=0)) > MAX_EXACT_MAPS


def interleave_rankings(
    canvas: ImageFeatures, screened: Sequence[ScreenedCandidates], order: list[tuple[float, int, int]]
) -> list[tuple[float, int, int]]:
    """The order, and in turn with it that of the likeness on the largest discs, and that of the exactness.

    What is small is alike on small discs only; of large copies a small disc tells little in an image with many alike.
    """
    first = order[:MAX_RESCREENED]
    if not first:
        return order
    affines, centres = (
        np.stack([getattr(screened[p], name)[i] for _, p, i in first]) for name in ("affines", "centres")
    )
    radii = np.full(len(first), float(MAX_RADIUS))
    _, _, _, values = screen_candidates(canvas, affines, centres, radii)
    large = [first[k] for k in np.argsort(-values[:, 1], kind="stable") if values[k, 1] > MIN_FINE_NCC]
    exactness = np.array([screened[p].exactness[i] for _, p, i in order])
    whole = [order[k] for k in np.argsort(-exactness, kind="stable") if exactness[k] > MIN_EXACTNESS]
    turns = itertools.zip_longest(first, large, whole)
    return [entry for entries in turns for entry in entries if entry] + order[MAX_RESCREENED:]


def _is_same_copy(copy: Copy, source: Region, target: Region, affine: np.ndarray) -> bool:
    """Whether a verified copy joins the same two regions, or larger ones, by the same map, in either direction."""
    if source.mask.sum() > 2 * copy.source.mask.sum():
        return False
    for a, b, known in (
        (copy.source, copy.target, copy.affine),
        (copy.target, copy.source, invert_affine(copy.affine)),
    ):
        if is_same_region(a, source) and is_same_region(b, target):
            # Where both have it: the middle of what the two boxes share.
            x = (max(a.x, source.x) + min(a.x + a.mask.shape[1], source.x + source.mask.shape[1])) / 2
            y = (max(a.y, source.y) + min(a.y + a.mask.shape[0], source.y + source.mask.shape[0])) / 2
            middle = np.array([[x, y]])
            if np.abs(transform_points(known, middle) - transform_points(affine, middle)).max() < 6:
                return True
    return False


def count_support(evidence: PairMeasurements, centres: np.ndarray, partners: np.ndarray) -> int:
    """Screened candidates (n, 2), at different places of the region, that agree with its map in either direction."""
    places = set()
    for points, others in ((centres, partners), (partners, centres)):
        inside = points_in_mask(evidence.mask, points, evidence.x, evidence.y)
        agree = np.abs(transform_points(evidence.affine, points[inside]) - others[inside]).max(axis=1) < 3
        places.update(map(tuple, (points[inside][agree] // 4).astype(int)))
    return len(places)


def _keep(search: SearchState, kind: str, evidence: PairMeasurements, features: dict[str, float]) -> bool:
    """Whether it is a copy that was not known."""
    source = region_of_mask(evidence.mask, evidence.x, evidence.y)
    target = warp_region(source, evidence.affine, search.canvas.shape)
    if target is not None and overlap_area(source, target) > 0.3 * source.mask.sum():
        # Side by side: the region holds a copy and its own copy. In a row of more than three it merely repeats.
        whole, source = source, subtract_region(source, target)
        if source is None or source.mask.sum() < MIN_OF_CHAIN * whole.mask.sum():
            return False
        target = warp_region(source, evidence.affine, search.canvas.shape)
    if target is None:
        return False
    if any(_is_same_copy(copy, source, target, evidence.affine) for copy in search.copies):
        return False
    inliers = round(math.exp(max(features["votes"], features["support"])))
    score = calibrated_score(features)
    search.copies.append(Copy(kind, evidence.affine, inliers, evidence.local_ncc, score, source, target))
    search.evidence.append(features)
    return True
