"""What the alignment needs of one image, whatever the candidate: band-passes, fine structure, and where it counts."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.panels import find_gutters

# Standard deviations of Gaussians, in pixels; what is coarser is removed ...
GRAIN_SIGMA = 0.7  # ... of the finest structure that is compared
FINE_SIGMA = 1.5  # ... of the fine structure that is compared
NARROW_SIGMA = 2.5  # ... before the last alignment
COARSE_SIGMA = 6.0  # ... before the first alignment
SMOOTHING_SIGMA = 0.7  # noise finer than this is removed before aligning

LEVELS = (1.0, 1.3, 1.7, 2.2)  # scales for which the sharper partner is blurred to the other's resolution


@dataclass(frozen=True)
class ImageFeatures:
    """One image as the alignment needs it; (H, W) float32 where nothing else is said."""

    grey: np.ndarray  # 0 to 255
    band_pass: np.ndarray  # between SMOOTHING_SIGMA and COARSE_SIGMA
    narrow_band_pass: np.ndarray  # up to NARROW_SIGMA: at a region's edge less of what lies outside is mixed in
    high_pass: np.ndarray  # finer than FINE_SIGMA; NaN next to what is drawn in black or white
    scale_space: np.ndarray  # (len(LEVELS), H, W): grey, blurred as if it had been shrunk by each of LEVELS
    fine: np.ndarray  # (len(LEVELS), H, W): fine structure of each level, with its local contrast normalised
    grain: np.ndarray  # finer than GRAIN_SIGMA, with its local contrast normalised
    informative: np.ndarray  # (H, W) uint8: 1 where there is fine structure that is neither drawn nor a plain edge
    recorded: np.ndarray | None  # (H, W) bool: where copies are sought; None: everywhere
    gutters: np.ndarray | None  # (H, W) uint8: 1 between panels and where nothing is sought; None without any
    noise: float  # standard deviation of the fine structure in the quietest parts, in grey levels

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grey.shape


def compute_features(image: np.ndarray, recorded: np.ndarray | None = None) -> ImageFeatures:
    """Features of an image (H, W, 3) uint8 RGB.

    Args:
        recorded: (H, W) bool, where copies are sought; everywhere when None.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), SMOOTHING_SIGMA)
    high_pass = grey - cv2.GaussianBlur(grey, (0, 0), FINE_SIGMA)
    strength = np.abs(high_pass)
    busy = cv2.GaussianBlur(strength * strength, (0, 0), 2.0) > 0.25**2
    flat, drawn = _drawn_masks(image)
    high_pass[drawn] = np.nan
    scale_space = np.stack(
        [grey] + [cv2.GaussianBlur(grey, (0, 0), 0.5 * float(np.sqrt(s * s - 1))) for s in LEVELS[1:]]
    )
    gutters = find_gutters(grey)
    informative = busy & ~flat & ~drawn & ~_plain_edges(grey)
    if recorded is not None:
        gutters |= ~recorded
        informative &= recorded
    return ImageFeatures(
        grey=grey,
        band_pass=smooth - cv2.GaussianBlur(grey, (0, 0), COARSE_SIGMA),
        narrow_band_pass=smooth - cv2.GaussianBlur(grey, (0, 0), NARROW_SIGMA),
        high_pass=high_pass,
        scale_space=scale_space,
        fine=np.stack(
            [normalize_local_contrast(v, grey, FINE_SIGMA * s) for v, s in zip(scale_space, LEVELS, strict=True)]
        ),
        grain=normalize_local_contrast(grey, grey, GRAIN_SIGMA),
        informative=informative.astype(np.uint8),
        recorded=recorded,
        gutters=gutters.view(np.uint8) if gutters.any() else None,
        noise=_noise_level(strength),
    )


def normalize_local_contrast(values: np.ndarray, grey: np.ndarray, sigma: float) -> np.ndarray:
    """Values (H, W) less the blurred grey values, divided by the local standard deviation of that difference.

    Without the division one strong edge would outvote all of the grain.
    """
    fine = values - cv2.GaussianBlur(grey, (0, 0), sigma)
    variance = cv2.GaussianBlur(fine * fine, (0, 0), 2 * sigma)
    return fine / np.sqrt(variance + 0.3**2)


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values (h, w) float32 averaged in a Gaussian window; beyond the border the last value is repeated."""
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _noise_level(strength: np.ndarray) -> float:
    """Standard deviation of the fine structure, given as absolute values (H, W), in the quietest tenth; at least 0.5.

    It is taken from means over 8 x 8 pixels; a Gaussian's deviation is 1.25 times its mean absolute value.
    """
    size = (max(strength.shape[1] // 8, 1), max(strength.shape[0] // 8, 1))
    return max(float(np.percentile(cv2.resize(strength, size, interpolation=cv2.INTER_AREA), 10)) * 1.25, 0.5)


def _drawn_masks(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an image is drawn and not recorded: text, bars, arrows, frames, gutters and what lies next to them.

    Returns:
        Two masks (H, W) bool: where the neighbourhood has one colour, and where black or white begins within a step
        of one pixel.
    """
    square = np.ones((3, 3), np.uint8)
    high, low = cv2.dilate(image, square), cv2.erode(image, square)
    spread = (high - low).max(axis=2)
    flat = cv2.morphologyEx((spread <= 1).astype(np.uint8), cv2.MORPH_OPEN, square)
    steps = (spread > 90) & ((high.min(axis=2) > 235) | (low.max(axis=2) < 14))
    steps = cv2.dilate(steps.astype(np.uint8), np.ones((9, 9), np.uint8))
    return cv2.dilate(flat, np.ones((7, 7), np.uint8)) > 0, steps > 0


def _plain_edges(grey: np.ndarray, min_coherence: float = 0.92) -> np.ndarray:
    """Where all gradients point the same way (coherence of the structure tensor), (H, W) bool.

    Such an edge fits onto every other edge, and says nothing about a copy.
    """
    smooth = cv2.GaussianBlur(grey, (0, 0), SMOOTHING_SIGMA)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(v, (0, 0), 3.0) for v in (gx * gx, gy * gy, gx * gy))
    return np.hypot(xx - yy, 2 * xy) > min_coherence * (xx + yy)
