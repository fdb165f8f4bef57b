"""Descriptors of patches and their nearest neighbours."""

import cv2
import numpy as np
import pytest

from copymove.neighbours import nearest_neighbours
from copymove.polar import MIRROR, ring_descriptors


def test_neighbours_agree_with_brute_force():
    """Of 6000 vectors each is its own nearest neighbour, and its noisy copy is the next one."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(6000, 32)).astype(np.float32)
    base[3000:3300] = base[:300] + rng.normal(0, 0.1, (300, 32))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    _, index = nearest_neighbours(base[:300], base, 2)
    assert (index[:, 0] == np.arange(300)).mean() > 0.99
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
