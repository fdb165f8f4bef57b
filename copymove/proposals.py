"""Proposals: where copies may be."""

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from copymove.candidates import Candidates, concatenate_candidates
from copymove.copies import Copy, Instance, copy_on_jpeg_grid
from copymove.exact_blocks import find_exact_blocks
from copymove.growth import grow_region
from copymove.interest_points import blob_points, object_points
from copymove.keypoints import keypoint_candidates
from copymove.measurements import measure_pair
from copymove.polar import polar_candidates
from copymove.regions import Region, deepest_point, overlap_area, region_of_mask, warp_region
from copymove.search import SearchState
from copymove.verification import MIN_FINE_NCC

MAX_TEMPLATES = 4  # copies that are sought again in an image


MAX_FURTHER = 12  # places of each that are looked at, and candidates that are verified for them


def find_exact_copies(search: SearchState, image: np.ndarray) -> None:
    for found in find_exact_blocks(image):
        source = Region(found.x, found.y, found.mask)
        target = warp_region(source, found.affine, search.canvas.shape)
        if target is None:
            continue
        if np.any(found.affine[:, :2] != np.eye(2)) and overlap_area(source, target) > 0.3 * found.mask.sum():
            continue  # symmetrical: its own mirror image
        score = 1 / (1 + math.exp(-min((found.covered_pixels - 70) / 12, 30.0)))
        copy = Copy("exact", found.affine, found.covered_pixels, 1.0, min(score, 0.999), source, target)
        search.copies.append(_widen_exact_copy(search, copy) if copy_on_jpeg_grid(copy) else copy)
        search.evidence.append({})
        search.known.add_copy(search.copies[-1])


def _widen_exact_copy(search: SearchState, copy: Copy) -> Copy:
    """A copy whose JPEG blocks are identical, with the rest of its blocks, which hold other things too and differ."""
    x, y, radius = deepest_point(copy.source)
    centre = np.array([x, y], float)
    grown = grow_region(search.canvas, copy.affine, centre, min(max(radius, 8.0), 20.0), MIN_FINE_NCC)
    evidence = grown and measure_pair(search.canvas, grown)
    if evidence is None:
        return copy
    shape = search.canvas.shape
    mask = Region(evidence.x, evidence.y, evidence.mask).full(shape)
    core = copy.source.full(shape)
    if (mask & core).sum() < 0.5 * core.sum():
        return copy
    source = region_of_mask(mask | core, 0, 0)
    target = warp_region(source, copy.affine, shape)
    return copy if target is None or overlap_area(source, target) else replace(copy, source=source, target=target)


def further_candidates(search: SearchState, instances: Sequence[Instance]) -> Candidates:
    """Other places of what was found: what lies inside a copy, sought everywhere as it stands."""
    band = search.canvas.band
    height, width = band.shape
    templates = []
    for instance in instances:
        best = instance.copies[0]
        turned = [c.target for c in instance.copies if np.abs(c.affine[:, :2] - np.eye(2)).max() > 0.05]
        templates += [best.source, *turned[:2]]
    found = []
    for x, y, depth in map(deepest_point, templates[:MAX_TEMPLATES]):
        half = int(min(max(depth, 6), 32, x, y, width - 1 - x, height - 1 - y))
        if half < 5:
            continue
        template = band[y - half : y + half + 1, x - half : x + half + 1]
        if template.std() < 0.5:
            continue
        likeness = cv2.matchTemplate(band, np.ascontiguousarray(template), cv2.TM_CCOEFF_NORMED)
        peaks = (likeness >= cv2.dilate(likeness, np.ones((9, 9), np.uint8))) & (likeness > 0.4)
        ys, xs = np.nonzero(peaks)
        best = np.argsort(-likeness[ys, xs], kind="stable")[: MAX_FURTHER + 1]
        shifts = np.stack([xs[best] + half - x, ys[best] + half - y], axis=1).astype(float)
        shifts = shifts[np.hypot(*shifts.T) > 6]
        affines = np.tile(np.eye(2, 3), (len(shifts), 1, 1))
        affines[:, :, 2] = shifts
        centres, radii = np.tile([[float(x), float(y)]], (len(shifts), 1)), np.full(len(shifts), float(half))
        found.append(Candidates(affines, centres, radii, np.ones(len(shifts), np.int64), np.zeros(len(shifts))))
    return concatenate_candidates(found)


def keypoint_proposals(search: SearchState, grey: np.ndarray) -> Candidates:
    limit = min(search.settings.max_keypoints, max(2000, grey.size // 60))
    groups, singles = keypoint_candidates(grey, limit, search.settings.ratio_test)
    order = np.argsort(-singles.likeness, kind="stable")[:4000]
    return concatenate_candidates([groups, singles.take(order)])


def object_proposals(search: SearchState) -> Candidates:
    points, radii = object_points(search.canvas.grey, 6000)
    return polar_candidates(search.canvas.band, points, radii, 3, 0.8)


def dense_proposals(search: SearchState) -> Candidates:
    points, radii = blob_points(search.canvas.grey, (1.1, 1.6, 2.3, 3.3), 3000)
    # Around the smallest ones also as little as a small copy holds, which must be the more alike.
    small = radii < 7
    return concatenate_candidates(
        [
            polar_candidates(search.canvas.band, points, radii, 2, 0.88),
            polar_candidates(search.canvas.narrow, points[small], radii[small] * (2 / 3), 2, 0.97),
        ]
    )


def region_proposals(search: SearchState, grey: np.ndarray, region: np.ndarray) -> list[tuple[str, Candidates]]:
    """A region proposed by the embedding: more keypoints and weaker matches, the same proof."""
    near = cv2.dilate(region.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    groups, singles = keypoint_candidates(grey, 4000, 0.95, mask=near)
    points, radii = blob_points(search.canvas.grey, (1.6, 2.3, 3.3, 4.6), 12000)
    inside = near[points[:, 1].astype(int), points[:, 0].astype(int)]
    dense = polar_candidates(search.canvas.band, points[inside], radii[inside], 4, 0.7)
    return [("keypoints", concatenate_candidates([groups, singles])), ("dense", dense)]
