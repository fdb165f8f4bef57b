"""What happens to a finished image: JPEG, noise, blur, resizing."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from config import SynthesisSettings

DEGRADATION_WEIGHTS = {"jpeg": 0.7, "noise": 0.3, "blur": 0.3, "resize": 0.4}


def draw_degradation(settings: SynthesisSettings, rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the finished image goes through; None means not at all."""
    plan: dict[str, Any] = {"resize": None, "blur_sigma": None, "noise_sigma": None, "jpeg_quality": None}
    if rng.random() >= settings.degrade_probability or not settings.degradations:
        return plan
    chosen = {d for d in settings.degradations if rng.random() < DEGRADATION_WEIGHTS[d]}
    chosen = chosen or {settings.degradations[rng.integers(len(settings.degradations))]}
    if "resize" in chosen:
        # Two regions of the smallest size still fit into the image before it shrinks.
        least = max(
            0.5, 2.5 * settings.min_copy_pixels / max(shape[:2]), 1.25 * settings.min_copy_pixels / min(shape[:2])
        )
        plan["resize"] = float(np.round(rng.uniform(min(least, 1.0), 1.5), 3))
    if "blur" in chosen:
        plan["blur_sigma"] = float(np.round(rng.uniform(0.4, 1.2), 2))
    if "noise" in chosen:
        plan["noise_sigma"] = float(np.round(rng.uniform(1, 6), 2))
    if "jpeg" in chosen:
        plan["jpeg_quality"] = int(rng.integers(settings.min_jpeg_quality, settings.max_jpeg_quality + 1))
    return plan


def degrade(pixels: np.ndarray, size: tuple[int, int], plan: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Resize, blur, noise and JPEG, in this order, as far as planned."""
    if size != (pixels.shape[1], pixels.shape[0]):
        shrinks = size[0] < pixels.shape[1]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if plan["blur_sigma"] is not None:
        pixels = cv2.GaussianBlur(pixels, (0, 0), plan["blur_sigma"])
    if plan["noise_sigma"] is not None:
        grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
        noise = rng.standard_normal((*pixels.shape[:2], 1 if grey else 3), np.float32) * np.float32(plan["noise_sigma"])
        pixels = np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
    if plan["jpeg_quality"] is not None:
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, plan["jpeg_quality"]])
        pixels = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return pixels


def draw_index(weights: Sequence[float], rng: np.random.Generator) -> int:
    """Index drawn with probability proportional to its weight."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
