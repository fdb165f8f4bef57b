"""Images in which something was copied under a known map, for the tests of the search."""

import cv2
import numpy as np
import skimage.data
from scipy import ndimage

from copymove.geometry import similarity_maps


def camera() -> np.ndarray:
    """(512, 512, 3) uint8."""
    return np.repeat(skimage.data.camera()[..., None], 3, axis=2)


def astronaut() -> np.ndarray:
    """(384, 384, 3) uint8; without the flag, whose stars are true repeats."""
    return np.ascontiguousarray(skimage.data.astronaut()[:384, 110:494])


def textured(height=200, width=260, seed=0, smooth=2.0) -> np.ndarray:
    """(H, W, 3) uint8 with structure everywhere and no two places alike."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    noise = ndimage.gaussian_filter(noise, (smooth, smooth, 0))
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def grainy() -> np.ndarray:
    """(400, 320, 3) uint8 of grain six grey levels strong on a smooth ground."""
    rng = np.random.default_rng(8)
    grain = cv2.GaussianBlur(rng.normal(0, 22, (400, 320)), (0, 0), 1.0)
    ground = cv2.GaussianBlur(rng.normal(0, 900, (400, 320)), (0, 0), 20)
    return np.repeat(np.clip(np.rint(120 + grain + ground), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def affine_map(source, target, degrees=0.0, scale=1.0, mirrored=False) -> np.ndarray:
    """(2, 3) map of one point to another; turned counter-clockwise as seen on the screen."""
    return similarity_maps(
        np.array([source], float), np.array([target], float), np.array([scale]), np.deg2rad([-degrees]), mirrored
    )[0]


def disc_mask(shape, centre, radius) -> np.ndarray:
    """(H, W) bool: True on a disc around (x, y)."""
    return cv2.circle(np.zeros(shape[:2], np.uint8), centre, radius, 1, -1) > 0


def paste(image, affine, centre, radius) -> tuple[np.ndarray, np.ndarray]:
    """Image with a disc copied under the map, and the mask of both discs."""
    size = image.shape[1::-1]
    source = disc_mask(image.shape, centre, radius)
    target = cv2.warpAffine(source.view(np.uint8), affine, size, flags=cv2.INTER_NEAREST) > 0
    moved = cv2.warpAffine(image, affine, size, flags=cv2.INTER_CUBIC)
    return np.where(target[..., None], moved, image), target | source


def shaded_copy(image) -> tuple[np.ndarray, np.ndarray]:
    """Image with a square of 44 px copied by (150, 90), its contrast and shading changed; mask of both squares."""
    y, x = np.mgrid[:44, :44]
    shading = 0.9 * image[200:244, 60:104] + (10 + 0.6 * x - 0.4 * y)[..., None]
    out = image.copy()
    out[290:334, 210:254] = np.clip(np.rint(shading), 0, 255)
    mask = np.zeros(image.shape[:2], bool)
    mask[200:244, 60:104] = mask[290:334, 210:254] = True
    return out, mask


def jpeg(image, quality) -> np.ndarray:
    """Image (H, W, 3) or (H, W) as it is after saving it as JPEG."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_UNCHANGED)


def f1(a, b) -> float:
    """F1 of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())
