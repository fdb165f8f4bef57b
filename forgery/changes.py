"""How a copy differs from its source: mirrored, rotated, scaled, in contrast and brightness."""

import math
from dataclasses import dataclass

import numpy as np

from config import SynthesisSettings

TRANSFORM_WEIGHTS = {"rotation": 0.4, "right-angle": 0.3, "scale": 0.35, "mirror": 0.35, "recolour": 0.4}


@dataclass(frozen=True)
class Change:
    """First mirrored left to right, then rotated, then scaled; then contrast and brightness."""

    rotation: float = 0.0  # degrees, clockwise as the image is shown
    scale: float = 1.0
    mirrored: bool = False
    brightness: float = 0.0  # added, in grey levels of 255
    contrast: float = 1.0  # factor of the difference from the mean of the content

    def linear(self) -> np.ndarray:
        """(2, 2) float64 matrix that maps x, y of the source to x, y of the copy; exact for multiples of 90 degrees."""
        angle = math.radians(self.rotation)
        cosine, sine = math.cos(angle), math.sin(angle)
        if self.rotation % 90 == 0:
            cosine, sine = round(cosine), round(sine)
        flip = -1.0 if self.mirrored else 1.0
        return self.scale * np.array([[flip * cosine, -sine], [flip * sine, cosine]], dtype=np.float64)

    def recolour(self, pixels: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Change contrast, about the mean of `content`, and brightness: uint8 -> uint8 of the same shape."""
        if self.contrast == 1.0 and self.brightness == 0.0:
            return pixels
        mean = content.mean()
        changed = (pixels.astype(np.float32) - mean) * self.contrast + mean + self.brightness
        return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def draw_change(settings: SynthesisSettings, kind: str, rng: np.random.Generator) -> Change:
    """Draw how a copy of a content of this kind is changed. Panels are rotated by right angles only."""
    allowed = [t for t in settings.copy_transforms if kind != "panel" or t != "rotation"]
    if rng.random() >= settings.transform_probability or not allowed:
        return Change()
    chosen = {t for t in allowed if rng.random() < TRANSFORM_WEIGHTS[t]}
    chosen = chosen or {allowed[rng.integers(len(allowed))]}
    rotation, scale, brightness, contrast = 0.0, 1.0, 0.0, 1.0
    if "rotation" in chosen:
        rotation = float(np.round(rng.uniform(5, 355), 2))
    elif "right-angle" in chosen:
        rotation = float(rng.choice([90, 180, 270]))
    if "scale" in chosen:
        scale = float(np.exp(rng.uniform(*np.log([settings.min_scale, settings.max_scale]))))
    if "recolour" in chosen:
        brightness = float(np.round(rng.uniform(-25, 25), 2))
        contrast = float(np.round(rng.uniform(0.8, 1.25), 3))
    return Change(rotation, scale, "mirror" in chosen, brightness, contrast)
