"""The score: from the measurements of an aligned pair to the calibrated probability of a true copy.

`weights/evidence.json` holds the calibration: the trees of the model and the table of thresholds. It is made by
`benchmark.py calibrate`.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from config import WEIGHTS
from copymove.copies import ProposalStatistics
from copymove.exactness import NEAR_EXACT
from copymove.geometry import scale_factor
from copymove.measurements import PairMeasurements
from runtime.errors import InputError
from runtime.files import read_json

CALIBRATION = WEIGHTS / "evidence.json"
MAX_EXACT_SCORE = 0.999999  # so that bit-identical copies pass every threshold, and nothing counts as certain
MAX_LOG_ODDS = 30.0  # larger ones are cut, so that a score does not overflow

# The features of the calibration, each with its monotone constraint: 1 where more of it can only speak for a copy,
# -1 where more of it can only speak against one, 0 where that depends on the other features. Correlations (ncc) are
# brought to an unbounded scale by Fisher's transform atanh; sizes and counts by the logarithm.
FEATURES = {
    # Correlation of the fine structure (below 1.5 px) over the region's informative pixels.
    "fine_ncc": 1,
    # The same, measured locally: a fifth of the pixels exceed it. It does not suffer from an outline that is too wide.
    "fine_ncc_p80": 1,
    # Correlation of the grain (below 0.7 px): noise, which only a copy shares with its source.
    "grain_ncc": 1,
    # The same, measured locally: a fifth of the pixels exceed it.
    "grain_ncc_p80": 1,
    # How far the local correlation of the fine structure at the copy's place exceeds the best at 2 to 3 px off.
    "fine_margin": 1,
    # The same for the middle band (0.8 to 2.5 px), at 2 to 4 px off.
    "middle_margin": 1,
    # Correlation of the band that the alignment uses (0.7 to 6 px) over the region.
    "band_ncc": 0,
    # How much source and copy differ in the middle band after alignment, in units of the image's noise.
    "residual": -1,
    # How much more they differ just outside of the region than inside: a paste ends abruptly.
    "boundary_contrast": 1,
    # Number of places of the region at which candidates of the same search agree with the map.
    "support": 1,
    # Number of matches that agreed with the map when it was proposed.
    "votes": 1,
    # Number of informative pixels, relative to 400.
    "size": 1,
    # Number of pixels of the region.
    "area": 1,
    # Share of the region's pixels that are informative.
    "filled": 0,
    # Strength of the fine structure in grey levels.
    "texture": 0,
    # Strength of the fine structure in the image's quietest parts, in grey levels.
    "noise": 0,
    # Median of the local correlation of the grey values over the region.
    "local_ncc": 0,
    # Correlation of the fine structure just outside of the region.
    "ring_ncc": 0,
    # Best correlation of the fine structure at another offset: high for edges and for what repeats by its nature.
    "second_peak": -1,
    # Median correlation of the fine structure over all candidates of the same search: high where much looks alike.
    "median_ncc": -1,
    # How much longer one axis became than the other one under the map.
    "stretch": -1,
    # How much the map enlarges or shrinks.
    "zoom": -1,
}


def feature_vector(measurements: PairMeasurements, proposal: ProposalStatistics, noise: float) -> dict[str, float]:
    """The features of one aligned pair by their names in `FEATURES`, and its exactness, which the model does not use.

    This is the only place where logarithms and Fisher's transform are taken.

    Args:
        noise: of the image, see `ImageFeatures.noise`.
    """
    stretch = np.linalg.svd(measurements.affine[:, :2], compute_uv=False)
    area = float(measurements.mask.sum())
    return {
        "fine_ncc": fisher_transform(measurements.fine_ncc),
        "fine_ncc_p80": fisher_transform(measurements.fine_ncc_p80),
        "grain_ncc_p80": fisher_transform(measurements.grain_ncc_p80),
        "grain_ncc": fisher_transform(measurements.grain_ncc),
        "support": math.log(max(proposal.places, 1)),
        "band_ncc": fisher_transform(measurements.band_ncc),
        "local_ncc": fisher_transform(measurements.local_ncc),
        "exactness": measurements.exactness,
        "size": math.log(max(measurements.informative_pixels, 1) / 400),
        "texture": math.log(measurements.texture + 0.3),
        "second_peak": fisher_transform(measurements.second_peak),
        "filled": measurements.informative_pixels / area,
        "median_ncc": proposal.median_ncc,
        "ring_ncc": measurements.ring_ncc,
        "votes": math.log(proposal.votes),
        "fine_margin": measurements.fine_margin,
        "middle_margin": measurements.middle_margin,
        "residual": math.log(measurements.residual),
        "boundary_contrast": math.log(measurements.boundary_contrast),
        "noise": math.log(noise),
        "area": math.log(area),
        "stretch": math.log(stretch[0] / stretch[1]),
        "zoom": abs(math.log(scale_factor(measurements.affine))),
    }


def fisher_transform(ncc: float) -> float:
    """atanh of a correlation, -1 to 1, which is cut at 0.99 on both sides."""
    return math.atanh(min(max(ncc, -0.99), 0.99))


@dataclass(frozen=True)
class Calibration:
    """A fitted additive model of trees, and the scores from which something counts as found."""

    features: tuple[str, ...]  # names, in the order of the trees' columns
    start: float  # log-odds before any tree
    # (trees, nodes) each: column of the feature that a node looks at, its threshold, the nodes below, and the log-odds
    # that a leaf adds. The nodes below a leaf are the leaf itself.
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    false_positive_rates: np.ndarray  # (n,) ascending: share of authentic images in which something is found
    log_odds: np.ndarray  # (n,): of the score from which that is so

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Calibration":
        """The calibration of the content of weights/evidence.json."""
        trees = content["trees"]
        nodes = max(len(tree["feature"]) for tree in trees)
        columns = (
            np.array([tree[name] + [0] * (nodes - len(tree[name])) for tree in trees])
            for name in ("feature", "threshold", "left", "right", "value")
        )
        return cls(tuple(content["features"]), content["start"], *columns, *np.array(content["thresholds"]).T)

    def score(self, features: Mapping[str, float]) -> float:
        """Probability of a true copy, 0 to 1."""
        x = np.array([features[name] for name in self.features])
        tree, node = np.arange(len(self.feature)), np.zeros(len(self.feature), np.int64)
        while True:
            below = x[self.feature[tree, node]] <= self.threshold[tree, node]
            following = np.where(below, self.left[tree, node], self.right[tree, node])
            if (following == node).all():  # every tree is at a leaf
                break
            node = following
        total = self.start + float(self.value[tree, node].sum())
        return 1 / (1 + math.exp(-min(max(total, -MAX_LOG_ODDS), MAX_LOG_ODDS)))

    def threshold_score(self, target_fpr: float) -> float:
        """Least score at which at most this share of authentic images gives a finding, 0 to 1."""
        # Scores crowd at 1, so the table is interpolated on the log-odds.
        odds = np.interp(math.log(target_fpr), np.log(self.false_positive_rates), self.log_odds)
        return float(1 / (1 + np.exp(-odds)))


@functools.cache
def load_calibration() -> Calibration:
    """The calibration that ships with the code, read once.

    Raises:
        FileNotFoundError: there is no weights/evidence.json.
    """
    if not CALIBRATION.is_file():
        raise FileNotFoundError(f"there is no file {CALIBRATION}; make it with benchmark.py calibrate")
    return Calibration.from_json(read_json(CALIBRATION))


def calibrated_score(features: Mapping[str, float]) -> float:
    """Probability of a true copy, 0 to 1, of the features that `feature_vector` returns."""
    return load_calibration().score(features)


def is_near_exact(features: Mapping[str, float]) -> bool:
    """Whether a pair with these features is identical but for shading and rounding."""
    return features.get("exactness", 0.0) > NEAR_EXACT


def exact_score(covered_pixels: int) -> float:
    """Score of a bit-identical copy, 0 to MAX_EXACT_SCORE, of the number of pixels that identical blocks cover.

    It rises with the logistic function of that number: 70 px score 0.5, 110 px score 0.97.
    """
    return min(1 / (1 + math.exp(-min((covered_pixels - 70) / 12, MAX_LOG_ODDS))), MAX_EXACT_SCORE)


def score_threshold(target_fpr: float) -> float:
    """Score from which a copy counts as found, 0 to 1, from the calibration's table.

    Args:
        target_fpr: share of authentic images in which something may be found by mistake, over 0 and at most 1.
    Raises:
        InputError: `target_fpr` is out of its range.
    """
    if not 0 < target_fpr <= 1:
        raise InputError(f"target_fpr is {target_fpr}; it must be over 0 and at most 1")
    return load_calibration().threshold_score(target_fpr)
