"""Candidates from SIFT keypoints that match (Lowe 2004; copy-move detection: Amerini et al. 2011)."""

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from copymove.candidates import Candidates, concatenate_candidates, no_candidates
from copymove.geometry import similarity_maps
from copymove.neighbours import nearest_neighbours

SIFT_PIXELS = 3e6  # larger images are shrunk to this many pixels for their keypoints
NEIGHBOURS = 8  # nearest descriptors of each keypoint that are looked at
MAX_COPIES = 5  # copies of one thing seldom number more: the next descriptor after these is taken for an unrelated one
MAX_DISTANCE = 1.2  # of an unrelated descriptor, whose length is 1
MAX_GROUPS = 200  # most groups of matches that maps are fitted to, the largest first
MAX_MAPS = 6  # most maps that are fitted to one group


def keypoint_candidates(
    grey: np.ndarray, limit: int, ratio: float, min_distance: float = 12.0, mask: np.ndarray | None = None
) -> tuple[Candidates, Candidates]:
    """SIFT matches of an image with itself and with its mirror image.

    Args:
        grey: (H, W) uint8.
        limit: most keypoints, the strongest first.
        ratio: largest ratio of a match's distance to that of the nearest unrelated descriptor; smaller is stricter.
        min_distance: least distance in pixels between the two ends of a match.
        mask: (H, W) bool where keypoints count; everywhere when None.
    Returns:
        Maps fitted to groups of matches that agree, and a map for every single match.
    """
    points, frames, descriptors = _sift(grey, limit, mask)
    if len(points) < 4:
        return no_candidates(), no_candidates()
    singles = []
    queries = np.concatenate([descriptors, _mirror_sift(descriptors)])
    squared, indices = nearest_neighbours(queries, descriptors, NEIGHBOURS)
    for mirrored, part in ((False, np.s_[: len(points)]), (True, np.s_[len(points) :])):
        i, j, likeness = _match_g2nn(points, squared[part], indices[part], ratio, min_distance)
        if len(i):
            singles.append(_single_maps(points, frames, i, j, likeness, mirrored))
    matches = concatenate_candidates(singles)
    return _group_matches(matches), matches


def _sift(grey: np.ndarray, limit: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints of an image (H, W) uint8.

    Returns:
        Points (n, 2) float64 (x, y), frames (n, 2) float64 of size in pixels and angle in radians, and RootSIFT
        descriptors (Arandjelovic and Zisserman 2012) (n, 128) float32 of unit length.
    """
    sift = cv2.SIFT_create(nfeatures=limit, contrastThreshold=0.008, edgeThreshold=16)
    mask = None if mask is None else mask.astype(np.uint8)
    # SIFT doubles the image and keeps some twenty float layers of it, so large images are shrunk first.
    zoom = min(1.0, float(np.sqrt(SIFT_PIXELS / grey.size)))
    if zoom < 1:
        grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, grey.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    keypoints, descriptors = sift.detectAndCompute(grey, mask)
    if descriptors is None or len(keypoints) == 0:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    points = (np.array([k.pt for k in keypoints]) + 0.5) / zoom - 0.5
    frames = np.array([(k.size / zoom, np.deg2rad(k.angle)) for k in keypoints])
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6)).astype(np.float32)
    return points, frames, root


def _mirror_sift(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors of the mirrored patches: rows of the 4 x 4 grid swapped about the keypoint's axis, angles negated."""
    grid = descriptors.reshape(-1, 4, 4, 8)
    return np.ascontiguousarray(grid[:, ::-1, :, (-np.arange(8)) % 8].reshape(len(descriptors), 128))


def _match_g2nn(
    points: np.ndarray, squared: np.ndarray, indices: np.ndarray, ratio: float, min_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches by the generalised nearest-neighbour test (g2NN): every neighbour before the first clear gap counts.

    Args:
        points: (n, 2) of the keypoints.
        squared, indices: (n, k) squared distances and indices of each descriptor's nearest ones.
        ratio, min_distance: see `keypoint_candidates`.
    Returns:
        Indices of both ends and the likeness, 0 to 1, of each match.
    """
    distances = np.sqrt(np.maximum(squared, 0))
    apart = np.linalg.norm(points[indices] - points[:, None], axis=2) >= min_distance
    apart &= indices >= 0
    # Neighbours at the same place, as the point itself and its other orientations, go to the end.
    order = np.argsort(~apart, axis=1, kind="stable")
    distances = np.where(np.take_along_axis(apart, order, 1), np.take_along_axis(distances, order, 1), 2.0)
    indices = np.take_along_axis(indices, order, 1)
    i, j, likeness = [], [], []
    passed = np.ones(len(points), bool)
    if (missing := MAX_COPIES + 1 - distances.shape[1]) > 0:  # an image with few keypoints: fill up with unrelated ones
        distances = np.pad(distances, ((0, 0), (0, missing)), constant_values=2.0)
        indices = np.pad(indices, ((0, 0), (0, missing)))
    reference = np.minimum(distances[:, MAX_COPIES], MAX_DISTANCE)
    for rank in range(MAX_COPIES):
        passed &= distances[:, rank] < ratio * reference
        chosen = np.flatnonzero(passed)
        i.append(chosen)
        j.append(indices[chosen, rank])
        likeness.append(1 - distances[chosen, rank] / np.maximum(reference[chosen], 1e-6))
    return np.concatenate(i), np.concatenate(j), np.concatenate(likeness)


def _single_maps(
    points: np.ndarray, frames: np.ndarray, i: np.ndarray, j: np.ndarray, likeness: np.ndarray, mirrored: bool
) -> Candidates:
    """One map for each match, from the sizes and angles of its two keypoints."""
    angle = frames[j, 1] + frames[i, 1] if mirrored else frames[j, 1] - frames[i, 1]
    affines = similarity_maps(points[i], points[j], frames[j, 0] / frames[i, 0], angle, mirrored)
    radii = np.clip(2.5 * frames[i, 0], 8, 20)
    return Candidates(affines, points[i], radii, np.ones(len(i), np.int64), likeness)


def _group_matches(matches: Candidates, reach: int = 10) -> Candidates:
    """Affine maps of groups of matches that agree with their neighbours, by a robust fit to each group.

    Args:
        reach: number of nearest matches that each match is compared with.
    """
    if len(matches) < 3:
        return no_candidates()
    targets = np.einsum("nij,nj->ni", matches.affines[:, :, :2], matches.centres) + matches.affines[:, :, 2]
    labels = _agreeing_groups(matches, targets, reach)
    found = []
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    for label in np.argsort(-np.diff(edges))[:MAX_GROUPS]:
        members = order[edges[label] : edges[label + 1]]
        if len(members) < 3:
            break
        found.extend(_fit_affines(matches.centres[members], targets[members]))
    if not found:
        return no_candidates()
    affines, centres, radii, votes = zip(*found, strict=True)
    votes = np.array(votes)
    return Candidates(np.array(affines), np.array(centres), np.array(radii), votes, np.minimum(votes / 20, 1.0))


def _agreeing_groups(matches: Candidates, targets: np.ndarray, reach: int) -> np.ndarray:
    """Label (n,) of the group of each match: connected components of the matches that agree with a near match.

    Two matches agree where the map of the one takes the centre of the other near that one's target (n, 2), and both
    maps have about the same scale and the same handedness.
    """
    tree = cKDTree(matches.centres)
    distance, near = tree.query(matches.centres, k=min(reach, len(matches)))
    here = np.repeat(np.arange(len(matches)), near.shape[1])
    there, distance = near.ravel(), distance.ravel()
    scales = np.sqrt(np.abs(np.linalg.det(matches.affines[:, :, :2])))
    predicted = (
        np.einsum("nij,nj->ni", matches.affines[here, :, :2], matches.centres[there]) + matches.affines[here, :, 2]
    )
    error = np.linalg.norm(predicted - targets[there], axis=1)
    same = np.sign(np.linalg.det(matches.affines[:, :, :2]))
    agree = (error < 3 + 0.25 * distance * scales[here]) & (here != there) & (same[here] == same[there])
    agree &= np.abs(np.log(scales[here] / scales[there])) < 0.4
    graph = coo_matrix((np.ones(agree.sum()), (here[agree], there[agree])), shape=(len(matches),) * 2)
    return connected_components(graph, directed=False)[1]


def _fit_affines(source: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float, int]]:
    """(affine, centre, radius, number of inliers) of each map in one group of matches.

    MAGSAC++ (Barath et al. 2020) fits a map; its inliers are taken out, and the rest is fitted again.

    Args:
        source, target: (n, 2) float64, both ends of the matches.
    """
    found = []
    for _ in range(MAX_MAPS):
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
