"""Candidates from polar patches: places that look alike after a rotation, mirrored ones too."""

import cv2
import numba
import numpy as np

from copymove.candidates import Candidates, concatenate_candidates, no_candidates
from copymove.geometry import similarity_maps
from copymove.neighbours import nearest_neighbours

RINGS = 8  # of a polar patch
ANGLES = 32  # samples on each ring
HARMONICS = 8  # of the angle, kept in a descriptor
PAIRS = HARMONICS * (2 * RINGS - 3)  # products of harmonics of two rings that are one or two apart
# Factors that turn the descriptor of a patch into that of the mirrored patch: the imaginary parts of the products,
# which are its last numbers, change their sign.
MIRROR = np.repeat(np.array([1, -1], np.float32), [RINGS + HARMONICS * RINGS + PAIRS, PAIRS])
COMPRESS_FROM = 256  # more patches than this are compared by the main axes of their descriptors
AXES = 64  # number of these axes
MAX_SCALE = 2.3  # largest ratio of the radii of two patches


def polar_patches(band: np.ndarray, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Values of the band on rings around points.

    Args:
        band: (H, W) float32.
        points: (n, 2) float64 (x, y).
        radii: (n,) float64 in pixels, of the outermost ring.
    Returns:
        (n, RINGS, ANGLES) float32.
    """
    rings = (np.arange(RINGS, dtype=np.float32) + 0.7) / (RINGS - 0.3)
    angles = np.arange(ANGLES, dtype=np.float32) * (2 * np.pi / ANGLES)
    grid = rings[:, None] * np.stack([np.cos(angles), np.sin(angles)])[:, None, :]  # (2, RINGS, ANGLES)
    out = np.empty((len(points), RINGS, ANGLES), np.float32)
    for start in range(0, len(points), 4096):  # remap takes images of at most 32767 pixels a side
        part = slice(start, start + 4096)
        x = points[part, 0, None] + radii[part, None] * grid[0].ravel()
        y = points[part, 1, None] + radii[part, None] * grid[1].ravel()
        values = cv2.remap(
            band, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        out[part] = values.reshape(-1, RINGS, ANGLES)
    return out


def ring_descriptors(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation-invariant descriptors of polar patches (n, RINGS, ANGLES).

    Let F_r(k) be the angular spectrum of ring r. A rotation by t multiplies F_r(k) by exp(-ikt), so the product
    F_r(k) conj(F_s(k)) of two rings does not depend on the rotation, but on how the rings lie to each other. The
    products of a mirrored patch are the conjugate ones, so its descriptor is that of the patch times `MIRROR`.

    Returns:
        Unit vectors (n, d) float32, and the patches' spectra (n, RINGS, HARMONICS + 1) complex64.
    """
    weight = np.sqrt((np.arange(RINGS) + 0.7) / RINGS).astype(np.float32)[:, None]
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)
    patches *= weight
    patches /= np.maximum(np.linalg.norm(patches, axis=(1, 2), keepdims=True), 1e-6)
    waves = np.exp(-2j * np.pi / ANGLES * np.outer(np.arange(ANGLES), np.arange(HARMONICS + 1)))
    # For so few harmonics a matrix product is faster than an FFT.
    spectra = patches.reshape(-1, ANGLES) @ np.ascontiguousarray(waves.astype(np.complex64)).view(np.float32)
    spectra = spectra.view(np.complex64).reshape(len(patches), RINGS, HARMONICS + 1)
    return _ring_products(spectra), spectra


@numba.njit(cache=True, fastmath=True)
def _ring_products(spectra: np.ndarray) -> np.ndarray:
    """Unit vectors of spectra (n, RINGS, HARMONICS + 1): means, magnitudes, real and imaginary parts of products."""
    out = np.empty((len(spectra), RINGS + HARMONICS * RINGS + 2 * PAIRS), np.float32)
    real = RINGS + HARMONICS * RINGS
    for i in range(len(spectra)):
        place = 0
        for r in range(RINGS):
            out[i, r] = spectra[i, r, 0].real
            for k in range(1, HARMONICS + 1):
                out[i, RINGS + HARMONICS * r + k - 1] = abs(spectra[i, r, k])
        for step in (1, 2):
            for r in range(RINGS - step):
                for k in range(1, HARMONICS + 1):
                    product = spectra[i, r, k] * spectra[i, r + step, k].conjugate()
                    product /= np.sqrt(abs(product) + np.float32(1e-6))
                    out[i, real + place] = product.real
                    out[i, real + PAIRS + place] = product.imag
                    place += 1
        power = np.float32(0)
        for d in range(out.shape[1]):
            power += out[i, d] * out[i, d]
        scale = np.float32(1) / max(np.sqrt(power), np.float32(1e-6))
        for d in range(out.shape[1]):
            out[i, d] *= scale
    return out


def _rotations(spectra: np.ndarray, i: np.ndarray, j: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Angles (n,) in radians that rotate patches i (or their mirror images) onto patches j, and their correlations."""
    # The correlation at every angle is a sum of few harmonics. All but the first count twice: the spectrum of a real
    # signal is symmetrical.
    angles = np.arange(2 * ANGLES) * (np.pi / ANGLES)
    weights = np.where(np.arange(HARMONICS + 1) > 0, 2.0, 1.0)
    waves = weights[:, None] * np.exp(-1j * np.outer(np.arange(HARMONICS + 1), angles))
    waves = np.stack([waves.real, waves.imag], axis=1).reshape(-1, 2 * ANGLES).astype(np.float32)
    scores = _products(spectra, i, j, mirrored).view(np.float32) @ waves
    best = scores.argmax(axis=1)
    power = (np.abs(spectra) ** 2).sum(axis=1) @ weights
    return angles[best], scores[np.arange(len(best)), best] / np.maximum(np.sqrt(power[i] * power[j]), 1e-9)


@numba.njit(cache=True, fastmath=True)
def _products(spectra: np.ndarray, i: np.ndarray, j: np.ndarray, mirrored: bool) -> np.ndarray:
    """Sums over the rings (n, HARMONICS + 1) of spectrum j times the conjugate of spectrum i; if mirrored, times i."""
    out = np.zeros((len(i), spectra.shape[2]), np.complex64)
    for m in range(len(i)):
        for r in range(spectra.shape[1]):
            for k in range(spectra.shape[2]):
                a = spectra[i[m], r, k]
                out[m, k] += spectra[j[m], r, k] * (a if mirrored else a.conjugate())
    return out


def polar_candidates(
    band: np.ndarray, points: np.ndarray, radii: np.ndarray, per_point: int, min_ncc: float, min_distance: float = 12.0
) -> Candidates:
    """Pairs of places whose polar patches agree after a rotation, mirrored ones too.

    Args:
        band: (H, W) float32.
        points: (n, 2) float64 (x, y).
        radii: (n,) float64 in pixels, of the patches; the ratio of two radii is the scale of the map.
        per_point: most partners of a place, for each handedness.
        min_ncc: least correlation of the rotated patches.
        min_distance: least distance in pixels between two places.
    """
    if len(points) < 2:
        return no_candidates()
    descriptors, spectra = ring_descriptors(polar_patches(band, points, radii))
    queries = _compressed(descriptors)
    found = []
    _, neighbours = nearest_neighbours(queries, queries[: len(points)], per_point + 4)
    for mirrored, indices in ((False, neighbours[: len(points)]), (True, neighbours[len(points) :])):
        i, j = _distinct_pairs(points, radii, indices, per_point, min_distance)
        angle, ncc = _rotations(spectra, i, j, mirrored)
        good = ncc > min_ncc
        i, j, angle, ncc = i[good], j[good], angle[good], ncc[good]
        affines = similarity_maps(points[i], points[j], radii[j] / radii[i], angle, mirrored)
        found.append(Candidates(affines, points[i], radii[i], np.ones(len(i), np.int64), ncc))
    return concatenate_candidates(found)


def _compressed(descriptors: np.ndarray) -> np.ndarray:
    """Unit vectors (2 n, AXES) float32 of descriptors (n, d) and then of the mirrored patches, by principal components.

    Few descriptors keep their length d.
    """
    mean, axes = np.zeros(descriptors.shape[1], np.float32), np.eye(descriptors.shape[1], dtype=np.float32)
    if len(descriptors) > COMPRESS_FROM:
        count = min(len(descriptors), 4000)
        sample = descriptors[np.random.default_rng(0).choice(len(descriptors), count, replace=False)]
        mean = sample.mean(axis=0)
        axes = np.linalg.eigh((sample - mean).T @ (sample - mean))[1][:, -AXES:]
    vectors = np.concatenate([descriptors @ axes, descriptors @ (MIRROR[:, None] * axes)]) - mean @ axes
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def _distinct_pairs(
    points: np.ndarray, radii: np.ndarray, indices: np.ndarray, per_point: int, min_distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j) of each point with its nearest neighbours (n, k) that are other places of a similar size.

    Each pair is kept once, since the other direction gives the inverse map.
    """
    i = np.repeat(np.arange(len(points)), indices.shape[1])
    j = indices.ravel()
    apart = (j >= 0) & (np.linalg.norm(points[i] - points[j], axis=1) >= np.maximum(min_distance, 0.7 * radii[i]))
    apart &= np.abs(np.log(radii[i] / radii[j])) < np.log(MAX_SCALE)
    rank = np.cumsum(apart.reshape(indices.shape), axis=1).ravel()
    apart &= rank <= per_point
    i, j = i[apart], j[apart]
    _, once = np.unique(np.minimum(i, j) * len(points) + np.maximum(i, j), return_index=True)
    return i[once], j[once]
