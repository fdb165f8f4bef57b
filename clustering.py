"""The cascade: unit vectors on the patch grid go in, labels of duplicated contents on the grid come out.

1. Strict HDBSCAN. The largest cluster is the background; another cluster whose centroid is far enough from the
   background's is a candidate.
2. Without a candidate, the anomaly score decides: the 95th percentile of the cells' cosine distance to the
   picture's mean vector. Below the threshold the picture is authentic.
3. Else loose HDBSCAN with smaller clusters and a smaller distance.
4. Candidates grow from their core over neighbouring cells (8-connected) that are near the core's centroid.

HDBSCAN's single-linkage tree depends on the vectors and on `min_samples` alone, so `Cells` keeps one tree per
`min_samples` and cuts it for every cluster size and epsilon: that makes tuning cheap. Distances come from one
matrix product in float64 (in float32, near-equal vectors change places in the tree).
"""

from dataclasses import dataclass

import numpy as np
from hdbscan._hdbscan_linkage import label as linkage_from_edges
from hdbscan._hdbscan_linkage import mst_linkage_core
from hdbscan._hdbscan_reachability import mutual_reachability
from hdbscan.hdbscan_ import _tree_to_labels
from scipy import ndimage

from config import ClusteringSettings

ANOMALY_PERCENTILE = 95


class Cells:
    """The cells of one picture, with HDBSCAN trees made once and kept."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Take the cells of a picture, without padding.

        Args:
            embeddings: (G_h, G_w, D) unit vectors, any float type.
        Raises:
            ValueError: there is no cell, or a vector is not finite.
        """
        if embeddings.ndim != 3 or embeddings.size == 0:
            raise ValueError(f"embeddings must be (G_h, G_w, D) with at least one cell, not {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings hold values that are not finite")
        self.shape = embeddings.shape[:2]
        self.vectors = embeddings.reshape(-1, embeddings.shape[2]).astype(np.float64)  # (N, D)
        self.anomaly = 1.0 - self.vectors @ _unit(self.vectors.mean(axis=0))  # (N,) cosine distance to the mean vector
        self.anomaly_score = float(np.percentile(self.anomaly, ANOMALY_PERCENTILE))
        self._distances: np.ndarray | None = None
        self._trees: dict[int, np.ndarray] = {}

    def tree(self, min_samples: int) -> np.ndarray:
        """Single-linkage tree (N - 1, 4) float64 of the mutual reachability distances, as HDBSCAN makes it."""
        if min_samples not in self._trees:
            if self._distances is None:
                self._distances = euclidean_distances(self.vectors)
            # mutual_reachability writes into what it is given.
            edges = mst_linkage_core(mutual_reachability(self._distances.copy(), min_samples))
            self._trees[min_samples] = linkage_from_edges(edges[np.argsort(edges[:, 2])])
        return self._trees[min_samples]

    def keep_only_trees(self, min_samples: list[int]) -> None:
        """Make these trees and forget the N x N distances: 35 kB a tree instead of 9 MB a picture."""
        if len(self.vectors) > 1:
            for value in min_samples:
                self.tree(value)
        self._distances = None

    def hdbscan(self, min_cluster_size: int, min_samples: int, epsilon: float = 0.0) -> np.ndarray:
        """HDBSCAN's labels (N,) int64 (excess of mass): -1 noise, 0.. clusters. Equal to HDBSCAN on the vectors."""
        if len(self.vectors) <= min_cluster_size:
            return np.full(len(self.vectors), -1)
        return _tree_to_labels(
            None, self.tree(min_samples), min_cluster_size, cluster_selection_epsilon=float(epsilon)
        )[0]


@dataclass(frozen=True)
class Cascade:
    """What the cascade says of one picture."""

    labels: np.ndarray  # (G_h, G_w) int64: 0 nothing, 1..n instances, best first
    scores: tuple[float, ...]  # per instance: half the cosine distance of its core from the background, 0 to 1
    reason: str  # which step decided: `strict`, `low anomaly`, `loose` or `no candidate`
    anomaly_score: float  # 95th percentile of `anomaly`
    anomaly: np.ndarray  # (G_h, G_w) float32 cosine distance to the picture's mean vector


def cascade(cells: Cells, settings: ClusteringSettings) -> Cascade:
    """Run the cascade on one picture."""
    s = settings
    strict = cells.hdbscan(s.min_cluster_size, s.min_samples, s.cluster_selection_epsilon)
    found, reason = _candidates(cells.vectors, strict, s.candidate_distance), "strict"
    if not found and cells.anomaly_score < s.anomaly_threshold:
        reason = "low anomaly"
    elif not found:
        loose = cells.hdbscan(s.loose_min_cluster_size, s.loose_min_samples)
        found = _candidates(cells.vectors, loose, s.loose_candidate_distance)
        reason = "loose" if found else "no candidate"
    found = sorted(found, key=lambda candidate: -candidate[0])[: s.max_instances]
    return Cascade(
        labels=grow(cells, [core for _, core in found], s.growth_distance),
        scores=tuple(min(1.0, max(0.0, distance / 2)) for distance, _ in found),
        reason=reason,
        anomaly_score=cells.anomaly_score,
        anomaly=cells.anomaly.reshape(cells.shape).astype(np.float32),
    )


def _candidates(vectors: np.ndarray, labels: np.ndarray, least: float) -> list[tuple[float, np.ndarray]]:
    """Clusters farther than `least` from the largest one: (cosine distance of the centroids, cells (N,) bool)."""
    sizes = np.bincount(labels[labels >= 0])
    if len(sizes) < 2:
        return []
    centroids = np.stack([_unit(vectors[labels == k].mean(axis=0)) for k in range(len(sizes))])
    distances = 1.0 - centroids @ centroids[sizes.argmax()]
    return [(float(distances[k]), labels == k) for k in range(len(sizes)) if distances[k] > least]


def grow(cells: Cells, cores: list[np.ndarray], distance: float) -> np.ndarray:
    """Grow cores over the grid.

    A cell joins the core whose centroid is nearest if that cosine distance is under `distance` and a path of
    such cells (8-connected) leads to the core. A core's own cells always stay with it.

    Args:
        cores: (N,) bool each, row by row; they do not overlap.
    Returns:
        (G_h, G_w) int64: 0 nothing, k for the k-th core.
    """
    grown = np.zeros(cells.shape, np.int64)
    if not cores:
        return grown
    centroids = np.stack([_unit(cells.vectors[core].mean(axis=0)) for core in cores])
    to_centroids = 1.0 - cells.vectors @ centroids.T  # (N, K)
    nearest = to_centroids.argmin(axis=1)
    near = to_centroids.min(axis=1) < distance
    taken = np.any(cores, axis=0)
    for k, core in enumerate(cores):
        reach = core | (near & (nearest == k) & ~taken)
        parts, _ = ndimage.label(reach.reshape(cells.shape), structure=np.ones((3, 3)))
        grown[np.isin(parts, np.unique(parts.ravel()[core]))] = k + 1
    return grown


def euclidean_distances(vectors: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, N) float64 between vectors (N, D) float64: sqrt(|a|^2 + |b|^2 - 2 a.b), zero diagonal.

    Their mean is taken off first and their true lengths are used (float32 unit vectors are unit to 1e-7 only):
    the cells of a picture may lie so close together that rounding would change the tree.
    """
    centred = vectors - vectors.mean(axis=0)
    distances = centred @ centred.T  # numpy makes one triangle only of a product with its own transpose
    squares = distances.diagonal().copy()
    distances *= -2.0
    distances += squares
    distances += squares[:, None]
    # Equal vectors must have distance zero; what is left of rounding would order them at random.
    distances[distances < 8 * np.finfo(np.float64).eps * max(squares.max(initial=0.0), 1e-30)] = 0.0
    np.fill_diagonal(distances, 0.0)
    return np.sqrt(distances, out=distances)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
