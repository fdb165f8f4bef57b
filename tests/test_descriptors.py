"""Descriptors of patches and their nearest neighbours."""

import cv2
import numpy as np
import pytest

from copymove.neighbours import nearest_neighbours
from copymove.polar import MIRROR, ring_descriptors


def unit_vectors(count, dimensions, seed=0) -> np.ndarray:
    """(count, dimensions) float32."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_few_neighbours_are_exact():
    """Among few vectors the neighbours are those of brute force, as many as there are, with squared distances."""
    base, queries = unit_vectors(50, 16), unit_vectors(20, 16, seed=1)
    squared = ((queries[:, None] - base) ** 2).sum(axis=2)
    distances, indices = nearest_neighbours(queries, base, 5)
    assert (indices == np.argsort(squared, axis=1)[:, :5]).all()
    assert distances == pytest.approx(np.sort(squared, axis=1)[:, :5], abs=1e-5)
    assert nearest_neighbours(queries, base[:3], 5)[1].shape == (20, 3)


def test_neighbours_agree_with_brute_force():
    """Of 6000 vectors each is its own nearest neighbour, and its noisy copy is the next one."""
    base = unit_vectors(6000, 32)
    base[3000:3300] = base[:300] + 0.1 * np.random.default_rng(1).normal(size=(300, 32)) / np.sqrt(32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    distances, index = nearest_neighbours(base[:300], base, 2)
    assert (index[:, 0] == np.arange(300)).all() and distances[:, 0] == pytest.approx(0, abs=1e-5)
    assert (index[:, 1] == np.arange(3000, 3300)).mean() > 0.9


def test_ring_descriptors_ignore_rotation():
    """A rotated patch has the same descriptor; that of a mirrored one is the same after a change of signs."""
    rng = np.random.default_rng(3)
    patch = cv2.GaussianBlur(rng.normal(size=(8, 32)).astype(np.float32), (0, 0), 1)[None]
    plain, rotated, mirrored = (
        ring_descriptors(polar)[0]
        for polar in (patch, np.roll(patch, 5, axis=2), np.roll(patch[:, :, ::-1], 3, axis=2))
    )
    assert float((plain * rotated).sum()) == pytest.approx(1, abs=1e-4)
    assert float((MIRROR * plain * mirrored).sum()) == pytest.approx(1, abs=1e-4)
    assert float((plain * mirrored).sum()) < 0.95
