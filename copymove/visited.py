"""Maps that were looked at already."""

from collections.abc import Sequence

import numba
import numpy as np

from copymove.copies import Copy
from copymove.geometry import invert_affine


class VisitedTransforms:
    """Maps that were looked at: a candidate that says the same again is passed over."""

    def __init__(self) -> None:
        self.affines = np.zeros((0, 2, 3))
        self.boxes = np.zeros((0, 4))  # left, top, right, bottom: where the map holds
        self.limits = np.zeros((0, 2))  # pixels by which a candidate may differ, and how far from its centre

    def add(self, affine: np.ndarray, box: Sequence[float], tolerance: float, span: float = 0.0) -> None:
        """Remember a map (2, 3)."""
        self.affines = np.concatenate([self.affines, affine[None]])
        self.boxes = np.concatenate([self.boxes, np.array(box, float)[None]])
        self.limits = np.concatenate([self.limits, [[tolerance, span]]])

    def add_candidate(self, affine: np.ndarray, centre: np.ndarray) -> None:
        """Remember what is verified now: another one near it has to differ in its map."""
        self.add(affine, (*(centre - 10), *(centre + 10)), 4.0, 6.0)

    def add_region(self, affine: np.ndarray, x: int, y: int, mask: np.ndarray, tolerance: float) -> None:
        """Remember what a candidate grew to."""
        self.add(affine, (x - 2.5, y - 2.5, x + mask.shape[1] + 1.5, y + mask.shape[0] + 1.5), tolerance)

    def add_copy(self, copy: Copy) -> None:
        """Remember a copy that is kept, in both directions."""
        self.add_region(copy.affine, copy.source.x, copy.source.y, copy.source.mask, 4.0)
        self.add_region(invert_affine(copy.affine), copy.target.x, copy.target.y, copy.target.mask, 4.0)

    def __contains__(self, candidate: tuple[np.ndarray, np.ndarray]) -> bool:
        return _is_visited(*candidate, self.affines, self.boxes, self.limits)


@numba.njit(cache=True)
def _is_visited(
    affine: np.ndarray, centre: np.ndarray, affines: np.ndarray, boxes: np.ndarray, limits: np.ndarray
) -> bool:
    """Whether one of the maps that hold around the centre takes it, and what is near it, to the same place."""
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
