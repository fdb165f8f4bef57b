"""Candidates from polar patches: places that look alike after turning, also mirrored."""

import cv2
import numba
import numpy as np

from copymove.candidates import Candidates, concatenate_candidates, no_candidates
from copymove.geometry import similarity_maps
from copymove.neighbours import nearest_neighbours

RINGS = 8  # of a polar patch


ANGLES = 32  # samples on each ring


HARMONICS = 8  # of the angle, kept in a descriptor


PAIRS = HARMONICS * (2 * RINGS - 3)  # products of harmonics of two rings, one or two apart


# What mirroring a patch does to its descriptor: the products' imaginary parts, its last numbers, change their sign.
MIRROR = np.repeat(np.array([1, -1], np.float32), [RINGS + HARMONICS * RINGS + PAIRS, PAIRS])


def polar_patches(band: np.ndarray, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(n, RINGS, ANGLES) float32: the band on rings around points (n, 2), the outermost at the radius (n,)."""
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
    """Rotation-invariant unit vectors (n, d) float32 of polar patches, and the patches' spectra.

    With F_r(k) the angular spectrum of ring r, a rotation by t multiplies F_r(k) by exp(-ikt): the products
    F_r(k) conj(F_s(k)) of two rings keep how the rings lie to each other and lose the rotation. A mirrored patch
    has the conjugate products: its vector is that of the patch times `MIRROR`.
    """
    weight = np.sqrt((np.arange(RINGS) + 0.7) / RINGS).astype(np.float32)[:, None]
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)
    patches *= weight
    patches /= np.maximum(np.linalg.norm(patches, axis=(1, 2), keepdims=True), 1e-6)
    turns = np.exp(-2j * np.pi / ANGLES * np.outer(np.arange(ANGLES), np.arange(HARMONICS + 1)))
    # So few harmonics are faster as a matrix product than as an FFT.
    spectra = patches.reshape(-1, ANGLES) @ np.ascontiguousarray(turns.astype(np.complex64)).view(np.float32)
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
    """Angle (radians) that turns polar patch i (its mirror image if so) onto patch j, and their correlation."""
    # The correlation at every angle is a sum of few harmonics, of which all but the first come twice.
    angles = np.arange(2 * ANGLES) * (np.pi / ANGLES)
    weights = np.where(np.arange(HARMONICS + 1) > 0, 2.0, 1.0)
    turns = weights[:, None] * np.exp(-1j * np.outer(np.arange(HARMONICS + 1), angles))
    turns = np.stack([turns.real, turns.imag], axis=1).reshape(-1, 2 * ANGLES).astype(np.float32)
    scores = _products(spectra, i, j, mirrored).view(np.float32) @ turns
    best = scores.argmax(axis=1)
    power = (np.abs(spectra) ** 2).sum(axis=1) @ weights
    return angles[best], scores[np.arange(len(best)), best] / np.maximum(np.sqrt(power[i] * power[j]), 1e-9)


@numba.njit(cache=True, fastmath=True)
def _products(spectra: np.ndarray, i: np.ndarray, j: np.ndarray, mirrored: bool) -> np.ndarray:
    """Sums over the rings (n, HARMONICS + 1) of spectrum j times spectrum i, which is conjugate unless mirrored."""
    out = np.zeros((len(i), spectra.shape[2]), np.complex64)
    for m in range(len(i)):
        for r in range(spectra.shape[1]):
            for k in range(spectra.shape[2]):
                a = spectra[i[m], r, k]
                out[m, k] += spectra[j[m], r, k] * (a if mirrored else a.conjugate())
    return out


def polar_candidates(
    band: np.ndarray, points: np.ndarray, radii: np.ndarray, per_point: int, least: float, min_distance: float = 12.0
) -> Candidates:
    """Pairs of places whose polar patches agree after turning, also mirrored.

    Args:
        band: (H, W) float32.
        points: (n, 2) float64 (x, y); radii: (n,) pixels, the patches' sizes, whose ratio is the map's scale.
        per_point: most partners of a place, for each handedness.
        least: smallest correlation of the turned patches.
    """
    if len(points) < 2:
        return no_candidates()
    plain, spectra = ring_descriptors(polar_patches(band, points, radii))
    mean, axes = np.zeros(plain.shape[1], np.float32), np.eye(plain.shape[1], dtype=np.float32)
    if len(points) > 256:
        sample = plain[np.random.default_rng(0).choice(len(plain), min(len(plain), 4000), replace=False)]
        mean = sample.mean(axis=0)
        axes = np.linalg.eigh((sample - mean).T @ (sample - mean))[1][:, -64:]
    queries = np.concatenate([plain @ axes, plain @ (MIRROR[:, None] * axes)]) - mean @ axes
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)
    found = []
    _, both = nearest_neighbours(queries, queries[: len(points)], per_point + 4)
    for mirrored, indices in ((False, both[: len(points)]), (True, both[len(points) :])):
        i = np.repeat(np.arange(len(points)), indices.shape[1])
        j = indices.ravel()
        apart = (j >= 0) & (np.linalg.norm(points[i] - points[j], axis=1) >= np.maximum(min_distance, 0.7 * radii[i]))
        apart &= np.abs(np.log(radii[i] / radii[j])) < np.log(2.3)
        rank = np.cumsum(apart.reshape(indices.shape), axis=1).ravel()
        apart &= rank <= per_point
        i, j = i[apart], j[apart]
        # Each pair once: the other direction gives the inverse map.
        _, once = np.unique(np.minimum(i, j) * len(points) + np.maximum(i, j), return_index=True)
        i, j = i[once], j[once]
        angle, correlation = _rotations(spectra, i, j, mirrored)
        good = correlation > least
        i, j, angle, correlation = i[good], j[good], angle[good], correlation[good]
        affines = similarity_maps(points[i], points[j], radii[j] / radii[i], angle, mirrored)
        found.append(Candidates(affines, points[i], radii[i], np.ones(len(i), np.int64), correlation))
    return concatenate_candidates(found)
