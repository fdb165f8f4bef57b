"""The distinct regions of an instance, and the order in which its copies are shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scipy.cluster.hierarchy import DisjointSet

if TYPE_CHECKING:
    from copymove.copies import Copy, Instance
    from copymove.regions import Region

SAME_REGION_IOU = 0.5  # regions that overlap at least so much are one

Pair = tuple[int, int]  # indices of a copy's source and target among the regions of its instance


def distinct_regions(instance: "Instance") -> tuple[list["Region"], list[Pair]]:
    """The distinct regions of an instance, and for each of its copies the indices (source, target) among them.

    All copies of one content start at the same source, whose mask may differ by a few pixels from one copy to the
    next: regions with an intersection over union of at least SAME_REGION_IOU count as one.
    """
    regions: list[Region] = []

    def index(region: "Region") -> int:
        for i, known in enumerate(regions):
            if _iou(known, region) >= SAME_REGION_IOU:
                return i
        regions.append(region)
        return len(regions) - 1

    return regions, [(index(copy.source), index(copy.target)) for copy in instance.copies]


def order_copies(copies: Sequence["Copy"], pairs: Sequence[Pair]) -> tuple[list[int], list[int]]:
    """In which order to show the copies of an instance, the strongest first.

    Returns:
        Indices of the copies that are enough to connect all regions (a spanning forest of the graph of regions), and
        indices of the other copies, which connect regions that are connected already.
    """
    ends = [region for pair in pairs for region in pair]
    hub = max(ends, key=ends.count, default=None)  # the region with most copies

    def rank(i: int) -> tuple[float, bool, float]:
        return -round(copies[i].score, 2), hub not in pairs[i], -copies[i].ncc

    connected = DisjointSet(set(ends))
    connecting, further = [], []
    for i in sorted(range(len(pairs)), key=rank):
        (connecting if connected.merge(*pairs[i]) else further).append(i)
    return connecting, further


def _iou(a: "Region", b: "Region") -> float:
    """Intersection over union of two regions, 0 to 1."""
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1 = min(a.x + a.mask.shape[1], b.x + b.mask.shape[1])
    y1 = min(a.y + a.mask.shape[0], b.y + b.mask.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    overlap = a.mask[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x] & b.mask[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]
    common = int(overlap.sum())
    return common / max(int(a.mask.sum()) + int(b.mask.sum()) - common, 1)
