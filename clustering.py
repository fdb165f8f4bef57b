"""The cascade: unit vectors on the patch grid go in, labels of duplicated contents on the grid come out.

1. Strict HDBSCAN. The largest cluster is the background; another cluster whose centroid is far enough from the
   background's is a candidate.
2. Without a candidate, the anomaly score decides: the 95th percentile of the cells' cosine distance to the
   image's mean vector. Below the threshold the image is authentic.
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
from hdbscan.hdbscan_ import _tree_to_labels
from scipy import ndimage

from config import ClusteringSettings

ANOMALY_PERCENTILE = 95


class Cells:
    """The cells of one image, with HDBSCAN trees made once and kept."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Take the cells of an image, without padding.

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
        """Make these trees and forget the N x N distances: 35 kB a tree instead of 9 MB an image."""
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
    """What the cascade says of one image."""

    labels: np.ndarray  # (G_h, G_w) int64: 0 nothing, 1..n instances, best first
    scores: tuple[float, ...]  # per instance: half the cosine distance of its core from the background, 0 to 1
    reason: str  # which step decided: `strict`, `low anomaly`, `loose` or `no candidate`
    anomaly_score: float  # 95th percentile of `anomaly`
    anomaly: np.ndarray  # (G_h, G_w) float32 cosine distance to the image's mean vector


def cascade(cells: Cells, settings: ClusteringSettings) -> Cascade:
    """Run the cascade on one image."""
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
    only): the cells of an image may lie so close together that rounding would change the tree.
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


# The three steps below follow the hdbscan package (BSD-3-Clause, McInnes et al.) to the order of equal edges, so that
# the tree is the same, but make no further N x N matrix: fresh memory costs more here than the arithmetic.


@numba.njit(cache=True)
def _kth_smallest(matrix: np.ndarray, k: int) -> np.ndarray:
    """(N,) the k-th smallest value of each row, counted from 0."""
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
    """Edges (N - 1, 3) by length -> tree (N - 1, 4): the two parts joined (cells, then N + row), length, cells."""
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
