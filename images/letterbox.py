"""An image as it lies in the model's square input: scaled to fit, the rest filled with padding."""

from dataclasses import dataclass

import cv2
import numpy as np

from config import PATCH
from images.grid import valid_cells
from runtime.errors import InputError

PADDING = (124, 116, 104)  # RGB of the padding: the ImageNet mean, which normalisation turns into zero


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in the S x S input: scaled to fit, its top left corner in the input's top left corner.

    Not in the middle: this way only the right and the lower edge of the image can end within a cell.
    """

    size: int  # S, side of the input in pixels
    height: int  # of the original image in pixels
    width: int
    content_height: int  # of the scaled image in the input, in pixels
    content_width: int

    @classmethod
    def fit(cls, shape: tuple[int, int], size: int) -> "Letterbox":
        """Letterbox of an image of `shape` (H, W) in an input of side `size`, both in pixels.

        Raises:
            InputError: `size` is not a positive multiple of 14.
        """
        if size <= 0 or size % PATCH:
            raise InputError(f"image size {size} is not a positive multiple of {PATCH}, the side of a patch")
        height, width = shape
        longer = max(height, width)
        return cls(size, height, width, max(1, round(height * size / longer)), max(1, round(width * size / longer)))

    @property
    def valid(self) -> np.ndarray:
        """(G, G) bool: the cells that count, see `grid.valid_cells`."""
        content = np.zeros((self.size, self.size), np.uint8)
        content[: self.content_height, : self.content_width] = 255
        return valid_cells(content)

    def rows(self) -> np.ndarray:
        """(H,) int64: the row of cells in which each row of the original lies.

        `grid[box.rows()[:, None], box.columns()]` is a grid (G, G) drawn at the size (H, W) of the original.
        """
        return self._cells(self.height, self.content_height, int(self.valid[:, 0].sum()))

    def columns(self) -> np.ndarray:
        """(W,) int64: the column of cells in which each column of the original lies."""
        return self._cells(self.width, self.content_width, int(self.valid[0].sum()))

    @staticmethod
    def _cells(pixels: int, content: int, cells: int) -> np.ndarray:
        centres = (np.arange(pixels) + 0.5) * content / pixels  # in pixels of the input
        return np.minimum((centres / PATCH).astype(np.int64), cells - 1)


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Scale an image (H, W, 3) uint8 to fit into (S, S, 3) uint8, its aspect ratio kept, the rest `PADDING`.

    Raises:
        InputError: `size` is not a positive multiple of 14.
    """
    box = Letterbox.fit(image.shape[:2], size)
    content = _resize(image, box)
    below, right = size - box.content_height, size - box.content_width
    return cv2.copyMakeBorder(content, 0, below, 0, right, cv2.BORDER_CONSTANT, value=PADDING), box


def letterbox_layers(layers: np.ndarray, box: Letterbox) -> np.ndarray:
    """Layers (K, H, W) uint8, such as masks of 0 and 255, scaled and padded with 0: (K, S, S) uint8."""
    below, right = box.size - box.content_height, box.size - box.content_width
    return np.pad(_resize_layers(layers, box), ((0, 0), (0, below), (0, right)))


def _resize(pixels: np.ndarray, box: Letterbox) -> np.ndarray:
    """Averaged where the image shrinks, so that no small detail is skipped; bicubic where it grows."""
    height, width = box.content_height, box.content_width
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _resize_layers(layers: np.ndarray, box: Letterbox) -> np.ndarray:
    """(K, H, W) uint8 -> (K, content height, content width); K may be 0."""
    shape = (box.content_height, box.content_width)
    return np.array([_resize(layer, box) for layer in layers], np.uint8).reshape(-1, *shape)


@dataclass
class LetterboxedImage:
    """An image and its masks as they lie in the S x S input, without the padding."""

    image: np.ndarray  # (h, w, 3) uint8 RGB; the longer side is S
    coverage: np.ndarray  # (K, h, w) uint8, 0 to 255: the share of each pixel that instance k covers
    height: int  # of the original in pixels
    width: int

    @classmethod
    def of(cls, image: np.ndarray, masks: np.ndarray, size: int) -> "LetterboxedImage":
        """Scale an image (H, W, 3) uint8 and its masks (K, H, W) bool for an input of side `size`."""
        box = Letterbox.fit(image.shape[:2], size)
        return cls(_resize(image, box), _resize_layers(masks.astype(np.uint8) * 255, box), box.height, box.width)
