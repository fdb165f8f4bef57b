"""Where copies may be: pairs of places that look alike whatever the rotation, mirroring, scale and brightness.

Three searches propose similarity maps; none of them proves anything, `alignment.py` does. A candidate is a map and
a disc in its source: `affine` takes a pixel (x, y, 1) near `centre` to the supposed copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numba
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

RINGS = 8  # of a polar patch
ANGLES = 32  # samples on each ring
HARMONICS = 8  # of the angle, kept in a descriptor
PAIRS = HARMONICS * (2 * RINGS - 3)  # products of harmonics of two rings, one or two apart
# What mirroring a patch does to its descriptor: the products' imaginary parts, its last numbers, change their sign.
MIRROR = np.repeat(np.array([1, -1], np.float32), [RINGS + HARMONICS * RINGS + PAIRS, PAIRS])
AROUND = 4.0  # surroundings that an extremum is compared with, standard deviation in pixels
SIFT_PIXELS = 3e6  # larger pictures are shrunk to this many pixels for their keypoints
EXACT_SEARCH = 4000  # up to this many vectors neighbours are searched by one matrix product


@dataclass(frozen=True)
class Candidates:
    """Proposed maps."""

    affines: np.ndarray  # (n, 2, 3) float64
    centres: np.ndarray  # (n, 2) float64 (x, y)
    radii: np.ndarray  # (n,) float64, pixels
    votes: np.ndarray  # (n,) int64: matches that agree with the map
    likeness: np.ndarray  # (n,) float64: higher is better, comparable within one search only

    def __len__(self) -> int:
        return len(self.affines)

    def take(self, index: np.ndarray) -> "Candidates":
        """Those of an index or a bool mask."""
        return Candidates(
            self.affines[index], self.centres[index], self.radii[index], self.votes[index], self.likeness[index]
        )


def empty() -> Candidates:
    """No candidates."""
    return Candidates(np.zeros((0, 2, 3)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0))


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """All candidates of several searches."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return empty()
    return Candidates(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("affines", "centres", "radii", "votes", "likeness")
        )
    )


# Nearest neighbours ---------------------------------------------------------------------------------------------


def neighbours(queries: np.ndarray, base: np.ndarray, k: int, probes: int = 6) -> tuple[np.ndarray, np.ndarray]:
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


# Keypoints ------------------------------------------------------------------------------------------------------


def keypoint_candidates(
    grey: np.ndarray, limit: int, ratio: float, min_distance: float = 12.0, mask: np.ndarray | None = None
) -> tuple[Candidates, Candidates]:
    """SIFT matches of a picture (H, W) uint8 with itself and its mirror image: consistent groups, and single ones.

    Args:
        limit: most keypoints, the strongest first.
        ratio: of a match's distance to that of the nearest descriptor which is no copy; smaller is stricter.
        min_distance: least distance in pixels between the two ends of a match.
        mask: (H, W) bool where keypoints count; everywhere when None.
    """
    points, frames, features = _sift(grey, limit, mask)
    if len(points) < 4:
        return empty(), empty()
    singles = []
    squared, indices = neighbours(np.concatenate([features, _mirror_sift(features)]), features, 8)
    for mirrored, part in ((False, np.s_[: len(points)]), (True, np.s_[len(points) :])):
        i, j, likeness = _match(points, squared[part], indices[part], ratio, min_distance)
        if len(i):
            singles.append(_single_maps(points, frames, i, j, likeness, mirrored))
    matches = concatenate(singles)
    return _groups(matches), matches


def _sift(grey: np.ndarray, limit: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (n, 2), frames (n, 2) of size in pixels and angle in radians, RootSIFT (n, 128) float32 of unit length."""
    sift = cv2.SIFT_create(nfeatures=limit, contrastThreshold=0.008, edgeThreshold=16)
    mask = None if mask is None else mask.astype(np.uint8)
    # SIFT doubles the picture and keeps some twenty float layers of it: large pictures are halved for it first.
    zoom = min(1.0, float(np.sqrt(SIFT_PIXELS / grey.size)))
    if zoom < 1:
        grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, grey.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    keypoints, features = sift.detectAndCompute(grey, mask)
    if features is None or len(keypoints) == 0:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    points = (np.array([k.pt for k in keypoints]) + 0.5) / zoom - 0.5
    frames = np.array([(k.size / zoom, np.deg2rad(k.angle)) for k in keypoints])
    root = np.sqrt(features / np.maximum(features.sum(axis=1, keepdims=True), 1e-6)).astype(np.float32)
    return points, frames, root


def _mirror_sift(features: np.ndarray) -> np.ndarray:
    """Descriptors of the mirrored patches: rows of the 4 x 4 grid swapped about the keypoint's axis, angles negated."""
    grid = features.reshape(-1, 4, 4, 8)
    return np.ascontiguousarray(grid[:, ::-1, :, (-np.arange(8)) % 8].reshape(len(features), 128))


def _match(
    points: np.ndarray, squared: np.ndarray, indices: np.ndarray, ratio: float, min_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches by the generalised nearest-neighbour test (g2NN): every neighbour before the first clear gap counts."""
    distances = np.sqrt(np.maximum(squared, 0))
    apart = np.linalg.norm(points[indices] - points[:, None], axis=2) >= min_distance
    apart &= indices >= 0
    # Near neighbours (the point itself, its other orientations) go to the end.
    order = np.argsort(~apart, axis=1, kind="stable")
    distances = np.where(np.take_along_axis(apart, order, 1), np.take_along_axis(distances, order, 1), 2.0)
    indices = np.take_along_axis(indices, order, 1)
    i, j, likeness = [], [], []
    passed = np.ones(len(points), bool)
    if (missing := 6 - distances.shape[1]) > 0:  # few keypoints: as if the others were far away
        distances = np.pad(distances, ((0, 0), (0, missing)), constant_values=2.0)
        indices = np.pad(indices, ((0, 0), (0, missing)))
    reference = np.minimum(distances[:, 5], 1.2)  # copies seldom number more than five
    for rank in range(5):
        passed &= distances[:, rank] < ratio * reference
        chosen = np.flatnonzero(passed)
        i.append(chosen)
        j.append(indices[chosen, rank])
        likeness.append(1 - distances[chosen, rank] / np.maximum(reference[chosen], 1e-6))
    return np.concatenate(i), np.concatenate(j), np.concatenate(likeness)


def similarity_maps(
    source: np.ndarray, target: np.ndarray, scale: np.ndarray, angle: np.ndarray, mirrored: bool
) -> np.ndarray:
    """Maps (n, 2, 3) that take points (n, 2) to points, turning by `angle` (radians, x towards y) and scaling.

    A mirrored map flips y first and then turns.
    """
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    flip = -1.0 if mirrored else 1.0
    linear = np.stack([np.stack([cos, -sin * flip], 1), np.stack([sin, cos * flip], 1)], 1)
    return np.concatenate([linear, (target - np.einsum("nij,nj->ni", linear, source))[:, :, None]], axis=2)


def _single_maps(
    points: np.ndarray, frames: np.ndarray, i: np.ndarray, j: np.ndarray, likeness: np.ndarray, mirrored: bool
) -> Candidates:
    """One map per match, from the keypoints' size and angle."""
    angle = frames[j, 1] + frames[i, 1] if mirrored else frames[j, 1] - frames[i, 1]
    affines = similarity_maps(points[i], points[j], frames[j, 0] / frames[i, 0], angle, mirrored)
    radii = np.clip(2.5 * frames[i, 0], 8, 20)
    return Candidates(affines, points[i], radii, np.ones(len(i), np.int64), likeness)


def _groups(matches: Candidates, reach: int = 10) -> Candidates:
    """Affine maps of matches that agree with their neighbours: connected components, then a robust fit, repeated."""
    if len(matches) < 3:
        return empty()
    tree = cKDTree(matches.centres)
    distance, near = tree.query(matches.centres, k=min(reach, len(matches)))
    here = np.repeat(np.arange(len(matches)), near.shape[1])
    there, distance = near.ravel(), distance.ravel()
    targets = np.einsum("nij,nj->ni", matches.affines[:, :, :2], matches.centres) + matches.affines[:, :, 2]
    scales = np.sqrt(np.abs(np.linalg.det(matches.affines[:, :, :2])))
    predicted = (
        np.einsum("nij,nj->ni", matches.affines[here, :, :2], matches.centres[there]) + matches.affines[here, :, 2]
    )
    error = np.linalg.norm(predicted - targets[there], axis=1)
    same = np.sign(np.linalg.det(matches.affines[:, :, :2]))
    agree = (error < 3 + 0.25 * distance * scales[here]) & (here != there) & (same[here] == same[there])
    agree &= np.abs(np.log(scales[here] / scales[there])) < 0.4
    graph = coo_matrix((np.ones(agree.sum()), (here[agree], there[agree])), shape=(len(matches),) * 2)
    _, labels = connected_components(graph, directed=False)
    found = []
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    for label in np.argsort(-np.diff(edges))[:200]:
        members = order[edges[label] : edges[label + 1]]
        if len(members) < 3:
            break
        found.extend(_fits(matches.centres[members], targets[members]))
    if not found:
        return empty()
    affines, centres, radii, votes = zip(*found, strict=True)
    votes = np.array(votes)
    return Candidates(np.array(affines), np.array(centres), np.array(radii), votes, np.minimum(votes / 20, 1.0))


def _fits(source: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float, int]]:
    """(affine, centre, radius, inliers) of every map in one component, by MAGSAC++ until nothing is left."""
    found = []
    for _ in range(6):
        if len(np.unique(source.round(1), axis=0)) < 3:
            break
        affine, inside = cv2.estimateAffine2D(
            source, target, method=cv2.USAC_MAGSAC, ransacReprojThreshold=2.0, maxIters=500, confidence=0.99
        )
        if affine is None:
            break
        inside = inside.ravel() > 0
        if inside.sum() < 3:
            break
        stretch = np.linalg.svd(affine[:, :2], compute_uv=False)
        if stretch[1] > 0.3 and stretch[0] < 3.3 and stretch[0] / stretch[1] < 1.8:
            centre = np.median(source[inside], axis=0)
            centre = source[inside][np.linalg.norm(source[inside] - centre, axis=1).argmin()]
            spread = float(np.median(np.linalg.norm(source[inside] - centre, axis=1)))
            found.append((affine, centre, min(max(spread, 8.0), 20.0), int(inside.sum())))
        source, target = source[~inside], target[~inside]
    return found


# Polar patches: dense field and objects -------------------------------------------------------------------------


def polar_patches(band: np.ndarray, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(n, RINGS, ANGLES) float32: the band on rings around points (n, 2), the outermost at the radius (n,)."""
    rings = (np.arange(RINGS, dtype=np.float32) + 0.7) / (RINGS - 0.3)
    angles = np.arange(ANGLES, dtype=np.float32) * (2 * np.pi / ANGLES)
    grid = rings[:, None] * np.stack([np.cos(angles), np.sin(angles)])[:, None, :]  # (2, RINGS, ANGLES)
    out = np.empty((len(points), RINGS, ANGLES), np.float32)
    for start in range(0, len(points), 4096):  # remap takes pictures of at most 32767 pixels a side
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
        return empty()
    plain, spectra = ring_descriptors(polar_patches(band, points, radii))
    mean, axes = np.zeros(plain.shape[1], np.float32), np.eye(plain.shape[1], dtype=np.float32)
    if len(points) > 256:
        sample = plain[np.random.default_rng(0).choice(len(plain), min(len(plain), 4000), replace=False)]
        mean = sample.mean(axis=0)
        axes = np.linalg.eigh((sample - mean).T @ (sample - mean))[1][:, -64:]
    queries = np.concatenate([plain @ axes, plain @ (MIRROR[:, None] * axes)]) - mean @ axes
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)
    found = []
    _, both = neighbours(queries, queries[: len(points)], per_point + 4)
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
    return concatenate(found)


def blob_points(
    grey: np.ndarray, sigmas: Sequence[float], limit: int, factor: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Extrema of the difference of Gaussians at each scale: points (n, 2) and radii (n,) = factor * sigma.

    They lie where the content puts them, so a copy has the same ones within half a pixel, also in smooth regions
    where SIFT finds no orientation. Of each scale the `limit` that stand out most from their surroundings: the
    strongest ones would all lie in the parts of a picture that are rich in contrast.
    """
    points, radii = [], []
    for sigma in sigmas:
        response = cv2.GaussianBlur(grey, (0, 0), sigma) - cv2.GaussianBlur(grey, (0, 0), 1.6 * sigma)
        side = 2 * max(round(0.8 * sigma), 1) + 1
        square = np.ones((side, side), np.uint8)
        peak = (response == cv2.dilate(response, square)) & (response > 0.15)
        peak |= (response == cv2.erode(response, square)) & (response < -0.15)
        peak[:2], peak[-2:], peak[:, :2], peak[:, -2:] = False, False, False, False
        ys, xs = np.nonzero(peak)
        if len(ys) > limit:
            around = np.sqrt(cv2.GaussianBlur(response * response, (0, 0), AROUND)) + 0.1
            clearest = np.argpartition(-np.abs(response / around)[ys, xs], limit)[:limit]
            ys, xs = ys[clearest], xs[clearest]
        points.append(np.stack([xs, ys], axis=1).astype(float))
        radii.append(np.full(len(xs), factor * sigma))
    return np.concatenate(points), np.concatenate(radii)


def object_points(grey: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2) and radii (n,) of what stands out from its surroundings, bright or dark, at several levels.

    The radius follows the object's area, so that a scaled copy gets a patch of its own scale.
    """
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    found = []
    for window in (31, 81):
        background = cv2.blur(smooth, (window, window))
        contrast = smooth - background
        spread = max(float(contrast.std()), 1.0)
        for sign in (1, -1):
            for level in (0.25, 0.8, 1.6):
                binary = (sign * contrast > level * spread).astype(np.uint8)
                binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
                _, _, stats, centres = cv2.connectedComponentsWithStats(binary, connectivity=4)
                area, w, h = stats[1:, 4], stats[1:, 2], stats[1:, 3]
                good = (area > 60) & (area < 6000) & (np.maximum(w, h) < 5 * np.minimum(w, h)) & (area > 0.3 * w * h)
                radius = np.sqrt(area[good] / np.pi)
                found.append(np.column_stack([centres[1:][good], 1.15 * radius + 2]))
    objects = np.concatenate(found)
    if len(objects) > limit:  # an even choice over the levels
        objects = objects[np.linspace(0, len(objects) - 1, limit).astype(int)]
    return objects[:, :2], objects[:, 2]
