"""Alignment and measures of one pair: refined maps, exactness, margins and outlines, against known truth."""

import math

import cv2
import numpy as np
import pytest

from copymove.boundary import extend_shaded_boundary
from copymove.exactness import MIN_DISTINCT_RATIO, NEAR_EXACT, ROUNDING, pixel_exactness
from copymove.geometry import on_jpeg_grid, transform_points
from copymove.image_features import compute_features
from copymove.measurements import ncc_margin
from copymove.screening import screen_candidates
from tests.scenes import affine_map, camera, f1, grainy, paste, shaded_copy


@pytest.mark.parametrize(
    "linear, shift, expected",
    [
        ([[1, 0], [0, 1]], (16, -8), True),
        ([[1, 0], [0, 1]], (16, 4), False),
        ([[-1, 0], [0, 1]], (127, 8), True),  # the first column becomes the 128th, the last of a block
        ([[-1, 0], [0, 1]], (128, 8), False),
        ([[0, 1], [-1, 0]], (8, 63), True),
        ([[0.98, 0.2], [-0.2, 0.98]], (16, 16), False),
    ],
)
def test_jpeg_grid_maps_are_recognised(linear, shift, expected):
    """A map is on the grid if it takes JPEG's blocks of 8 x 8 pixels onto such blocks."""
    affine = np.concatenate([np.array(linear, float), np.array([shift], float).T], axis=1)
    assert on_jpeg_grid(affine, np.array([40.0, 40.0])) == expected


def test_margin_needs_one_best_place():
    """It is high for the same grain at the same place; not for an edge, nor for grain that fits elsewhere."""
    grain = np.random.default_rng(3).normal(0, 1, (60, 60)).astype(np.float32)
    inside = np.zeros((60, 60), bool)
    inside[15:45, 15:45] = True
    assert ncc_margin(grain, 3 * grain, inside, 9, 3, 1) > 0.5  # contrast doesn't count
    assert ncc_margin(grain, np.roll(grain, 3, axis=1), inside, 9, 3, 1) < -0.5  # fits 3 px off
    edge = np.repeat(np.sign(np.arange(60) - 29.5)[None].astype(np.float32), 60, axis=0)  # slides along itself
    assert abs(ncc_margin(edge, edge, inside, 9, 3, 1)) < 0.01


def test_screening_recovers_a_small_error():
    """A map that is off by 1.5 px and 3 degrees is brought back to the true one."""
    true = affine_map((225, 120), (400, 80), 20)
    image_features = compute_features(paste(camera(), true, (225, 120), 40)[0])
    start = affine_map((225, 120), (401.5, 79), 23)
    discs = screen_candidates(image_features, start[None], np.array([[225.0, 120.0]]), np.array([14.0]))
    assert np.abs(discs.affines[0, :, :2] - true[:, :2]).max() < 0.01
    assert np.abs(transform_points(discs.affines[0] - true, np.array([[225.0, 120.0]]))).max() < 0.2
    assert discs.band_ncc[0] > 0.8 and discs.fine_ncc[0] > 0.8


def test_exactness_follows_its_formula():
    """Half the log of the squared difference 2 px off over that at the place, written a second time in NumPy."""
    image, _ = shaded_copy(grainy())
    image_features = compute_features(image)
    ys, xs = (v.ravel() + o for v, o in zip(np.mgrid[:30, :30], (207, 67), strict=True))
    true = np.array([[1.0, 0, 150], [0, 1, 90]])

    def quartile(rough, dx, dy):
        a, b = rough[ys, xs], rough[ys + 90 + dy, xs + 150 + dx]
        squares = np.sort((a - b * max((a * b).sum(), 0) / (b * b).sum()) ** 2)
        return squares[3 * len(a) // 4] + ROUNDING

    def exactness(rough):
        ring = [(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3) if max(abs(dx), abs(dy)) == 2]
        return 0.5 * math.log(min(quartile(rough, dx, dy) for dx, dy in ring) / quartile(rough, 0, 0))

    found = pixel_exactness(image_features.high_pass, true, xs, ys)
    assert found == pytest.approx(exactness(image_features.high_pass), abs=1e-3)
    assert found > NEAR_EXACT
    noise = np.random.default_rng(3).normal(0, 1, image_features.high_pass.shape).astype(np.float32)
    for strength, distinct in ((2.0, True), (4.0, False)):  # an exactness under 0.39 counts as 0
        noisy = image_features.high_pass + strength * noise
        expected = exactness(noisy)
        assert distinct == (expected > 0.5 * math.log(MIN_DISTINCT_RATIO)) and 0.1 < expected < 1
        assert pixel_exactness(noisy, true, xs, ys) == (pytest.approx(expected, abs=1e-3) if distinct else 0)
    turned = affine_map((82, 222), (232, 312), degrees=4)
    assert pixel_exactness(image_features.high_pass, turned, xs, ys) == 0  # resampled
    assert pixel_exactness(image_features.high_pass, true + np.array([[0, 0, 9], [0, 0, 5]]), xs, ys) == 0  # no copy
    image_features.high_pass[ys, xs] = np.nan
    assert pixel_exactness(image_features.high_pass, true, xs, ys) == 0  # drawn


def test_equal_arrows_are_not_exact():
    """Pixels next to drawn black and white don't take part in the exactness."""
    rng = np.random.default_rng(4)
    image = np.repeat(rng.integers(4, 8, (120, 200, 1)), 3, axis=2).astype(np.uint8)
    for x in (30, 130):
        cv2.arrowedLine(image, (x, 50), (x + 12, 64), (255, 255, 255), 2, tipLength=0.5)
    image_features = compute_features(image)
    assert np.isnan(image_features.high_pass[image[..., 0] == 255]).all()
    shift = np.array([[[1.0, 0, 100], [0, 1, 0]]])
    discs = screen_candidates(image_features, shift, np.array([[36.0, 57.0]]), np.array([12.0]))
    assert discs.band_ncc[0] > 0.9 and discs.exactness[0] < NEAR_EXACT


def test_shaded_boundary_reaches_its_edge():
    """A copy that differs by smooth shading grows to its true edge; one without shading is left as it is."""
    template, partner = grainy()[:100, :100, 0].astype(np.float32), grainy()[200:300, 150:250, 0].astype(np.float32)
    square = np.zeros((100, 100), bool)
    square[25:75, 25:75] = True
    y, x = np.mgrid[-1:1:100j, -1:1:100j]
    core = cv2.erode(square.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    for strength in (0, 50):
        partner[square] = np.rint(template + strength * (x * x + y * y))[square]
        outline = extend_shaded_boundary(template, partner, np.ones((100, 100), bool), core)
        assert (outline == core).all() if strength == 0 else f1(outline, square) > 0.9
