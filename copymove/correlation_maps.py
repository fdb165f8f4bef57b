"""Normalised cross-correlation (NCC) of an aligned pair, locally and as a whole."""

from collections.abc import Sequence

import cv2
import numpy as np

from copymove.image_features import blur


def local_ncc(
    template: np.ndarray, partner: np.ndarray, valid: np.ndarray, noise: float, sigma: float = 2.5
) -> np.ndarray:
    """Zero-mean normalised correlation (h, w) float32 in a Gaussian window; drawn to 0 where there is no texture."""
    a, b = template - template.mean(), partner - partner.mean()
    ma, mb = blur(a, sigma), blur(b, sigma)
    va = np.maximum(blur(a * a, sigma) - ma * ma, 0)
    vb = np.maximum(blur(b * b, sigma) - mb * mb, 0)
    cov = blur(a * b, sigma) - ma * mb
    floor = 0.5 * noise * noise
    return np.where(valid, cov / np.sqrt((va + floor) * (vb + floor)), -1).astype(np.float32)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Zero-mean normalised correlation of two lists of values; 0 without variance."""
    if len(a) < 10:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a * a).mean() * (b * b).mean()))
    return float((a * b).mean() / power) if power > 1e-3 else 0.0


def fit_gain(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Least-squares (gain, offset) with a ~ gain * b + offset."""
    mean_a, mean_b = float(a.mean()), float(b.mean())
    gain = float(((a - mean_a) * (b - mean_b)).sum() / max(float(((b - mean_b) ** 2).sum()), 1e-6))
    return gain, mean_a - gain * mean_b


def ncc_lead(a: np.ndarray, b: np.ndarray, window: int, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Local correlation (h, w) of two structures, less the best of it where `b` is moved by one of (dy, dx)."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REPLICATE)

    height, width = a.shape
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    weight, weight_b = (1 / np.sqrt(smooth(v * v) + 1e-3) for v in (a, b))
    padded, weight_there = (cv2.copyMakeBorder(v, *(reach,) * 4, cv2.BORDER_REPLICATE) for v in (b, weight_b))
    elsewhere = np.full(a.shape, -np.inf, np.float32)
    for dy, dx in offsets:
        moved = np.s_[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        np.maximum(elsewhere, smooth(a * padded[moved]) * weight_there[moved], out=elsewhere)
    return weight * (smooth(a * b) * weight_b - elsewhere)


def zero_mean_ncc(a: np.ndarray, b: np.ndarray, sigma: float) -> np.ndarray:
    """Local correlation (h, w) of two structures whose mean is 0 everywhere."""
    return blur(a * b, sigma) / np.sqrt(blur(a * a, sigma) * blur(b * b, sigma) + 0.02)
