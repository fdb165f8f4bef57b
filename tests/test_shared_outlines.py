"""Copies that grew too far are cut to the outline of a better copy of the same content, and no others are."""

import math

import cv2
import numpy as np
import pytest

from copymove.copies import Copy, ProposalStatistics, VerifiedCopy
from copymove.geometry import invert_affine
from copymove.growth import region_from_mask
from copymove.image_features import compute_features
from copymove.measurements import measure_pair
from copymove.regions import region_of_mask, warp_region
from copymove.scoring import feature_vector
from copymove.shared_outlines import MIN_BETTER, share_outlines
from copymove.time_budget import TimeBudget
from tests.scenes import affine_map, astronaut, disc_mask, f1, jpeg, paste

FIRST, SECOND = affine_map((100, 120), (250, 150)), affine_map((100, 120), (120, 300))


def verified(image_features, affine, mask, score) -> VerifiedCopy:
    """A copy with this source mask (H, W), measured."""
    source = region_of_mask(mask, 0, 0)
    target = warp_region(source, affine, image_features.shape)
    measurements = measure_pair(image_features, region_from_mask(affine, mask))
    proposal = ProposalStatistics(1, 1, 0.3)
    features = feature_vector(measurements, proposal, image_features.noise)
    return VerifiedCopy(Copy("dense", affine, 1, measurements.local_ncc, score, source, target), features, proposal)


def shared(image_features, *copies) -> tuple[VerifiedCopy, ...]:
    return share_outlines(image_features, copies, 0.66, TimeBudget(math.inf))


@pytest.fixture(scope="module")
def two_copies():
    """Features of a photograph in which a disc of 28 px at (100, 120) was copied by FIRST and by SECOND."""
    image = paste(paste(astronaut(), FIRST, (100, 120), 28)[0], SECOND, (100, 120), 28)[0]
    return compute_features(jpeg(image, 92))


@pytest.mark.parametrize("inverse", [False, True])
def test_too_large_copies_are_cut(two_copies, inverse):
    """A copy of 40 px is cut to the 27 px that a better one proves, also where that lies in the copy's target."""
    shape = two_copies.shape
    second, places = SECOND, [(100, 120), (120, 300)]
    if inverse:
        second, places = invert_affine(second), places[::-1]
    good = verified(two_copies, FIRST, disc_mask(shape, (100, 120), 27), 0.99)
    large = verified(two_copies, second, disc_mask(shape, places[0], 40), 0.98)
    same, cut = shared(two_copies, good, large)
    assert same is good
    for region, place in zip((cut.copy.source, cut.copy.target), places, strict=True):
        assert f1(region.full(shape), disc_mask(shape, place, 27)) > 0.95
    assert cut.features["fine_ncc"] > large.features["fine_ncc"] + 0.1


def test_rich_parts_cut_no_copy():
    """A copy is not cut to the part of it that is richest in structure, though it agrees better there."""
    rng = np.random.default_rng(5)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (400, 400)), (0, 0), 1.0)
    y, x = np.mgrid[:400, :400]
    strength = np.where((x - 100) ** 2 + (y - 120) ** 2 < 20**2, 60, 14)
    first, second = affine_map((100, 120), (290, 140)), affine_map((100, 120), (130, 300))
    image = np.repeat((120 + strength * grain)[..., None], 3, axis=2)
    for affine in (first, second):
        image = paste(image, affine, (100, 120), 48)[0]
    image = image + rng.normal(0, 2, (400, 400, 1))
    image_features = compute_features(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    rich, whole = disc_mask((400, 400), (100, 120), 18), disc_mask((400, 400), (100, 120), 46)
    better, copy = verified(image_features, first, rich, 0.99), verified(image_features, second, whole, 0.98)
    inside = verified(image_features, second, rich, 0.99)
    assert inside.features["fine_ncc"] > copy.features["fine_ncc"] + MIN_BETTER
    assert shared(image_features, better, copy)[1] is copy


def test_equally_good_copies_stay(two_copies):
    """A copy that is larger than a better one, and agrees no better within that one's outline, stays as it is."""
    small = verified(two_copies, FIRST, disc_mask(two_copies.shape, (100, 120), 20), 0.99)
    copy = verified(two_copies, SECOND, disc_mask(two_copies.shape, (100, 120), 27), 0.98)
    assert shared(two_copies, small, copy)[1] is copy
