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

import functools
from dataclasses import dataclass

import numba
import numpy as np
import threadpoolctl
from hdbscan._hdbscan_linkage import label as linkage_from_edges
from hdbscan._hdbscan_linkage import mst_linkage_core
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
        self._squared: np.ndarray | None = None
        self._trees: dict[int, np.ndarray] = {}

    def tree(self, min_samples: int) -> np.ndarray:
        """Single-linkage tree (N - 1, 4) float64 of the mutual reachability distances, as HDBSCAN makes it."""
        if min_samples not in self._trees:
            if self._squared is None:
                self._squared = squared_distances(self.vectors)
            neighbour = min(min_samples, len(self.vectors) - 1)
            core = np.partition(self._squared, neighbour, axis=1)[:, neighbour]
            # Squares have the order of the distances: the root is taken of the N - 1 edges only.
            edges = mst_linkage_core(_mutual_reachability(self._squared, core))
            edges[:, 2] = np.sqrt(edges[:, 2])
            self._trees[min_samples] = linkage_from_edges(edges[np.argsort(edges[:, 2])])
        return self._trees[min_samples]

    def keep_only_trees(self, min_samples: list[int]) -> None:
        """Make these trees and forget the N x N distances: 35 kB a tree instead of 9 MB a picture."""
        if len(self.vectors) > 1:
            for value in min_samples:
                self.tree(value)
        self._squared = None

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
    found = sorted(found, key=lambda candidate: -candidate.distance)[: s.max_instances]
    return Cascade(
        labels=grow(cells, found, s.growth_distance),
        scores=tuple(min(1.0, max(0.0, candidate.distance / 2)) for candidate in found),
        reason=reason,
        anomaly_score=cells.anomaly_score,
        anomaly=cells.anomaly.reshape(cells.shape).astype(np.float32),
    )


@dataclass(frozen=True)
class Candidate:
    """A cluster that may be a duplicated content."""

    distance: float  # cosine distance of its centroid from the background's, 0 to 2
    core: np.ndarray  # (N,) bool: its cells
    centroid: np.ndarray  # (D,) unit vector


def _candidates(vectors: np.ndarray, labels: np.ndarray, least: float) -> list[Candidate]:
    """Clusters whose centroid is farther than `least` from that of the largest one."""
    sizes = np.bincount(labels[labels >= 0])
    if len(sizes) < 2:
        return []
    centroids = _sums(vectors, labels, len(sizes))
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    distances = 1.0 - centroids @ centroids[sizes.argmax()]
    chosen = np.flatnonzero(distances > least)
    return [Candidate(float(distances[k]), labels == k, centroids[k]) for k in chosen]


def grow(cells: Cells, candidates: list[Candidate], distance: float) -> np.ndarray:
    """Grow the candidates' cores over the grid.

    A cell joins the core whose centroid is nearest if that cosine distance is under `distance` and a path of
    such cells (8-connected) leads to the core. A core's own cells always stay with it.

    Args:
        candidates: their cores do not overlap.
    Returns:
        (G_h, G_w) int64: 0 nothing, k for the k-th candidate.
    """
    grown = np.zeros(cells.shape, np.int64)
    if not candidates:
        return grown
    to_centroids = 1.0 - _products(cells.vectors, np.stack([candidate.centroid for candidate in candidates]))  # (N, K)
    nearest = to_centroids.argmin(axis=1)
    near = to_centroids.min(axis=1) < distance
    taken = np.any([candidate.core for candidate in candidates], axis=0)
    for k, candidate in enumerate(candidates):
        reach = candidate.core | (near & (nearest == k) & ~taken)
        parts, _ = ndimage.label(reach.reshape(cells.shape), structure=np.ones((3, 3)))
        grown[np.isin(parts, np.unique(parts.ravel()[candidate.core]))] = k + 1
    return grown


# Small products as plain loops: waking BLAS's threads costs more than the work, many times more on a busy machine.


@numba.njit(cache=True)
def _sums(vectors: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Sum (count, D) of the vectors (N, D) of each label (N,); negative labels are left out."""
    sums = np.zeros((count, vectors.shape[1]))
    for i in range(len(labels)):
        if labels[i] >= 0:
            sums[labels[i]] += vectors[i]
    return sums


@numba.njit(cache=True, fastmath=True)
def _products(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Inner products (N, K) of vectors (N, D) and others (K, D)."""
    products = np.zeros((len(vectors), len(others)))
    for i in range(len(vectors)):
        for k in range(len(others)):
            total = 0.0
            for d in range(vectors.shape[1]):
                total += vectors[i, d] * others[k, d]
            products[i, k] = total
    return products


def squared_distances(vectors: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, N) float64 between vectors (N, D) float64; exactly 0 between equal ones.

    |a|^2 + |b|^2 - 2 a.b, with the mean taken off first and the true lengths (float32 unit vectors are unit to 1e-7
    only): the cells of a picture may lie so close together that rounding would change the tree.
    """
    centred = vectors - vectors.mean(axis=0)
    # One thread: two gain a quarter on an idle machine and lose ten times that on a busy one, where ranks or
    # processes share the cores. numpy makes one triangle only of a product with its own transpose.
    with _blas().limit(limits=1, user_api="blas"):
        return _from_products(centred @ centred.T)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@numba.njit(cache=True)
def _from_products(products: np.ndarray) -> np.ndarray:
    """Inner products (N, N) -> squared distances, in place and in one pass."""
    squares = np.diag(products).copy()
    # What rounding leaves between equal vectors would order them at random.
    least = 8 * 2.220446049250313e-16 * max(squares.max(), 1e-30)
    for i in range(len(squares)):
        for j in range(len(squares)):
            value = squares[i] + squares[j] - 2.0 * products[i, j]
            products[i, j] = value if value >= least and i != j else 0.0
    return products


@numba.njit(cache=True)
def _mutual_reachability(squared: np.ndarray, core: np.ndarray) -> np.ndarray:
    """max(d_ij, core_i, core_j) of squared distances (N, N) and squared core distances (N,)."""
    reach = np.empty_like(squared)
    for i in range(len(core)):
        for j in range(len(core)):
            reach[i, j] = max(squared[i, j], core[i], core[j])
    return reach


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
