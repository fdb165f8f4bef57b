"""What an image is made of: recorded content (photographs, micrographs, blots, gels), drawings, text, ground.

A small network names every pixel (`benchmark.py train-content` trains it on figures of `synthesis.py --figures`). What
is drawn repeats by its nature, so it takes no part in the search for copies.
"""

import functools

import cv2
import numpy as np

from config import PIXEL_KINDS, WEIGHTS

NETWORK = WEIGHTS / "content.onnx"
INPUT_NAME = "image"  # of the network
MAX_SIDE = 1280  # longer side in pixels at which the network looks at an image, at most
PADDED_TO = 32  # sides of the network's input are multiples of this
OUTPUT_STRIDE = 2  # pixels of the network's input for each of its output
RECORDED = tuple(PIXEL_KINDS.index(kind) for kind in ("photo", "blot", "gel"))
MIN_SIDE = 24  # least side in pixels of a recorded panel
MIN_HOLE = 0.002  # share of a recorded panel that something drawn over it needs to count as that
MAX_WHOLE = 0.02  # share of an image that is not recorded, up to which all of it counts as recorded


@functools.cache
def load_network() -> "cv2.dnn.Net":
    """The network of weights/content.onnx.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not NETWORK.is_file():
        raise FileNotFoundError(f"there is no file {NETWORK}; make it with benchmark.py train-content")
    return cv2.dnn.readNetFromONNX(str(NETWORK))


def pixel_kinds(image: np.ndarray) -> np.ndarray:
    """Kind of every pixel (H, W) uint8, a number of `PIXEL_KINDS`, of an image (H, W, 3) uint8 RGB."""
    height, width = image.shape[:2]
    zoom = min(1.0, MAX_SIDE / max(height, width))
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if zoom < 1 else image
    padding = ((0, -size[1] % PADDED_TO), (0, -size[0] % PADDED_TO), (0, 0))
    values = np.pad(small, padding, mode="edge").astype(np.float32) / 255
    network = load_network()
    network.setInput(np.ascontiguousarray(values.transpose(2, 0, 1)[None]), INPUT_NAME)
    named = network.forward()[0].argmax(axis=0).astype(np.uint8)
    inside = named[: -(-size[1] // OUTPUT_STRIDE), : -(-size[0] // OUTPUT_STRIDE)]
    return cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST)


def recorded_mask(image: np.ndarray) -> np.ndarray | None:
    """Where an image (H, W, 3) uint8 RGB is recorded, (H, W) bool; None where all of it is.

    Specks are taken out on both sides: a recorded panel has a least size, and so has what is drawn over it.
    """
    recorded = np.isin(pixel_kinds(image), RECORDED)
    panels = _large_parts(recorded, MIN_SIDE)
    holes = _holes(panels)
    mask = panels | holes
    return None if (~mask).mean() < MAX_WHOLE else mask


def _large_parts(mask: np.ndarray, min_side: int) -> np.ndarray:
    """The parts of a mask (H, W) bool whose box has at least this side, after an opening that takes out thin ones."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    kept = np.minimum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) >= min_side
    kept[0] = False
    return kept[labels]


def _holes(panels: np.ndarray) -> np.ndarray:
    """Holes of the panels (H, W) bool that are too small to be something drawn over them."""
    outside, labels, stats, _ = cv2.connectedComponentsWithStats((~panels).astype(np.uint8), connectivity=4)
    del outside
    x, y, w, h, area = stats.T
    inner = (x > 0) & (y > 0) & (x + w < panels.shape[1]) & (y + h < panels.shape[0])
    small = inner & (area < MIN_HOLE * panels.sum())
    small[0] = False
    return small[labels]
