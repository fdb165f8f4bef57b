"""Geometric evidence: pairs of regions of one picture that are copies of each other, proven on the pixels."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """A mask kept as its bounding box, so that evidence on large pictures stays small."""

    x: int  # left edge of the box in the picture, pixels
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool

    def full(self, shape: tuple[int, int]) -> np.ndarray:
        """Mask (H, W) bool of the whole picture."""
        full = np.zeros(shape, bool)
        h, w = self.mask.shape
        full[self.y : self.y + h, self.x : self.x + w] = self.mask
        return full


@dataclass(frozen=True)
class Copy:
    """One copy of a content, and the proof that it is one."""

    kind: str  # which search found it: exact, keypoints, objects or dense
    affine: np.ndarray  # (2, 3) float64: takes a source pixel (x, y, 1) to its place (x, y) in the copy
    inliers: int  # keypoints or blocks that agree with the affine map
    correlation: float  # median local zero-mean normalised correlation of the aligned pair, -1 to 1
    score: float  # calibrated probability of a true copy, 0 to 1
    source: Region
    target: Region

    @property
    def mirrored(self) -> bool:
        """Whether the map turns the content over."""
        return bool(np.linalg.det(self.affine[:, :2]) < 0)

    @property
    def scale(self) -> float:
        """Length in the copy of one pixel of the source (geometric mean of both axes)."""
        return float(math.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    @property
    def rotation(self) -> float:
        """Turn of the source's x axis in degrees, counter-clockwise as seen on the screen, -180 to 180.

        For a mirrored copy: the turn after flipping the source left to right.
        """
        x_axis = self.affine[:, 0] * (-1 if self.mirrored else 1)
        return float(math.degrees(math.atan2(-x_axis[1], x_axis[0])))


@dataclass(frozen=True)
class Instance:
    """One duplicated content: its source and all of its copies together."""

    mask: np.ndarray  # (H, W) bool
    score: float  # 0 to 1
    copies: tuple[Copy, ...]  # the evidence; empty where only the embedding proposes the instance
