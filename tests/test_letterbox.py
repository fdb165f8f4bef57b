"""Where an image lies in the model's input, and the labels of the grid's cells."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.grid import grid_labels, valid_cells
from images.letterbox import PADDING, Letterbox, letterbox, letterbox_layers
from runtime.errors import InputError
from tests.made_files import noise


def test_letterbox_of_worked_sizes():
    """Sizes and valid cells, derived by hand."""
    box = Letterbox.fit((85, 517), 462)  # 85 * 462 / 517 = 75.96 -> 76 px = 5.43 cells: the sixth is not half full
    assert (box.content_height, box.content_width) == (76, 462)
    assert box.valid.shape == (33, 33) and box.valid[:5].all() and not box.valid[5:].any()
    box = Letterbox.fit((3000, 2000), 462)  # 308 px = 22 cells
    assert (box.content_height, box.content_width) == (462, 308)
    assert box.valid[:, :22].all() and not box.valid[:, 22:].any()
    box = Letterbox.fit((7, 14), 28)  # 14 px of 28
    assert box.valid.tolist() == [[True, True], [False, False]]
    box = Letterbox.fit((21, 28), 28)  # 21 px: the second row is exactly half full and counts
    assert box.valid.all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 900), (85, 517), (40, 3200), (462, 462), (13, 9)])
def test_every_pixel_lies_in_a_cell(shape):
    """Every image has cells, and every pixel lies in one that counts."""
    image, box = letterbox(noise(*shape), 462)
    assert image.shape == (462, 462, 3) and image.dtype == np.uint8
    assert (image[box.content_height :] == PADDING).all()
    assert (image[:, box.content_width :] == PADDING).all()
    assert box.valid.any()
    rows, columns = box.rows(), box.columns()
    assert (len(rows), len(columns)) == shape and (np.diff(rows) >= 0).all() and (np.diff(columns) >= 0).all()
    assert box.valid[rows[:, None], columns].all()


def test_letterbox_keeps_the_image():
    """Shrinking averages, and an image of the right size is not changed."""
    image = noise(924, 462)
    small, box = letterbox(image, 462)
    assert (box.content_height, box.content_width) == (462, 231)
    mean = image.reshape(462, 2, 231, 2, 3).mean((1, 3))  # halved: the mean of 2 x 2 pixels
    assert np.abs(small[:, :231] - mean).max() <= 1
    same, _ = letterbox(image[:462], 462)
    assert (same == image[:462]).all()
    flat, _ = letterbox(np.full((3, 3, 3), 77, np.uint8), 28)
    assert (flat == 77).all()


@pytest.mark.parametrize("size", [0, -14, 461, 463])
def test_size_is_multiple_of_patch(size):
    """Other sizes are refused."""
    with pytest.raises(InputError, match=f"image size {size} is not a positive multiple of 14"):
        letterbox(noise(5, 5), size)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_cell_aligned_masks_come_back(scale):
    """Masks that fill whole cells become exactly these labels, which drawn at full size are the masks."""
    cells = np.zeros((33, 22), int)
    cells[2:5, 3:9], cells[30:, 20:], cells[0, 0] = 1, 2, 3
    full = cells.repeat(14 * scale, 0).repeat(14 * scale, 1)  # 3 px of image per cell pixel and so on
    box = Letterbox.fit(full.shape, 462)
    labels = grid_labels(letterbox_layers(np.stack([full == k for k in (1, 2, 3)]) * np.uint8(255), box), box.valid)
    assert (labels[:, :22] == cells).all() and (labels[:, 22:] == -1).all()
    assert (labels[box.rows()[:, None], box.columns()] == full).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([14, 28, 112, 462]))
def test_pixels_belong_to_covering_cell(height, width, size):
    """A pixel belongs to the cell that covers its centre."""
    box = Letterbox.fit((height, width), size)
    cells = max(1, int(box.content_height / 14 + 0.5))  # a cell counts from half on
    for pixel in {0, height // 3, height - 1}:
        centre = (pixel + 0.5) / height * box.content_height
        assert box.rows()[pixel] == min(int(centre // 14), cells - 1)
    assert box.valid.sum() == cells * max(1, int(box.content_width / 14 + 0.5))


def coverage_of(*rectangles, size=56):
    layers = np.zeros((len(rectangles), size, size), np.uint8)
    for layer, (top, left, height, width) in zip(layers, rectangles, strict=True):
        layer[top : top + height, left : left + width] = 255
    return layers


ALL = np.ones((4, 4), bool)


def test_grid_labels_by_covered_area():
    """A cell takes the instance that covers most of it, from half of the cell on."""
    assert (grid_labels(np.zeros((0, 56, 56), np.uint8), ALL) == 0).all()
    # 7 of 14 columns of a cell are enough, 6 are not; of two, the larger share wins
    labels = grid_labels(coverage_of((0, 0, 14, 21), (14, 0, 14, 20)), ALL)
    assert labels.dtype == np.int64
    assert labels[:2].tolist() == [[1, 1, 0, 0], [2, 0, 0, 0]]
    labels = grid_labels(coverage_of((0, 0, 14, 23), (14, 0, 14, 20), (28, 0, 28, 56)), ALL)
    assert labels.tolist() == [[1, 1, 0, 0], [2, 0, 0, 0], [3, 3, 3, 3], [3, 3, 3, 3]]
    labels = grid_labels(coverage_of((0, 0, 14, 22), (0, 20, 14, 36)), ALL)
    assert labels[0].tolist() == [1, 1, 2, 2]  # 8 px of the second cell against 8 px: the first of equals
    labels = grid_labels(coverage_of((0, 0, 14, 22), (0, 19, 14, 37)), ALL)
    assert labels[0].tolist() == [1, 2, 2, 2]  # 8 against 9
    # 10 and 3 of 14 columns: with another limit the first is not enough, or the second is
    labels = [
        grid_labels(coverage_of((0, 0, 14, 24), (14, 0, 14, 17)), ALL, least)[:2].tolist() for least in (0.8, 0.2)
    ]
    assert labels == [[[1, 0, 0, 0], [2, 0, 0, 0]], [[1, 1, 0, 0], [2, 2, 0, 0]]]
    assert (
        grid_labels(coverage_of((0, 0, 14, 23)) / 255.0, ALL) == grid_labels(coverage_of((0, 0, 14, 23)), ALL)
    ).all()


def test_padding_is_never_labelled():
    """Cells that do not count have the label -1."""
    valid = ALL.copy()
    valid[2:] = False
    labels = grid_labels(coverage_of((0, 0, 56, 56)), valid)
    assert labels.tolist() == [[1] * 4, [1] * 4, [-1] * 4, [-1] * 4]


def test_tiny_instances_get_best_cell():
    """An instance that fills half of no cell takes the one of which it covers most."""
    # 5 x 5 px across four cells; most of it (4 x 3 px) in row 0, column 1
    labels = grid_labels(coverage_of((10, 13, 5, 4)), ALL)
    assert labels.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    # a line of 2 px along a whole row covers 1/7 of each cell: one of them is taken
    labels = grid_labels(coverage_of((30, 0, 2, 56)), ALL)
    assert (labels == 1).sum() == 1 and (labels[2] == 1).any()


def test_tiny_instances_share_out_cells():
    """Of two instances that want one cell, the better covered takes it, and no instance loses its only cell."""
    # Both lie mostly in cell (0, 0); the second one's next best is (0, 1).
    labels = grid_labels(coverage_of((0, 0, 6, 6), (8, 10, 4, 6)), ALL)
    assert labels[0].tolist() == [1, 2, 0, 0] and (labels[1:] == 0).all()
    # The better covered one is served first, whatever its number.
    labels = grid_labels(coverage_of((8, 10, 4, 6), (0, 0, 6, 6)), ALL)
    assert labels[0].tolist() == [2, 1, 0, 0]
    # A tiny one on top of a large one takes a cell of it, but never its last.
    labels = grid_labels(coverage_of((0, 0, 14, 28), (4, 4, 4, 4)), ALL)
    assert labels[0].tolist() == [2, 1, 0, 0]
    labels = grid_labels(coverage_of((0, 0, 14, 14), (4, 4, 4, 4)), ALL)
    assert labels[0].tolist() == [1, 0, 0, 0] and (labels != 2).all()


def test_instance_in_padding():
    """An instance in cells that do not count takes the nearest one that does."""
    valid = np.array([[True] * 4] * 2 + [[False] * 4] * 2)
    labels = grid_labels(coverage_of((29, 30, 4, 4)), valid)  # in the third row, third column
    assert (labels[1, 1:4] == 1).sum() == 1 and (labels == 1).sum() == 1


def test_many_tiny_instances_get_cells():
    """Sixteen tiny instances share sixteen cells."""
    corners = [(14 * r + 3, 14 * c + 3, 5, 5) for r in range(4) for c in range(4)]
    labels = grid_labels(coverage_of(*corners), ALL)
    assert labels.reshape(-1).tolist() == list(range(1, 17))


def test_valid_cells_of_rotated_image():
    """Cells of which at least half is image count."""
    content = np.zeros((56, 56), np.uint8)
    cv2.fillConvexPoly(content, np.array([[28, -5], [60, 28], [28, 60], [-5, 28]]), 255)  # a square on its corner
    corner, side = False, True
    assert valid_cells(content).tolist() == [
        [corner, side, side, corner],
        [side, side, side, side],
        [side, side, side, side],
        [corner, side, side, corner],
    ]
