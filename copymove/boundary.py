"""The boundary of a grown region, drawn again by the aligned difference."""

import cv2
import numpy as np

from copymove.correlation_maps import fit_gain
from copymove.exactness import ROUNDING
from copymove.image_features import blur
from copymove.morphology import ellipse, erode_keeping, fill_holes

EDGE_REACH = 4  # pixels by which an outline may move where the difference says so


EDGE_TRUST = 0.2  # log-likelihood ratio that a pixel's depth inside the outline is worth, per pixel


SHADED = 12.0  # variance of what is left over that of its finest structure from which a copy is shaded


SHADED_REACH = 8  # pixels by which the outline of a shaded copy may grow


def sharpen_boundary(template: np.ndarray, partner: np.ndarray, valid: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Outline decided again along its edge by the aligned difference: windows of correlation reach over it.

    Of each pixel near the edge: how much likelier its difference is inside, where it is a share of the local
    variance, than outside, where the variances of two strangers add up; the nearer to the edge, the more it counts.
    """
    core = erode_keeping(outline, 40)
    gain, offset = fit_gain(template[core], partner[core])
    moved = gain * partner + offset
    left = (template - moved) ** 2
    mean_a, mean_b = blur(template, 2.0), blur(moved, 2.0)
    strange = np.maximum(blur(template**2 + moved**2, 2.0) - mean_a**2 - mean_b**2, 0) + (mean_a - mean_b) ** 2
    # The median of squares is 0.455 of their mean where they are a Gaussian's: strong outliers don't count.
    share = float(np.median(left[core])) / 0.455 / max(float(np.median(strange[core])), 1e-6)
    inner = share * strange + 0.3
    outer = inner + strange
    told = 0.5 * (np.log(outer / inner) - left * (1 / inner - 1 / outer))
    told = blur(np.clip(told, -3, 3), 1.2)
    depth = cv2.distanceTransform(np.pad(outline, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    depth -= cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, 5)
    sharp = np.where(np.abs(depth) > EDGE_REACH, outline, told + EDGE_TRUST * (depth + 1) > 0) & valid
    sharp = cv2.morphologyEx(sharp.astype(np.uint8), cv2.MORPH_OPEN, ellipse(3))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(sharp, connectivity=4)
    if count < 2 or 2 * stats[1:, 4].max() < outline.sum():
        return outline
    return fill_holes(labels == 1 + stats[1:, 4].argmax(), 0.2) & valid


def extend_shaded_boundary(
    template: np.ndarray, partner: np.ndarray, valid: np.ndarray, outline: np.ndarray
) -> np.ndarray:
    """Outline of a copy that differs by shading and rounding, as seamless cloning leaves it.

    The shading makes its edge look like a stranger's to `_sharpened`; the finest structure tells them apart.
    """
    core = erode_keeping(outline, 40)
    rough, moved = (v - blur(v, 1.0) for v in (template, partner))
    moved *= fit_gain(rough[outline], moved[outline])[0]
    left = (rough - moved) ** 2
    gain, offset = fit_gain(template[core], partner[core])
    if (template - gain * partner - offset)[core].var() < SHADED * (left[core].mean() + ROUNDING):
        return outline
    inner = max(float(np.median(left[core])) / 0.455, ROUNDING)  # as in `_sharpened`
    outer = inner + blur(rough**2 + moved**2, 2.0)
    told = blur(np.clip(0.5 * (np.log(outer / inner) - left * (1 / inner - 1 / outer)), -2, 2), 1.2)
    near = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, 5) < SHADED_REACH
    grown = cv2.morphologyEx((outline | ((told > 0) & near & valid)).astype(np.uint8), cv2.MORPH_OPEN, ellipse(5))
    _, labels = cv2.connectedComponents(grown, connectivity=4)
    votes = np.bincount(labels[outline])
    votes[0] = 0
    return fill_holes(labels == votes.argmax(), 0.2) & valid if votes.any() else outline
