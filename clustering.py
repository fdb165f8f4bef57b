"""The cascade: the unit vectors of an image's grid go in, a label of each cell comes out.

1. Strict HDBSCAN (Campello et al. 2013). The largest cluster is the background; every other cluster whose centroid is
   far enough from the background's is a candidate for a duplicated content.
2. If there is none, the anomaly score decides: the 95th percentile of the cells' cosine distance to the image's mean
   vector. Below the threshold the image is authentic.
3. Otherwise loose HDBSCAN, with smaller clusters and a smaller distance.
4. Candidates grow from their core over neighbouring cells (8-connected) that are near the core's centroid.

HDBSCAN's single-linkage tree depends on the vectors and on `min_samples` alone. So an `EmbeddingGrid` keeps one tree
for each `min_samples` and cuts it for any cluster size and epsilon, which makes tuning cheap. Distances come from one
matrix product in float64: float32 would change the order of nearly equal distances, and with it the tree.
"""

import functools
from dataclasses import dataclass

import numba
import numpy as np
import threadpoolctl
from hdbscan.hdbscan_ import _tree_to_labels
from scipy import ndimage

from config import ClusteringSettings

ANOMALY_PERCENTILE = 95


class EmbeddingGrid:
    """The embeddings of one image's cells, with HDBSCAN trees that are made once and kept."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Take the embeddings of an image's cells.

        Args:
            embeddings: (G_h, G_w, D) unit vectors, any float type, without padding cells.
        Raises:
            ValueError: there is no cell, or a vector is not finite.
        """
        if embeddings.ndim != 3 or embeddings.size == 0:
            raise ValueError(f"embeddings must be (G_h, G_w, D) with at least one cell, not {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings hold values that are not finite")
        self.shape = embeddings.shape[:2]
        self.vectors = embeddings.reshape(-1, embeddings.shape[2]).astype(np.float64)  # (N, D)
        mean = _unit(self.vectors.mean(axis=0))
        self.anomaly = 1.0 - _products(self.vectors, mean[None])[:, 0]  # (N,) cosine distance to the mean vector
        self.anomaly_score = float(np.percentile(self.anomaly, ANOMALY_PERCENTILE))
        self._squared: np.ndarray | None = None
        self._trees: dict[int, np.ndarray] = {}

    def tree(self, min_samples: int) -> np.ndarray:
        """Single-linkage tree (N - 1, 4) float64 of the mutual reachability distances, as HDBSCAN makes it."""
        if min_samples not in self._trees:
            if self._squared is None:
                self._squared = squared_distances(self.vectors)
            core = _kth_smallest(self._squared, min(min_samples, len(self.vectors) - 1))
            # Squares have the order of the distances: the root is taken of the N - 1 edges only.
            edges = _spanning_tree(self._squared, core)
            edges[:, 2] = np.sqrt(edges[:, 2])
            self._trees[min_samples] = _single_linkage(edges[np.argsort(edges[:, 2])])
        return self._trees[min_samples]

    def keep_only_trees(self, min_samples: list[int]) -> None:
        """Make these trees and drop the N x N distances: 35 kB a tree instead of 9 MB an image."""
        if len(self.vectors) > 1:
            for value in min_samples:
                self.tree(value)
        self._squared = None

    def hdbscan(self, min_cluster_size: int, min_samples: int, epsilon: float = 0.0) -> np.ndarray:
        """Labels (N,) int64 by HDBSCAN (excess of mass), as the hdbscan package gives: -1 noise, 0 and up clusters."""
        if len(self.vectors) <= min_cluster_size:
            return np.full(len(self.vectors), -1)
        return _tree_to_labels(
            None, self.tree(min_samples), min_cluster_size, cluster_selection_epsilon=float(epsilon)
        )[0]


@dataclass(frozen=True)
class Cascade:
    """The cascade's result for one image."""

    labels: np.ndarray  # (G_h, G_w) int64: 0 nothing, 1..n instances, best first
    scores: tuple[float, ...]  # per instance: half the cosine distance of its core from the background, 0 to 1
    reason: str  # the step that decided: `strict`, `low anomaly`, `loose` or `no candidate`
    anomaly_score: float  # 95th percentile of `anomaly`
    anomaly: np.ndarray  # (G_h, G_w) float32 cosine distance to the image's mean vector


def cascade(grid: EmbeddingGrid, settings: ClusteringSettings) -> Cascade:
    """Run the cascade on one image."""
    s = settings
    strict = grid.hdbscan(s.min_cluster_size, s.min_samples, s.cluster_selection_epsilon)
    candidates, reason = find_candidates(grid.vectors, strict, s.candidate_distance), "strict"
    if not candidates and grid.anomaly_score < s.anomaly_threshold:
        reason = "low anomaly"
    elif not candidates:
        loose = grid.hdbscan(s.loose_min_cluster_size, s.loose_min_samples)
        candidates = find_candidates(grid.vectors, loose, s.loose_candidate_distance)
        reason = "loose" if candidates else "no candidate"
    best = sorted(candidates, key=lambda candidate: -candidate.distance)[: s.max_instances]
    return Cascade(
        labels=grow(grid, best, s.growth_distance),
        scores=tuple(min(1.0, max(0.0, candidate.distance / 2)) for candidate in best),
        reason=reason,
        anomaly_score=grid.anomaly_score,
        anomaly=grid.anomaly.reshape(grid.shape).astype(np.float32),
    )


@dataclass(frozen=True)
class Candidate:
    """A cluster that may be a duplicated content."""

    distance: float  # cosine distance of its centroid from the background's, 0 to 2
    core: np.ndarray  # (N,) bool: its cells
    centroid: np.ndarray  # (D,) unit vector


def find_candidates(vectors: np.ndarray, labels: np.ndarray, min_distance: float) -> list[Candidate]:
    """Clusters whose centroid has a cosine distance over `min_distance` from that of the largest cluster.

    Args:
        vectors: (N, D) float64 unit vectors. labels: (N,) int64, negative for noise.
    """
    sizes = np.bincount(labels[labels >= 0])
    if len(sizes) < 2:
        return []
    centroids = _sums(vectors, labels, len(sizes))
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    distances = 1.0 - centroids @ centroids[sizes.argmax()]
    chosen = np.flatnonzero(distances > min_distance)
    return [Candidate(float(distances[k]), labels == k, centroids[k]) for k in chosen]


def grow(grid: EmbeddingGrid, candidates: list[Candidate], distance: float) -> np.ndarray:
    """Grow the candidates' cores over the grid.

    A cell joins the core whose centroid is nearest if the cosine distance to it is under `distance` and a path of
    such cells (8-connected) leads to the core. A core keeps its own cells.

    Args:
        candidates: their cores do not overlap.
    Returns:
        (G_h, G_w) int64: 0 nothing, k for the k-th candidate.
    """
    grown = np.zeros(grid.shape, np.int64)
    if not candidates:
        return grown
    to_centroids = 1.0 - _products(grid.vectors, np.stack([candidate.centroid for candidate in candidates]))  # (N, K)
    nearest = to_centroids.argmin(axis=1)
    near = to_centroids.min(axis=1) < distance
    in_a_core = np.any([candidate.core for candidate in candidates], axis=0)
    for k, candidate in enumerate(candidates):
        reach = candidate.core | (near & (nearest == k) & ~in_a_core)
        parts, _ = ndimage.label(reach.reshape(grid.shape), structure=np.ones((3, 3)))
        grown[np.isin(parts, np.unique(parts.ravel()[candidate.core]))] = k + 1
    return grown


# Small products as plain loops: to wake BLAS's threads takes longer than the work, many times longer on a busy machine.


@numba.njit(cache=True)
def _sums(vectors: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Sums (count, D) of the vectors (N, D) of each label (N,); vectors with a negative label are left out."""
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

    |a|^2 + |b|^2 - 2 a.b, after the mean was subtracted, and with the true lengths (the length of float32 unit vectors
    is 1 only up to 1e-7): the cells of an image may lie so close together that rounding would change the tree.
    """
    centred = vectors - vectors.mean(axis=0)
    # One thread: two save a quarter of the time on an idle machine and lose ten times that on a busy one, where ranks
    # or processes share the cores. numpy computes only one triangle of a matrix times its own transpose.
    with _blas().limit(limits=1, user_api="blas"):
        return _from_products(centred @ centred.T)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@numba.njit(cache=True)
def _from_products(products: np.ndarray) -> np.ndarray:
    """Inner products (N, N) -> squared distances, in place."""
    squares = np.diag(products).copy()
    # Rounding errors between equal vectors would give them a random order.
    smallest = 8 * 2.220446049250313e-16 * max(squares.max(), 1e-30)
    for i in range(len(squares)):
        for j in range(len(squares)):
            value = squares[i] + squares[j] - 2.0 * products[i, j]
            products[i, j] = value if value >= smallest and i != j else 0.0
    return products


# The three functions below follow the hdbscan package (BSD-3-Clause, McInnes et al.), even in the order of equal edges,
# so that the tree is the same. Unlike it they make no further N x N matrix: new memory takes longer than arithmetic.


@numba.njit(cache=True)
def _kth_smallest(matrix: np.ndarray, k: int) -> np.ndarray:
    """(N,) the k-th smallest value of each row of a matrix (N, N), k counted from 0."""
    result = np.empty(len(matrix))
    smallest = np.empty(k + 1)
    for i in range(len(matrix)):
        smallest[:] = np.inf
        for j in range(matrix.shape[1]):
            value = matrix[i, j]
            if value < smallest[k]:
                place = k
                while place > 0 and smallest[place - 1] > value:
                    smallest[place] = smallest[place - 1]
                    place -= 1
                smallest[place] = value
        result[i] = smallest[k]
    return result


@numba.njit(cache=True)
def _spanning_tree(squared: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Minimum spanning tree of the mutual reachability max(d_ij, core_i, core_j), by Prim's algorithm from cell 0.

    Args:
        squared: (N, N) squared distances. core: (N,) squared core distances.
    Returns:
        (N - 1, 3) float64: from, to, squared reachability.
    """
    count = len(core)
    edges = np.zeros((count - 1, 3))
    in_tree = np.zeros(count, np.bool_)
    nearest, source = np.full(count, np.inf), np.zeros(count, np.int64)
    current = 0
    for i in range(count - 1):
        in_tree[current] = True
        best, found = np.inf, 0
        for j in range(count):
            if in_tree[j]:
                continue
            reach = max(squared[current, j], core[current], core[j])
            if reach < nearest[j]:
                nearest[j], source[j] = reach, current
            if nearest[j] < best:
                best, found = nearest[j], j
        edges[i, 0], edges[i, 1], edges[i, 2] = source[found], found, best
        current = found
    return edges


@numba.njit(cache=True)
def _single_linkage(edges: np.ndarray) -> np.ndarray:
    """Single-linkage tree (N - 1, 4) from edges (N - 1, 3) in the order of their length.

    A row joins two parts: their numbers (a cell's own, or N + the row that made the part), the edge's length, and the
    cells of both together.
    """
    count = len(edges) + 1
    parent, size = np.arange(2 * count - 1), np.ones(2 * count - 1, np.int64)
    tree = np.zeros((count - 1, 4))
    for row in range(count - 1):
        left, right = int(edges[row, 0]), int(edges[row, 1])
        while parent[left] != left:
            parent[left] = parent[parent[left]]
            left = parent[left]
        while parent[right] != right:
            parent[right] = parent[parent[right]]
            right = parent[right]
        parent[left] = parent[right] = count + row
        size[count + row] = size[left] + size[right]
        tree[row, 0], tree[row, 1], tree[row, 2], tree[row, 3] = left, right, edges[row, 2], size[count + row]
    return tree


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
