"""Pairs of views: places of cells worked out by hand, and pixels that agree there."""

import math

import cv2
import numpy as np
import pytest

import views


def smooth_image(height=300, width=400):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX)


def test_places_of_cells_under_a_shift():
    """One cell to the right, half a cell down: the place lies between two cells, half each."""
    shift = np.array([[1, 0, 14], [0, 1, 7], [0, 0, 1.0]])
    visible = np.ones((70, 70), bool)
    places, weights = views.find_places(shift, np.ones(25, bool), visible)
    found = dict(zip(places[6].tolist(), weights[6].tolist(), strict=True))  # cell (1, 1)
    assert {cell: weight for cell, weight in found.items() if weight} == {7: 0.5, 12: 0.5}
    lost = weights.sum(1).reshape(5, 5) == 0
    assert lost[:, 4].all() and not lost[:, :4].any()  # half a cell beyond the last row is its border, still inside
    visible[:35] = False
    _, weights = views.find_places(shift, np.ones(25, bool), visible)
    assert (weights.sum(1).reshape(5, 5)[:2] == 0).all()
    _, weights = views.find_places(shift, np.arange(25) == 6, np.ones((70, 70), bool))
    assert weights.sum() == pytest.approx(1) and weights[6].sum() == pytest.approx(1)


def test_views_agree_at_a_place(monkeypatch):
    """The pixels at a cell's middle are those at its place in the other view."""
    monkeypatch.setattr(views, "change_appearance", lambda view, rng: view)
    maker = views.ViewMaker([smooth_image(), smooth_image(500, 200)], 112)
    rng, differences = np.random.default_rng(1), []
    middles = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(64, 2) * 14 + 6.5  # x, y
    for k in range(12):
        pair = maker.make_pair(k % 2, rng)
        for a in (0, 1):
            anchors = np.flatnonzero(pair.weights[a].sum(1) == 1)
            for n in anchors:
                x, y = pair.weights[a][n] @ middles[pair.places[a][n]]
                if min(x, y) >= 1 and max(x, y) <= 110:
                    there = cv2.getRectSubPix(pair.images[1 - a], (1, 1), (float(x), float(y)))[0, 0].astype(float)
                    here = cv2.getRectSubPix(pair.images[a], (1, 1), tuple(map(float, middles[n])))[0, 0]
                    differences.append(np.abs(there - here).max())
    assert len(differences) > 150 and np.quantile(differences, 0.8) < 8  # a few middles lie under the pasted area
    unrelated = np.abs(np.diff(pair.images[0].reshape(-1, 3)[::97].astype(float), axis=0)).max(1)
    assert np.median(unrelated) > 20


def test_difficulty_widens_the_changes():
    """At 0 shifts by whole cells only; at 1 rotations, scales of 0.6 to 1.6 and mirror images in half of the pairs."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        easy = views.random_similarity(168, rng, 0.0)
        assert (easy[:2, :2] == np.eye(2)).all() and np.allclose(easy[:2, 2] % 14, 0)
    hard = [views.random_similarity(168, rng, 1.0) for _ in range(200)]
    rotated = sum(not np.allclose(matrix[:2, :2], np.eye(2)) for matrix in hard)
    scales = [math.sqrt(abs(np.linalg.det(matrix[:2, :2]))) for matrix in hard]
    assert 60 < rotated < 140 and 0.6 <= min(scales) < 0.8 and 1.25 < max(scales) <= 1.6
    assert any(np.linalg.det(matrix[:2, :2]) < 0 for matrix in hard)
