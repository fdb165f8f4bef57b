"""Bit-identical copies as verified copies: regions of identical blocks need no alignment and no measurements."""

from dataclasses import replace

import numpy as np

from copymove.copies import Copy, VerifiedCopy, copy_on_jpeg_grid
from copymove.exact_blocks import find_exact_blocks
from copymove.growth import grow_region
from copymove.image_features import ImageFeatures
from copymove.measurements import measure_pair
from copymove.regions import Region, deepest_point, overlap_area, region_of_mask, warp_region
from copymove.scoring import exact_score
from copymove.shortlist import MIN_FINE_NCC

MAX_SYMMETRIC_OVERLAP = 0.3  # share of a mirrored or rotated source that may lie in its own copy
SEED_RADIUS = (8.0, 20.0)  # least and largest radius of the disc from which a copy grows, in pixels
MIN_RECORDED = 0.5  # share of either region that must lie where copies are sought
MIN_KEPT = 0.5  # share of the identical pixels that a grown region must hold


def find_exact_copies(image: np.ndarray, image_features: ImageFeatures) -> list[VerifiedCopy]:
    """Bit-identical copies of an image (H, W, 3) uint8, the largest first."""
    found = []
    for exact in find_exact_blocks(image):
        source = Region(exact.x, exact.y, exact.mask)
        target = warp_region(source, exact.affine, image_features.shape)
        if target is None or not _is_recorded(image_features, source, target):
            continue
        mirrored_or_rotated = np.any(exact.affine[:, :2] != np.eye(2))
        if mirrored_or_rotated and overlap_area(source, target) > MAX_SYMMETRIC_OVERLAP * exact.mask.sum():
            continue  # a symmetrical thing is its own mirror image
        score = exact_score(exact.covered_pixels)
        copy = Copy("exact", exact.affine, exact.covered_pixels, 1.0, score, source, target)
        found.append(VerifiedCopy(_widened(image_features, copy) if copy_on_jpeg_grid(copy) else copy))
    return found


def _is_recorded(image_features: ImageFeatures, source: Region, target: Region) -> bool:
    """Whether most of the source and of the copy lies where copies are sought."""
    if image_features.recorded is None:
        return True
    masks = (region.full(image_features.shape) for region in (source, target))
    return all((mask & image_features.recorded).sum() > MIN_RECORDED * mask.sum() for mask in masks)


def _widened(image_features: ImageFeatures, copy: Copy) -> Copy:
    """A copy whose JPEG blocks are identical, extended to the region that agrees.

    Blocks that the copy fills only in part also hold something else, so they differ from their source.
    """
    x, y, depth = deepest_point(copy.source)
    radius = min(max(depth, SEED_RADIUS[0]), SEED_RADIUS[1])
    grown = grow_region(image_features, copy.affine, np.array([x, y], float), radius, MIN_FINE_NCC)
    measurements = grown and measure_pair(image_features, grown)
    if measurements is None:
        return copy
    shape = image_features.shape
    mask = Region(measurements.x, measurements.y, measurements.mask).full(shape)
    identical = copy.source.full(shape)
    if (mask & identical).sum() < MIN_KEPT * identical.sum():
        return copy
    source = region_of_mask(mask | identical, 0, 0)
    target = warp_region(source, copy.affine, shape)
    return copy if target is None or overlap_area(source, target) else replace(copy, source=source, target=target)
