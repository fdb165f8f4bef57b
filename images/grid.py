"""The cells of the model's grid, 14 px a side: which of them count, and which instance each of them belongs to."""

import cv2
import numpy as np

from config import PATCH

BACKGROUND, IGNORED = 0, -1  # labels of cells without an instance, and of padding


def _share_per_cell(layers: np.ndarray) -> np.ndarray:
    """(..., S, S) uint8 0 to 255 or float 0 to 1 -> (..., G, G) float64: the covered share of each cell."""
    *lead, height, width = layers.shape
    cells = layers.reshape(*lead, height // PATCH, PATCH, width // PATCH, PATCH)
    share = cells.mean(axis=(-3, -1), dtype=np.float64)
    return share / 255 if layers.dtype == np.uint8 else share


def valid_cells(content: np.ndarray) -> np.ndarray:
    """The cells that count, (G, G) bool, G = S / 14, from the mask of what is image, not padding.

    A cell counts when at least half of it is image. Where no cell is that full (an image a few pixels thin), those
    count that have at least half of what the fullest one has, so that every image has cells.

    Args:
        content: (S, S), uint8 0 to 255 or float 0 to 1.
    """
    share = _share_per_cell(content)
    return share >= (0.5 if share.max() >= 0.5 else share.max() / 2)


def grid_labels(coverage: np.ndarray, valid: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Label every cell with the instance that covers it.

    A cell belongs to the instance that covers most of it, if that is at least the share `least` of the cell. An
    instance that gets no cell by this rule, because it is too small or too thin, takes the cell of which it covers
    most. Such instances choose in the order of their largest share of a cell. They never take the only cell of another
    instance, but their next best one. An instance that lies in cells that do not count takes the nearest one that
    does. Where no cell is possible the instance has none.

    Args:
        coverage: (K, S, S), uint8 0 to 255 or float 0 to 1: the share of each pixel that instance k covers.
        valid: (G, G) bool, G = S / 14: the cells that count.
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
    without_cell = [k for k in range(len(coverage)) if not (labels == k + 1).any()]
    for k in sorted(without_cell, key=lambda k: -share[k].max()):
        wanted = np.where(valid, share[k], 0.0)
        if not wanted.any():
            wanted = np.where(valid, _spread(share[k]), 0.0)
        counts = np.bincount(labels[labels > 0], minlength=len(coverage) + 1)
        wanted[(labels > 0) & (counts[np.maximum(labels, 0)] == 1)] = 0
        if wanted.any():
            labels[np.unravel_index(wanted.argmax(), wanted.shape)] = k + 1
    return labels


def _spread(share: np.ndarray) -> np.ndarray:
    """(G, G): the shares spread to the eight neighbours of each cell."""
    return cv2.blur(share, (3, 3), borderType=cv2.BORDER_CONSTANT)
