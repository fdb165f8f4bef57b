"""The mask refiner: what the network sees of a pair, and what becomes of its answer."""

import dataclasses

import numpy as np
import pytest

from config import MatchingSettings
from copymove.copies import Copy
from copymove.detect import detect_copies, refine_copy
from copymove.dihedral import apply_dihedral
from copymove.image_features import ImageFeatures, compute_features
from copymove.mask_refiner import crop_pair, network_input, predict_log_odds, refine_mask
from copymove.regions import region_of_mask, warp_region
from copymove.time_budget import TimeBudget
from tests.scenes import affine_map, astronaut, camera, disc_mask, f1, paste, textured

SETTINGS = MatchingSettings()
SHAPE = (300, 320)
AFFINE = affine_map((100, 100), (215, 195))


@pytest.fixture(scope="module")
def image_features():
    return compute_features(textured(*SHAPE))


def disc(radius: int) -> np.ndarray:
    return disc_mask(SHAPE, (100, 100), radius)


def refined(image_features: ImageFeatures, affine: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The refined mask (H, W) bool in the whole image."""
    return region_of_mask(*refine_mask(image_features, affine, region)).full(image_features.shape)


def let_network_say(monkeypatch, log_odds) -> None:
    """Replace the network by log_odds(region, x, y); x and y are pixels from the proven region's middle."""

    def predict(grey, masks, noise, near):
        ys, xs = np.nonzero(masks[0])
        rows, columns = np.indices(near.shape)
        return log_odds(masks[0], columns - (xs.min() + xs.max()) // 2, rows - (ys.min() + ys.max()) // 2)

    monkeypatch.setattr("copymove.mask_refiner.predict_log_odds", predict)


def test_input_ignores_brightness_and_contrast():
    """The partner is brought to the template's before the two are compared."""
    grey = np.repeat(np.random.default_rng(0).normal(100, 20, (1, 40, 48)).astype(np.float32), 2, axis=0)
    masks = np.ones((3, 40, 48), bool)
    channels = network_input(grey, masks, 2.0)
    assert (channels.shape, channels.dtype) == ((10, 40, 48), np.float32)
    assert np.abs(channels[8:]).max() < 1e-3  # identical partners leave no difference
    grey[1] = 0.6 * grey[1] + 30
    assert np.allclose(network_input(grey, masks, 2.0), channels, atol=2e-3)


def test_input_holds_the_measured_structure():
    """Fine structure and grain are those that the measures compare."""
    image_features = compute_features(textured(64, 72))
    channels = network_input(
        np.stack([image_features.grey, image_features.grey]), np.ones((3, 64, 72), bool), image_features.noise
    )
    inside = np.s_[12:-12, 12:-12]  # borders are continued in other ways
    assert np.allclose(channels[0][inside], image_features.fine[0][inside], atol=0.02)
    assert np.allclose(channels[1][inside], image_features.grain[inside], atol=0.02)


def test_crop_lays_copy_on_source():
    """Also where the window reaches beyond the image, and for further masks."""
    affine = affine_map((60, 50), (180, 140), degrees=90)
    image, _ = paste(textured(220, 260), affine, (60, 50), 24)
    image_features = compute_features(image)
    region = disc_mask(image_features.shape, (60, 50), 24)
    grey, masks = crop_pair(image_features, affine, (-12, 10, 100, 90), region, ~region)
    assert (grey.shape, grey.dtype, masks.shape, masks.dtype) == ((2, 80, 112), np.float32, (4, 80, 112), bool)
    assert not masks[:, :, :12].any() and not grey[0][:, :12].any()
    assert (masks[0][:, 12:] == region[10:90, :100]).all()
    assert (masks[3][:, 12:] == ~region[10:90, :100]).all()
    difference = np.abs(grey[0] - grey[1])
    assert difference[masks[0]].max() <= 1.0
    assert difference[masks[1] & ~masks[0]].mean() > 10


@pytest.mark.parametrize("scene", [camera, astronaut])
def test_poor_masks_are_refined(scene):
    """A proven region that is too small and beside the copy becomes the copy's."""
    affine = affine_map((150, 140), (270, 250), degrees=25, scale=1.1)
    image, _ = paste(scene(), affine, (150, 140), 36)
    image_features = compute_features(image)
    true = disc_mask(image_features.shape, (150, 140), 36)
    poor = disc_mask(image_features.shape, (148, 143), 29)
    assert f1(refined(image_features, affine, poor), true) > 0.9 > f1(poor, true) + 0.05


def test_squares_fit_together(monkeypatch):
    """A large region computed square by square has the mask that it has in one piece."""
    affine = affine_map((150, 150), (370, 350))
    image, _ = paste(textured(520, 540), affine, (150, 150), 90)
    image_features = compute_features(image)
    region = disc_mask(image_features.shape, (150, 150), 86)
    in_squares = refined(image_features, affine, region)
    monkeypatch.setattr("copymove.mask_refiner.TILE", 4096)
    assert f1(in_squares, refined(image_features, affine, region)) > 0.995


def test_adding_needs_more_than_keeping(image_features, monkeypatch):
    """A pixel of the region is kept from log-odds of 0 on, another one is added from 2 on."""
    let_network_say(monkeypatch, lambda region, x, y: np.where(region, np.where(y < -20, -1, 1), np.where(x < 0, 3, 1)))
    region, (rows, columns) = disc(40), np.indices(SHAPE)
    expected = (region & (rows >= 80)) | (disc(64) & ~region & (columns < 100))
    assert f1(refined(image_features, AFFINE, region), expected) > 0.98


def test_only_the_outline_moves(image_features, monkeypatch):
    """What lies further than 24 px from the outline stays as it was proven, whatever the network says."""
    let_network_say(
        monkeypatch, lambda region, x, y: np.where(region, np.where(np.abs(x) < 8, -5, 5), np.where(x > 8, 5, -5))
    )
    mask = refined(image_features, AFFINE, disc(60))
    assert mask[100, 100] and not mask[100 - 50, 100]  # 60 and 10 px inside
    assert mask[100, 100 + 80] and not mask[100 - 70, 100 + 70]  # 20 and 39 px outside


def test_masks_do_not_cross_gutters(image_features, monkeypatch):
    """Even where the network says that the copy goes on behind one."""
    let_network_say(monkeypatch, lambda region, x, y: np.where(region | (x > 0), 5, -5))
    gutters = np.zeros(SHAPE, np.uint8)
    gutters[:, 144:149] = 1
    mask = refined(dataclasses.replace(image_features, gutters=gutters), AFFINE, disc(40))
    assert mask[100, 142] and not mask[:, 144:].any()


def test_holes_are_filled(image_features, monkeypatch):
    """A small hole in the network's answer belongs to the copy."""
    let_network_say(monkeypatch, lambda region, x, y: np.where(region & ((x - 30) ** 2 + y**2 >= 16), 5, -5))
    assert refined(image_features, AFFINE, disc(40))[100, 130]


def test_remnants_are_refused(image_features, monkeypatch):
    """There is no answer where less than half of the proven region is kept."""
    let_network_say(monkeypatch, lambda region, x, y: np.where(x < 8, -5, 1))
    assert refine_mask(image_features, AFFINE, disc(22)) is None
    let_network_say(monkeypatch, lambda region, x, y: np.full(x.shape, -5))
    assert refine_mask(image_features, AFFINE, disc(75)) is None  # only its middle is kept


def test_doubled_masks_are_refused(image_features, monkeypatch):
    """There is no answer where the mask would have more than twice the proven area."""
    let_network_say(monkeypatch, lambda region, x, y: np.full(x.shape, 5.0))
    assert refine_mask(image_features, AFFINE, disc(20)) is None  # the band alone adds 3.8 times its area
    assert refined(image_features, AFFINE, disc(60)).sum() > 1.5 * disc(60).sum()  # here less than once


def test_far_squares_are_not_computed(image_features, monkeypatch):
    """Squares without a pixel near the outline cost nothing."""
    monkeypatch.setattr("copymove.mask_refiner.TILE", 32)
    grey, masks = crop_pair(image_features, AFFINE, (60, 60, 140, 140), disc(30))
    near = np.zeros((80, 80), bool)
    near[40, 3] = True
    log_odds = predict_log_odds(grey, masks, image_features.noise, near)
    assert (log_odds[32:64, :32] != 0).all()
    assert np.count_nonzero(log_odds) == 32 * 32


def test_unrelated_places_get_no_mask():
    """Where nothing agrees the network keeps little of the region, or nothing."""
    image_features = compute_features(textured(200, 220))
    region = disc_mask(image_features.shape, (60, 60), 25)
    answer = refine_mask(image_features, affine_map((60, 60), (150, 130)), region)
    assert answer is None or answer[0].sum() < 0.7 * region.sum()


def test_findings_have_refined_masks(monkeypatch):
    """Instances have the refined masks, `copies` those that were proven; so do instances without an answer."""
    image, mask = paste(astronaut(), affine_map((120, 110), (260, 270), degrees=40), (120, 110), 30)
    with_answer = detect_copies(image, SETTINGS)
    assert f1(with_answer.instances[0].mask, mask) > 0.95
    asked = []
    monkeypatch.setattr("copymove.detect.refine_mask", lambda image_features, affine, region: asked.append(region))
    without = detect_copies(image, SETTINGS)
    assert asked
    proven = without.copies[0].source.mask
    assert (without.instances[0].copies[0].source.mask == proven).all()
    assert (with_answer.copies[0].source.mask == proven).all()
    assert with_answer.instances[0].copies[0].source.mask.sum() != proven.sum()


@pytest.mark.parametrize("orientation", range(8))
def test_refined_masks_follow_the_orientation(orientation):
    """In a turned or mirrored image the copies' masks still lie where the instance's mask does."""
    image, _ = paste(astronaut(), affine_map((120, 110), (260, 270), degrees=40), (120, 110), 30)
    (instance,) = detect_copies(apply_dihedral(image, orientation), SETTINGS).instances
    shape = instance.mask.shape
    parts = [region.full(shape) for copy in instance.copies for region in (copy.source, copy.target)]
    assert (np.any(parts, axis=0) == instance.mask).all()


@pytest.mark.parametrize(
    "answer, kind, seconds, replaced",
    [
        ("good", "dense", 60.0, True),
        ("none", "dense", 60.0, False),
        ("overlaps its copy", "dense", 60.0, False),
        ("good", "exact", 60.0, False),  # an exact copy's mask is known to the pixel
        ("good", "dense", -1.0, False),  # the time is over
    ],
)
def test_some_copies_keep_their_mask(image_features, monkeypatch, answer, kind, seconds, replaced):
    """The proven mask stays where the network has no answer or a bad one, where it is exact, and when time is over."""
    answers = {"good": (disc(24), 0, 0), "none": None, "overlaps its copy": (np.ones(SHAPE, bool), 0, 0)}
    monkeypatch.setattr("copymove.detect.refine_mask", lambda *_: answers[answer])
    source = region_of_mask(disc(20), 0, 0)
    copy = Copy(kind, AFFINE, 1, 0.9, 0.9, source, warp_region(source, AFFINE, SHAPE))
    budget = TimeBudget(seconds)
    after = refine_copy(image_features, copy, budget)
    assert (after is not copy) == replaced
    assert budget.complete == (seconds > 0)
    if replaced:
        assert (after.source.full(SHAPE) == disc(24)).all()
        assert f1(after.target.full(SHAPE), np.roll(disc(24), (95, 115), (0, 1))) == 1
