"""The one inference path: a picture goes in, a `Detection` comes out."""

from dataclasses import dataclass

import numpy as np

from matching import Instance


@dataclass(frozen=True)
class Detection:
    """What was found in one picture."""

    shape: tuple[int, int]  # height and width of the picture in pixels
    score: float  # 0 to 1: the best instance's score, 0 when nothing was found
    instances: tuple[Instance, ...]  # best first; masks (H, W) bool
    seconds: float  # time spent on this picture
    complete: bool = True  # False when the time budget ended the search early
    grid: np.ndarray | None = None  # (g_h, g_w) int64 labels of the cascade over the picture: 0 nothing, 1..n instance
    anomaly: np.ndarray | None = None  # (g_h, g_w) float32 cosine distance of each cell from the picture's mean
    reason: str = ""  # why the cascade decided as it did

    @property
    def masks(self) -> np.ndarray:
        """Instance masks (N, H, W) bool."""
        if not self.instances:
            return np.zeros((0, *self.shape), bool)
        return np.stack([instance.mask for instance in self.instances])
