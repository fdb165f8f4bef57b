"""Candidates are verified once, in a good order, and kept where they are copies and not patterns."""

import dataclasses
import math
import types

import numpy as np
import pytest

import copymove.verification
from config import MatchingSettings
from copymove.copies import Copy, Instance
from copymove.detect import detect_copies, detect_in_orientation
from copymove.exactness import NEAR_EXACT
from copymove.geometry import invert_affine, transform_points
from copymove.growth import grow_region
from copymove.image_features import compute_features
from copymove.measurements import measure_pair
from copymove.proposals import dense_proposals
from copymove.regions import Region
from copymove.shortlist import ScreenedCandidates, interleave_rankings, leading_out_of, screen_proposals
from copymove.time_budget import TimeBudget
from copymove.verification import (
    MAX_EXACT_MAPS,
    SearchProgress,
    count_support,
    is_pattern,
    is_same_copy,
    verify_candidates,
)
from copymove.visited import VisitedTransforms
from tests.scenes import affine_map, astronaut, f1, grainy, paste, shaded_copy

SETTINGS = MatchingSettings()


@pytest.fixture
def grown_from(monkeypatch):
    """The list of the (affine map, centre) that regions are grown from during the test."""
    started = []

    def recorded(image_features, affine, centre, *rest):
        started.append((affine.copy(), centre.copy()))
        return grow_region(image_features, affine, centre, *rest)

    monkeypatch.setattr(copymove.verification, "grow_region", recorded)
    return started


def test_rankings_take_turns():
    """A ranking that has ended is passed over, and what stands in several comes up several times."""
    assert interleave_rankings([0, 1, 2], [2], [1, 0]) == [0, 2, 1, 1, 0, 2]
    assert interleave_rankings([], []) == []


def test_no_candidate_is_verified_twice(grown_from):
    """Verifying five more candidates from where the first five ended takes five others."""
    image, _ = paste(astronaut(), affine_map((170, 110), (60, 290)), (170, 110), 40)
    image_features, budget = compute_features(image), TimeBudget(math.inf)
    screened = [screen_proposals(image_features, "dense", dense_proposals(image_features, SETTINGS))]
    first = verify_candidates(image_features, screened, SearchProgress(), 5, budget)
    second = verify_candidates(image_features, screened, first, 5, budget)
    tried = {(*affine.ravel(), *centre) for affine, centre in grown_from}
    assert len(tried) == len(grown_from) == 10
    assert first.verified and second.verified[: len(first.verified)] == first.verified


def test_identical_copies_are_not_verified_again(grown_from):
    """Candidates whose map is that of a bit-identical copy are passed over."""
    shift = np.array([-110.0, 180.0])
    image, _ = paste(astronaut(), affine_map((170, 110), (60, 290)), (170, 110), 40)
    (copy,) = detect_in_orientation(image, SETTINGS).instances[0].copies
    moved = [transform_points(affine, centre[None])[0] - centre for affine, centre in grown_from]
    assert copy.kind == "exact" and moved
    assert min(np.abs(tried - to).max() for tried in moved for to in (shift, -shift)) > 4


def test_proven_copies_are_followed_further(monkeypatch):
    """With one verification only one copy is found at first; candidates that lead out of it find the rotated one."""
    image, mask = paste(astronaut(), affine_map((170, 110), (60, 290)), (170, 110), 40)
    image, more = paste(image, affine_map((170, 110), (300, 290), 50), (170, 110), 40)
    settings = dataclasses.replace(SETTINGS, matching_kinds=("keypoints", "dense"), max_candidates=1)
    (instance,) = detect_copies(image, settings).instances
    assert f1(instance.mask, mask | more) > 0.85
    monkeypatch.setattr("copymove.detect.leading_out_of", lambda part, _: part.take(np.zeros(len(part), bool)))
    (instance,) = detect_copies(image, settings).instances
    assert (instance.mask & more & ~mask).sum() < 0.1 * (more & ~mask).sum()


def test_leading_out_needs_one_end_inside():
    """Of four candidates two have exactly one end in what is proven."""
    ends = np.array([[[10, 10], [60, 60]], [[60, 60], [11, 9]], [[10, 10], [12, 12]], [[60, 60], [80, 20]]], float)
    rows = np.arange(4)
    screened = ScreenedCandidates(
        "dense", np.zeros((4, 2, 3)), ends[:, 0], rows, ends[:, 1], rows, rows.astype(float), rows, 0.3
    )
    proven = np.zeros((100, 100), bool)
    proven[5:20, 5:20] = True
    chosen = leading_out_of(screened, [Instance(proven, 0.9, ())])
    assert chosen.rank.tolist() == [0, 1] and chosen.centres.tolist() == ends[:2, 0].tolist()
    assert (chosen.kind, chosen.median_ncc) == ("dense", 0.3)


def test_support_counts_agreeing_places():
    """Candidates inside of the region that agree with its map, in either direction; near ones are one place."""
    measured = types.SimpleNamespace(mask=np.ones((20, 30), bool), x=40, y=8, affine=affine_map((50, 15), (150, 65)))
    centres = np.array([[45, 15], [46, 15], [65, 10], [150, 60], [60, 20], [30, 15], [45, 35]], float)
    partners = centres + np.array([100, 50])
    partners[3] = centres[3] - np.array([100, 50])  # leads back
    partners[4] += np.array([0, 4])  # leads elsewhere; the last two lie outside of the region
    assert count_support(measured, centres, partners) == 3


def test_visited_maps_are_recognised():
    """A candidate is visited where a known map takes its centre, and what lies near it, to the same place."""
    rotated = affine_map((50, 50), (200, 80), 20)
    nothing = VisitedTransforms()
    visited = nothing.with_candidate(rotated, np.array([50.0, 50.0]))
    assert (rotated, np.array([50.0, 50.0])) not in nothing
    assert (rotated, np.array([55.0, 45.0])) in visited
    assert (rotated, np.array([61.0, 50.0])) not in visited  # more than 10 px away
    moved = rotated + np.array([[0, 0, 3.5], [0, 0, -3.5]])
    assert (moved, np.array([50.0, 50.0])) in visited  # by less than 4 px
    assert (rotated + np.array([[0, 0, 4.5], [0, 0, 0]]), np.array([50.0, 50.0])) not in visited
    # The same place of the centre, but what lies 6 px beside it moves by more than 4 px.
    assert (affine_map((50, 50), (200, 80), 80), np.array([50.0, 50.0])) not in visited
    visited = visited.with_region(invert_affine(rotated), 180, 60, np.ones((40, 40), bool))
    assert (invert_affine(rotated), np.array([210.0, 90.0])) in visited


def test_small_copies_hide_no_whole():
    """A known copy is the same as one of about its size, and not the same as one that is much larger."""

    def copy(side):
        mask = np.ones((side, side), bool)
        return Copy("exact", np.array([[1.0, 0, 60], [0, 1, 0]]), 9, 1.0, 0.9, Region(5, 5, mask), Region(65, 5, mask))

    for side, same in ((12, True), (30, False)):
        assert is_same_copy(copy(10), copy(side)) == same


def test_repeated_identity_is_a_pattern():
    """What is identical but for rounding under more than six maps is no copy."""
    image, _ = shaded_copy(grainy())
    image_features = compute_features(image)
    place = np.array([[1.0, 0, 150], [0, 1, 90]])
    grown = grow_region(image_features, place, np.array([82.0, 222.0]), 10.0, 0.25)
    measurements = measure_pair(image_features, grown)
    assert measurements.exactness > NEAR_EXACT
    for places in (MAX_EXACT_MAPS, MAX_EXACT_MAPS + 1):
        maps = np.tile(place, (2 * places, 1, 1))  # each twice
        maps[:, 0, 2] += np.repeat(np.arange(places), 2) * 20
        centres = np.tile([82.0, 222.0], (2 * places, 1))
        ones = np.ones(2 * places)
        screened = [ScreenedCandidates("dense", maps, centres, ones, centres, ones.astype(int), ones, 2 * ones, 0.0)]
        assert is_pattern(measurements, screened) == (places > MAX_EXACT_MAPS)
