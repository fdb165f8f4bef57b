"""Properties that hold for whatever input: run lengths, letterbox, grid labels, forgeries, detection."""

import json
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import predict
from config import MatchingSettings, PredictSettings, SynthesisSettings
from copymove.detect import detect_copies
from forgery.forge import forge
from images.grid import grid_labels
from images.inputs import ImageSource
from images.letterbox import PADDING, Letterbox, letterbox, letterbox_layers
from metrics import decode_mask, encode_mask, object_f1
from runtime.ranks import Ranks

SEEDS = st.integers(0, 2**32 - 1)
UNDISTURBED = SynthesisSettings(panel_probability=0.0, degrade_probability=0.0)
EXACT = MatchingSettings(matching_kinds=("exact",))


def grain(shape, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.2)


# Run lengths ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-2, 40), max_size=8), st.integers(1, 6), st.integers(1, 6))
def test_run_lengths_are_decoded_or_refused(runs, height, width):
    """Numbers that are no ascending runs within the image are refused; others are decoded, and encoded back."""
    pairs = list(zip(runs[0::2], runs[1::2], strict=False))
    flat, end, good = np.zeros(height * width, bool), 0, len(runs) % 2 == 0
    for start, length in pairs:
        good &= length >= 1 and start - 1 >= end and start - 1 + length <= len(flat)
        if good:
            flat[start - 1 : start - 1 + length] = True
            end = start - 1 + length
    if not good:
        with pytest.raises(ValueError):
            decode_mask(runs, (height, width))
        return
    mask = decode_mask(runs, (height, width))
    assert (mask == flat.reshape(width, height).T).all()
    assert (decode_mask(encode_mask(mask), mask.shape) == mask).all()


# Letterbox and grid -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([14, 56, 112]), SEEDS)
def test_letterbox_and_back(height, width, size, seed):
    """Masks drawn from a labelling of the cells give that labelling, where a cell has enough pixels of the image."""
    box = Letterbox.fit((height, width), size)
    cells = np.random.default_rng(seed).integers(0, 3, box.valid.shape)
    drawn = cells[box.rows()[:, None], box.columns()]  # (H, W)
    labels = grid_labels(letterbox_layers(np.stack([drawn == 1, drawn == 2]).astype(np.uint8) * 255, box), box.valid)
    assert ((labels == -1) == ~box.valid).all()
    own = [set(indices.tolist()) for indices in (box.rows(), box.columns())]
    assert own[0] <= set(range(box.valid.any(1).sum())) and own[1] <= set(range(box.valid.any(0).sum()))
    if min(height, width) * size < 6 * size * size / 14 or max(height, width) < size:
        return  # a cell has fewer than six pixels across: their edges decide
    full = np.zeros(box.valid.shape, bool)  # cells that lie wholly within the image
    full[: box.content_height // 14, : box.content_width // 14] = True
    assert (labels == cells)[full].all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), SEEDS)
def test_letterbox_keeps_colours_and_pads(height, width, seed):
    """Where an image shrinks, its colours are averages, so none leaves their range; the rest is padding."""
    low, high = sorted(np.random.default_rng(seed).integers(0, 256, 2).tolist())
    image = np.random.default_rng(seed).integers(low, high + 1, (height, width, 3)).astype(np.uint8)
    padded, box = letterbox(image, 56)
    content = padded[: box.content_height, : box.content_width]
    if max(height, width) >= 56:  # shrinks: averages
        assert content.min() >= low and content.max() <= high
    assert (padded[box.content_height :] == PADDING).all() and (padded[:, box.content_width :] == PADDING).all()
    assert max(box.content_height, box.content_width) == 56


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6), SEEDS)
def test_grid_labels_equal_a_slow_reference(count, seed):
    """Random rectangles on a grid of 5 x 5 cells, of which only the upper left part may be image."""
    rng = np.random.default_rng(seed)
    coverage = np.zeros((count, 70, 70), np.uint8)
    for layer in coverage:
        y, x = rng.integers(0, 66, 2)
        h, w = rng.integers(1, 40, 2)
        layer[y : y + h, x : x + w] = 255
    valid = np.zeros((5, 5), bool)
    valid[: rng.integers(1, 6), : rng.integers(1, 6)] = True
    labels = grid_labels(coverage, valid)
    assert ((labels == -1) == ~valid).all() and labels.max(initial=0) <= count
    taken = {k: (labels == k + 1).sum() for k in range(count)}
    for r, c in np.argwhere(valid):
        shares = [int((layer[14 * r : 14 * r + 14, 14 * c : 14 * c + 14] > 0).sum()) for layer in coverage]
        best = max(shares, default=0)
        label = labels[r, c]
        if best >= 98:  # half of 196 pixels: it has the label of the largest share, or of an instance without others
            assert label - 1 == shares.index(best) or taken[label - 1] == 1
        elif label:
            assert taken[label - 1] == 1  # the only cell of an instance that covers less than half of every cell
    for k in (k for k in range(count) if taken[k] == 0):
        # An instance without a cell: each cell it covers, or lies next to if it covers padding only, is the only cell
        # of another instance.
        covered = (coverage[k].reshape(5, 14, 5, 14).max(axis=(1, 3)) > 0).astype(np.uint8)
        wanted = valid & (covered > 0)
        wanted = wanted if wanted.any() else valid & (cv2.dilate(covered, np.ones((3, 3))) > 0)
        assert all(labels[r, c] > 0 and taken[labels[r, c] - 1] == 1 for r, c in np.argwhere(wanted))


# Scores -------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(arrays(bool, (3, 5, 4)), arrays(bool, (2, 5, 4)), st.permutations(range(3)), st.permutations(range(2)))
def test_object_f1_ignores_the_order(predicted, true, first, second):
    """It lies within 0 and 1, is 1 for the true masks, and the same when both sides are exchanged."""
    value = object_f1(predicted, true)
    assert 0 <= value <= 1
    assert object_f1(predicted[list(first)], true[list(second)]) == pytest.approx(value)
    kept = true[true.any(axis=(1, 2))]
    assert object_f1(kept[::-1], kept) == pytest.approx(1)
    assert object_f1(true, predicted) == pytest.approx(value)


# Forgeries ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_masks_hold_changes_and_sources(seed):
    """The masks of a forgery hold every changed pixel and the sources, which themselves do not change."""
    image = grain((110, 140), 3)
    forgery = forge(image, UNDISTURBED, np.random.default_rng(seed))
    changed = (forgery.image != image).any(axis=2)
    assert not (changed & ~forgery.masks.any(axis=0)).any()
    assert forgery.masks.sum(axis=0).max(initial=0) <= 1
    for mask, content in zip(forgery.masks, forgery.record["contents"], strict=True):
        copies = np.zeros_like(mask)
        for copy in content["copies"]:
            x, y, width, height = copy["box"]
            copies[y : y + height, x : x + width] = True
        x, y, width, height = content["source"]["box"]
        source = np.zeros_like(mask)
        source[y : y + height, x : x + width] = True
        assert (mask & source).any() and not (mask & ~source & ~copies).any()
        assert not (changed & mask & ~copies).any()  # the source itself is as it was
        assert (changed & mask & copies).sum() > 0.5 * (mask & copies & ~source).sum()  # and the copies show


# Detection ----------------------------------------------------------------------------------------------------------


def rotated(array, orientation):
    """An image or mask in one of its eight orientations; 0 leaves it as it is."""
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if orientation >= 4 else array, orientation % 4))


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 7))
def test_oriented_images_give_oriented_masks(seed, orientation):
    """A rotated or mirrored image gives the masks of the image itself, rotated or mirrored."""
    rng = np.random.default_rng(seed)
    image = grain((128, 150), seed)
    h, w = rng.integers(28, 44, 2)
    image[128 - h :, 150 - w :] = image[4 : 4 + h, 6 : 6 + w]

    def masks(scene):
        return np.array([i.mask for i in detect_copies(scene, EXACT).instances]).reshape(-1, *scene.shape[:2])

    expected = np.array([rotated(mask, orientation) for mask in masks(image)])
    assert len(expected) == 1 and object_f1(masks(rotated(image, orientation)), expected) >= 0.9


@pytest.fixture
def forged_folder(tmp_path):
    """Six images, of which every second one is forged."""
    for number in range(6):
        image = grain((100, 120), number)
        if number % 2:
            image[60:96, 70:112] = image[5:41, 8:50]
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"in/{number}.png"), image)
    return tmp_path / "in"


def examined(folder, out, order, num_workers, matching=EXACT):
    """What is found in each image, when they are examined in this order."""
    run = PredictSettings(paths=(folder,), out=out, matching=matching, evidence_only=True, num_workers=num_workers)
    queue = deque(ImageSource(str(folder / f"{number}.png")) for number in order)
    lines = {}
    for line in predict.examine_all(queue, run, predict.load_detector, Ranks()):
        lines[Path(line["path"]).stem] = json.dumps({k: v for k, v in line.items() if k != "seconds"})
    return lines


def test_results_depend_on_the_image_only(forged_folder, tmp_path):
    """They depend neither on the number of processes nor on the images that were examined before."""
    expected = examined(forged_folder, tmp_path / "a", range(6), 0)
    assert sum('"verdict": "found"' in line for line in expected.values()) == 3
    assert examined(forged_folder, tmp_path / "b", [3, 3, 5, 4, 1, 2, 0], 0) == expected
    assert examined(forged_folder, tmp_path / "c", range(5, -1, -1), 2) == expected


def test_all_searches_start_afresh(forged_folder, tmp_path):
    """With all searches on, too, an image gives the same findings whether or not another one was examined before."""
    everything = MatchingSettings(search_budget=300.0)
    alone, after = (examined(forged_folder, tmp_path / str(len(o)), o, 0, everything) for o in ([1], [2, 1]))
    assert '"verdict": "found"' in alone["1"] and after["1"] == alone["1"]
