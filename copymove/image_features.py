"""Everything the search needs of one image that does not depend on a candidate."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.panels import find_gutters

FINE_SIGMA = 1.5  # what is coarser than this is removed before the fine structure is compared, in pixels


GRAIN_SIGMA = 0.7  # the same for the finest structure


NARROW_SIGMA = 2.5  # the same for the last alignment


COARSE_SIGMA = 6.0  # what is coarser than this is removed before aligning, in pixels


LEVELS = (1.0, 1.3, 1.7, 2.2)  # scales for which the sharper partner is blurred to the other's resolution


@dataclass(frozen=True)
class ImageFeatures:
    """One image as the alignment needs it; (H, W) float32 where nothing else is said."""

    grey: np.ndarray  # 0 to 255
    band: np.ndarray  # without noise and without what is coarser than COARSE_SIGMA
    narrow: np.ndarray  # the same with NARROW_SIGMA: its window reaches less over a region's edge
    rough: np.ndarray  # what is finer than FINE_SIGMA, as it is; NaN next to what is drawn in black or white
    levels: np.ndarray  # (len(LEVELS), H, W): grey as it would look after shrinking by LEVELS
    fine: np.ndarray  # (len(LEVELS), H, W): fine structure of each level, brought to equal strength everywhere
    grain: np.ndarray  # what is finer than GRAIN_SIGMA, brought to equal strength
    informative: np.ndarray  # (H, W) uint8: 1 where there is fine structure that is not a drawing's
    gutters: np.ndarray | None  # (H, W) uint8: 1 between the panels of a composed figure; None without any
    noise: float  # standard deviation of the fine structure in the quietest parts

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grey.shape


def compute_features(image: np.ndarray) -> ImageFeatures:
    """Canvas of an image (H, W, 3) uint8 RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
    band = smooth - cv2.GaussianBlur(grey, (0, 0), COARSE_SIGMA)
    narrow = smooth - cv2.GaussianBlur(grey, (0, 0), NARROW_SIGMA)
    levels = np.stack([grey] + [cv2.GaussianBlur(grey, (0, 0), 0.5 * float(np.sqrt(s * s - 1))) for s in LEVELS[1:]])
    rough = grey - cv2.GaussianBlur(grey, (0, 0), FINE_SIGMA)
    strength = np.abs(rough)
    size = (max(grey.shape[1] // 8, 1), max(grey.shape[0] // 8, 1))
    noise = max(float(np.percentile(cv2.resize(strength, size, interpolation=cv2.INTER_AREA), 10)) * 1.25, 0.5)
    fine = np.stack(
        [normalize_local_contrast(level, grey, FINE_SIGMA * s) for level, s in zip(levels, LEVELS, strict=True)]
    )
    busy = cv2.GaussianBlur(strength * strength, (0, 0), 2.0) > 0.25**2
    flat, steps = _drawn_masks(image)
    informative = (busy & ~flat & ~steps & ~_one_dimensional(grey)).astype(np.uint8)
    rough[steps] = np.nan
    grain = normalize_local_contrast(grey, grey, GRAIN_SIGMA)
    found = find_gutters(grey)
    gutters = found.view(np.uint8) if found.any() else None
    return ImageFeatures(grey, band, narrow, rough, levels, fine, grain, informative, gutters, noise)


def normalize_local_contrast(level: np.ndarray, grey: np.ndarray, sigma: float) -> np.ndarray:
    """Fine structure divided by its local strength: else one strong edge would outvote all of the grain."""
    fine = level - cv2.GaussianBlur(grey, (0, 0), sigma)
    local = cv2.GaussianBlur(fine * fine, (0, 0), 2 * sigma)
    return fine / np.sqrt(local + 0.3**2)


def _drawn_masks(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an image is drawn and not recorded: text, bars, arrows, frames and gutters, with their surroundings.

    Either the area next to it has one colour to the bit (the first mask), or black or white begins within one pixel
    (the second).
    """
    square = np.ones((3, 3), np.uint8)
    high, low = cv2.dilate(image, square), cv2.erode(image, square)
    spread = (high - low).max(axis=2)
    flat = cv2.morphologyEx((spread <= 1).astype(np.uint8), cv2.MORPH_OPEN, square)
    steps = (spread > 90) & ((high.min(axis=2) > 235) | (low.max(axis=2) < 14))
    steps = cv2.dilate(steps.astype(np.uint8), np.ones((9, 9), np.uint8))
    return cv2.dilate(flat, np.ones((7, 7), np.uint8)) > 0, steps > 0


def _one_dimensional(grey: np.ndarray, limit: float = 0.92) -> np.ndarray:
    """Where all gradients point one way (coherence of the structure tensor): an edge fits onto every other edge."""
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(v, (0, 0), 3.0) for v in (gx * gx, gy * gy, gx * gy))
    return np.hypot(xx - yy, 2 * xy) > limit * (xx + yy)


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values (h, w) float32 under a Gaussian window; beyond the edges they go on as they end."""
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
