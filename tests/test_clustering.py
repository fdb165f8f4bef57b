"""HDBSCAN from shared trees against the library, and each branch of the cascade."""

import pickle

import hdbscan
import numpy as np
import pytest

from clustering import Candidate, EmbeddingGrid, cascade, grow, squared_distances
from config import ClusteringSettings


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def grid(regions, size=20, dim=32, noise=0.05, seed=0):
    """(size, size, dim) unit vectors around the first axis; region k = (rows, columns) around `direction`."""
    rng = np.random.default_rng(seed)
    centre = np.zeros((size, size, dim))
    centre[..., 0] = 1
    for rows, columns, direction in regions:
        centre[rows, columns] = direction
    return unit(centre + rng.normal(0, noise, centre.shape))


def axis(k, dim=32):
    return np.eye(dim)[k]


BLOCK, OTHER = (slice(2, 7), slice(3, 8)), (slice(12, 17), slice(10, 15))
SETTINGS = ClusteringSettings()


@pytest.mark.parametrize("seed", range(6))
def test_labels_equal_the_library(seed):
    """The same labels as hdbscan.HDBSCAN gives for the vectors, with several settings on one grid."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, 64))
    vectors = unit(rng.normal(0, 0.5, (300, 64)) + centres[rng.choice(5, 300, p=[0.6, 0.1, 0.1, 0.1, 0.1])])
    cells = EmbeddingGrid(vectors.reshape(15, 20, 64))
    for min_cluster_size, min_samples, epsilon in [(15, 5, 0.0), (5, 2, 0.0), (5, 2, 0.4), (10, 12, 0.1)]:
        expected = hdbscan.HDBSCAN(
            min_cluster_size=min_cluster_size, min_samples=min_samples, cluster_selection_epsilon=epsilon
        ).fit_predict(vectors)
        assert (cells.hdbscan(min_cluster_size, min_samples, epsilon) == expected).all()


def test_distances_are_euclidean():
    """Squared distances from one matrix product against a loop over pairs."""
    vectors = unit(np.random.default_rng(0).normal(size=(50, 16)))
    slow = np.array([[np.linalg.norm(a - b) for b in vectors] for a in vectors])
    assert np.abs(np.sqrt(squared_distances(vectors)) - slow).max() < 1e-7


def test_labels_of_nearly_equal_cells():
    """As an untrained model gives: float32 vectors a hundredth apart, some of them equal."""
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=64) + 0.02 * rng.normal(size=(200, 64))).astype(np.float32)
    vectors[150:] = vectors[:50]
    for min_cluster_size, min_samples in [(5, 2), (15, 5)]:
        expected = hdbscan.HDBSCAN(min_cluster_size=min_cluster_size, min_samples=min_samples).fit_predict(
            vectors.astype(np.float64)
        )
        assert (EmbeddingGrid(vectors.reshape(10, 20, 64)).hdbscan(min_cluster_size, min_samples) == expected).all()
    distances = np.sqrt(squared_distances(vectors.astype(np.float64)))
    assert (distances[np.arange(50), np.arange(150, 200)] == 0).all()
    slow = np.linalg.norm(vectors.astype(np.float64)[:, None] - vectors.astype(np.float64)[None], axis=2)
    assert np.abs(distances - slow).max() < 1e-12


def test_trees_outlive_the_distances():
    """Dropping the distances makes a grid small and leaves its labels."""
    cells = EmbeddingGrid(grid([(*BLOCK, axis(1))]))
    before = cells.hdbscan(15, 5)
    assert len(pickle.dumps(cells)) > 400 * 400 * 8
    cells.keep_only_trees([5])
    assert len(pickle.dumps(cells)) < 400 * 400 * 8 and (cells.hdbscan(15, 5) == before).all()


def test_strict_candidate():
    """A block of cells at right angles to the background is found by the strict step."""
    found = cascade(EmbeddingGrid(grid([(*BLOCK, axis(1))])), SETTINGS)
    expected = np.zeros((20, 20), int)
    expected[BLOCK] = 1
    assert found.reason == "strict" and (found.labels == expected).all()
    assert found.scores == pytest.approx((0.5,), abs=0.05)  # cosine distance 1 of right angles, halved


def test_two_contents_best_first():
    """The content that is further from the background comes first."""
    opposite = -axis(0) + 0.3 * axis(2)
    found = cascade(EmbeddingGrid(grid([(*BLOCK, axis(1)), (*OTHER, unit(opposite))])), SETTINGS)
    assert (found.labels[OTHER] == 1).all() and (found.labels[BLOCK] == 2).all()
    assert found.scores[0] > 0.9 > 0.55 > found.scores[1]


def test_source_and_copy_are_one():
    """Two blocks with the same vectors are one instance."""
    found = cascade(EmbeddingGrid(grid([(*BLOCK, axis(1)), (*OTHER, axis(1))])), SETTINGS)
    assert len(found.scores) == 1 and (found.labels[BLOCK] == 1).all() and (found.labels[OTHER] == 1).all()


def test_low_anomaly_is_authentic():
    """Cells that hardly differ: the anomaly score ends the cascade."""
    found = cascade(EmbeddingGrid(grid([], noise=0.01)), SETTINGS)
    assert found.reason == "low anomaly" and not found.labels.any() and found.scores == ()
    assert found.anomaly_score == pytest.approx(np.percentile(found.anomaly, 95), rel=1e-5)


def test_loose_finds_small_regions():
    """A region of nine cells, at a cosine distance of about 0.3: too small and too near for the strict step."""
    direction = unit(axis(0) * 0.7 + axis(1) * 0.714)
    cells = EmbeddingGrid(grid([(slice(4, 7), slice(4, 7), direction)], noise=0.03))
    settings = ClusteringSettings(anomaly_threshold=0.0)
    found = cascade(cells, settings)
    assert found.reason == "loose" and len(found.scores) == 1
    assert (found.labels[4:7, 4:7] == 1).all() and (found.labels > 0).sum() == 9
    assert cascade(cells, ClusteringSettings(anomaly_threshold=0.9)).reason == "low anomaly"


def test_no_candidate():
    """Noise is no candidate, in the loose step either."""
    cells = EmbeddingGrid(grid([], noise=0.2))
    found = cascade(cells, ClusteringSettings(anomaly_threshold=0.0))
    assert found.reason == "no candidate" and not found.labels.any()


def test_at_most_max_instances():
    """Of three contents the two best are kept when two are allowed."""
    regions = [(slice(r, r + 5), slice(c, c + 5), axis(1 + k)) for k, (r, c) in enumerate([(0, 0), (0, 8), (8, 0)])]
    cells = EmbeddingGrid(grid(regions))
    assert len(cascade(cells, SETTINGS).scores) == 3
    found = cascade(cells, ClusteringSettings(max_instances=2))
    assert len(found.scores) == 2 and found.labels.max() == 2


def test_growing_follows_connected_cells():
    """Cells that touch by a corner are connected; a cell like the core elsewhere is not. The distance is a bound."""
    vectors = np.tile(axis(0), (5, 5, 1))
    vectors[0, 0] = vectors[0, 1] = vectors[1, 2] = vectors[4, 4] = axis(1)
    vectors[2, 3] = unit(axis(1) + 0.5 * axis(0))  # cosine distance 1 - 1 / sqrt(1.25) = 0.1056
    core = [Candidate(1.0, np.arange(25) == 0, axis(1))]
    expected = np.zeros((5, 5), int)
    expected[0, 0] = expected[0, 1] = expected[1, 2] = 1  # (1, 2) touches (0, 1) by a corner; (4, 4) touches nothing
    assert (grow(EmbeddingGrid(vectors), core, 0.1) == expected).all()
    expected[2, 3] = 1
    assert (grow(EmbeddingGrid(vectors), core, 0.11) == expected).all()


def test_growing_leaves_other_cores():
    """Two cores with the same centroid keep their own cells."""
    vectors = np.tile(axis(1), (1, 4, 1))
    cores = [Candidate(1.0, np.arange(4) == k, axis(1)) for k in range(2)]
    assert grow(EmbeddingGrid(vectors), cores, 0.2).tolist() == [[1, 2, 0, 0]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (4, 4)])
def test_few_cells(shape):
    """Grids smaller than the smallest cluster have no instance."""
    found = cascade(EmbeddingGrid(unit(np.random.default_rng(0).normal(size=(*shape, 8)))), SETTINGS)
    assert found.labels.shape == shape and not found.labels.any()


def test_equal_cells_and_bad_values():
    """All cells equal: authentic. NaN and an empty grid are refused."""
    found = cascade(EmbeddingGrid(np.tile(axis(0), (20, 20, 1))), SETTINGS)
    assert found.reason == "low anomaly" and found.anomaly_score == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="not finite"):
        EmbeddingGrid(np.full((2, 2, 4), np.nan))
    with pytest.raises(ValueError, match="at least one cell"):
        EmbeddingGrid(np.zeros((0, 3, 4)))
