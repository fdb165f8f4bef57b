"""Nearest neighbours among unit vectors."""

import numba
import numpy as np
from scipy.sparse import csr_matrix

EXACT_SEARCH = 4000  # up to this many vectors neighbours are searched by one matrix product


def nearest_neighbours(queries: np.ndarray, base: np.ndarray, k: int, probes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest base vectors of each query: (n, k) squared distances, ascending, and indices (-1 where missing).

    Vectors (n, d) float32 of unit length. Above EXACT_SEARCH vectors an inverted file is used: vectors are sorted
    into cells around sampled centres, and a query looks into its `probes` nearest cells, in matrix products.
    """
    k = min(k, len(base))
    if len(base) <= EXACT_SEARCH:
        found = [_nearest(queries[i : i + 1024], base, np.arange(len(base)), k) for i in range(0, len(queries), 1024)]
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    cells = int(np.sqrt(len(base)))
    rng = np.random.default_rng(0)
    centres = base[rng.choice(len(base), cells, replace=False)]
    home = np.concatenate([(base[i : i + 8192] @ centres.T).argmax(axis=1) for i in range(0, len(base), 8192)])
    for _ in range(2):  # two steps of k-means even out the cells
        members = csr_matrix((np.ones(len(base), np.float32), (home, np.arange(len(base)))), shape=(cells, len(base)))
        sums = members @ base
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), centres)
        home = np.concatenate([(base[i : i + 8192] @ centres.T).argmax(axis=1) for i in range(0, len(base), 8192)])
    order = np.argsort(home, kind="stable")
    edges = np.searchsorted(home[order], np.arange(cells + 1))
    near_cells = np.argsort(-(centres @ centres.T), axis=1)[:, :probes]
    own = np.concatenate([(queries[i : i + 8192] @ centres.T).argmax(axis=1) for i in range(0, len(queries), 8192)])
    distances = np.full((len(queries), k), 4.0, np.float32)
    indices = np.full((len(queries), k), -1)
    query_order = np.argsort(own, kind="stable")
    query_edges = np.searchsorted(own[query_order], np.arange(cells + 1))
    for cell in range(cells):
        mine = query_order[query_edges[cell] : query_edges[cell + 1]]
        if len(mine) == 0:
            continue
        pool = np.concatenate([order[edges[c] : edges[c + 1]] for c in near_cells[cell]])
        found, index = _nearest(queries[mine], base[pool], pool, min(k, len(pool)))
        distances[mine, : found.shape[1]] = found
        indices[mine, : found.shape[1]] = index
    return distances, indices


def _nearest(queries: np.ndarray, base: np.ndarray, names: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity, index = _largest(queries @ base.T, k)
    return 2 - 2 * similarity, names[index]


@numba.njit(cache=True)
def _largest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row (n, m) float32, descending, and their columns; k is small and at most m."""
    n, m = values.shape
    best = np.full((n, k), -np.inf, np.float32)
    columns = np.zeros((n, k), np.int64)
    for i in range(n):
        least = best[i, k - 1]
        for j in range(m):
            value = values[i, j]
            if value > least:
                place = k - 1
                while place > 0 and best[i, place - 1] < value:
                    best[i, place] = best[i, place - 1]
                    columns[i, place] = columns[i, place - 1]
                    place -= 1
                best[i, place] = value
                columns[i, place] = j
                least = best[i, k - 1]
    return best, columns
