"""What happens to a finished image: it is resized, blurred, gets noise, and is saved as JPEG."""

from dataclasses import dataclass

import cv2
import numpy as np

from config import SynthesisSettings

DEGRADATION_WEIGHTS = {"jpeg": 0.7, "noise": 0.3, "blur": 0.3, "resize": 0.4}


@dataclass(frozen=True)
class DegradationPlan:
    """The degradations of one image; None means that it is left out. The names are those of the record."""

    resize: float | None = None  # factor of both sides
    blur_sigma: float | None = None  # of a Gaussian, in pixels
    noise_sigma: float | None = None  # of Gaussian noise, in grey levels of 255
    jpeg_quality: int | None = None  # 1 to 100

    def final_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the finished image in pixels."""
        if self.resize is None:
            return width, height
        return max(1, round(width * self.resize)), max(1, round(height * self.resize))


def draw_degradation(settings: SynthesisSettings, rng: np.random.Generator, shape: tuple[int, ...]) -> DegradationPlan:
    """Draw the degradations of an image of `shape` (H, W, ...)."""
    if rng.random() >= settings.degrade_probability or not settings.degradations:
        return DegradationPlan()
    chosen = {d for d in settings.degradations if rng.random() < DEGRADATION_WEIGHTS[d]}
    chosen = chosen or {settings.degradations[rng.integers(len(settings.degradations))]}
    resize = blur_sigma = noise_sigma = jpeg_quality = None
    if "resize" in chosen:
        # Two regions of the smallest size must still fit into the image before it shrinks.
        smallest, longer, shorter = settings.min_copy_pixels, max(shape[:2]), min(shape[:2])
        least = max(0.5, 2.5 * smallest / longer, 1.25 * smallest / shorter)
        resize = float(np.round(rng.uniform(min(least, 1.0), 1.5), 3))
    if "blur" in chosen:
        blur_sigma = float(np.round(rng.uniform(0.4, 1.2), 2))
    if "noise" in chosen:
        noise_sigma = float(np.round(rng.uniform(1, 6), 2))
    if "jpeg" in chosen:
        jpeg_quality = int(rng.integers(settings.min_jpeg_quality, settings.max_jpeg_quality + 1))
    return DegradationPlan(resize, blur_sigma, noise_sigma, jpeg_quality)


def degrade(pixels: np.ndarray, plan: DegradationPlan, rng: np.random.Generator) -> np.ndarray:
    """Apply the planned degradations, in the order of the plan's fields, to an image (H, W, 3) uint8 RGB."""
    height, width = pixels.shape[:2]
    size = plan.final_size(width, height)
    if size != (width, height):
        shrinks = size[0] < width
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if plan.blur_sigma is not None:
        pixels = cv2.GaussianBlur(pixels, (0, 0), plan.blur_sigma)
    if plan.noise_sigma is not None:
        grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
        noise = rng.standard_normal((*pixels.shape[:2], 1 if grey else 3), np.float32) * np.float32(plan.noise_sigma)
        pixels = np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
    if plan.jpeg_quality is not None:
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, plan.jpeg_quality])
        pixels = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return pixels
