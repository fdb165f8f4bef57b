"""Normalised cross-correlation (NCC) of an aligned pair, locally and as a whole."""

from collections.abc import Sequence

import cv2
import numpy as np

from copymove.image_features import blur


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two lists (n,) of values; 0 without variance or with fewer than ten."""
    if len(a) < 10:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a * a).mean() * (b * b).mean()))
    return float((a * b).mean() / power) if power > 1e-3 else 0.0


def fit_gain(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Least-squares (gain, offset) of a ~ gain * b + offset over two lists (n,) of values."""
    mean_a, mean_b = float(a.mean()), float(b.mean())
    gain = float(((a - mean_a) * (b - mean_b)).sum() / max(float(((b - mean_b) ** 2).sum()), 1e-6))
    return gain, mean_a - gain * mean_b


def local_ncc(
    template: np.ndarray, partner: np.ndarray, valid: np.ndarray, noise: float, sigma: float = 2.5
) -> np.ndarray:
    """NCC (h, w) float32 in a Gaussian window of `sigma` pixels; -1 where the pair is not valid.

    Half of the variance of the noise (its standard deviation is given, in grey levels) is added to those of both, so
    that the NCC goes to 0 where there is no texture.
    """
    a, b = template - template.mean(), partner - partner.mean()
    mean_a, mean_b = blur(a, sigma), blur(b, sigma)
    var_a = np.maximum(blur(a * a, sigma) - mean_a * mean_a, 0)
    var_b = np.maximum(blur(b * b, sigma) - mean_b * mean_b, 0)
    covariance = blur(a * b, sigma) - mean_a * mean_b
    floor = 0.5 * noise * noise
    return np.where(valid, covariance / np.sqrt((var_a + floor) * (var_b + floor)), -1).astype(np.float32)


def zero_mean_ncc(a: np.ndarray, b: np.ndarray, sigma: float) -> np.ndarray:
    """NCC (h, w) in a Gaussian window of `sigma` pixels, of two structures whose local mean is 0 everywhere."""
    return blur(a * b, sigma) / np.sqrt(blur(a * a, sigma) * blur(b * b, sigma) + 0.02)


def ncc_margin_map(a: np.ndarray, b: np.ndarray, window: int, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """By how much the NCC (h, w) of two structures exceeds the best one after moving `b` by one of the offsets.

    Args:
        a, b: (h, w) float32, with a local mean of 0.
        window: side of the square in which the NCC is computed, in pixels.
        offsets: of `b`, as (dy, dx) in pixels.
    """

    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REPLICATE)

    height, width = a.shape
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    weight_a, weight_b = (1 / np.sqrt(smooth(v * v) + 1e-3) for v in (a, b))
    padded_b, padded_weight = (cv2.copyMakeBorder(v, *(reach,) * 4, cv2.BORDER_REPLICATE) for v in (b, weight_b))
    # The weight of `a` is the same at every offset, so it is multiplied in last.
    best = np.full(a.shape, -np.inf, np.float32)
    for dy, dx in offsets:
        moved = np.s_[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        np.maximum(best, smooth(a * padded_b[moved]) * padded_weight[moved], out=best)
    return weight_a * (smooth(a * b) * weight_b - best)
