"""Candidates: affine maps that a search proposes, before anything is aligned or measured."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Proposed maps of a source disc onto its supposed copy."""

    affines: np.ndarray  # (n, 2, 3) float64: takes a source pixel (x, y, 1) to its place (x, y) in the copy
    centres: np.ndarray  # (n, 2) float64: centre (x, y) of the source disc
    radii: np.ndarray  # (n,) float64: radius of the source disc in pixels
    votes: np.ndarray  # (n,) int64: number of matches that agree with the map, at least 1
    likeness: np.ndarray  # (n,) float64: higher is better; comparable within one search only

    def __len__(self) -> int:
        return len(self.affines)

    def take(self, index: np.ndarray) -> "Candidates":
        """The candidates of an index array or a bool mask."""
        return Candidates(*(getattr(self, column.name)[index] for column in fields(self)))


def no_candidates() -> Candidates:
    """An empty table."""
    return Candidates(np.zeros((0, 2, 3)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0))


def concatenate_candidates(parts: Sequence[Candidates]) -> Candidates:
    """All candidates of several searches in one table."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return no_candidates()
    return Candidates(*(np.concatenate([getattr(p, column.name) for p in parts]) for column in fields(Candidates)))
