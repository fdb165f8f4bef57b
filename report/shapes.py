"""Outlines, boxes and regions for the page."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    pass
from copymove.copies import Instance
from copymove.regions import Region

OUTLINE_POINTS = 400  # most corners of one outline


def bounding_box(region: "Region") -> list[int]:
    """Box [x, y, width, height] of a region's pixels in the image; that of its mask when it is empty."""
    ys, xs = np.nonzero(region.mask)
    if len(xs) == 0:
        return [int(region.x), int(region.y), region.mask.shape[1], region.mask.shape[0]]
    left, top = int(xs.min()), int(ys.min())
    return [int(region.x) + left, int(region.y) + top, int(xs.max()) - left + 1, int(ys.max()) - top + 1]


def centroid(region: "Region") -> tuple[float, float]:
    """Mean (x, y) of a region's pixels; the middle of its box when the mask is empty."""
    ys, xs = np.nonzero(region.mask)
    if len(xs) == 0:
        return region.x + (region.mask.shape[1] - 1) / 2, region.y + (region.mask.shape[0] - 1) / 2
    return region.x + float(xs.mean()), region.y + float(ys.mean())


def svg_path(mask: np.ndarray, x: int = 0, y: int = 0, corners: int = OUTLINE_POINTS) -> str:
    """SVG path around a mask.

    Args:
        mask: (h, w) bool.
        x, y: place of the mask's first pixel in the image.
        corners: about how many corners the path may have; it follows the mask less closely where there are more.
    Returns:
        Path data of closed polygons through the middles of the border pixels, holes included (fill rule evenodd);
        empty for an empty mask.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=len, reverse=True)[: corners // 4]
    tolerance = 0.5
    while True:
        simple = [cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] for contour in contours]
        if sum(map(len, simple)) <= corners or tolerance > max(mask.shape):
            break
        tolerance *= 1.5
    parts = []
    for points in simple:
        parts.append("M" + "L".join(f"{px + x + 0.5:.1f} {py + y + 0.5:.1f}" for px, py in points) + "Z")
    return "".join(parts)


def distinct_regions(instance: "Instance") -> tuple[list["Region"], list[tuple[int, int]]]:
    """The distinct regions of an instance, and for each copy the indices (source, target) among them.

    The copies of one content share their source, up to a few pixels: regions whose masks overlap with an IoU of
    at least 0.5 are one.
    """
    regions: list[Region] = []

    def index(region: "Region") -> int:
        for i, known in enumerate(regions):
            if _iou(known, region) >= 0.5:
                return i
        regions.append(region)
        return len(regions) - 1

    return regions, [(index(copy.source), index(copy.target)) for copy in instance.copies]


def _iou(a: "Region", b: "Region") -> float:
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1 = min(a.x + a.mask.shape[1], b.x + b.mask.shape[1])
    y1 = min(a.y + a.mask.shape[0], b.y + b.mask.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    overlap = a.mask[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x] & b.mask[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]
    common = int(overlap.sum())
    return common / max(int(a.mask.sum()) + int(b.mask.sum()) - common, 1)
