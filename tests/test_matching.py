"""Copies with known maps are found and measured; what only looks like a copy is not."""

import dataclasses
import math
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.calibrate import _tail, fit, untrained_model
from config import MatchingSettings
from copymove.copies import Copy, Instance, copy_on_jpeg_grid, group_copies
from copymove.detect import _detect_in_orientation, detect_copies
from copymove.dihedral import apply_dihedral, canonical_orientation
from copymove.exact_blocks import find_exact_blocks
from copymove.exactness import NEAR_EXACT
from copymove.geometry import invert_affine, transform_points
from copymove.growth import grow_region, region_from_mask
from copymove.image_features import compute_features
from copymove.measurements import measure_pair
from copymove.neighbours import nearest_neighbours
from copymove.polar import MIRROR, ring_descriptors
from copymove.proposals import dense_proposals
from copymove.regions import Region, region_of_mask, warp_region
from copymove.scoring import FEATURES, _trees, calibrated_score, feature_vector, score_threshold
from copymove.search import SearchState
from copymove.shared_outlines import MIN_BETTER, share_outlines
from copymove.suppression import ALTERED_RESIDUAL, BESIDE, BESIDE_RESIDUAL, BESIDE_SAME, BESIDE_TURNED, suppress_repeats
from copymove.verification import (
    MAX_EXACT_MAPS,
    ScreenedCandidates,
    _is_same_copy,
    _repeats_too_often,
    count_support,
    leading_out_of,
    screen_proposals,
    verify_candidates,
)
from copymove.visited import VisitedTransforms
from runtime.errors import InputError
from tests.scenes import affine_map, astronaut, camera, f1, grainy, jpeg, paste, shaded_copy

SETTINGS = MatchingSettings()


@pytest.mark.parametrize("variant", range(8))
def test_exact_blocks_find_every_turn_and_mirroring(variant):
    rng = np.random.default_rng(variant)
    image = rng.integers(0, 256, (120, 140, 3), dtype=np.uint8)
    patch = image[10:40, 20:60]
    if variant & 4:
        patch = patch.transpose(1, 0, 2)
    patch = patch[:: -1 if variant & 2 else 1, :: -1 if variant & 1 else 1]
    h, w = patch.shape[:2]
    image[70 : 70 + h, 80 : 80 + w] = patch
    (copy,) = find_exact_blocks(image)
    assert (copy.x, copy.y, copy.mask.shape) == (20, 10, (30, 40))
    assert copy.mask.all()
    ys, xs = np.mgrid[10:40, 20:60]
    there = transform_points(copy.affine, np.stack([xs.ravel(), ys.ravel()], 1).astype(float)).astype(int)
    assert (image[there[:, 1], there[:, 0]] == image[10:40, 20:60].reshape(-1, 3)).all()


def test_exact_blocks_ignore_what_is_flat_and_what_repeats():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert find_exact_blocks(np.tile(tile, (10, 10, 1))) == []
    flat = np.full((100, 100, 3), 255, np.uint8)
    flat[40:60, 40:60] = 0
    assert find_exact_blocks(flat) == []


@pytest.mark.parametrize(
    "degrees, scale, mirrored",
    [(0, 1.0, False), (35, 1.0, False), (90, 1.0, False), (0, 1.0, True), (-60, 1.2, False), (130, 0.8, True)],
)
def test_map_and_mask_of_a_copy_are_recovered(degrees, scale, mirrored):
    centre, target = (170, 110), (60, 290)
    true = affine_map(centre, target, degrees, scale, mirrored)
    image, mask = paste(astronaut(), true, centre, 42)
    found = detect_copies(image, SETTINGS)
    assert len(found.instances) == 1
    copy = found.instances[0].copies[0]
    if np.linalg.norm(transform_points(copy.affine, np.array([centre], float)) - target) > 10:
        copy = dataclasses.replace(copy, affine=invert_affine(copy.affine))
    assert np.abs(transform_points(copy.affine, np.array([centre], float)) - target).max() < 1.0
    assert copy.mirrored == mirrored
    assert copy.scale == pytest.approx(scale, rel=0.02)
    expected = dataclasses.replace(copy, affine=true).rotation
    assert abs((copy.rotation - expected + 180) % 360 - 180) < 1.5
    assert f1(found.instances[0].mask, mask) > 0.8


@pytest.mark.parametrize("degrees", [0, 25])
def test_copy_survives_jpeg_and_brightness(degrees):
    true = affine_map((170, 110), (60, 290), degrees)
    image, mask = paste(astronaut(), true, (170, 110), 45)
    inside = cv2.circle(np.zeros(mask.shape, np.uint8), (60, 290), 45, 1, -1) > 0
    image[inside] = np.clip(image[inside] * 0.9 + 15, 0, 255)
    found = detect_copies(jpeg(image, 85), SETTINGS)
    assert len(found.instances) == 1
    assert f1(found.instances[0].mask, mask) > 0.75


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_the_outline_ends_where_the_copy_does(degrees):
    """Also in a JPEG, where windows of correlation would draw it some 3 px too wide: then F1 is at most 0.86."""
    for scene, source, target in ((camera(), (150, 150), (300, 253)), (astronaut(), (150, 150), (300, 253))):
        image, mask = paste(scene, affine_map(source, target, degrees), source, 30)
        (instance,) = detect_copies(jpeg(image, 90), SETTINGS).instances
        assert f1(instance.mask, mask) > 0.88


def test_small_rotated_cell_among_others():
    rng = np.random.default_rng(5)
    image = rng.normal(30, 4, (300, 300))
    grain = cv2.GaussianBlur(rng.normal(0, 60, (300, 300)), (0, 0), 1.2)
    cells = [(x, y) for x in range(40, 280, 55) for y in range(40, 280, 55)]
    for x, y in cells[:-1]:
        blob = cv2.circle(np.zeros((300, 300)), (x, y), 16, 1.0, -1)
        image += cv2.GaussianBlur(blob, (0, 0), 1.5) * (90 + grain)
    image = np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2)
    assert detect_copies(image, SETTINGS).instances == ()
    forged, mask = paste(image, affine_map(cells[6], cells[-1], 110), cells[6], 19)
    found = detect_copies(forged, SETTINGS)
    assert len(found.instances) == 1
    assert f1(found.instances[0].mask, mask) > 0.7


def test_three_copies_are_one_instance_and_two_contents_are_two():
    image = astronaut()
    pristine = image.copy()
    for x, y in ((20, 300), (150, 320)):
        image[y : y + 50, x : x + 60] = pristine[60:110, 150:210]
    image[200:240, 300:350] = pristine[10:50, 20:70]
    found = detect_copies(image, SETTINGS)
    assert len(found.instances) == 2
    sizes = sorted(int(instance.mask.sum()) for instance in found.instances)
    assert sizes == [2 * 40 * 50, 3 * 50 * 60]


def test_what_leads_out_of_a_proven_copy_is_verified_beyond_the_first_ones(monkeypatch):
    """One verification, as if there were many candidates, finds one copy; the turned one is no translation of it."""
    image, mask = paste(astronaut(), affine_map((170, 110), (60, 290)), (170, 110), 40)
    image, more = paste(image, affine_map((170, 110), (300, 290), 50), (170, 110), 40)
    settings = dataclasses.replace(SETTINGS, matching_kinds=("keypoints", "dense"), max_candidates=1)
    (instance,) = detect_copies(image, settings).instances
    assert f1(instance.mask, mask | more) > 0.85
    monkeypatch.setattr(matching, "_leading_out", lambda screened, _: dataclasses.replace(screened, rank=np.empty(0)))
    (instance,) = detect_copies(image, settings).instances
    assert (instance.mask & more & ~mask).sum() < 0.1 * (more & ~mask).sum()


def test_candidates_that_lead_out_have_one_end_in_what_is_proven():
    ends = np.array([[[10, 10], [60, 60]], [[60, 60], [11, 9]], [[10, 10], [12, 12]], [[60, 60], [80, 20]]], float)
    rows = np.arange(4)
    screened = ScreenedCandidates(
        "dense", np.zeros((4, 2, 3)), ends[:, 0], rows, ends[:, 1], rows, rows.astype(float), rows, 0.3
    )
    proven = np.zeros((100, 100), bool)
    proven[5:20, 5:20] = True
    chosen = leading_out_of(screened, [Instance(proven, 0.9, ())])
    assert chosen.rank.tolist() == [0, 1] and chosen.centres.tolist() == ends[:2, 0].tolist()
    assert (chosen.kind, chosen.usual) == ("dense", 0.3)


def test_no_candidate_is_verified_twice(monkeypatch):
    image, _ = paste(astronaut(), affine_map((170, 110), (60, 290)), (170, 110), 40)
    search = SearchState(compute_features(image), SETTINGS, math.inf)
    screened = [screen_proposals(search, "dense", dense_proposals(search))]
    tried, grow = [], grow_region

    def counted(canvas, affine, centre, *rest):
        tried.append((*affine.ravel(), *centre))
        return grow(canvas, affine, centre, *rest)

    monkeypatch.setattr(alignment, "grow", counted)
    verify_candidates(search, screened, 5)
    verify_candidates(search, screened, 5)
    assert len(set(tried)) == len(tried) == 10 and search.copies


def test_what_is_identical_is_not_verified_again(monkeypatch):
    shift = np.array([-110.0, 180.0])
    image, _ = paste(astronaut(), affine_map((170, 110), (60, 290)), (170, 110), 40)
    moved, grow = [], grow_region

    def seen(canvas, affine, centre, *rest):
        moved.append(transform_points(affine, centre[None])[0] - centre)
        return grow(canvas, affine, centre, *rest)

    monkeypatch.setattr(alignment, "grow", seen)
    (copy,) = _detect_in_orientation(image, SETTINGS, []).instances[0].copies
    assert copy.kind == "exact" and moved
    assert min(np.abs(way - to).max() for way in moved for to in (shift, -shift)) > 4


def test_support_counts_the_places_that_agree_in_either_direction():
    evidence = types.SimpleNamespace(mask=np.ones((20, 30), bool), x=40, y=8, affine=affine_map((50, 15), (150, 65)))
    centres = np.array([[45, 15], [46, 15], [65, 10], [150, 60], [60, 20], [30, 15], [45, 35]], float)
    partners = centres + np.array([100, 50])
    partners[3] = centres[3] - np.array([100, 50])  # leads back
    partners[4] += np.array([0, 4])  # leads elsewhere; the last two lie outside of the region
    assert count_support(evidence, centres, partners) == 3


@pytest.mark.parametrize("way", range(1, 8))
def test_turned_image_gives_the_turned_findings_to_the_pixel(way):
    image, _ = paste(astronaut()[:320], affine_map((170, 110), (60, 240), 40), (170, 110), 42)
    (plain,) = detect_copies(image, SETTINGS).instances
    (turned,) = detect_copies(apply_dihedral(image, way), SETTINGS).instances
    assert (apply_dihedral(plain.mask, way) == turned.mask).all()
    assert turned.score == plain.score
    for instance, scene in ((plain, image), (turned, apply_dihedral(image, way))):
        copy = instance.copies[0]  # regions and map hold in each image's own coordinates
        target = warp_region(copy.source, copy.affine, scene.shape[:2])
        assert f1(target.full(scene.shape[:2]), copy.target.full(scene.shape[:2])) > 0.97
        h, w = copy.source.mask.shape
        source = scene[copy.source.y : copy.source.y + h, copy.source.x : copy.source.x + w]
        moved = cv2.warpAffine(scene, copy.affine, scene.shape[1::-1], flags=cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC)
        there = moved[copy.source.y : copy.source.y + h, copy.source.x : copy.source.x + w]
        inside = cv2.erode(copy.source.mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert np.abs(source[inside].astype(float) - there[inside]).mean() < 8


def test_a_symmetrical_middle_does_not_decide_how_a_image_is_searched():
    image = np.zeros((700, 900, 3), np.uint8)
    image[5, 9] = 200
    for way in range(8):
        turned = apply_dihedral(image, way)
        assert (
            apply_dihedral(turned, canonical_orientation(turned)) == apply_dihedral(image, canonical_orientation(image))
        ).all()


@pytest.mark.parametrize("name", ["black", "white", "noise", "chequers", "stripes", "tiles", "text"])
def test_nothing_is_found_in(name):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:256, :256]
    images = {
        "black": np.zeros((256, 256)),
        "white": np.full((256, 256), 255),
        "noise": rng.integers(0, 256, (256, 256)),
        "chequers": ((x // 16 + y // 16) % 2) * 255,
        "stripes": 128 + 100 * np.sin(x / 3) + rng.normal(0, 3, x.shape),
        "tiles": np.tile(rng.integers(0, 256, (32, 32)), (8, 8)) + rng.normal(0, 3, x.shape),
        "text": np.full((256, 256), 255.0),
    }
    image = np.clip(images[name], 0, 255).astype(np.uint8)
    if name == "text":
        for row in range(20, 250, 24):
            cv2.putText(image, "abba banana 0101", (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 0, 2, cv2.LINE_AA)
    found = detect_copies(np.repeat(image[..., None], 3, 2), SETTINGS)
    assert found.instances == ()
    assert found.complete


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 7), (24, 24)])
def test_tiny_images_end_with_nothing(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detect_copies(image, SETTINGS).instances == ()


def test_authentic_photographs_give_nothing():
    for image in (camera(), astronaut()):
        assert detect_copies(image, SETTINGS).instances == ()


def test_time_budget_is_kept_and_said():
    found = detect_copies(camera(), dataclasses.replace(SETTINGS, search_budget=1e-6))
    assert not found.complete


def test_the_time_budget_of_a_image_does_not_pay_for_compiling():
    code = """
import numba.core.registry, numpy, skimage.data
import alignment, candidates, config, exact, matching

def compiled():
    functions = [(m.__name__, f) for m in (alignment, candidates, exact, matching) for f in vars(m).items()]
    return {(m, n): len(f.signatures) for m, (n, f) in functions if isinstance(f, numba.core.registry.CPUDispatcher)}

settings = config.MatchingSettings()
assert not matching.find_instances(numpy.zeros((30, 30, 3), numpy.uint8), settings).seconds  # ends at once
before = compiled()
image = skimage.data.astronaut()[:256, :256].copy()
image[150:200, 30:90] = image[20:70, 100:160]
image[180:240, 180:230] = image[20:70, 100:160].swapaxes(0, 1) * 0.9
assert matching.find_instances(image, settings).instances
assert compiled() == before and before["alignment", "_refine"], (before, compiled())
"""
    folder = Path(matching.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_proposed_region_goes_through_the_same_proof():
    region = np.zeros((384, 384), bool)
    region[60:110, 150:210] = region[250:300, 30:90] = True
    assert detect_copies(astronaut(), SETTINGS, [region]).instances == ()
    with pytest.raises(ValueError, match="region"):
        detect_copies(astronaut(), SETTINGS, [region[1:]])


def test_fewer_false_alarms_ask_for_a_higher_score():
    scores = [score_threshold(share) for share in (0.001, 0.01, 0.1, 1.0)]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(InputError, match="target_fpr"):
        score_threshold(0.0)


def test_calibration_is_written_as_it_was_fitted(monkeypatch):
    rng = np.random.default_rng(4)
    images = []
    for _ in range(40):
        labels = rng.random(12) < 0.2
        facts = rng.normal(0, 1, (12, len(FEATURES))) + labels[:, None] * 0.8
        named = [dict(zip(FEATURES, row.tolist(), strict=True)) for row in facts]
        images.append([(fact, int(label)) for fact, label in zip(named, labels, strict=True)])
    content = fit(images)
    monkeypatch.setattr(matching, "_calibration", lambda: content)
    _trees.cache_clear()
    scores = np.array([calibrated_score(fact) for image in images for fact, _ in image])
    _trees.cache_clear()

    # The library's own answer, from a model fitted on the same.
    x = np.array([[fact[name] for name in FEATURES] for image in images for fact, _ in image])
    y = np.array([label for image in images for _, label in image])
    model = untrained_model().fit(x, y)
    assert scores == pytest.approx(model.predict_proba(x)[:, 1], abs=2e-3)
    assert scores[y == 1].mean() > 0.5 > scores[y == 0].mean()
    # One image in a hundred: with 40 images that is beyond the sample, so no false candidate passes.
    odds = dict(map(tuple, content["thresholds"]))
    assert odds[0.001] > odds[0.01] > odds[0.1]


def test_known_maps_are_those_that_say_the_same_where_they_hold():
    known = VisitedTransforms()
    turned = affine_map((50, 50), (200, 80), 20)
    known.add_candidate(turned, np.array([50.0, 50.0]))
    assert (turned, np.array([55.0, 45.0])) in known
    assert (turned, np.array([61.0, 50.0])) not in known  # more than 10 px away
    moved = turned + np.array([[0, 0, 3.5], [0, 0, -3.5]])
    assert (moved, np.array([50.0, 50.0])) in known  # by less than 4 px
    assert (turned + np.array([[0, 0, 4.5], [0, 0, 0]]), np.array([50.0, 50.0])) not in known
    # The same place of the centre, but what lies 6 px beside it moves by more than 4 px.
    assert (affine_map((50, 50), (200, 80), 80), np.array([50.0, 50.0])) not in known
    known.add_region(invert_affine(turned), 180, 60, np.ones((40, 40), bool), 1.5)
    assert (invert_affine(turned), np.array([210.0, 90.0])) in known


def test_a_threshold_lets_no_more_pass_than_chance_would_in_a_tenth_of_the_samples():
    best = np.arange(1000.0)[::-1]
    for share in (0.01, 0.03, 0.1):
        passing = int((best > _tail(best, share)).sum())
        assert binom.cdf(passing, 1000, share) < 0.1 <= binom.cdf(passing + 1, 1000, share)


def test_other_copies_need_their_share_of_the_best_copys_grain():
    def copy(kind, degrees, place=0):
        linear = cv2.getRotationMatrix2D((5, 5), degrees, 1.0)
        linear[:, 2] += (43.0, 21.0)
        region = Region(0, place, np.ones((10, 10), bool))
        return Copy(kind, linear, 9, 1.0, 0.9, region, region)

    copies = [copy("keypoints", 0), *(copy("dense", degrees, 100) for degrees in (0, 0, 30, 0))]
    upright, turned = BESIDE, BESIDE_TURNED
    grain = [1.0, upright + 0.01, upright - 0.01, turned + 0.01, 0.9]
    margin = [0.4, 0.3, 0.3, 0.3, 0.4 * upright - 0.01]  # the last one leads too little
    alike = {"residual": 0.0, "noise": 0.0}
    facts = [{"grain_ncc_p80": g, "fine_margin": m} | alike for g, m in zip(grain, margin, strict=True)]
    assert suppress_repeats(range(5), copies, facts) == [0, 1, 3]  # a turned copy has lost some grain
    facts[1]["residual"] = BESIDE_RESIDUAL + 0.01  # it differs more than three times as much
    assert suppress_repeats(range(5), copies, facts) == [0, 3]
    facts[1]["residual"] = 0.0
    # A further copy of the best one's content may share less than another content may.
    copies[2] = copy("dense", 0)
    assert suppress_repeats(range(5), copies, facts) == [0, 1, 2, 3]
    facts[2] = {"grain_ncc_p80": BESIDE_SAME - 0.01, "fine_margin": 0.3} | alike
    assert suppress_repeats(range(5), copies, facts) == [0, 1, 3]
    # Beside a bit-identical copy (grain 2.65) what differs much needs as much grain as an upright copy, of any content.
    copies[0], facts[0] = copy("exact", 0), {}
    for k in (1, 2, 3, 4):
        facts[k] = {"grain_ncc_p80": 2.66 * turned, "fine_margin": 0.3, "noise": 0.0, "residual": 5.0}
    facts[3]["grain_ncc_p80"] = 2.64 * upright
    copies[2] = copy("dense", 0)
    assert suppress_repeats(range(5), copies, facts) == [0]
    facts[3]["grain_ncc_p80"] = 2.66 * upright
    assert suppress_repeats(range(5), copies, facts) == [0, 3]
    # It may share less where it was turned and is of the identical content, or hardly differs otherwise.
    copies[3], facts[3]["grain_ncc_p80"] = copy("dense", 30), 2.66 * turned
    copies[4] = copy("dense", 30, 100)
    for k, most in ((1, ALTERED_RESIDUAL[0]), (4, ALTERED_RESIDUAL[1])):  # upright, turned
        for residual, kept in ((most - 0.01, sorted([0, k, 3])), (most + 0.01, [0, 3])):
            facts[k]["residual"] = math.log(residual)
            assert suppress_repeats(range(5), copies, facts) == kept
    for k in (1, 2, 3, 4):
        facts[k] = {"grain_ncc_p80": 1.0, "fine_margin": 0.3, "noise": 0.0, "residual": 0.0}
    copies[3] = copy("dense", 30, 100)
    # One on the grid of JPEG blocks is identical for having been rounded alike: the others are measured by themselves.
    copies[0] = dataclasses.replace(copies[0], affine=np.array([[1.0, 0, 48], [0, 1, 24]]))
    assert copy_on_jpeg_grid(copies[0])
    assert suppress_repeats(range(5), copies, facts) == [0, 1, 2, 3, 4]
    assert suppress_repeats([0], copies, facts) == [0]
    assert suppress_repeats([], copies, facts) == []


def test_all_copies_are_found_in_a_jpeg_where_one_lies_on_the_grid_of_blocks():
    image = camera()
    block = image[100:164, 200:264].copy()
    truth = np.zeros(image.shape[:2], bool)
    truth[100:164, 200:264] = True
    for y, x in ((20, 40), (380, 30), (391, 331)):  # the first two are whole blocks away
        image[y : y + 64, x : x + 64] = block
        truth[y : y + 64, x : x + 64] = True
    (instance,) = detect_copies(jpeg(image, 80), SETTINGS).instances
    assert f1(instance.mask, truth) > 0.9


@pytest.mark.parametrize("feather", [0, 2, 4])
def test_the_feathered_edge_of_an_identical_copy_belongs_to_it(feather):
    image = camera()
    truth = np.zeros(image.shape[:2], bool)
    truth[100:160, 200:260] = True
    depth = cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5)[100:160, 200:260]
    alpha = np.clip(depth / (feather + 1), 0, 1)[..., None]
    there = np.s_[380:440, 31:91]
    image[there] = np.rint(alpha * image[100:160, 200:260] + (1 - alpha) * image[there])
    truth[there] = True
    (found,) = find_exact_blocks(image)
    source = Region(found.x, found.y, found.mask)
    mask = source.full(truth.shape) | warp_region(source, found.affine, truth.shape).full(truth.shape)
    assert f1(mask, truth) > 0.98
    assert found.mask[0].any() and found.mask[-1].any() and found.mask[:, 0].any() and found.mask[:, -1].any()


def test_lines_and_letters_saved_as_jpeg_are_no_copies():
    image = np.zeros((480, 640, 3), np.uint8)
    for x in (0, 640):
        cv2.line(image, (x, 0), (640 - x, 240), (0, 255, 0), 2, cv2.LINE_AA)
    cv2.putText(image, "Gaussian blur", (110, 255), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 1, cv2.LINE_AA)
    assert find_exact_blocks(jpeg(image, 85)) == []


def test_copies_side_by_side_are_one_instance():
    image = camera()
    block = image[100:180, 180:240].copy()  # the photographer's head
    truth = np.zeros(image.shape[:2], bool)
    truth[100:180, 180:240] = True
    for x in (243, 306):  # region and copy overlap: the pair holds the middle one twice
        image[100:180, x : x + 60] = block
        truth[100:180, x : x + 60] = True
    found = detect_copies(jpeg(image, 95), SETTINGS)
    assert len(found.instances) == 1
    assert f1(found.instances[0].mask, truth) > 0.9


def test_what_shares_a_region_with_a_copy_on_the_grid_measures_the_others():
    def copy(y, shift):
        mask = np.ones((10, 10), bool)
        regions = Region(0, y, mask), Region(shift, y, mask)
        return Copy("dense", np.array([[1.0, 0, shift], [0, 1, 0]]), 9, 1.0, 0.9, *regions)

    copies = [copy(0, 80), copy(50, 43), copy(0, 101)]  # on the grid; another content; the first one's content again
    shares = ((2.5, 0.7), (1.3, 0.2), (0.7, 0.4))
    facts = [{"grain_ncc_p80": grain, "fine_margin": margin, "residual": 0.0} for grain, margin in shares]
    assert copy_on_jpeg_grid(copies[0])
    assert suppress_repeats(range(3), copies, facts) == [0, 2]
    assert suppress_repeats([1, 2], copies, facts) == [1]  # without it the other content is best


def test_a_small_known_copy_does_not_hide_the_whole():
    def copy(side):
        mask = np.ones((side, side), bool)
        return Copy("exact", np.array([[1.0, 0, 60], [0, 1, 0]]), 9, 1.0, 0.9, Region(5, 5, mask), Region(65, 5, mask))

    for side, same in ((12, True), (30, False)):
        other = copy(side)
        assert _is_same_copy(copy(10), other.source, other.target, other.affine) == same


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        detect_copies(np.zeros((50, 50), np.uint8), SETTINGS)


def test_copies_are_grouped_by_what_they_share():
    def copy(x, y):
        region = [Region(place, 0, np.ones((10, 10), bool)) for place in (x, y)]
        return Copy("exact", np.eye(2, 3), 1, 1.0, 0.9, *region)

    instances = group_copies([copy(0, 40), copy(40, 80), copy(120, 160)], (10, 200))
    assert sorted(int(i.mask.sum()) for i in instances) == [200, 300]


def test_neighbours_agree_with_brute_force():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(6000, 32)).astype(np.float32)
    base[3000:3300] = base[:300] + rng.normal(0, 0.1, (300, 32))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    _, index = nearest_neighbours(base[:300], base, 2)
    assert (index[:, 0] == np.arange(300)).mean() > 0.99
    assert (index[:, 1] == np.arange(3000, 3300)).mean() > 0.9


def test_ring_descriptors_ignore_rotation_and_know_mirror_images():
    rng = np.random.default_rng(3)
    patch = cv2.GaussianBlur(rng.normal(size=(8, 32)).astype(np.float32), (0, 0), 1)[None]
    plain, turned, flipped = (
        ring_descriptors(polar)[0]
        for polar in (patch, np.roll(patch, 5, axis=2), np.roll(patch[:, :, ::-1], 3, axis=2))
    )
    assert float((plain * turned).sum()) == pytest.approx(1, abs=1e-4)
    assert float((MIRROR * plain * flipped).sum()) == pytest.approx(1, abs=1e-4)
    assert float((plain * flipped).sum()) < 0.95


def test_rotation_is_read_from_the_map():
    map = affine_map((0, 0), (5, 5), degrees=30)
    region = Region(0, 0, np.ones((2, 2), bool))
    assert Copy("exact", map, 1, 1.0, 1.0, region, region).rotation == pytest.approx(30)
    assert math.isclose(Copy("exact", map * 2, 1, 1.0, 1.0, region, region).scale, 2)


@pytest.mark.parametrize("gap", [5, 12, 40])
@pytest.mark.parametrize("flip", [np.s_[:, ::-1], np.s_[::-1, ::-1]], ids=["mirrored", "half turn"])
def test_an_exact_copy_beside_its_source_is_told_from_a_symmetrical_thing(flip, gap):
    image = np.random.default_rng(11).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    source = image[60:100, 40:80].copy()
    left = 80 + gap
    image[60:100, left : left + 40] = source[flip]
    (found,) = find_exact_blocks(image)
    assert (found.x, found.y, found.mask.shape, found.mask.sum()) == (40, 60, (40, 40), 1600)
    image[:, 80:] = np.random.default_rng(12).integers(0, 256, (160, 120, 3), dtype=np.uint8)
    image[60:100, 80:120] = source[flip]  # no gap: one thing, and its own mirror image
    assert find_exact_blocks(image) == []


def test_exact_copies_in_the_dark_where_there_are_few_grey_levels():
    rng = np.random.default_rng(5)
    levels = np.repeat(rng.integers(4, 8, (200, 150)), 2, axis=1).astype(np.uint8)  # half of the pixels equal the next
    image = np.repeat(levels[..., None], 3, axis=2)
    assert find_exact_blocks(image) == []
    image[100:150, 200:260] = image[20:70, 31:91]
    (found,) = find_exact_blocks(image)
    assert found.affine.tolist() == [[1, 0, 169], [0, 1, 80]]
    assert found.mask.sum() == pytest.approx(50 * 60, rel=0.05)


def test_a_shaded_copy_is_found_to_the_pixel():
    image, mask = shaded_copy(grainy())
    assert find_exact_blocks(image) == []
    (instance,) = detect_copies(image, SETTINGS).instances
    assert instance.copies[0].affine.round(6).tolist() in ([[1, 0, 150], [0, 1, 90]], [[1, 0, -150], [0, 1, -90]])
    assert f1(instance.mask, mask) > 0.9


def test_equal_arrows_and_letters_on_a_image_are_no_copies():
    image = grainy()
    for x, y in ((40, 60), (200, 90), (90, 250), (230, 300)):
        cv2.arrowedLine(image, (x, y), (x + 30, y + 22), (255, 255, 255), 2, cv2.LINE_AA, tipLength=0.4)
        cv2.putText(image, "Bk", (x - 20, y + 50), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (0, 0, 0), 2, cv2.LINE_AA)
    assert detect_copies(image, SETTINGS).instances == ()


def test_what_is_identical_at_many_places_is_a_pattern():
    image, _ = shaded_copy(grainy())
    canvas = compute_features(image)
    place = np.array([[1.0, 0, 150], [0, 1, 90]])
    evidence = measure_pair(canvas, grow_region(canvas, place, np.array([82.0, 222.0]), 10.0, 0.25))
    assert evidence.exactness > NEAR_EXACT
    for places in (MAX_EXACT_MAPS, MAX_EXACT_MAPS + 1):
        maps = np.tile(place, (2 * places, 1, 1))  # each twice
        maps[:, 0, 2] += np.repeat(np.arange(places), 2) * 20
        centres = np.tile([82.0, 222.0], (2 * places, 1))
        ones = np.ones(2 * places)
        screened = [ScreenedCandidates("dense", maps, centres, ones, centres, ones.astype(int), ones, 2 * ones, 0.0)]
        assert _repeats_too_often(evidence, screened) == (places > MAX_EXACT_MAPS)


def outlined(canvas, *copies) -> SearchState:
    """Search that holds copies: (map, source mask (H, W), score) each."""
    search = SearchState(canvas, SETTINGS, math.inf)
    for affine, mask, score in copies:
        source = region_of_mask(mask, 0, 0)
        target = warp_region(source, affine, canvas.shape)
        evidence = measure_pair(canvas, region_from_mask(affine, mask))
        search.copies.append(Copy("dense", affine, 1, evidence.local_ncc, score, source, target))
        search.evidence.append(feature_vector(evidence, 1, 1, 0.3, canvas.noise))
    return search


def disc(canvas, x, y, radius) -> np.ndarray:
    return cv2.circle(np.zeros(canvas.shape, np.uint8), (x, y), radius, 1, -1) > 0


@pytest.mark.parametrize("inverse", [False, True])
def test_a_copy_that_grew_too_far_is_cut_to_the_outline_of_a_better_one(inverse):
    first, second = affine_map((100, 120), (250, 150)), affine_map((100, 120), (120, 300))
    image = jpeg(paste(paste(astronaut(), first, (100, 120), 28)[0], second, (100, 120), 28)[0], 92)
    canvas = compute_features(image)
    places = [(100, 120), (120, 300)]
    if inverse:  # the better one's outline lies in the copy's target
        second, places = invert_affine(second), places[::-1]
    search = outlined(canvas, (first, disc(canvas, 100, 120, 27), 0.99), (second, disc(canvas, *places[0], 40), 0.98))
    before = dict(search.evidence[1])
    share_outlines(search)
    for region, place in zip((search.copies[1].source, search.copies[1].target), places, strict=True):
        assert f1(region.full(canvas.shape), disc(canvas, *place, 27)) > 0.95
    assert search.evidence[1]["fine_ncc"] > before["fine_ncc"] + 0.1
    assert f1(search.copies[0].source.full(canvas.shape), disc(canvas, 100, 120, 27)) == 1


def test_a_copy_is_not_cut_to_the_part_of_it_that_is_richest_in_structure():
    rng = np.random.default_rng(5)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (400, 400)), (0, 0), 1.0)
    y, x = np.mgrid[:400, :400]
    strength = np.where((x - 100) ** 2 + (y - 120) ** 2 < 20**2, 60, 14)
    grey = 120 + strength * grain
    first, second = affine_map((100, 120), (290, 140)), affine_map((100, 120), (130, 300))
    image = np.repeat(grey[..., None], 3, axis=2)
    for affine in (first, second):
        image = paste(image, affine, (100, 120), 48)[0]
    image = image + rng.normal(0, 2, (400, 400, 1))
    canvas = compute_features(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    rich, whole = disc(canvas, 100, 120, 18), disc(canvas, 100, 120, 46)
    search = outlined(canvas, (first, rich, 0.99), (second, whole, 0.98))
    inside = outlined(canvas, (second, rich, 0.99)).evidence[0]
    assert inside["fine_ncc"] > search.evidence[1]["fine_ncc"] + MIN_BETTER
    before = search.copies[1]
    share_outlines(search)
    assert search.copies[1] is before


def test_a_copy_is_not_cut_where_it_agrees_no_better():
    first, second = affine_map((100, 120), (250, 150)), affine_map((100, 120), (120, 300))
    image = jpeg(paste(paste(astronaut(), first, (100, 120), 28)[0], second, (100, 120), 28)[0], 92)
    canvas = compute_features(image)
    search = outlined(canvas, (first, disc(canvas, 100, 120, 20), 0.99), (second, disc(canvas, 100, 120, 27), 0.98))
    before = search.copies[1]
    share_outlines(search)
    assert search.copies[1] is before
