"""Candidates that agree on a small disc, and the order in which they are verified over their whole regions."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from copymove.candidates import Candidates
from copymove.copies import Instance
from copymove.exactness import NEAR_EXACT
from copymove.image_features import ImageFeatures
from copymove.regions import points_in_mask
from copymove.screening import MAX_RADIUS, screen_candidates

MIN_BAND_NCC = 0.6  # NCC of the band-pass that aligns a pair (0.7 to 6 px) that a candidate needs on its disc
MIN_FINE_NCC = 0.25  # correlation of the fine structure that a candidate needs, unless it is near-exact
MAX_RESCREENED = 1000  # most candidates that are also compared on the largest discs, the best first
MIN_EXACTNESS = 0.4  # of a disc, from which a candidate also stands in the ranking by exactness


@dataclass(frozen=True)
class ScreenedCandidates:
    """Candidates of one search, aligned on their discs, that are worth a closer look."""

    kind: str  # the search: keypoints, objects or dense
    affines: np.ndarray  # (n, 2, 3) float64, of the coarser partner (the template) onto the other one
    centres: np.ndarray  # (n, 2) float64: centre (x, y) of the template's disc
    radii: np.ndarray  # (n,) float64: its radius in pixels
    partners: np.ndarray  # (n, 2) float64: where the maps take the centres
    votes: np.ndarray  # (n,) int64: matches that agreed with the map when it was proposed
    rank: np.ndarray  # (n,) float64: higher is better
    exactness: np.ndarray  # (n,) float64: of the discs, see `PairMeasurements.exactness`
    median_ncc: float  # median correlation of the fine structure over all candidates of this search in this image

    def __len__(self) -> int:
        return len(self.rank)

    def take(self, index: np.ndarray) -> "ScreenedCandidates":
        """The candidates of an index array or a bool mask."""
        return replace(self, **{name: v[index] for name, v in vars(self).items() if isinstance(v, np.ndarray)})


def screen_proposals(image_features: ImageFeatures, kind: str, proposed: Candidates) -> ScreenedCandidates:
    """Align the candidates of one search on their discs and keep those that agree there."""
    discs = screen_candidates(image_features, proposed.affines, proposed.centres, proposed.radii)
    rank = discs.fine_ncc + 0.3 * discs.band_ncc + 0.02 * np.minimum(proposed.votes, 20)
    aligned = discs.fine_ncc[discs.fine_ncc > -1]
    median_ncc = float(np.median(aligned)) if len(aligned) else 0.0
    good = (discs.band_ncc > MIN_BAND_NCC) & ((discs.fine_ncc > MIN_FINE_NCC) | (discs.exactness > NEAR_EXACT))
    affines, centres = discs.affines[good], discs.centres[good]
    partners = np.einsum("nij,nj->ni", affines[:, :, :2], centres) + affines[:, :, 2]
    chosen = (column[good] for column in (proposed.votes, rank, discs.exactness))
    return ScreenedCandidates(kind, affines, centres, discs.radii[good], partners, *chosen, median_ncc)


def leading_out_of(screened: ScreenedCandidates, instances: Sequence[Instance]) -> ScreenedCandidates:
    """The candidates with exactly one end, source or copy, inside of what is proven already."""
    proven = np.logical_or.reduce([instance.mask for instance in instances])
    return screened.take(points_in_mask(proven, screened.centres) != points_in_mask(proven, screened.partners))


def verification_order(
    image_features: ImageFeatures, screened: Sequence[ScreenedCandidates]
) -> list[tuple[ScreenedCandidates, int]]:
    """The candidates of all searches, each with its row, in the order in which they are verified.

    Three rankings take turns, so a candidate can come up more than once: the rank on the candidates' own discs, the
    correlation on the largest discs, and the exactness. Small copies agree on small discs only. Of a large copy, a
    small disc says little in an image where much looks alike.
    """
    rows = [(part, row) for part in screened for row in range(len(part))]
    if not rows:
        return []
    affines, centres, rank, exactness = (
        np.concatenate([getattr(part, name) for part in screened])
        for name in ("affines", "centres", "rank", "exactness")
    )
    by_rank = np.argsort(-rank, kind="stable")
    first = by_rank[:MAX_RESCREENED]
    radii = np.full(len(first), float(MAX_RADIUS))
    fine_ncc = screen_candidates(image_features, affines[first], centres[first], radii).fine_ncc
    by_large_disc = [first[k] for k in np.argsort(-fine_ncc, kind="stable") if fine_ncc[k] > MIN_FINE_NCC]
    by_exactness = by_rank[np.argsort(-exactness[by_rank], kind="stable")]
    by_exactness = by_exactness[exactness[by_exactness] > MIN_EXACTNESS]
    order = interleave_rankings(first, by_large_disc, by_exactness) + by_rank[MAX_RESCREENED:].tolist()
    return [rows[k] for k in order]


def interleave_rankings(*rankings: Sequence[int]) -> list[int]:
    """The first of each ranking, then the second of each, and so on until all have ended."""
    turns = itertools.zip_longest(*rankings)
    return [int(entry) for turn in turns for entry in turn if entry is not None]
