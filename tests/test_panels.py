"""Gutters of composed figures are found as they were drawn, and no finding crosses them."""

import dataclasses

import cv2
import numpy as np
import pytest
import skimage.data

from config import MatchingSettings
from copymove.detect import detect_copies
from copymove.growth import grow_region
from copymove.image_features import compute_features
from copymove.panels import find_gutters
from copymove.warping import aligned_pair
from tests.scenes import f1, jpeg


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


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("gap", [2, 7])
def test_gutters_are_found_as_drawn(colour, gap):
    """To the pixel, white or black; in a JPEG they still separate the panels and take nothing from their inside."""
    grey, gutters = figure([skimage.data.camera()[k * 60 : k * 60 + 60, 100:180] for k in range(6)], 3, gap, colour)
    assert np.array_equal(find_gutters(grey), gutters)
    saved = find_gutters(jpeg(grey, 75))
    inside = cv2.erode((~gutters).astype(np.uint8), np.ones((5, 5))) > 0
    _, labels = cv2.connectedComponents((~saved).astype(np.uint8), connectivity=4)
    assert not saved[inside].any()
    assert len(np.unique(labels[inside])) == 6


def test_black_gutters_beside_dark_panels():
    """Gutters of grey level 0 are told from panels whose ground has 14."""
    grey, gutters = figure([cells(k, base=14) for k in range(6)], 3, 4, 0)
    assert np.array_equal(find_gutters(grey), gutters)


def test_blurred_gutters_are_found():
    """Even where the blurred line between a black gutter and a dark panel is neither."""
    panel = np.full((50, 60), 9, np.uint8)
    panel[:, ::12] = panel[:, 1::12] = 255  # bright things run into the edge
    grey, gutters = figure([panel] * 4, 2, 9, 0)
    _, labels = cv2.connectedComponents((~find_gutters(cv2.GaussianBlur(grey, (0, 0), 1.2))).astype(np.uint8))
    assert len(np.setdiff1d(labels[~gutters], [0])) == 4


def test_arrows_may_cross_gutters():
    """A gutter is still one with a few dark pixels in it."""
    grey, gutters = figure([skimage.data.camera()[k * 60 : k * 60 + 60, 100:180] for k in range(4)], 2, 6, 255)
    cv2.line(grey, (60, 60), (75, 80), 0, 2)
    assert np.array_equal(find_gutters(grey), gutters)


def test_nested_layouts_are_cut():
    """A panel beside a column of two, above a wide one: rows and columns are cut in turn."""
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
def test_single_panels_have_no_gutters(name):
    """Photographs, micrographs and pages of text are one panel."""
    assert not find_gutters(getattr(skimage.data, name)()).any()


def test_empty_background_is_no_gutter():
    """Not black around cells, not between cells on black, not in an image without anything."""
    assert not find_gutters(np.pad(cells(0, base=0), 20)).any()  # black to the last row beside the cells
    cell = cv2.circle(np.zeros((80, 80), np.uint8), (40, 40), 25, 150, -1)
    assert not find_gutters(np.vstack([cell, cell])).any()
    assert not find_gutters(np.vstack([skimage.data.camera()[:60, :80], cell])).any()
    assert not find_gutters(np.zeros((50, 50), np.uint8)).any()


def test_lines_of_text_are_no_panels():
    """They are narrower than a panel."""
    page = np.full((200, 260), 255, np.uint8)
    for y in range(20, 200, 20):
        cv2.rectangle(page, (10, y), (250, y + 11), 90, -1)
    assert not find_gutters(page).any()


def test_pairs_leave_gutters_out():
    """A pixel is valid where neither it nor its partner lies in a gutter."""
    grey, gutters = figure([skimage.data.camera()[k * 60 : k * 60 + 60, 100:180] for k in range(4)], 2, 6, 255)
    image_features = compute_features(np.repeat(grey[..., None], 3, axis=2))
    affine, box = np.array([[1.0, 0, 40], [0, 1, 30]]), (0, 0, 100, 90)
    _, _, valid = aligned_pair(image_features, affine, box)
    assert np.array_equal(valid, ~(gutters[:90, :100] | gutters[30:120, 40:140]))


def test_growth_stops_at_gutters():
    """A row of two panels shown again below: the region ends at the thin gutter that it would otherwise cross."""
    texture = skimage.data.camera()[100:160, 150:310]
    row = np.hstack([texture[:, :80], np.full((60, 2), 255, np.uint8), texture[:, 80:]])
    grey = np.vstack([row, np.full((2, row.shape[1]), 255, np.uint8), row])
    image_features = compute_features(np.repeat(grey[..., None], 3, axis=2))
    assert image_features.gutters[:, 80:82].all()
    for known, ends in ((image_features, True), (dataclasses.replace(image_features, gutters=None), False)):
        grown = grow_region(known, np.array([[1.0, 0, 0], [0, 1, 62]]), np.array([40.0, 30.0]), 12.0, 0.25)
        right = np.flatnonzero(grown.region.any(axis=0)).max() + grown.box[0]
        assert 70 < right < 80 if ends else right > 90


def test_repeated_panels_are_found_without_gutters(monkeypatch):
    """A panel shown twice is found; if gutters counted, the equal rows would be one region that repeats."""
    panels = [cells(k) for k in range(16)]
    panels[4] = panels[0]
    grey, gutters = figure(panels, 4, 5, 255)
    image = np.repeat(jpeg(grey, 80)[..., None], 3, axis=2)
    truth = np.zeros(grey.shape, bool)
    truth[5:79, 5:61] = truth[84:158, 5:61] = True
    (instance,) = detect_copies(image, MatchingSettings()).instances
    assert f1(instance.mask, truth) > 0.85
    assert (instance.mask & gutters).sum() < 0.02 * instance.mask.sum()
    monkeypatch.setattr("copymove.image_features.find_gutters", lambda grey: np.zeros(grey.shape, bool))
    assert not detect_copies(image, MatchingSettings()).instances
