"""Gutters of composed figures are found as they were drawn, and no finding crosses them."""

import cv2
import numpy as np
import pytest
import skimage.data

import alignment
from config import MatchingSettings
from matching import find_instances
from panels import find_gutters


def figure(panels, columns, gap, colour) -> tuple[np.ndarray, np.ndarray]:
    """Panels (h, w) of one size in a grid with margins, (H, W) uint8, and where none is."""
    h, w = panels[0].shape
    rows = len(panels) // columns
    grey = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap), colour, np.uint8)
    gutters = np.ones(grey.shape, bool)
    for k, panel in enumerate(panels):
        y, x = gap + k // columns * (h + gap), gap + k % columns * (w + gap)
        grey[y : y + h, x : x + w] = panel
        gutters[y : y + h, x : x + w] = False
    return grey, gutters


def cells(seed, size=(74, 56), base=10) -> np.ndarray:
    """A dark panel (h, w) uint8 with a few blurred cells in it."""
    rng = np.random.default_rng(seed)
    panel = np.full(size, float(base), np.float32)
    for x, y in rng.uniform((5, 5), (size[1] - 5, size[0] - 5), (6, 2)):
        cell, axes = np.zeros(size, np.float32), tuple(rng.uniform(4, 8, 2))
        cv2.ellipse(cell, ((float(x), float(y)), axes, float(rng.uniform(0, 180))), 1.0, -1)
        panel += cell * (
            rng.uniform(40, 110) + 12 * cv2.GaussianBlur(rng.normal(0, 1, size).astype(np.float32), (0, 0), 1)
        )
    return np.clip(cv2.GaussianBlur(panel, (0, 0), 0.9) + rng.normal(0, 0.7, size), 0, 255).astype(np.uint8)


def jpeg(grey, quality) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("gap", [2, 7])
def test_gutters_are_those_that_were_drawn(colour, gap):
    grey, gutters = figure([skimage.data.camera()[k * 60 : k * 60 + 60, 100:180] for k in range(6)], 3, gap, colour)
    assert np.array_equal(find_gutters(grey), gutters)
    # Saved as JPEG the gutters are still cut through, and the panels are whole but for what runs over their edge.
    saved = find_gutters(jpeg(grey, 75))
    inside = cv2.erode((~gutters).astype(np.uint8), np.ones((5, 5))) > 0
    _, labels = cv2.connectedComponents((~saved).astype(np.uint8), connectivity=4)
    assert not saved[inside].any()
    assert len(np.unique(labels[inside])) == 6


def test_a_panel_beside_two_in_a_column():
    column, inner = figure([skimage.data.camera()[:60, :80], skimage.data.camera()[200:260, :80]], 1, 4, 255)
    grey = np.hstack([column, skimage.data.camera()[100 : 100 + len(column), 200:300]])
    gutters = np.hstack([inner, np.zeros((len(column), 100), bool)])
    assert np.array_equal(find_gutters(grey), gutters)


@pytest.mark.parametrize("name", ["camera", "moon", "coins", "text", "page", "cell"])
def test_a_picture_of_one_panel_has_no_gutters(name):
    assert not find_gutters(getattr(skimage.data, name)()).any()


def test_an_empty_background_is_no_gutter():
    assert not find_gutters(np.pad(cells(0, base=0), 20)).any()  # black to the last row beside the cells
    assert not find_gutters(np.zeros((50, 50), np.uint8)).any()


def test_a_panel_shown_twice_is_found_and_the_gutters_are_not(monkeypatch):
    panels = [cells(k) for k in range(16)]
    panels[4] = panels[0]
    grey, gutters = figure(panels, 4, 5, 255)
    picture = np.repeat(jpeg(grey, 80)[..., None], 3, axis=2)
    truth = np.zeros(grey.shape, bool)
    truth[5:79, 5:61] = truth[84:158, 5:61] = True
    (instance,) = find_instances(picture, MatchingSettings()).instances
    assert 2 * (instance.mask & truth).sum() > 0.85 * (instance.mask.sum() + truth.sum())
    assert (instance.mask & gutters).sum() < 0.02 * instance.mask.sum()
    # The gutters of equal rows agree as well: a region that may grow across them is the whole figure's.
    monkeypatch.setattr(alignment, "find_gutters", lambda grey: np.zeros(grey.shape, bool))
    assert not find_instances(picture, MatchingSettings()).instances
