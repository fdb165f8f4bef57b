"""Regions: masks that are kept within their bounding boxes."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.geometry import transform_points


@dataclass(frozen=True)
class Region:
    """A mask that is kept within its bounding box, so that the evidence on large images stays small."""

    x: int  # left edge of the box in the image, pixels
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool

    def full(self, shape: tuple[int, int]) -> np.ndarray:
        """Mask (H, W) bool of the whole image, whose height and width are given."""
        full = np.zeros(shape, bool)
        h, w = self.mask.shape
        full[self.y : self.y + h, self.x : self.x + w] = self.mask
        return full


def deepest_point(region: Region) -> tuple[int, int, float]:
    """Pixel (x, y) of a region that lies deepest inside, and its distance from the edge in pixels."""
    depth = cv2.distanceTransform(np.pad(region.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return region.x + int(x), region.y + int(y), float(depth[y, x])


def points_in_mask(mask: np.ndarray, points: np.ndarray, left: int = 0, top: int = 0) -> np.ndarray:
    """Which points (n, 2) (x, y) of the image lie in a mask (h, w) whose left upper pixel is (left, top); (n,) bool."""
    h, w = mask.shape
    x, y = np.rint(points - (left, top)).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
    inside[inside] = mask[y[inside], x[inside]]
    return inside


def warp_region(region: Region, affine: np.ndarray, shape: tuple[int, int]) -> Region | None:
    """A region under a map (2, 3), cut at the border of the image (height, width); None where nothing remains."""
    h, w = region.mask.shape
    corners = np.array([[-1, -1], [w, -1], [-1, h], [w, h]], float)
    moved = transform_points(affine, corners + np.array([region.x, region.y]))
    x0, y0 = np.maximum(np.floor(moved.min(axis=0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(moved.max(axis=0)).astype(int) + 1, (shape[1], shape[0]))
    if x1 <= x0 or y1 <= y0:
        return None
    local = affine.copy()
    local[:, 2] += affine[:, :2] @ (region.x, region.y) - (x0, y0)
    mask = cv2.warpAffine(region.mask.astype(np.float32), local, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
    mask = mask > 0.5
    return Region(int(x0), int(y0), mask) if mask.any() else None


def overlap_area(a: Region, b: Region) -> int:
    """Pixels in both regions."""
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1 = min(a.x + a.mask.shape[1], b.x + b.mask.shape[1])
    y1 = min(a.y + a.mask.shape[0], b.y + b.mask.shape[0])
    if x1 <= x0 or y1 <= y0:
        return 0
    part_a = a.mask[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x]
    return int((part_a & b.mask[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]).sum())


def subtract_region(a: Region, b: Region) -> Region | None:
    """The part of region a that is not in region b, without its thinnest parts; None where nothing remains."""
    x0, y0 = min(a.x, b.x), min(a.y, b.y)
    shape = (
        max(a.y + a.mask.shape[0], b.y + b.mask.shape[0]) - y0,
        max(a.x + a.mask.shape[1], b.x + b.mask.shape[1]) - x0,
    )
    moved = (Region(r.x - x0, r.y - y0, r.mask).full(shape) for r in (a, b))
    rest = next(moved) & ~next(moved)
    rest = cv2.morphologyEx(rest.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    if not rest.any():
        return None
    return region_of_mask(rest, x0, y0)


def region_of_mask(mask: np.ndarray, x: int, y: int) -> Region:
    """Region of a mask (h, w), which must not be empty, whose left upper pixel is (x, y) in the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(x + int(columns[0]), y + int(rows[0]), part)


def is_same_region(a: Region, b: Region) -> bool:
    """Whether two regions count as one: they overlap by more than half of the smaller one."""
    return 2 * overlap_area(a, b) > min(a.mask.sum(), b.mask.sum())
