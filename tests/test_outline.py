"""The network that redraws outlines: what it sees, what it is taught by, and what it draws."""

import dataclasses

import cv2
import numpy as np
import pytest

from config import MatchingSettings
from copymove.copies import Copy
from copymove.detect import detect_copies, refine_copy
from copymove.dihedral import apply_dihedral
from copymove.image_features import ImageFeatures, compute_features
from copymove.mask_refiner import _predict_log_odds, crop_pair, network_input, refine_mask
from copymove.regions import region_of_mask, warp_region
from copymove.time_budget import TimeBudget
from tests.scenes import affine_map, astronaut, camera, f1, paste, textured

SETTINGS = MatchingSettings()


def draw(canvas: ImageFeatures, affine: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Mask (H, W) bool of what is drawn."""
    return region_of_mask(*refine_mask(canvas, affine, region)).full(canvas.shape)


def test_structures_do_not_depend_on_the_partners_brightness_and_contrast():
    grey = np.repeat(np.random.default_rng(0).normal(100, 20, (1, 40, 48)).astype(np.float32), 2, axis=0)
    masks = np.ones((3, 40, 48), bool)
    seen = network_input(grey, masks, 2.0)
    assert (seen.shape, seen.dtype) == ((10, 40, 48), np.float32)
    assert np.abs(seen[8:]).max() < 1e-3  # identical partners leave no difference
    grey[1] = 0.6 * grey[1] + 30
    assert np.allclose(network_input(grey, masks, 2.0), seen, atol=2e-3)


def test_the_fine_structure_is_the_one_that_the_evidence_compares():
    canvas = compute_features(textured(64, 72))
    seen = network_input(np.stack([canvas.grey, canvas.grey]), np.ones((3, 64, 72), bool), canvas.noise)
    inside = np.s_[12:-12, 12:-12]  # borders are continued in other ways
    assert np.allclose(seen[0][inside], canvas.fine[0][inside], atol=0.02)
    assert np.allclose(seen[1][inside], canvas.grain[inside], atol=0.02)


def test_cut_pair_shows_the_copy_on_its_source_also_beyond_the_image():
    affine = affine_map((60, 50), (180, 140), degrees=90)
    image, _ = paste(textured(220, 260), affine, (60, 50), 24)
    canvas = compute_features(image)
    region = cv2.circle(np.zeros(canvas.shape, np.uint8), (60, 50), 24, 1, -1) > 0
    other = ~region
    grey, masks = crop_pair(canvas, affine, (-12, 10, 100, 90), region, other)
    assert (grey.shape, grey.dtype, masks.shape, masks.dtype) == ((2, 80, 112), np.float32, (4, 80, 112), bool)
    assert not masks[:, :, :12].any() and not grey[0][:, :12].any()
    assert (masks[0][:, 12:] == region[10:90, :100]).all()
    assert (masks[3][:, 12:] == other[10:90, :100]).all()
    apart = np.abs(grey[0] - grey[1])
    assert apart[masks[0]].max() <= 1.0
    assert apart[masks[1] & ~masks[0]].mean() > 10


@pytest.mark.parametrize("image", [camera, astronaut])
def test_a_poor_outline_is_drawn_anew(scene):
    affine = affine_map((150, 140), (270, 250), degrees=25, scale=1.1)
    image, _ = paste(scene(), affine, (150, 140), 36)
    canvas = compute_features(image)
    true = cv2.circle(np.zeros(canvas.shape, np.uint8), (150, 140), 36, 1, -1) > 0
    poor = cv2.circle(np.zeros(canvas.shape, np.uint8), (148, 143), 29, 1, -1) > 0
    drawn = draw(canvas, affine, poor)
    assert f1(drawn, true) > 0.9 > f1(poor, true) + 0.05


def test_squares_of_a_large_region_fit_together(monkeypatch):
    affine = affine_map((150, 150), (370, 350))
    image, _ = paste(textured(520, 540), affine, (150, 150), 90)
    canvas = compute_features(image)
    region = cv2.circle(np.zeros(canvas.shape, np.uint8), (150, 150), 86, 1, -1) > 0
    cut = draw(canvas, affine, region)
    monkeypatch.setattr(outline, "TILE", 4096)
    assert f1(cut, draw(canvas, affine, region)) > 0.995


@pytest.fixture(scope="module")
def canvas():
    return compute_features(textured(300, 320))


AFFINE = affine_map((100, 100), (215, 195))


def disc(radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((300, 320), np.uint8), (100, 100), radius, 1, -1) > 0


def let_say(monkeypatch, odds) -> None:
    """Let the network say odds(region, x, y): where the proven region is, and pixels from its middle."""

    def say(grey, masks, noise, near):
        ys, xs = np.nonzero(masks[0])
        rows, columns = np.indices(near.shape)
        return odds(masks[0], columns - (xs.min() + xs.max()) // 2, rows - (ys.min() + ys.max()) // 2)

    monkeypatch.setattr(outline, "_odds", say)


def test_a_pixel_is_kept_on_less_than_another_is_taken_in_on(canvas, monkeypatch):
    let_say(monkeypatch, lambda region, x, y: np.where(region, np.where(y < -20, -1, 1), np.where(x < 0, 3, 1)))
    region, (rows, columns) = disc(40), np.indices((300, 320))
    expected = (region & (rows >= 80)) | (disc(64) & ~region & (columns < 100))
    assert f1(draw(canvas, AFFINE, region), expected) > 0.98


def test_only_what_lies_near_the_outline_moves(canvas, monkeypatch):
    let_say(monkeypatch, lambda region, x, y: np.where(region, np.where(np.abs(x) < 8, -5, 5), np.where(x > 8, 5, -5)))
    drawn = draw(canvas, AFFINE, disc(60))
    assert drawn[100, 100] and not drawn[100 - 50, 100]  # deep inside, and not
    assert drawn[100, 100 + 80] and not drawn[100 - 70, 100 + 70]  # 20 and 39 px outside


def test_an_outline_does_not_run_across_a_gutter(canvas, monkeypatch):
    let_say(monkeypatch, lambda region, x, y: np.where(region | (x > 0), 5, -5))
    gutters = np.zeros((300, 320), np.uint8)
    gutters[:, 144:149] = 1
    drawn = draw(dataclasses.replace(canvas, gutters=gutters), AFFINE, disc(40))
    assert drawn[100, 142] and not drawn[:, 144:].any()


def test_holes_are_filled_and_a_remnant_is_no_outline(canvas, monkeypatch):
    let_say(monkeypatch, lambda region, x, y: np.where(region & ((x - 30) ** 2 + y**2 >= 16), 5, -5))
    assert draw(canvas, AFFINE, disc(40))[100, 130]
    let_say(monkeypatch, lambda region, x, y: np.where(x < 8, -5, 1))
    assert refine_mask(canvas, AFFINE, disc(22)) is None
    let_say(monkeypatch, lambda region, x, y: np.full(x.shape, -5))
    assert refine_mask(canvas, AFFINE, disc(75)) is None  # its middle is left; the ground would be large enough


def test_squares_far_from_the_outline_are_not_computed(canvas, monkeypatch):
    monkeypatch.setattr(outline, "TILE", 32)
    grey, masks = crop_pair(canvas, AFFINE, (60, 60, 140, 140), disc(30))
    near = np.zeros((80, 80), bool)
    near[40, 3] = True
    odds = _predict_log_odds(grey, masks, canvas.noise, near)
    assert (odds[32:64, :32] != 0).all()
    assert np.count_nonzero(odds) == 32 * 32


def test_an_outline_that_would_double_is_refused(canvas, monkeypatch):
    monkeypatch.setattr(outline, "_odds", lambda grey, masks, noise, near: np.full(near.shape, 5.0))
    assert refine_mask(canvas, AFFINE, disc(20)) is None  # the band alone adds 3.8 times its area
    assert draw(canvas, AFFINE, disc(60)).sum() > 1.5 * disc(60).sum()  # here less than once


def test_nothing_is_drawn_where_nothing_agrees():
    canvas = compute_features(textured(200, 220))
    region = cv2.circle(np.zeros(canvas.shape, np.uint8), (60, 60), 25, 1, -1) > 0
    drawn = refine_mask(canvas, affine_map((60, 60), (150, 130)), region)
    assert drawn is None or drawn[0].sum() < 0.7 * region.sum()


def test_findings_come_with_drawn_outlines_and_copies_as_they_were_proven(monkeypatch):
    image, mask = paste(astronaut(), affine_map((120, 110), (260, 270), degrees=40), (120, 110), 30)
    drawn = detect_copies(image, SETTINGS)
    assert f1(drawn.instances[0].mask, mask) > 0.95
    asked = []
    monkeypatch.setattr("copymove.detect.refine_mask", lambda canvas, affine, region: asked.append(region))
    kept = detect_copies(image, SETTINGS)
    assert asked
    # None was drawn: the outline stays as it was proven.
    assert (kept.instances[0].copies[0].source.mask == kept.copies[0].source.mask).all()
    assert (drawn.copies[0].source.mask == kept.copies[0].source.mask).all()
    assert drawn.instances[0].copies[0].source.mask.sum() != kept.copies[0].source.mask.sum()


@pytest.mark.parametrize("way", range(8))
def test_drawn_outlines_lie_where_the_image_was_turned_to(way):
    image, _ = paste(astronaut(), affine_map((120, 110), (260, 270), degrees=40), (120, 110), 30)
    found = detect_copies(apply_dihedral(image, way), SETTINGS)
    shape = found.instances[0].mask.shape
    parts = [region.full(shape) for c in found.instances[0].copies for region in (c.source, c.target)]
    assert (np.any(parts, axis=0) == found.instances[0].mask).all()


def test_what_is_identical_or_late_or_grows_over_its_own_copy_is_not_drawn_anew(canvas, monkeypatch):
    source = region_of_mask(disc(20), 0, 0)
    target = warp_region(source, AFFINE, canvas.shape)
    copy = Copy("dense", AFFINE, 1, 0.9, 0.9, source, target)
    whole = np.ones((300, 320), bool)
    answers = {"drawn": (disc(24), 0, 0), "none": None, "grown": (whole, 0, 0)}
    for answer, given, seconds, same in (
        ("drawn", copy, 60.0, False),
        ("none", copy, 60.0, True),
        ("grown", copy, 60.0, True),
        ("drawn", dataclasses.replace(copy, kind="exact"), 60.0, True),
        ("drawn", copy, -1.0, True),
    ):
        monkeypatch.setattr("copymove.detect.refine_mask", lambda *_, answer=answer: answers[answer])
        budget = TimeBudget(seconds)
        assert (refine_copy(canvas, given, budget) is given) == same
        assert budget.complete == (seconds > 0)
    monkeypatch.setattr("copymove.detect.refine_mask", lambda *_: answers["drawn"])
    drawn = refine_copy(canvas, copy, TimeBudget(60.0))
    assert (drawn.source.full(canvas.shape) == disc(24)).all()
    assert f1(drawn.target.full(canvas.shape), np.roll(disc(24), (95, 115), (0, 1))) == 1
