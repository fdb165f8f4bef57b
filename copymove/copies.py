"""Copies and instances: what a search returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from copymove.geometry import on_jpeg_grid
from copymove.regions import Region, is_same_region


@dataclass(frozen=True)
class Copy:
    """One copy of a content, and the proof that it is one."""

    kind: str  # which search found it: exact, keypoints, objects or dense
    affine: np.ndarray  # (2, 3) float64: takes a source pixel (x, y, 1) to its place (x, y) in the copy
    support: int  # keypoints or blocks that agree with the affine map
    ncc: float  # median local zero-mean normalised correlation of the aligned pair, -1 to 1
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


@dataclass(frozen=True)
class SearchResult:
    """What was found in one image."""

    instances: tuple[Instance, ...]  # best first
    complete: bool  # False when the time budget ended the search
    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    copies: tuple[Copy, ...] = ()  # every verified copy as it was proven, also those below the threshold; best first
    features: tuple[dict[str, float], ...] = ()  # what the calibration looked at, for each of `copies`; empty for exact


def copy_on_jpeg_grid(copy: Copy) -> bool:
    """Whether the map takes the image's JPEG blocks onto blocks."""
    height, width = copy.source.mask.shape
    return on_jpeg_grid(copy.affine, np.array([copy.source.x + width / 2, copy.source.y + height / 2]))


def share_content(a: Copy, b: Copy) -> bool:
    """Whether two copies have a region in common."""
    return any(is_same_region(one, other) for one in (a.source, a.target) for other in (b.source, b.target))


def is_upright(copy: Copy) -> bool:
    """Whether a copy is hardly turned, up to right angles, and hardly resized: so repeats in photographs lie."""
    return abs((copy.rotation + 45) % 90 - 45) < 12 and abs(math.log(copy.scale)) < 0.12


def group_copies(copies: Sequence[Copy], shape: tuple[int, int]) -> list[Instance]:
    """Instances of copies: those that share a region belong to one content (graph of matches); best first.

    Regions are shared when they overlap by half of the smaller one; contents that merely touch stay apart.
    """
    parent = list(range(len(copies)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, a in enumerate(copies):
        for j in range(i):
            if share_content(a, copies[j]):
                parent[root(i)] = root(j)
    groups: dict[int, list[Copy]] = {}
    for i, copy in enumerate(copies):
        groups.setdefault(root(i), []).append(copy)
    instances = []
    for members in groups.values():
        mask = np.zeros(shape, bool)
        for copy in members:
            for region in (copy.source, copy.target):
                h, w = region.mask.shape
                mask[region.y : region.y + h, region.x : region.x + w] |= region.mask
        instances.append(Instance(mask, max(copy.score for copy in members), tuple(members)))
    return sorted(instances, key=lambda instance: -instance.score)
