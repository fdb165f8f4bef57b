"""The boundary of a grown region, drawn again by the aligned difference.

Windows of correlation reach over a region's edge, so that it is known to a few pixels only. The difference of the
aligned pair is known for every pixel: where it is small the pixel was copied.
"""

import cv2
import numpy as np

from copymove.correlation_maps import fit_gain
from copymove.exactness import ROUNDING
from copymove.image_features import blur
from copymove.morphology import component_with_most, ellipse, erode_keeping, fill_holes

EDGE_REACH = 4  # pixels by which a boundary may move where the difference says so
DEPTH_WEIGHT = 0.2  # log-likelihood that a pixel's depth inside the region is worth, per pixel
MIN_SHADING = 12.0  # variance of the whole difference over that of its finest structure from which a copy is shaded
SHADED_REACH = 8  # pixels by which the boundary of a shaded copy may grow
MEDIAN_OF_SQUARES = 0.455  # of a Gaussian's mean square: a median is not moved by strong outliers


def sharpen_boundary(template: np.ndarray, partner: np.ndarray, valid: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Region (h, w) bool whose pixels near its edge are decided by a likelihood ratio and their depth inside it.

    Inside the copy the variance of the difference is a share of what two unrelated contents have; outside it is that
    of unrelated contents too: the sum of both local variances and the squared difference of the local means.

    Args:
        template, partner: (h, w) float32, the aligned pair, 0 to 255. valid, region: (h, w) bool.
    """
    core = erode_keeping(region, 40)
    gain, offset = fit_gain(template[core], partner[core])
    adjusted = gain * partner + offset
    residual = (template - adjusted) ** 2
    mean_a, mean_b = blur(template, 2.0), blur(adjusted, 2.0)
    unrelated = np.maximum(blur(template**2 + adjusted**2, 2.0) - mean_a**2 - mean_b**2, 0) + (mean_a - mean_b) ** 2
    share = float(np.median(residual[core])) / MEDIAN_OF_SQUARES / max(float(np.median(unrelated[core])), 1e-6)
    inner = share * unrelated + 0.3
    ratio = blur(np.clip(_log_likelihood_ratio(residual, inner, inner + unrelated), -3, 3), 1.2)
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    depth -= cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5)
    sharp = np.where(np.abs(depth) > EDGE_REACH, region, ratio + DEPTH_WEIGHT * (depth + 1) > 0) & valid
    sharp = cv2.morphologyEx(sharp.astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    _, labels = cv2.connectedComponents(sharp, connectivity=4)
    largest, area = component_with_most(labels, labels > 0)
    if 2 * area < region.sum():
        return region
    return fill_holes(largest) & valid


def extend_shaded_boundary(
    template: np.ndarray, partner: np.ndarray, valid: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Region (h, w) bool of a copy that differs by shading and rounding, as seamless cloning leaves it.

    Shading makes its edge look like unrelated content to `sharpen_boundary`; the finest structure of the difference
    does not. A copy without shading is left as it is. Arguments as of `sharpen_boundary`.
    """
    core = erode_keeping(region, 40)
    finest, partner_finest = (v - blur(v, 1.0) for v in (template, partner))
    partner_finest *= fit_gain(finest[region], partner_finest[region])[0]
    residual = (finest - partner_finest) ** 2
    gain, offset = fit_gain(template[core], partner[core])
    if (template - gain * partner - offset)[core].var() < MIN_SHADING * (residual[core].mean() + ROUNDING):
        return region
    inner = max(float(np.median(residual[core])) / MEDIAN_OF_SQUARES, ROUNDING)
    outer = inner + blur(finest**2 + partner_finest**2, 2.0)
    ratio = blur(np.clip(_log_likelihood_ratio(residual, inner, outer), -2, 2), 1.2)
    near = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5) < SHADED_REACH
    grown = cv2.morphologyEx((region | ((ratio > 0) & near & valid)).astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    _, labels = cv2.connectedComponents(grown, connectivity=4)
    component, held = component_with_most(labels, region)
    return fill_holes(component) & valid if held else region


def _log_likelihood_ratio(residual: np.ndarray, inner: np.ndarray | float, outer: np.ndarray) -> np.ndarray:
    """Logarithm (h, w) of how much likelier a squared difference is with the inner variance than with the outer."""
    return 0.5 * (np.log(outer / inner) - residual * (1 / inner - 1 / outer))
