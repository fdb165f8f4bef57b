"""Copies and instances: what a search returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from copymove.geometry import on_jpeg_grid
from copymove.regions import Region, is_same_region

UPRIGHT_DEGREES = 12.0  # rotation, up to right angles, below which a copy counts as upright
UPRIGHT_LOG_SCALE = 0.12  # the same for the logarithm of its scale


@dataclass(frozen=True)
class Copy:
    """One copy of a content, with the evidence for it."""

    kind: str  # the search that found it: exact, keypoints, objects or dense
    affine: np.ndarray  # (2, 3) float64: takes a source pixel (x, y, 1) to its place (x, y) in the copy
    support: int  # number of matches that agree with the map; of an exact copy the pixels that identical blocks cover
    ncc: float  # median local zero-mean normalised cross-correlation of the aligned pair, -1 to 1
    score: float  # calibrated probability of a true copy, 0 to 1
    source: Region
    target: Region

    @property
    def mirrored(self) -> bool:
        """Whether the map mirrors the content."""
        return bool(np.linalg.det(self.affine[:, :2]) < 0)

    @property
    def scale(self) -> float:
        """Length in the copy of one pixel of the source (geometric mean of both axes)."""
        return float(math.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    @property
    def rotation(self) -> float:
        """Rotation of the source's x axis in degrees, counter-clockwise as seen on the screen, -180 to 180.

        For a mirrored copy: the rotation after the source was flipped left to right.
        """
        x_axis = self.affine[:, 0] * (-1 if self.mirrored else 1)
        return float(math.degrees(math.atan2(-x_axis[1], x_axis[0])))


@dataclass(frozen=True)
class ProposalStatistics:
    """What the search that proposed a copy says about it; counts are kept as counts."""

    votes: int  # matches that agreed with the map when it was proposed, at least 1
    places: int  # places of the verified region at which candidates of the same search agree with its map
    median_ncc: float  # median correlation of the fine structure over all candidates of that search in this image


@dataclass(frozen=True)
class VerifiedCopy:
    """A copy that was aligned and measured, with what its score was computed from."""

    copy: Copy
    features: dict[str, float] = field(default_factory=dict)  # see `scoring.FEATURES`; empty for an exact copy
    proposal: ProposalStatistics | None = None  # None for an exact copy


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
    seconds: dict[str, float] = field(default_factory=dict)  # by the name of the stage
    verified: tuple[VerifiedCopy, ...] = ()  # best first, also those below the threshold; masks before refinement
    searched: float = 1.0  # share of the image in which copies were sought, 0 to 1: the rest is drawn, text or ground

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Every verified copy."""
        return tuple(verified.copy for verified in self.verified)

    @property
    def features(self) -> tuple[dict[str, float], ...]:
        """The features of every verified copy."""
        return tuple(verified.features for verified in self.verified)


def copy_on_jpeg_grid(copy: Copy) -> bool:
    """Whether the map takes the image's JPEG blocks onto JPEG blocks."""
    height, width = copy.source.mask.shape
    return on_jpeg_grid(copy.affine, np.array([copy.source.x + width / 2, copy.source.y + height / 2]))


def share_content(a: Copy, b: Copy) -> bool:
    """Whether two copies have a region in common."""
    return any(is_same_region(one, other) for one in (a.source, a.target) for other in (b.source, b.target))


def is_upright(copy: Copy) -> bool:
    """Whether a copy is hardly rotated, up to right angles, and hardly resized, as windows and tiles repeat."""
    return abs((copy.rotation + 45) % 90 - 45) < UPRIGHT_DEGREES and abs(math.log(copy.scale)) < UPRIGHT_LOG_SCALE


def group_copies(copies: Sequence[Copy], shape: tuple[int, int]) -> list[Instance]:
    """Instances of copies, best first: the connected components of the graph in which copies share a region.

    Two regions are shared when they overlap by half of the smaller one; contents that merely touch stay apart.

    Args:
        shape: height and width of the image.
    """
    groups = DisjointSet(range(len(copies)))
    for i, a in enumerate(copies):
        for j in range(i):
            if share_content(a, copies[j]):
                groups.merge(i, j)
    instances = []
    for subset in sorted(map(sorted, groups.subsets())):
        members = tuple(copies[i] for i in subset)
        mask = np.zeros(shape, bool)
        for copy in members:
            for region in (copy.source, copy.target):
                h, w = region.mask.shape
                mask[region.y : region.y + h, region.x : region.x + w] |= region.mask
        instances.append(Instance(mask, max(copy.score for copy in members), members))
    return sorted(instances, key=lambda instance: -instance.score)
