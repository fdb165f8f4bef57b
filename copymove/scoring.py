"""The calibrated score: from measures to the probability of a true copy."""

import functools
import math

import numpy as np

from config import WEIGHTS
from copymove.geometry import scale_factor
from copymove.measurements import PairMeasurements
from runtime.errors import InputError
from runtime.files import read_json

CALIBRATION = WEIGHTS / "evidence.json"


FEATURES = {  # of the calibration; 1: more of it can only speak for a copy, -1: against, 0: it depends on the others
    "fine_ncc": 1,
    "fine_ncc_p80": 1,
    "grain_ncc": 1,
    "grain_ncc_p80": 1,
    "fine_margin": 1,
    "middle_margin": 1,
    "band_ncc": 0,
    "residual": -1,
    "boundary_contrast": 1,
    "support": 1,
    "votes": 1,
    "size": 1,
    "area": 1,
    "filled": 0,
    "texture": 0,
    "noise": 0,
    "local_ncc": 0,
    "ring_ncc": 0,
    "second_peak": -1,
    "median_ncc": -1,
    "stretch": -1,
    "zoom": -1,
}


def feature_vector(
    evidence: PairMeasurements, votes: int, support: int, median_ncc: float, noise: float
) -> dict[str, float]:
    """What the calibration looks at, under the names of `FEATURES`, and the exactness.

    Correlations go through Fisher's transform; `median_ncc` is the fine correlation that candidates of this image have.
    """
    stretch = np.linalg.svd(evidence.affine[:, :2], compute_uv=False)
    return {
        "fine_ncc": math.atanh(min(max(evidence.fine_ncc, -0.99), 0.99)),
        "fine_ncc_p80": math.atanh(min(max(evidence.fine_ncc_p80, -0.99), 0.99)),
        "grain_ncc_p80": math.atanh(min(max(evidence.grain_ncc_p80, -0.99), 0.99)),
        "grain_ncc": math.atanh(min(max(evidence.grain_ncc, -0.99), 0.99)),
        "support": math.log(max(support, 1)),
        "band_ncc": math.atanh(min(max(evidence.band_ncc, -0.99), 0.99)),
        "local_ncc": math.atanh(min(max(evidence.local_ncc, -0.99), 0.99)),
        "exactness": evidence.exactness,
        "size": math.log(max(evidence.informative_pixels, 1) / 400),
        "texture": math.log(evidence.texture + 0.3),
        "second_peak": math.atanh(min(max(evidence.second_peak, -0.99), 0.99)),
        "filled": evidence.informative_pixels / float(evidence.mask.sum()),
        "median_ncc": median_ncc,
        "ring_ncc": evidence.ring_ncc,
        "votes": math.log(votes),
        "fine_margin": evidence.fine_margin,
        "middle_margin": evidence.middle_margin,
        "residual": math.log(evidence.residual),
        "boundary_contrast": math.log(evidence.boundary_contrast),
        "noise": math.log(noise),
        "area": math.log(float(evidence.mask.sum())),
        "stretch": math.log(stretch[0] / stretch[1]),
        "zoom": abs(math.log(scale_factor(evidence.affine))),
    }


@functools.cache
def _calibration() -> dict:
    if not CALIBRATION.is_file():
        raise FileNotFoundError(f"there is no file {CALIBRATION}; make it with benchmark.py calibrate")
    return read_json(CALIBRATION)


@functools.cache
def _trees() -> tuple[np.ndarray, ...]:
    """Feature, threshold, left, right and value of every node: (trees, nodes) each."""
    written = _calibration()["trees"]
    nodes = max(len(tree["feature"]) for tree in written)
    return tuple(
        np.array([tree[name] + [0] * (nodes - len(tree[name])) for tree in written])
        for name in ("feature", "threshold", "left", "right", "value")
    )


def calibrated_score(features: dict[str, float]) -> float:
    """Probability of a true copy, from the logistic model in weights/evidence.json."""
    feature, threshold, left, right, value = _trees()
    x = np.array([features[name] for name in _calibration()["features"]])
    tree, node = np.arange(len(feature)), np.zeros(len(feature), np.int64)
    while True:
        below = np.where(x[feature[tree, node]] <= threshold[tree, node], left[tree, node], right[tree, node])
        if (below == node).all():  # every tree is at a leaf
            break
        node = below
    total = _calibration()["start"] + float(value[tree, node].sum())
    return 1 / (1 + math.exp(-min(max(total, -30.0), 30.0)))


def score_threshold(target_fpr: float) -> float:
    """Least score of a copy for a share of authentic images with a false alarm, from the calibration's table."""
    if not 0 < target_fpr <= 1:
        raise InputError(f"target_fpr is {target_fpr}; it must be over 0 and at most 1")
    shares, scores = np.array(_calibration()["thresholds"]).T
    # Scores crowd at 1: the table is interpolated on the log-odds.
    odds = np.interp(math.log(target_fpr), np.log(shares), scores)
    return float(1 / (1 + np.exp(-odds)))
