"""The mask refiner: a small network that decides for every pixel near a copy's outline whether it was copied."""

import math

import cv2
import numpy as np

from config import WEIGHTS
from copymove.geometry import Box
from copymove.image_features import FINE_SIGMA, GRAIN_SIGMA, ImageFeatures, blur, normalize_local_contrast
from copymove.morphology import component_with_most, ellipse, fill_holes
from copymove.networks import load_network
from copymove.warping import aligned_pair, informative_pair, resolution_level, warp_to_template

NETWORK = WEIGHTS / "outline.onnx"
INPUT_NAMES = ("seen", "masks")  # of the network's two inputs in that file
MARGIN = 24  # pixels by which an outline may move
KEEP_LOG_ODDS = 0.0  # over which a pixel of the proven region is kept
ADD_LOG_ODDS = 2.0  # over which another pixel is added: even ground beside an object stays outside when in doubt
MAX_GROWTH = 2.0  # times the proven area, at most: more is ground that looks alike everywhere
TILE = 192  # side, in pixels, of the squares that a large region is computed in
CONTEXT = 48  # pixels that the network sees around a square
STEP = 8  # the sides of windows are multiples of this, for the network halves them three times


def crop_pair(
    image_features: ImageFeatures,
    affine: np.ndarray,
    box: Box,
    region: np.ndarray,
    *others: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """A copy's source, and its partner warped onto it, in a window of the image.

    Args:
        affine: (2, 3), source pixel (x, y, 1) -> copy pixel.
        box: the window (left, top, right, bottom), which may reach beyond the image.
        region: (H, W) bool, the source as it was proven.
        others: more masks (H, W) bool to be cut out with it.
    Returns:
        Grey values (2, h, w) float32, 0 to 255, and masks (3 or more, h, w) bool: the region, where the pair is valid
        (as of `aligned_pair`), where both are informative, and the others. Beyond the image masks and source are 0.
    """
    height, width = image_features.shape
    inside = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    padding = (0, 0), (inside[1] - box[1], box[3] - inside[3]), (inside[0] - box[0], box[2] - inside[2])
    window = np.s_[inside[1] : inside[3], inside[0] : inside[2]]
    template, _, valid = aligned_pair(image_features, affine, inside)
    masks = [
        region[window],
        valid,
        informative_pair(image_features, affine, inside),
        *(mask[window] for mask in others),
    ]
    # The partner goes on where its source has left the image, as it did in what the network learned from.
    partner = warp_to_template(image_features.scale_space[resolution_level(affine)], affine, box, cv2.INTER_CUBIC)
    return np.stack([np.pad(template, padding[1:]), partner]), np.pad(np.stack(masks), padding)


def network_input(grey: np.ndarray, masks: np.ndarray, noise: float) -> np.ndarray:
    """What the network sees of a pair beside its masks, (10, h, w) float32.

    First four channels of the template, then the same four of the partner, brought to its brightness and contrast:
    fine structure and grain with their local contrast normalised, the middle band over the noise, and the grey values
    over their spread in the region. Then the difference of both, and that of their middle bands, over the noise.

    Args:
        grey: (2, h, w) float32, template and partner, 0 to 255.
        masks: (3, h, w) bool: region, valid, informative.
        noise: of the image, in grey levels.
    """
    inside = masks[0] & masks[1]
    a, b = (v - v[inside].mean() if inside.any() else v for v in grey)
    covariance, variance_a, variance_b = (float((v * w)[inside].sum()) for v, w in ((a, b), (a, a), (b, b)))
    count = max(int(inside.sum()), 1)
    pair = (a, b * min(max(covariance / (variance_b + 1e-3 * count), 0.3), 3.0))
    spread = math.sqrt(variance_a / count + 1)
    middle = [blur(v, 0.8) - blur(v, 2.5) for v in pair]
    channels = []
    for v, m in zip(pair, middle, strict=True):
        channels += [normalize_local_contrast(v, v, s) for s in (FINE_SIGMA, GRAIN_SIGMA)]
        channels += [np.tanh(m / (4 * noise)), np.clip(v / spread, -4, 4) / 2]
    channels += [np.tanh((pair[0] - pair[1]) / (4 * noise)), np.tanh((middle[0] - middle[1]) / (2 * noise))]
    return np.stack(channels).astype(np.float32)


def refine_mask(
    image_features: ImageFeatures, affine: np.ndarray, region: np.ndarray
) -> tuple[np.ndarray, int, int] | None:
    """Mask of a copy's source as the network sees it.

    Args:
        affine: (2, 3), source pixel (x, y, 1) -> copy pixel; scale at least about 1.
        region: (H, W) bool, the source as it was proven.
    Returns:
        The mask (h, w) bool in a window, and the window's left and top edge in the image; None where less than half of
        the region is kept, or more than MAX_GROWTH times its area is found.
    """
    ys, xs = np.nonzero(region)
    x, y = int(xs.min()) - MARGIN, int(ys.min()) - MARGIN
    width, height = (int(np.ptp(v)) + 1 + 2 * MARGIN for v in (xs, ys))
    box = (x, y, x + width + -width % STEP, y + height + -height % STEP)
    grey, masks = crop_pair(image_features, affine, box, region)
    proven, valid, _ = masks
    depth = sum(cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 5) for m in (proven, ~proven))
    near = depth <= MARGIN
    copied = predict_log_odds(grey, masks, image_features.noise, near) > np.where(proven, KEEP_LOG_ODDS, ADD_LOG_ODDS)
    mask = cv2.morphologyEx((np.where(near, copied, proven) & valid).astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    _, labels = cv2.connectedComponents(mask, connectivity=4)
    component, kept = component_with_most(labels, proven)
    if 2 * kept < proven.sum():
        return None
    mask = fill_holes(component) & valid
    return None if mask.sum() > MAX_GROWTH * proven.sum() else (mask, x, y)


def predict_log_odds(grey: np.ndarray, masks: np.ndarray, noise: float, near: np.ndarray) -> np.ndarray:
    """Log-odds (h, w) float32 that a pixel was copied; 0 in squares without a pixel near the outline.

    They are computed square by square, so that the memory does not grow with the region.

    Args:
        grey, masks, noise: as of `network_input`.
        near: (h, w) bool, pixels near the outline.
    """
    channels, masks = network_input(grey, masks, noise), masks.astype(np.float32)
    network, log_odds = load_network(NETWORK, "train-mask-refiner"), np.zeros(grey.shape[1:], np.float32)
    for y in range(0, log_odds.shape[0], TILE):
        for x in range(0, log_odds.shape[1], TILE):
            if not near[y : y + TILE, x : x + TILE].any():
                continue
            top, left = max(y - CONTEXT, 0), max(x - CONTEXT, 0)
            window = np.s_[None, :, top : y + TILE + CONTEXT, left : x + TILE + CONTEXT]
            for name, values in zip(INPUT_NAMES, (channels, masks), strict=True):
                network.setInput(np.ascontiguousarray(values[window]), name)
            square = network.forward()[0, 0, y - top : y - top + TILE, x - left : x - left + TILE]
            log_odds[y : y + TILE, x : x + TILE] = square
    return log_odds
