"""What an image is made of: recorded content (photographs, micrographs, blots, gels), drawings, text, ground.

A small network names every cell of 4 x 4 pixels (`benchmark.py train-content` trains it on figures of `synthesis.py
--figures`). What is drawn repeats by its nature, so it takes no part in the search for copies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from config import PIXEL_KINDS, WEIGHTS
from copymove.networks import load_network

NETWORK = WEIGHTS / "content.onnx"
INPUT_NAME = "cells"  # of the network
MAX_SIDE = 1280  # longer side in pixels at which an image is looked at, at most
CELL = 4  # side of a cell in pixels: the network names cells
PADDED_TO = 16  # rows and columns of cells are padded to multiples of this
RECORDED = tuple(PIXEL_KINDS.index(kind) for kind in ("photo", "blot", "gel"))
MIN_RECORDED = 0.35  # probability of recorded content from which a cell is never left out
MIN_EVEN = 0.3  # share of the pixels around a cell that are even where it may be left out
EVEN_WINDOW = 16  # side of that window around a cell, in cells
MIN_SIDE = 6  # least side of a recorded panel, in cells
MAX_EVEN_OF_FRAGMENT = 0.2  # share of even pixels from which a part that is more likely drawn is no panel ...
MAX_FRAGMENT = 0.1  # ... where it covers less than this share of the image
MIN_HOLE = 0.002  # share of a recorded panel that something drawn over it needs to count as that
MAX_WHOLE = 0.02  # share of an image that is not recorded, up to which all of it counts as recorded
EVEN_RANGES = (1, 6)  # grey levels within which a pixel's 3 x 3 neighbourhood counts as even: drawn, and drawn and JPEG
EVEN_CHANNEL = 8  # of the network's input: share of the cell's pixels that are even to the second of these
CHANNELS = 10 + len(EVEN_RANGES)  # of the network's input


def shrink_to_limit(image: np.ndarray) -> np.ndarray:
    """An image (H, W, ...) uint8 as the network's cells are taken from it: its longer side at most MAX_SIDE pixels."""
    zoom = min(1.0, MAX_SIDE / max(image.shape[:2]))
    size = (max(round(image.shape[1] * zoom), 1), max(round(image.shape[0] * zoom), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if zoom < 1 else image


def cell_features(image: np.ndarray) -> np.ndarray:
    """What the network sees of an image (H, W, 3) uint8 RGB: (CHANNELS, H / CELL, W / CELL) uint8, rounded up.

    What is drawn is even, or steps from one even colour to the next; what is recorded has grain everywhere. A network
    would have to learn such measures first, so they are given to it: colour, darkest and brightest grey value, largest
    and mean range of 3 x 3 neighbourhoods, share of even ones, saturation, grain.
    """
    padding = ((0, -image.shape[0] % CELL), (0, -image.shape[1] % CELL))
    image = np.pad(image, (*padding, (0, 0)), mode="edge")
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    square = np.ones((3, 3), np.uint8)
    spread = cv2.subtract(cv2.dilate(image, square), cv2.erode(image, square)).max(axis=2)
    grain = cv2.absdiff(grey, cv2.GaussianBlur(grey, (0, 0), 1.0)).astype(np.float32)
    size = (image.shape[1] // CELL, image.shape[0] // CELL)

    def mean(values: np.ndarray, scale: float = 1.0) -> np.ndarray:
        shrunk = cv2.resize(values, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        return np.clip(np.rint(shrunk * scale), 0, 255).astype(np.uint8)

    def over_cells(values: np.ndarray, morphology: Callable[..., np.ndarray]) -> np.ndarray:
        return morphology(values, np.ones((CELL, CELL), np.uint8), anchor=(0, 0))[::CELL, ::CELL]

    channels = [mean(image[..., k]) for k in range(3)]
    channels += [over_cells(grey, cv2.erode), over_cells(grey, cv2.dilate), over_cells(spread, cv2.dilate)]
    channels += [mean(spread), *(mean((spread <= limit).view(np.uint8) * 255) for limit in EVEN_RANGES)]
    channels += [mean(image.max(axis=2) - image.min(axis=2)), mean(grain, 8.0), mean(grain * grain, 0.5)]
    return np.stack(channels)


@dataclass(frozen=True)
class Content:
    """What an image is made of, by cells."""

    probabilities: np.ndarray  # (K, h, w) float32: of the kinds in `PIXEL_KINDS`, sum 1
    even: np.ndarray  # (h, w) float32: share of pixels around the cell whose neighbourhood is even, 0 to 1


def examine_content(image: np.ndarray) -> Content:
    """What the network says of the cells of an image (H, W, 3) uint8 RGB."""
    cells = cell_features(shrink_to_limit(image))
    padding = [(0, 0), *((0, -n % PADDED_TO) for n in cells.shape[1:])]
    network = load_network(NETWORK, "train-content")
    network.setInput(np.pad(cells, padding, mode="edge")[None].astype(np.float32) / 255, INPUT_NAME)
    logits = network.forward()[0, :, : cells.shape[1], : cells.shape[2]]
    exponentials = np.exp(logits - logits.max(axis=0))
    even = cv2.blur(cells[EVEN_CHANNEL].astype(np.float32) / 255, (EVEN_WINDOW, EVEN_WINDOW))
    return Content(exponentials / exponentials.sum(axis=0), even)


def recorded_mask(image: np.ndarray) -> np.ndarray | None:
    """Where an image (H, W, 3) uint8 RGB is recorded, (H, W) bool; None where all of it is.

    A part counts as drawn or empty only where the network says so and the image is even there as well, for what is
    drawn stands on even ground: photographs of kinds that the network never saw are not lost. Specks are taken out on
    both sides: a recorded panel has a least size, and so has what is drawn over it.
    """
    content = examine_content(image)
    recorded = content.probabilities[RECORDED, :, :].sum(axis=0)
    panels = _panels((recorded >= MIN_RECORDED) | (content.even <= MIN_EVEN), recorded, content.even)
    mask = panels | _holes(panels)
    if (~mask).mean() < MAX_WHOLE:
        return None
    return cv2.resize(mask.view(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0


def _panels(mask: np.ndarray, recorded: np.ndarray, even: np.ndarray) -> np.ndarray:
    """The connected parts of a mask (h, w) bool of cells that are panels, and no fragments of something drawn.

    Args:
        recorded: (h, w) float32, probability of recorded content.
        even: (h, w) float32, share of even pixels around each cell.
    """
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    mean_recorded, mean_even = (
        np.bincount(labels.ravel(), values.ravel(), minlength=count) / np.maximum(area, 1)
        for values in (recorded, even)
    )
    fragment = (mean_recorded < 0.5) & (mean_even > MAX_EVEN_OF_FRAGMENT) & (area < MAX_FRAGMENT * mask.size)
    kept = (np.minimum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) >= MIN_SIDE) & ~fragment
    kept[0] = False
    return kept[labels]


def _holes(panels: np.ndarray) -> np.ndarray:
    """Holes of the panels (h, w) bool that are too small to be something drawn over them."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~panels).astype(np.uint8), connectivity=4)
    x, y, w, h, area = stats.T
    inner = (x > 0) & (y > 0) & (x + w < panels.shape[1]) & (y + h < panels.shape[0])
    small = inner & (area < MIN_HOLE * panels.sum())
    small[0] = False
    return small[labels]
