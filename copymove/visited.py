"""The maps that a search has verified already."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numba
import numpy as np

from copymove.copies import Copy
from copymove.geometry import invert_affine

CANDIDATE_REACH = 10.0  # half the side of the square around a candidate's centre in which its map counts as visited
CANDIDATE_TOLERANCE = 4.0  # pixels by which another candidate there must differ in its map to be verified too
CANDIDATE_SPAN = 6.0  # distance from the centre, in pixels, up to which the two maps are compared
GROWN_TOLERANCE = 1.5  # the tolerance within a grown region, whose map may be poor and not be kept, so it is small
COPY_TOLERANCE = 4.0  # the tolerance within the regions of a verified copy


@dataclass(frozen=True)
class VisitedTransforms:
    """Maps that were verified already, each with the box in which it holds; what adds a map returns a new object.

    `(affine, centre) in visited` tells whether a candidate proposes one of these maps again.
    """

    affines: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3)))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # left, top, right, bottom
    limits: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # tolerance and span of each, in pixels

    def with_map(
        self, affine: np.ndarray, box: Sequence[float], tolerance: float, span: float = 0.0
    ) -> "VisitedTransforms":
        """Add a map (2, 3).

        Args:
            box: left, top, right, bottom: a candidate is compared with the map where its centre lies inside.
            tolerance: pixels by which a candidate must differ to be another one.
            span: distance from the candidate's centre, in pixels, up to which the maps are compared.
        """
        return VisitedTransforms(
            np.concatenate([self.affines, affine[None]]),
            np.concatenate([self.boxes, np.array(box, float)[None]]),
            np.concatenate([self.limits, [[tolerance, span]]]),
        )

    def with_candidate(self, affine: np.ndarray, centre: np.ndarray) -> "VisitedTransforms":
        """Add a candidate that is about to be verified."""
        box = (*(centre - CANDIDATE_REACH), *(centre + CANDIDATE_REACH))
        return self.with_map(affine, box, CANDIDATE_TOLERANCE, CANDIDATE_SPAN)

    def with_region(
        self, affine: np.ndarray, x: int, y: int, mask: np.ndarray, tolerance: float = GROWN_TOLERANCE
    ) -> "VisitedTransforms":
        """Add the region that a candidate grew to: a mask (h, w) whose left upper pixel is (x, y)."""
        return self.with_map(affine, (x - 2.5, y - 2.5, x + mask.shape[1] + 1.5, y + mask.shape[0] + 1.5), tolerance)

    def with_copy(self, copy: Copy) -> "VisitedTransforms":
        """Add a verified copy, in both directions."""
        source, target = copy.source, copy.target
        there = self.with_region(copy.affine, source.x, source.y, source.mask, COPY_TOLERANCE)
        return there.with_region(invert_affine(copy.affine), target.x, target.y, target.mask, COPY_TOLERANCE)

    def __contains__(self, candidate: tuple[np.ndarray, np.ndarray]) -> bool:
        return _is_visited(*candidate, self.affines, self.boxes, self.limits)


@numba.njit(cache=True)
def _is_visited(
    affine: np.ndarray, centre: np.ndarray, affines: np.ndarray, boxes: np.ndarray, limits: np.ndarray
) -> bool:
    """Whether a visited map whose box holds the centre takes the centre, and points near it, to the same place."""
    x, y = centre
    for i in range(len(affines)):
        if not (boxes[i, 0] < x < boxes[i, 2] and boxes[i, 1] < y < boxes[i, 3]):
            continue
        apart, span = affines[i] - affine, limits[i, 1]
        most = 0.0
        for dx, dy in ((0.0, 0.0), (span, 0.0), (0.0, span)):
            for r in range(2):
                most = max(most, abs(apart[r, 0] * (x + dx) + apart[r, 1] * (y + dy) + apart[r, 2]))
        if most < limits[i, 0]:
            return True
    return False
