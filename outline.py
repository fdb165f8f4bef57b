"""The outline of a proven copy, drawn by a small network that sees the aligned pair.

A window of correlation reaches over an edge, and blending hides it. What a copy's edge looks like after feathering,
cloning, JPEG and noise is learned from forgeries whose masks are known (train_outline.py). The network proves nothing:
it only redraws what `matching` has proven.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import alignment
from alignment import Canvas

WEIGHTS = Path(__file__).resolve().parent / "weights" / "outline.onnx"
MARGIN = 24  # pixels by which an outline may move
ODDS = (0.0, 2.0)  # log-odds over which a pixel of the outline is kept, and over which another one is taken in
MAX_GROWTH = 2.0  # times the area that was proven, at most: more is ground that looks alike everywhere
TILE = 192  # side of the squares that a large region is drawn in, in pixels
CONTEXT = 48  # pixels that the network sees around a square
STEP = 8  # windows are a multiple of this, for the network halves them three times


@dataclass(frozen=True)
class Pair:
    """A copy's source and its aligned partner in one window of the picture, (h, w) each."""

    template: np.ndarray  # float32 grey, 0 to 255
    partner: np.ndarray  # the same: the copy, warped onto its source
    region: np.ndarray  # bool: the source's outline so far
    valid: np.ndarray  # bool: both lie in the picture, apart, and in a panel
    told: np.ndarray  # bool: both hold fine structure that is not drawn
    noise: float  # of the picture, grey levels

    def stacked(self) -> tuple[np.ndarray, np.ndarray]:
        """Grey values (2, h, w) float32 and masks (3, h, w) bool."""
        return np.stack([self.template, self.partner]), np.stack([self.region, self.valid, self.told])


def cut_pair(canvas: Canvas, affine: np.ndarray, region: np.ndarray, box: tuple[int, int, int, int]) -> Pair:
    """Pair of a map (2, 3) in a box (x0, y0, x1, y1), which may reach beyond the picture; region (H, W) bool."""
    height, width = canvas.shape
    inside = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    around = (inside[1] - box[1], box[3] - inside[3], inside[0] - box[0], box[2] - inside[2])

    def wide(values: np.ndarray) -> np.ndarray:
        return cv2.copyMakeBorder(values, *around, cv2.BORDER_CONSTANT, value=0)

    template, _, valid = alignment.pair(canvas, affine, inside)
    told = alignment.warped(canvas.informative, affine, inside, cv2.INTER_NEAREST)
    x0, y0, x1, y1 = inside
    told &= canvas.informative[y0:y1, x0:x1]
    return Pair(
        wide(template),
        alignment.warped(canvas.levels[alignment.level_of(affine)], affine, box, cv2.INTER_CUBIC),
        wide(region[y0:y1, x0:x1].view(np.uint8)) > 0,
        wide(valid.view(np.uint8)) > 0,
        wide(told) > 0,
        canvas.noise,
    )


def structures(grey: np.ndarray, masks: np.ndarray, noise: float) -> np.ndarray:
    """What the network sees of a pair, (10, h, w) float32.

    Of the template, then of the partner brought to its brightness and contrast: the fine structure and the grain at
    equal strength, the middle band over the noise, and the grey values over their spread in the region. Then the
    difference of both, and of their middle bands, over the noise.

    Args:
        grey: (2, h, w) float32, template and partner. masks: (3, h, w) bool: region, valid, told.
        noise: of the picture, grey levels.
    """
    inside = masks[0] & masks[1]
    a, b = (v - v[inside].mean() if inside.any() else v for v in grey)
    covariance, variance_a, variance_b = (float((v * w)[inside].sum()) for v, w in ((a, b), (a, a), (b, b)))
    count = max(int(inside.sum()), 1)
    both = (a, b * min(max(covariance / (variance_b + 1e-3 * count), 0.3), 3.0))
    spread = math.sqrt(variance_a / count + 1)
    middle = [_blur(v, 0.8) - _blur(v, 2.5) for v in both]
    seen = []
    for v, m in zip(both, middle, strict=True):
        seen += [_equalised(v, 1.5), _equalised(v, 0.7), np.tanh(m / (4 * noise)), np.clip(v / spread, -4, 4) / 2]
    seen += [np.tanh((both[0] - both[1]) / (4 * noise)), np.tanh((middle[0] - middle[1]) / (2 * noise))]
    return np.stack(seen).astype(np.float32)


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    size = 2 * math.ceil(3 * sigma) + 1
    return cv2.GaussianBlur(values, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)


def _equalised(values: np.ndarray, sigma: float) -> np.ndarray:
    """What is finer than sigma, divided by its local strength, as `alignment` compares it."""
    fine = values - _blur(values, sigma)
    return fine / np.sqrt(_blur(fine * fine, 2 * sigma) + 0.3**2)


@functools.cache
def load_network() -> "cv2.dnn.Net":
    """The network of weights/outline.onnx, which `train_outline.OutlineNet` describes."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"there is no file {WEIGHTS}; make it with train_outline.py")
    return cv2.dnn.readNetFromONNX(str(WEIGHTS))


def draw(canvas: Canvas, affine: np.ndarray, region: np.ndarray) -> np.ndarray | None:
    """Outline (H, W) bool of a copy's source; None where the network sees none that is much the same as the region.

    Args:
        affine: (2, 3), source pixel -> copy pixel, scale at least about 1.
        region: (H, W) bool, the source as it was proven.
    """
    ys, xs = np.nonzero(region)
    x0, y0, x1, y1 = (
        int(v) for v in (xs.min() - MARGIN, ys.min() - MARGIN, xs.max() + 1 + MARGIN, ys.max() + 1 + MARGIN)
    )
    x1, y1 = x1 + (x0 - x1) % STEP, y1 + (y0 - y1) % STEP
    pair = cut_pair(canvas, affine, region, (x0, y0, x1, y1))
    depth = sum(cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 5) for m in (pair.region, ~pair.region))
    # Even ground around an object may have been copied along or not: in doubt it stays outside.
    copied = _odds(pair, depth <= MARGIN) > np.where(pair.region, *ODDS)
    mask = np.where(depth <= MARGIN, copied, pair.region)
    mask = cv2.morphologyEx((mask & pair.valid).astype(np.uint8), cv2.MORPH_OPEN, alignment.ellipse(3))
    _, labels = cv2.connectedComponents(mask, connectivity=4)
    held = np.bincount(labels[pair.region])
    held[0] = 0
    if 2 * held.max(initial=0) < pair.region.sum():
        return None
    mask = alignment.fill_holes(labels == held.argmax(), 0.2) & pair.valid
    if mask.sum() > MAX_GROWTH * pair.region.sum():
        return None
    full = np.zeros(canvas.shape, bool)
    top, left = max(y0, 0), max(x0, 0)
    part = mask[top - y0 : canvas.shape[0] - y0, left - x0 : canvas.shape[1] - x0]
    full[top : top + part.shape[0], left : left + part.shape[1]] = part
    return full


def _odds(pair: Pair, near: np.ndarray) -> np.ndarray:
    """Log-odds (h, w) of a pair, square by square, so that memory does not grow with the region; 0 in squares where
    no pixel is near (h, w) the outline."""
    grey, masks = pair.stacked()
    seen, masks = structures(grey, masks, pair.noise), masks.astype(np.float32)
    network, odds = load_network(), np.zeros(grey.shape[1:], np.float32)
    for y in range(0, odds.shape[0], TILE):
        for x in range(0, odds.shape[1], TILE):
            if not near[y : y + TILE, x : x + TILE].any():
                continue
            top, left = max(y - CONTEXT, 0), max(x - CONTEXT, 0)
            window = np.s_[None, :, top : y + TILE + CONTEXT, left : x + TILE + CONTEXT]
            for name, values in (("seen", seen), ("masks", masks)):
                network.setInput(np.ascontiguousarray(values[window]), name)
            drawn = network.forward()[0, 0]
            odds[y : y + TILE, x : x + TILE] = drawn[y - top : y - top + TILE, x - left : x - left + TILE]
    return odds
