"""Proposals: which parts of an image may be copies of each other. To add a search, add a function to `PROPOSERS`."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from config import MatchingSettings
from copymove.candidates import Candidates, concatenate_candidates, no_candidates
from copymove.copies import Instance
from copymove.image_features import ImageFeatures
from copymove.interest_points import blob_points, object_points
from copymove.keypoints import keypoint_candidates
from copymove.polar import polar_candidates
from copymove.regions import Region, deepest_point

MIN_KEYPOINTS = 2000  # keypoints that every image may have, however small it is
PIXELS_PER_KEYPOINT = 60  # larger images may have one keypoint for so many pixels, up to the setting
MAX_SINGLE_MATCHES = 4000  # most keypoint matches that are proposed one by one, the best first
SMALL_RADIUS = 7.0  # of a patch in the dense field, below which its inner part is compared, too
REGION_KEYPOINTS, REGION_RATIO = 4000, 0.95  # most keypoints and ratio test within a proposed region
MAX_TEMPLATES = 4  # most regions of proven copies that are searched for in the whole image
MAX_FURTHER = 12  # most places of each template that are proposed, and most candidates that are verified for them
TEMPLATE_HALF = (5, 32)  # half the side of a template, in pixels: least, most
MIN_TEMPLATE_NCC = 0.4  # correlation with the template that a place needs
NO_TRANSLATION = 0.05  # by how much the linear part of a map differs from the identity where it is no translation


def keypoint_proposals(image_features: ImageFeatures, settings: MatchingSettings) -> Candidates:
    """Groups of SIFT matches that agree on a map, and the best single matches."""
    grey = image_features.grey.astype(np.uint8)
    limit = min(settings.max_keypoints, max(MIN_KEYPOINTS, grey.size // PIXELS_PER_KEYPOINT))
    groups, singles = keypoint_candidates(grey, limit, settings.ratio_test, mask=image_features.recorded)
    best = np.argsort(-singles.likeness, kind="stable")[:MAX_SINGLE_MATCHES]
    return concatenate_candidates([groups, singles.take(best)])


def object_proposals(image_features: ImageFeatures, settings: MatchingSettings) -> Candidates:
    """Pairs of objects, such as cells, that look alike."""
    points, radii = object_points(image_features.grey, 6000, image_features.recorded)
    return polar_candidates(image_features.band_pass, points, radii, per_point=3, min_ncc=0.8)


def dense_proposals(image_features: ImageFeatures, settings: MatchingSettings) -> Candidates:
    """Pairs of blobs at four scales whose surroundings look alike."""
    points, radii = blob_points(image_features.grey, (1.1, 1.6, 2.3, 3.3), 3000, mask=image_features.recorded)
    # A small copy holds no more than the inner part of the smallest patches. So little must agree all the better.
    small = radii < SMALL_RADIUS
    return concatenate_candidates(
        [
            polar_candidates(image_features.band_pass, points, radii, per_point=2, min_ncc=0.88),
            polar_candidates(
                image_features.narrow_band_pass, points[small], radii[small] * (2 / 3), per_point=2, min_ncc=0.97
            ),
        ]
    )


PROPOSERS: dict[str, Callable[[ImageFeatures, MatchingSettings], Candidates]] = {
    "keypoints": keypoint_proposals,
    "objects": object_proposals,
    "dense": dense_proposals,
}


def region_proposals(image_features: ImageFeatures, region: np.ndarray) -> list[tuple[str, Candidates]]:
    """Candidates within a region (H, W) bool that the embedding proposes: more keypoints and weaker matches.

    Returns:
        The candidates of each search with its name.
    """
    grey = image_features.grey.astype(np.uint8)
    near = cv2.dilate(region.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    groups, singles = keypoint_candidates(grey, REGION_KEYPOINTS, REGION_RATIO, mask=near)
    points, radii = blob_points(image_features.grey, (1.6, 2.3, 3.3, 4.6), 12000)
    inside = near[points[:, 1].astype(int), points[:, 0].astype(int)]
    dense = polar_candidates(image_features.band_pass, points[inside], radii[inside], per_point=4, min_ncc=0.7)
    return [("keypoints", concatenate_candidates([groups, singles])), ("dense", dense)]


def further_candidates(image_features: ImageFeatures, instances: Sequence[Instance]) -> Candidates:
    """Translations of what is proven to other places: the middle of its regions is searched for in the whole image."""
    templates = []
    for instance in instances:
        other_looks = [c.target for c in instance.copies if np.abs(c.affine[:, :2] - np.eye(2)).max() > NO_TRANSLATION]
        templates += [instance.copies[0].source, *other_looks[:2]]
    band_pass = image_features.band_pass
    return concatenate_candidates([_places_of(band_pass, region) for region in templates[:MAX_TEMPLATES]])


def _places_of(band: np.ndarray, region: Region) -> Candidates:
    """Translations of a region's middle to the places of the band (H, W) float32 that correlate best with it."""
    height, width = band.shape
    x, y, depth = deepest_point(region)
    half = int(min(max(depth, 6), TEMPLATE_HALF[1], x, y, width - 1 - x, height - 1 - y))
    template = band[y - half : y + half + 1, x - half : x + half + 1]
    if half < TEMPLATE_HALF[0] or template.std() < 0.5:
        return no_candidates()
    ncc = cv2.matchTemplate(band, np.ascontiguousarray(template), cv2.TM_CCOEFF_NORMED)
    peaks = (ncc >= cv2.dilate(ncc, np.ones((9, 9), np.uint8))) & (ncc > MIN_TEMPLATE_NCC)
    ys, xs = np.nonzero(peaks)
    best = np.argsort(-ncc[ys, xs], kind="stable")[: MAX_FURTHER + 1]  # one of them is the region itself
    shifts = np.stack([xs[best] + half - x, ys[best] + half - y], axis=1).astype(float)
    shifts = shifts[np.hypot(*shifts.T) > 6]
    count = len(shifts)
    affines = np.tile(np.eye(2, 3), (count, 1, 1))
    affines[:, :, 2] = shifts
    centres = np.tile([[float(x), float(y)]], (count, 1))
    return Candidates(affines, centres, np.full(count, float(half)), np.ones(count, np.int64), np.zeros(count))
