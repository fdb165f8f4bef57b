import functools
import math

import cv2
import numpy as np

from config import WEIGHTS
from copymove.image_features import FINE_SIGMA, GRAIN_SIGMA, ImageFeatures, blur, normalize_local_contrast
from copymove.morphology import ellipse, fill_holes
from copymove.warping import aligned_pair, resolution_level, warp_to_template

NETWORK = WEIGHTS / "outline.onnx"


MARGIN = 24  # pixels by which an outline may move


ODDS = (0.0, 2.0)  # log-odds over which a pixel of the outline is kept, and over which another one is taken in


MAX_GROWTH = 2.0  # times the area that was proven, at most: more is ground that looks alike everywhere


TILE = 192  # side of the squares that a large region is drawn in, in pixels


CONTEXT = 48  # pixels that the network sees around a square


STEP = 8  # windows are a multiple of this, for the network halves them three times


def crop_pair(
    canvas: ImageFeatures, affine: np.ndarray, box: tuple[int, int, int, int], region: np.ndarray, *others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A copy's source, and its partner warped onto it, in a window of the image.

    Args:
        affine: (2, 3), source pixel -> copy pixel. box: left, top, right, bottom; may reach beyond the image.
        region: (H, W) bool, the source's outline so far. others: more masks (H, W) bool to be cut with it.
    Returns:
        Grey values (2, h, w) float32, 0 to 255, and masks (3 or more, h, w) bool: the region, where both partners are
        valid (in the image, apart, in a panel), where both hold fine structure that is not drawn, and the others.
        Beyond the image masks and source are 0.
    """
    height, width = canvas.shape
    inside = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    around = (0, 0), (inside[1] - box[1], box[3] - inside[3]), (inside[0] - box[0], box[2] - inside[2])
    part = np.s_[inside[1] : inside[3], inside[0] : inside[2]]
    template, _, valid = aligned_pair(canvas, affine, inside)
    told = warp_to_template(canvas.informative, affine, inside, cv2.INTER_NEAREST) & canvas.informative[part]
    masks = np.stack([region[part], valid, told > 0, *(mask[part] for mask in others)])
    # The partner goes on where its source has left the image, as it did in what the network learned from.
    partner = warp_to_template(canvas.levels[resolution_level(affine)], affine, box, cv2.INTER_CUBIC)
    return np.stack([np.pad(template, around[1:]), partner]), np.pad(masks, around)


def network_input(grey: np.ndarray, masks: np.ndarray, noise: float) -> np.ndarray:
    """What the network sees of a pair, (10, h, w) float32.

    Of the template, then of the partner brought to its brightness and contrast: the fine structure and the grain at
    equal strength, the middle band over the noise, and the grey values over their spread in the region. Then the
    difference of both, and of their middle bands, over the noise.

    Args:
        grey: (2, h, w) float32, template and partner. masks: (3, h, w) bool: region, valid, told.
        noise: of the image, grey levels.
    """
    inside = masks[0] & masks[1]
    a, b = (v - v[inside].mean() if inside.any() else v for v in grey)
    covariance, variance_a, variance_b = (float((v * w)[inside].sum()) for v, w in ((a, b), (a, a), (b, b)))
    count = max(int(inside.sum()), 1)
    both = (a, b * min(max(covariance / (variance_b + 1e-3 * count), 0.3), 3.0))
    spread = math.sqrt(variance_a / count + 1)
    middle = [blur(v, 0.8) - blur(v, 2.5) for v in both]
    seen = []
    for v, m in zip(both, middle, strict=True):
        seen += [normalize_local_contrast(v, v, s) for s in (FINE_SIGMA, GRAIN_SIGMA)]
        seen += [np.tanh(m / (4 * noise)), np.clip(v / spread, -4, 4) / 2]
    seen += [np.tanh((both[0] - both[1]) / (4 * noise)), np.tanh((middle[0] - middle[1]) / (2 * noise))]
    return np.stack(seen).astype(np.float32)


@functools.cache
def load_network() -> "cv2.dnn.Net":
    """The network of weights/outline.onnx, which `train_outline.OutlineNet` describes."""
    if not NETWORK.is_file():
        raise FileNotFoundError(f"there is no file {NETWORK}; make it with train_outline.py")
    return cv2.dnn.readNetFromONNX(str(NETWORK))


def refine_mask(canvas: ImageFeatures, affine: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, int, int] | None:
    """Outline of a copy's source; None where the network sees none that is much the same as the region.

    Args:
        affine: (2, 3), source pixel -> copy pixel, scale at least about 1.
        region: (H, W) bool, the source as it was proven.
    Returns:
        Its mask (h, w) bool in a window, and the window's left and top edge in the image.
    """
    ys, xs = np.nonzero(region)
    x, y = int(xs.min()) - MARGIN, int(ys.min()) - MARGIN
    width, height = (int(np.ptp(v)) + 1 + 2 * MARGIN for v in (xs, ys))
    box = (x, y, x + width + -width % STEP, y + height + -height % STEP)
    grey, masks = crop_pair(canvas, affine, box, region)
    proven, valid, _ = masks
    depth = sum(cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 5) for m in (proven, ~proven))
    near = depth <= MARGIN
    # Even ground around an object may have been copied along or not: in doubt it stays outside.
    copied = _predict_log_odds(grey, masks, canvas.noise, near) > np.where(proven, *ODDS)
    mask = np.where(near, copied, proven) & valid
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    _, labels = cv2.connectedComponents(mask, connectivity=4)
    held = np.bincount(labels[proven])
    held[0] = 0
    if 2 * held.max(initial=0) < proven.sum():
        return None
    mask = fill_holes(labels == held.argmax(), 0.2) & valid
    return None if mask.sum() > MAX_GROWTH * proven.sum() else (mask, x, y)


def _predict_log_odds(grey: np.ndarray, masks: np.ndarray, noise: float, near: np.ndarray) -> np.ndarray:
    """Log-odds (h, w) of a pair, square by square, so that memory does not grow with the region; 0 in squares where
    no pixel is near (h, w) the outline."""
    seen, masks = network_input(grey, masks, noise), masks.astype(np.float32)
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
