"""The eight orientations of an image: one of them is searched, whichever was given."""

import zlib
from dataclasses import replace

import numpy as np

from copymove.copies import Copy, Instance, SearchResult
from copymove.regions import Region


def apply_dihedral(array: np.ndarray, way: int) -> np.ndarray:
    """Array (H, W, ...) laid another way, 0 to 7: transposed (4), then upside down (2), then left to right (1)."""
    array = array.swapaxes(0, 1) if way & 4 else array
    return np.ascontiguousarray(array[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1])


def canonical_orientation(image: np.ndarray) -> int:
    """The way in which an image is searched: a mirrored or turned image is searched the same way as itself.

    So it gives the mirrored or turned findings to the last pixel, which no search by keypoints does by itself.
    """
    edges = [max(side // 2 - 256, 0) for side in image.shape[:2]]
    middle = image[edges[0] : image.shape[0] - edges[0], edges[1] : image.shape[1] - edges[1]]
    for part in (middle, image):  # the middle is enough, unless it is symmetrical
        sums = [zlib.crc32(apply_dihedral(part, way)) for way in range(8)]
        if sums.count(min(sums)) == 1:
            break
    return int(np.argmin(sums))


def undo_orientation(found: SearchResult, way: int, shape: tuple[int, int]) -> SearchResult:
    """Findings in the image (H, W) as it was given."""
    if way == 0:
        return found
    height, width = (shape[1], shape[0]) if way & 4 else shape
    there = np.eye(3)
    if way & 4:
        there = there[[1, 0, 2]]
    if way & 2:
        there = np.array([[1, 0, 0], [0, -1, height - 1], [0, 0, 1]]) @ there
    if way & 1:
        there = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ there
    back = np.linalg.inv(there)

    def mask(values: np.ndarray) -> np.ndarray:
        values = values[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1]
        return np.ascontiguousarray(values.T if way & 4 else values)

    def region(old: Region) -> Region:
        h, w = old.mask.shape
        corners = np.array([[old.x, old.y, 1], [old.x + w - 1, old.y + h - 1, 1]]) @ back.T
        x, y = np.rint(corners[:, :2].min(axis=0)).astype(int)
        return Region(int(x), int(y), mask(old.mask))

    def copy(old: Copy) -> Copy:
        affine = (back @ np.vstack([old.affine, [0, 0, 1]]) @ there)[:2]
        return replace(old, affine=affine, source=region(old.source), target=region(old.target))

    instances = tuple(Instance(mask(old.mask), old.score, tuple(map(copy, old.copies))) for old in found.instances)
    return replace(found, instances=instances, copies=tuple(map(copy, found.copies)))
