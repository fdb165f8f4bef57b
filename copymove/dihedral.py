"""The eight orientations of an image: the search runs in one of them, whichever orientation was given.

An orientation is a number from 0 to 7, the sum of three bits: 4 transposes the image, then 2 flips it upside down,
then 1 flips it left to right.
"""

import zlib
from dataclasses import replace

import numpy as np

from copymove.copies import Copy, Instance, SearchResult
from copymove.regions import Region

TRANSPOSED, UPSIDE_DOWN, LEFT_TO_RIGHT = 4, 2, 1
CHECKSUM_SIDE = 512  # side in pixels of the image's middle, whose checksums usually decide the orientation


def apply_dihedral(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W, ...) brought to another orientation, 0 to 7; 0 leaves it as it is."""
    return np.ascontiguousarray(_flipped(array.swapaxes(0, 1) if orientation & TRANSPOSED else array, orientation))


def canonical_orientation(image: np.ndarray) -> int:
    """The orientation in which an image (H, W, 3) is searched: that of the smallest checksum.

    A mirrored or rotated image thus is searched in the same orientation as the image itself, and gives the mirrored
    or rotated findings to the last pixel. A search by keypoints alone does not have this property.
    """
    edges = [max((side - CHECKSUM_SIDE) // 2, 0) for side in image.shape[:2]]
    middle = image[edges[0] : image.shape[0] - edges[0], edges[1] : image.shape[1] - edges[1]]
    for part in (middle, image):  # the middle is enough, unless it is symmetrical
        sums = [zlib.crc32(apply_dihedral(part, orientation)) for orientation in range(8)]
        if sums.count(min(sums)) == 1:
            break
    return int(np.argmin(sums))


def undo_orientation(found: SearchResult, orientation: int, shape: tuple[int, int]) -> SearchResult:
    """Findings in the coordinates of the image as it was given, before `apply_dihedral`.

    Args:
        shape: height and width of the given image.
    """
    if orientation == 0:
        return found
    there = _pixel_map(orientation, shape)
    back = np.linalg.inv(there)

    def mask(values: np.ndarray) -> np.ndarray:
        values = _flipped(values, orientation)
        return np.ascontiguousarray(values.T if orientation & TRANSPOSED else values)

    def region(old: Region) -> Region:
        h, w = old.mask.shape
        corners = np.array([[old.x, old.y, 1], [old.x + w - 1, old.y + h - 1, 1]]) @ back.T
        x, y = np.rint(corners[:, :2].min(axis=0)).astype(int)
        return Region(int(x), int(y), mask(old.mask))

    def copy(old: Copy) -> Copy:
        affine = (back @ np.vstack([old.affine, [0, 0, 1]]) @ there)[:2]
        return replace(old, affine=affine, source=region(old.source), target=region(old.target))

    return replace(
        found,
        instances=tuple(Instance(mask(old.mask), old.score, tuple(map(copy, old.copies))) for old in found.instances),
        verified=tuple(replace(old, copy=copy(old.copy)) for old in found.verified),
    )


def _flipped(array: np.ndarray, orientation: int) -> np.ndarray:
    return array[:: -1 if orientation & UPSIDE_DOWN else 1, :: -1 if orientation & LEFT_TO_RIGHT else 1]


def _pixel_map(orientation: int, shape: tuple[int, int]) -> np.ndarray:
    """(3, 3) map of a pixel (x, y, 1) of the given image (height, width) to its place in the oriented one."""
    height, width = (shape[1], shape[0]) if orientation & TRANSPOSED else shape
    there = np.eye(3)
    if orientation & TRANSPOSED:
        there = there[[1, 0, 2]]
    if orientation & UPSIDE_DOWN:
        there = np.array([[1, 0, 0], [0, -1, height - 1], [0, 0, 1]]) @ there
    if orientation & LEFT_TO_RIGHT:
        there = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ there
    return there
