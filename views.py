"""Pairs of views of an image, with the place of each cell of one view in the other: what pretraining learns from.

    views = ViewMaker(images, size=238)
    pair = views.make_pair(index, rng)

The first view of a pair is a crop. The second one is the same crop shifted, rotated, scaled or mirrored. Both change
their colours, and a part of the second may be pasted into another image, as a forger would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from config import PATCH
from images.letterbox import PADDING, LetterboxedImage

BASE_SIZE = 462  # longer side of an image, in pixels, at which views of scale 1 are taken
MIN_CONTRAST = 2.0  # standard deviation of grey values, of 255, under which a cell is too smooth to be an anchor


@dataclass(frozen=True)
class ViewPair:
    """Two views of an image, N = G * G cells each, and where each cell of one lies in the other."""

    images: np.ndarray  # (2, S, S, 3) uint8 RGB
    places: np.ndarray  # (2, N, 4) int64: the four cells of the other view around a cell's place
    weights: np.ndarray  # (2, N, 4) float32: the bilinear weights of the four; all 0 where a cell is no anchor


class ViewMaker:
    """Makes pairs of views from images that are kept in memory in two sizes."""

    def __init__(self, images: Sequence[np.ndarray], size: int) -> None:
        """Take images (H, W, 3) uint8 RGB; `size`: S, side of a view in pixels, a multiple of 14."""
        self.size = size
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []  # longer side BASE_SIZE and 2 x BASE_SIZE
        for image in images:
            no_masks = np.zeros((0, *image.shape[:2]), bool)
            sides = (BASE_SIZE, 2 * BASE_SIZE)
            self._levels.append(tuple(LetterboxedImage.of(image, no_masks, side).image for side in sides))

    def __len__(self) -> int:
        return len(self._levels)

    def make_pair(self, index: int, rng: np.random.Generator, difficulty: float = 1.0) -> ViewPair:
        """Make a pair of views of image `index`; `difficulty` from 0 to 1 as in `random_similarity`."""
        base = self._random_crop(index, rng)
        first, visible_first = self._view(index, base)
        change = random_similarity(self.size, rng, difficulty)
        second, visible_second = self._view(index, change @ base)
        if rng.random() < 0.7:
            area = random_area(self.size, rng)
            other = int(rng.integers(len(self._levels)))
            second = np.where(area[..., None], second, self._view(other, self._random_crop(other, rng))[0])
            visible_second = visible_second & area
        visible = (visible_first, visible_second)
        maps = (change, np.linalg.inv(change))
        found = [
            find_places(maps[k], find_anchors(view, visible[k]), visible[1 - k])
            for k, view in enumerate((first, second))
        ]
        images = np.stack([change_appearance(view, rng) for view in (first, second)])
        places, weights = (np.stack(values) for values in zip(*found, strict=True))
        return ViewPair(images, places, weights)

    def _random_crop(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """(3, 3) map from the small level's pixels to a view: scale 0.8 to 2, inside the image where possible."""
        height, width = self._levels[index][0].shape[:2]
        scale = math.exp(rng.uniform(math.log(0.8), math.log(2.0)))
        half = self.size / scale / 2
        centre = [rng.uniform(half, side - half) if side > 2 * half else side / 2 for side in (width, height)]
        middle = (self.size - 1) / 2
        return np.array([[scale, 0, middle - scale * centre[0]], [0, scale, middle - scale * centre[1]], [0, 0, 1.0]])

    def _view(self, index: int, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The view (S, S, 3) uint8 under a map from the small level, and (S, S) bool where it shows the image."""
        small, large = self._levels[index]
        scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        source = small
        if scale > 1:  # the large level has the detail
            ratio_x, ratio_y = small.shape[1] / large.shape[1], small.shape[0] / large.shape[0]
            # Pixel centres: (x + 0.5) * ratio - 0.5.
            shrink = np.array([[ratio_x, 0, ratio_x / 2 - 0.5], [0, ratio_y, ratio_y / 2 - 0.5], [0, 0, 1.0]])
            source, matrix = large, matrix @ shrink
        shape = (self.size, self.size)
        view = cv2.warpAffine(source, matrix[:2], shape, flags=cv2.INTER_LINEAR, borderValue=PADDING)
        inside = np.ones(source.shape[:2], np.uint8)
        return view, cv2.warpAffine(inside, matrix[:2], shape, flags=cv2.INTER_NEAREST) > 0


def random_similarity(size: int, rng: np.random.Generator, difficulty: float = 1.0) -> np.ndarray:
    """Draw a (3, 3) map of one view into the other: a similarity about the middle, and a shift.

    Tokens of patches that are cut alike match from the first step on, those of patches cut elsewhere hardly at all: a
    shift of 2 px lowers the share of cells that find their place from 0.7 to 0.2. So training starts with small
    changes. At `difficulty` 0 the shift is by whole cells; up to half a cell more comes with 1. From 0.3 on there are
    rotations, scales and mirror images, at 1 in half of the pairs.
    """
    angle, scale, flip = 0.0, 1.0, 1.0
    change = max(0.0, (difficulty - 0.3) / 0.7)
    if rng.random() < 0.5 * change:
        kind = rng.random()
        angle = 90.0 * rng.integers(4) if kind < 0.3 else rng.uniform(-180, 180) * change if kind < 0.7 else 0.0
        scale = math.exp(change * rng.uniform(math.log(0.6), math.log(1.6))) if rng.random() < 0.5 else 1.0
        flip = -1.0 if rng.random() < 0.35 else 1.0
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    linear = scale * np.array([[flip * cosine, -sine], [flip * sine, cosine]])
    middle = np.full(2, (size - 1) / 2)
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    shift = PATCH * (rng.integers(-1, 2, 2) + difficulty * rng.uniform(-0.5, 0.5, 2))
    matrix[:2, 2] = middle - linear @ middle + shift
    return matrix


def random_area(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth area (S, S) bool over 30 to 70 % of the view."""
    coarse = rng.standard_normal((int(rng.integers(3, 7)),) * 2).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return smooth > np.quantile(smooth, rng.uniform(0.3, 0.7))


def change_appearance(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness and contrast, blur, add noise, compress as JPEG: each in some views (S, S, 3) uint8."""
    if rng.random() < 0.5:
        view = cv2.convertScaleAbs(view, alpha=rng.uniform(0.75, 1.3), beta=rng.uniform(-25, 25))
    if rng.random() < 0.15:
        view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.2:
        noise = rng.normal(0, rng.uniform(2, 8), view.shape)
        view = np.clip(view + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, data = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])
        view = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return view


def find_anchors(view: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """(N,) bool: cells of a view (S, S, 3) that have contrast and of which at least half is visible, (S, S) bool."""
    grid = view.shape[0] // PATCH
    cells = (grid, PATCH, grid, PATCH)
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).reshape(cells)
    return ((grey.std(axis=(1, 3)) >= MIN_CONTRAST) & (visible.reshape(cells).mean(axis=(1, 3)) >= 0.5)).ravel()


def find_places(matrix: np.ndarray, anchors: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where the cells of a view lie in the other view.

    Args:
        matrix: (3, 3), pixel (x, y, 1) of the view -> pixel of the other. anchors: (N,) bool, the cells to look for.
        visible: (S, S) bool, where the other view shows the same content.
    Returns:
        places (N, 4) int64 and weights (N, 4) float32, see `ViewPair`. The weights are 0 also for anchors that lie
        outside of the other view's cells or where the content is not visible.
    """
    size = len(visible)
    grid = size // PATCH
    row, column = np.divmod(np.arange(grid * grid), grid)
    centres = np.stack([column, row, np.zeros_like(row)]) * PATCH + np.array([[6.5], [6.5], [1.0]])
    x, y = (matrix @ centres)[:2]
    nearest_x, nearest_y = (np.clip(np.rint(v), 0, size - 1).astype(np.int64) for v in (x, y))
    u, v = (x + 0.5) / PATCH - 0.5, (y + 0.5) / PATCH - 0.5  # in cells, whole numbers at their centres
    inside = (np.minimum(u, v) >= -0.5) & (np.maximum(u, v) <= grid - 0.5) & visible[nearest_y, nearest_x]
    u, v = np.clip(u, 0, grid - 1), np.clip(v, 0, grid - 1)
    left, top = np.minimum(u.astype(np.int64), grid - 2), np.minimum(v.astype(np.int64), grid - 2)
    du, dv = u - left, v - top
    places = np.stack([top * grid + left, top * grid + left + 1, (top + 1) * grid + left, (top + 1) * grid + left + 1])
    weights = np.stack([(1 - dv) * (1 - du), (1 - dv) * du, dv * (1 - du), dv * du]) * (anchors & inside)
    return places.T, weights.T.astype(np.float32)
