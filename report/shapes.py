"""Where a region lies and what its outline looks like."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from copymove.regions import Region

OUTLINE_POINTS = 400  # most corners of one outline


def bounding_box(region: "Region") -> list[int]:
    """Box [x, y, width, height] of a region's pixels in the image; of its whole mask where no pixel is set."""
    if not region.mask.any():
        return [int(region.x), int(region.y), region.mask.shape[1], region.mask.shape[0]]
    left, top, width, height = cv2.boundingRect(region.mask.astype(np.uint8))
    return [int(region.x) + left, int(region.y) + top, width, height]


def centroid(region: "Region") -> tuple[float, float]:
    """Mean (x, y) of a region's pixels; the middle of its mask's box where no pixel is set."""
    ys, xs = np.nonzero(region.mask)
    if len(xs) == 0:
        return region.x + (region.mask.shape[1] - 1) / 2, region.y + (region.mask.shape[0] - 1) / 2
    return region.x + float(xs.mean()), region.y + float(ys.mean())


def svg_path(mask: np.ndarray, x: int = 0, y: int = 0, corners: int = OUTLINE_POINTS) -> str:
    """The outline of a mask as the data of an SVG path.

    Args:
        mask: (h, w) bool.
        x, y: where the mask's upper left pixel lies in the image.
        corners: about how many corners the path may have; a mask with more is followed less closely.
    Returns:
        Closed polygons through the centres of the border pixels, holes included (fill rule evenodd); an empty
        string for an empty mask.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=len, reverse=True)[: corners // 4]
    tolerance = 0.5  # pixels between the outline and its polygon
    while True:
        polygons = [cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] for contour in contours]
        if sum(map(len, polygons)) <= corners or tolerance > max(mask.shape):
            break
        tolerance *= 1.5
    parts = []
    for points in polygons:
        parts.append("M" + "L".join(f"{px + x + 0.5:.1f} {py + y + 0.5:.1f}" for px, py in points) + "Z")
    return "".join(parts)
