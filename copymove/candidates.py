"""Candidates: maps that a search proposes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Proposed maps."""

    affines: np.ndarray  # (n, 2, 3) float64
    centres: np.ndarray  # (n, 2) float64 (x, y)
    radii: np.ndarray  # (n,) float64, pixels
    votes: np.ndarray  # (n,) int64: matches that agree with the map
    likeness: np.ndarray  # (n,) float64: higher is better, comparable within one search only

    def __len__(self) -> int:
        return len(self.affines)

    def take(self, index: np.ndarray) -> "Candidates":
        """Those of an index or a bool mask."""
        return Candidates(
            self.affines[index], self.centres[index], self.radii[index], self.votes[index], self.likeness[index]
        )


def no_candidates() -> Candidates:
    """No candidates."""
    return Candidates(np.zeros((0, 2, 3)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0))


def concatenate_candidates(parts: Sequence[Candidates]) -> Candidates:
    """All candidates of several searches."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return no_candidates()
    return Candidates(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("affines", "centres", "radii", "votes", "likeness")
        )
    )
