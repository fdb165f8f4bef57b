"""Gutters of composed figures are found as they were drawn, and no finding crosses them."""

import cv2
import numpy as np
import pytest
import skimage.data

from config import MatchingSettings
from copymove.detect import detect_copies
from copymove.growth import _agreeing_component
from copymove.image_features import compute_features
from copymove.panels import find_gutters
from copymove.warping import aligned_pair


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


def test_dark_panels_between_black_gutters():
    grey, gutters = figure([cells(k, base=14) for k in range(6)], 3, 4, 0)
    assert np.array_equal(find_gutters(grey), gutters)


def test_gutters_beside_dark_panels_may_be_blurred():
    panel = np.full((50, 60), 9, np.uint8)
    panel[:, ::12] = panel[:, 1::12] = 255  # bright things run into the edge: a blurred line there is neither
    grey, gutters = figure([panel] * 4, 2, 9, 0)
    _, labels = cv2.connectedComponents((~find_gutters(cv2.GaussianBlur(grey, (0, 0), 1.2))).astype(np.uint8))
    assert len(np.setdiff1d(labels[~gutters], [0])) == 4


def test_a_thin_arrow_may_cross_a_gutter():
    grey, gutters = figure([skimage.data.camera()[k * 60 : k * 60 + 60, 100:180] for k in range(4)], 2, 6, 255)
    cv2.line(grey, (60, 60), (75, 80), 0, 2)
    assert np.array_equal(find_gutters(grey), gutters)


def test_a_panel_beside_two_in_a_column_over_a_wide_one():
    camera = skimage.data.camera()
    column, inner = figure([camera[:60, :80], camera[200:260, :80]], 1, 4, 255)
    upper = np.hstack([column, camera[100 : 100 + len(column), 200:300]])
    wide = camera[300:350, 100 : 100 + upper.shape[1]]
    gap = np.full((5, upper.shape[1]), 255, np.uint8)
    gutters = np.zeros((len(upper) + len(gap) + len(wide), upper.shape[1]), bool)
    gutters[: len(upper), : inner.shape[1]] = inner
    gutters[len(upper) : -len(wide)] = True
    assert np.array_equal(find_gutters(np.vstack([upper, gap, wide])), gutters)


@pytest.mark.parametrize("name", ["camera", "moon", "coins", "text", "page", "cell"])
def test_a_image_of_one_panel_has_no_gutters(name):
    assert not find_gutters(getattr(skimage.data, name)()).any()


def test_an_empty_background_is_no_gutter():
    assert not find_gutters(np.pad(cells(0, base=0), 20)).any()  # black to the last row beside the cells
    cell = cv2.circle(np.zeros((80, 80), np.uint8), (40, 40), 25, 150, -1)
    assert not find_gutters(np.vstack([cell, cell])).any()
    assert not find_gutters(np.vstack([skimage.data.camera()[:60, :80], cell])).any()
    assert not find_gutters(np.zeros((50, 50), np.uint8)).any()


def test_lines_of_text_are_no_panels():
    page = np.full((200, 260), 255, np.uint8)
    for y in range(20, 200, 20):
        cv2.rectangle(page, (10, y), (250, y + 11), 90, -1)
    assert not find_gutters(page).any()


def test_no_gutter_is_part_of_a_pair_and_closing_bridges_none():
    grey, gutters = figure([skimage.data.camera()[k * 60 : k * 60 + 60, 100:180] for k in range(4)], 2, 6, 255)
    canvas = compute_features(np.repeat(grey[..., None], 3, axis=2))
    affine, box = np.array([[1.0, 0, 40], [0, 1, 30]]), (0, 0, 100, 90)
    _, _, valid = aligned_pair(canvas, affine, box)
    assert np.array_equal(valid, ~(gutters[:90, :100] | gutters[30:120, 40:140]))
    apart = np.ones((40, 40), bool)
    apart[:, 20:22] = False
    local = np.where(apart, 0.9, -1).astype(np.float32)
    assert np.array_equal(_agreeing_component(local, apart, (10, 20), 6, 0.6), np.indices((40, 40))[1] < 20)


def test_a_panel_shown_twice_is_found_and_the_gutters_are_not(monkeypatch):
    panels = [cells(k) for k in range(16)]
    panels[4] = panels[0]
    grey, gutters = figure(panels, 4, 5, 255)
    image = np.repeat(jpeg(grey, 80)[..., None], 3, axis=2)
    truth = np.zeros(grey.shape, bool)
    truth[5:79, 5:61] = truth[84:158, 5:61] = True
    (instance,) = detect_copies(image, MatchingSettings()).instances
    assert 2 * (instance.mask & truth).sum() > 0.85 * (instance.mask.sum() + truth.sum())
    assert (instance.mask & gutters).sum() < 0.02 * instance.mask.sum()
    # The gutters of equal rows agree as well: a region that may grow across them is the whole figure's.
    monkeypatch.setattr(alignment, "find_gutters", lambda grey: np.zeros(grey.shape, bool))
    assert not detect_copies(image, MatchingSettings()).instances
