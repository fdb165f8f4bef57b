"""Affine maps (2, 3) that take a pixel (x, y, 1) to a pixel (x, y)."""

import numpy as np

Box = tuple[int, int, int, int]  # a window of the image in pixels: left, top, right, bottom


def scale_factor(affine: np.ndarray) -> float:
    """Length that one pixel has after the map: the geometric mean over both axes."""
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def invert_affine(affine: np.ndarray) -> np.ndarray:
    """Inverse of a map (2, 3), or of many (n, 2, 3)."""
    (a, b), (c, d) = affine[..., 0, :2].T, affine[..., 1, :2].T
    linear = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2) / (a * d - b * c)[..., None, None]
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def transform_points(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where a map takes points (n, 2), both as (x, y)."""
    return points @ affine[:, :2].T + affine[:, 2]


def nearest_integer_map(affine: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The map (2, 3) of whole numbers that is nearest to a map at a point (2,); or of many (n, ...)."""
    linear = np.rint(affine[..., :2])
    shift = np.rint(np.einsum("...ij,...j->...i", affine[..., :2] - linear, point) + affine[..., 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)


def similarity_maps(
    source: np.ndarray, target: np.ndarray, scale: np.ndarray, angle: np.ndarray, mirrored: bool
) -> np.ndarray:
    """Maps (n, 2, 3) that take points (n, 2) to points (n, 2).

    Args:
        source, target: (n, 2) as (x, y).
        scale: (n,). angle: (n,) in radians, from x towards y.
        mirrored: whether y is flipped before the rotation.
    """
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    flip = -1.0 if mirrored else 1.0
    linear = np.stack([np.stack([cos, -sin * flip], 1), np.stack([sin, cos * flip], 1)], 1)
    return np.concatenate([linear, (target - np.einsum("nij,nj->ni", linear, source))[:, :, None]], axis=2)


def on_jpeg_grid(affine: np.ndarray, point: np.ndarray) -> bool:
    """Whether a map (2, 3) takes JPEG's blocks of 8 x 8 pixels onto such blocks near a point (x, y).

    To a third of a pixel, and wherever the first block begins, for an image may have been cropped or turned after it
    was saved as JPEG. Copies on the grid were rounded alike, so that they are more alike than others.
    """
    linear = np.rint(affine[:, :2])
    if abs(abs(np.linalg.det(linear)) - 1) > 1e-6 or np.abs(affine[:, :2] - linear).max() > 0.02:
        return False
    shift = affine[:, :2] @ point + affine[:, 2] - linear @ point
    corners = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2) - 0.5
    moved = corners @ linear.T + shift - corners
    return bool((np.abs((moved + 4) % 8 - 4) < 1 / 3).all(axis=1).any())
