"""Where copies may be: pairs of places that look alike whatever the rotation, mirroring, scale and brightness.

Three searches propose similarity maps; none of them proves anything, `alignment.py` does. A candidate is a map and
a disc in its source: `affine` takes a pixel (x, y, 1) near `centre` to the supposed copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

RINGS = 8  # of a polar patch
ANGLES = 32  # samples on each ring
HARMONICS = 8  # of the angle, kept in a descriptor
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
    similarity = queries @ base.T
    if k < len(base):
        top = np.argpartition(similarity, len(base) - k, axis=1)[:, len(base) - k :]
        similarity = np.take_along_axis(similarity, top, axis=1)
    else:
        top = np.broadcast_to(np.arange(k), similarity.shape)
    order = np.argsort(-similarity, axis=1, kind="stable")
    return 2 - 2 * np.take_along_axis(similarity, order, axis=1), names[np.take_along_axis(top, order, axis=1)]


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
    for mirrored in (False, True):
        queries = _mirror_sift(features) if mirrored else features
        i, j, likeness = _match(points, queries, features, ratio, min_distance)
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
    points: np.ndarray, queries: np.ndarray, features: np.ndarray, ratio: float, min_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches by the generalised nearest-neighbour test (g2NN): every neighbour before the first clear gap counts."""
    squared, indices = neighbours(queries, features, 8)
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


def ring_descriptors(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation-invariant unit vectors of polar patches, those of their mirror images, and the patches' spectra.

    With F_r(k) the angular spectrum of ring r, a rotation by t multiplies F_r(k) by exp(-ikt): the products
    F_r(k) conj(F_s(k)) of two rings keep how the rings lie to each other and lose the rotation. A mirrored patch
    has the conjugate products.
    """
    weight = np.sqrt((np.arange(RINGS) + 0.7) / RINGS).astype(np.float32)[:, None]
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)
    patches = patches * weight
    patches /= np.maximum(np.linalg.norm(patches, axis=(1, 2), keepdims=True), 1e-6)
    spectra = np.fft.rfft(patches, axis=2)[:, :, : HARMONICS + 1].astype(np.complex64)
    mean = spectra[:, :, 0].real / np.sqrt(ANGLES)
    products = []
    for step in (1, 2):
        p = spectra[:, :-step, 1:] * spectra[:, step:, 1:].conj()
        products.append((p / np.sqrt(np.abs(p) + 1e-6)).reshape(len(patches), -1))
    product = np.concatenate(products, axis=1) / np.sqrt(ANGLES)
    magnitude = np.abs(spectra[:, :, 1:]).reshape(len(patches), -1) / np.sqrt(ANGLES)
    plain = np.concatenate([mean, magnitude, product.real, product.imag], axis=1)
    mirror = np.concatenate([mean, magnitude, product.real, -product.imag], axis=1)
    norm = np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-6)
    return (plain / norm).astype(np.float32), (mirror / norm).astype(np.float32), spectra


def _rotations(a: np.ndarray, b: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Angle (radians) that turns polar patch a (its mirror image if so) onto b, and their correlation, from spectra."""
    product = (b * (a if mirrored else a.conj())).sum(axis=1)
    scores = np.fft.irfft(product, n=2 * ANGLES, axis=1) * 2 * ANGLES
    best = scores.argmax(axis=1)
    power = np.sqrt(_power(a) * _power(b))
    return best * (np.pi / ANGLES), scores[np.arange(len(best)), best] / np.maximum(power, 1e-9)


def _power(spectra: np.ndarray) -> np.ndarray:
    squared = np.abs(spectra) ** 2
    return squared[:, :, 0].sum(axis=1) + 2 * squared[:, :, 1:].sum(axis=(1, 2))


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
    plain, mirror, spectra = ring_descriptors(polar_patches(band, points, radii))
    if plain.shape[1] > 64 and len(points) > 256:
        sample = plain[np.random.default_rng(0).choice(len(plain), min(len(plain), 4000), replace=False)]
        mean = sample.mean(axis=0)
        _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))
        plain, mirror = ((v - mean) @ axes[:, -64:] for v in (plain, mirror))
        plain, mirror = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6) for v in (plain, mirror))
    found = []
    for mirrored, queries in ((False, plain), (True, mirror)):
        _, indices = neighbours(queries, plain, per_point + 4)
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
        angle, correlation = _rotations(spectra[i], spectra[j], mirrored)
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
