"""An image as it lies in the model's square input, and the labels of its grid cells."""

from dataclasses import dataclass

import cv2
import numpy as np

from config import PATCH
from runtime.errors import InputError

PADDING = (124, 116, 104)  # RGB of what is not image: the ImageNet mean, which normalisation turns into zero


BACKGROUND, IGNORED = 0, -1  # grid labels that are no instance


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the S x S input: scaled to fit, its corner in the input's top left corner.

    The corner, not the middle: only one side of the content then ends within a cell.
    """

    size: int  # S, side of the input in pixels
    height: int  # of the original image in pixels
    width: int
    content_height: int  # of the image in the input, in pixels
    content_width: int

    @classmethod
    def fit(cls, shape: tuple[int, int], size: int) -> "Letterbox":
        """Letterbox of an image of `shape` (H, W) in pixels; `size` must be a positive multiple of 14."""
        if size <= 0 or size % PATCH:
            raise InputError(f"image size {size} is not a positive multiple of {PATCH}, the side of a patch")
        height, width = shape
        longer = max(height, width)
        return cls(size, height, width, max(1, round(height * size / longer)), max(1, round(width * size / longer)))

    @property
    def valid(self) -> np.ndarray:
        """(G, G) bool: the cells that count, see `valid_cells`."""
        content = np.zeros((self.size, self.size), np.uint8)
        content[: self.content_height, : self.content_width] = 255
        return valid_cells(content)

    def rows(self) -> np.ndarray:
        """(H,) int: row of cells for each row of the original; `grid[rows[:, None], columns]` is at full resolution."""
        return self._cells(self.height, self.content_height, int(self.valid[:, 0].sum()))

    def columns(self) -> np.ndarray:
        """(W,) int: column of cells for each column of the original."""
        return self._cells(self.width, self.content_width, int(self.valid[0].sum()))

    @staticmethod
    def _cells(pixels: int, content: int, cells: int) -> np.ndarray:
        centres = (np.arange(pixels) + 0.5) * content / pixels  # in pixels of the input
        return np.minimum((centres / PATCH).astype(np.int64), cells - 1)


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Scale an image (H, W, 3) uint8 to fit into (S, S, 3) uint8, its aspect ratio kept, the rest `PADDING`.

    Raises:
        InputError: `size` is not a multiple of 14.
    """
    box = Letterbox.fit(image.shape[:2], size)
    return _pad(_resize(image, box.content_height, box.content_width), size, PADDING), box


def letterbox_masks(masks: np.ndarray, box: Letterbox) -> np.ndarray:
    """Masks (K, H, W) bool in the input: (K, S, S) uint8, 0 to 255, the share of each pixel that is covered."""
    return pad_layers(resize_layers(masks.astype(np.uint8) * 255, box), box.size)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averages where the image shrinks, so that nothing small is stepped over; cubic where it grows."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resize_layers(layers: np.ndarray, box: Letterbox) -> np.ndarray:
    """(K, H, W) uint8 -> (K, content height, content width); K may be 0."""
    shape = (box.content_height, box.content_width)
    return np.array([_resize(layer, *shape) for layer in layers], np.uint8).reshape(-1, *shape)


def _pad(pixels: np.ndarray, size: int, fill: tuple[int, ...] | int) -> np.ndarray:
    height, width = pixels.shape[:2]
    canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
    canvas[:height, :width], canvas[height:], canvas[:height, width:] = pixels, fill, fill
    return canvas


def pad_layers(layers: np.ndarray, size: int) -> np.ndarray:
    canvas = np.zeros((len(layers), size, size), np.uint8)
    canvas[:, : layers.shape[1], : layers.shape[2]] = layers
    return canvas


def _share_per_cell(layers: np.ndarray) -> np.ndarray:
    """(..., S, S) uint8 0 to 255 or float 0 to 1 -> (..., G, G) float, the covered share of each 14 px cell."""
    *lead, height, width = layers.shape
    cells = layers.reshape(*lead, height // PATCH, PATCH, width // PATCH, PATCH)
    share = cells.mean(axis=(-3, -1), dtype=np.float64)
    return share / 255 if layers.dtype == np.uint8 else share


def valid_cells(content: np.ndarray) -> np.ndarray:
    """Cells that count, (G, G) bool, from the content mask (S, S), uint8 0 to 255 or float 0 to 1.

    A cell counts when at least half of it is content. Where no cell is that full (an image a few pixels thin), those
    count that have half of what the fullest one has, so that every image has cells.
    """
    share = _share_per_cell(content)
    return share >= (0.5 if share.max() >= 0.5 else share.max() / 2)


def grid_labels(coverage: np.ndarray, valid: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Labels of the grid's cells by covered area.

    A cell takes the instance that covers most of it, if that is at least `least` of the cell. An instance that gets no
    cell this way (too small or too thin) takes the cell that it covers most, the best covered instance first;
    where that is the only cell of another instance, its next best. One that lies in cells that do not count takes the
    nearest that does. Where nothing is left it stays without a cell.

    Args:
        coverage: (K, S, S), uint8 0 to 255 or float 0 to 1: share of each pixel that instance k covers.
        valid: (G, G) bool, G = S / 14: cells that are not padding.
        least: share of a cell, over 0 to 1.
    Returns:
        (G, G) int64: 0 background, 1..K instance, -1 padding.
    """
    labels = np.where(valid, BACKGROUND, IGNORED).astype(np.int64)
    if len(coverage) == 0:
        return labels
    share = _share_per_cell(coverage)  # (K, G, G)
    filled = valid & (share.max(axis=0) >= least)
    labels[filled] = share.argmax(axis=0)[filled] + 1
    homeless = [k for k in range(len(coverage)) if not (labels == k + 1).any()]
    for k in sorted(homeless, key=lambda k: -share[k].max()):
        wanted = np.where(valid, share[k], 0.0)
        if not wanted.any():
            wanted = np.where(valid, _near(share[k]), 0.0)
        counts = np.bincount(labels[labels > 0], minlength=len(coverage) + 1)
        wanted[(labels > 0) & (counts[np.maximum(labels, 0)] == 1)] = 0
        if wanted.any():
            labels[np.unravel_index(wanted.argmax(), wanted.shape)] = k + 1
    return labels


def _near(share: np.ndarray) -> np.ndarray:
    """Share spread to the eight neighbours."""
    return cv2.blur(share, (3, 3), borderType=cv2.BORDER_CONSTANT)


@dataclass
class LetterboxedImage:
    """An image as it lies in the S x S input, without the padding around it.

    image: (h, w, 3) uint8 RGB, the longer side S. coverage: (K, h, w) uint8, 0 to 255, share of each pixel that
    instance k covers. height, width: of the original in pixels.
    """

    image: np.ndarray
    coverage: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, image: np.ndarray, masks: np.ndarray, size: int) -> "LetterboxedImage":
        """From an image (H, W, 3) uint8 and its masks (K, H, W) bool."""
        box = Letterbox.fit(image.shape[:2], size)
        content = _resize(image, box.content_height, box.content_width)
        return cls(content, resize_layers(masks.astype(np.uint8) * 255, box), box.height, box.width)
