"""Calibration: fit the score that tells copies from look-alikes, and its thresholds, on candidates of known truth."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy.stats import binom
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from benchmarks.accuracy import ANY_SIZE, choose_images
from config import CalibrationSettings, MatchingSettings
from copymove.copies import Copy
from copymove.exact_blocks import find_exact_blocks
from copymove.proposals import PROPOSERS
from copymove.regions import Region
from copymove.scoring import FEATURES
from copymove.suppression import BESIDE, IDENTICAL_GRAIN
from detector import Detector
from images.folders import ImageFile
from images.pairs import read_pair
from runtime.errors import InputError
from runtime.files import read_json, write_json
from runtime.workers import map_in_processes

TARGET_FPRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # false positive rates for which a threshold is written
RISK = 0.1  # chance that a threshold's true false positive rate is higher than the one it is written for
TRUE_OVERLAP = 0.35  # least share of both regions inside one true mask for a candidate to count as true
FALSE_OVERLAP = 0.2  # share of the source: with less overlap with all true masks a candidate counts as false
LOSSLESS_PIXELS = 220  # identical pixels that show that an image's copies were pasted without any loss
SEARCHES = MatchingSettings(search_budget=120.0, matching_kinds=tuple(PROPOSERS))

Candidate = tuple[dict[str, float], int]  # features by name, and the label: 1 for a true copy, 0 for a look-alike


def calibrate(settings: CalibrationSettings) -> None:
    """Collect the candidates of all images, fit model and thresholds, and write them to `settings.out` as JSON."""
    image_files = [f for folder in settings.data for f in choose_images(folder, settings.limit)]
    image_files += [f for folder in settings.authentic for f in choose_images(folder, settings.limit) if not f.forged]
    candidates = list(map_in_processes(labelled_candidates, image_files, settings.num_workers))
    content = {"command": "python benchmark.py " + " ".join(sys.argv[1:]), **fit(candidates)}
    write_json(settings.out, content)
    print(f"{settings.out}: {content['candidates']} candidates, thresholds {content['thresholds']}")


def labelled_candidates(image_file: ImageFile) -> list[Candidate]:
    """Features and label of every verified candidate of an image, except those whose truth is not clear.

    True: source and target lie in the same true mask. Left out, because they are neither true nor a mistake that a
    threshold should prevent:

    - candidates that overlap true masks in part;
    - candidates between two panels of a composed figure: both may show one scene, as another crop or the next frame;
    - in an image whose copies are identical to the bit, candidates of little grain: the search drops them anyway.
    """
    cv2.setNumThreads(1)  # the images are what runs in parallel
    image, true = read_pair(image_file, ANY_SIZE)
    lossless = any(copy.covered_pixels > LOSSLESS_PIXELS for copy in find_exact_blocks(image))
    truth = image_file.image.with_suffix(".json")
    panels = [panel["box"] for panel in read_json(truth)["panels"]] if truth.is_file() else []
    candidates = []
    for verified in Detector(matching=SEARCHES).detect(image).search.verified:
        copy, features = verified.copy, verified.features
        if _is_true(copy, true):
            candidates.append((features, 1))
        elif (
            _is_outside(copy, true)
            and _panel_of(copy.source, panels) == _panel_of(copy.target, panels)
            and (not lossless or features["grain_ncc_p80"] >= BESIDE * IDENTICAL_GRAIN)
        ):
            candidates.append((features, 0))
    return candidates


def _is_true(copy: Copy, true: np.ndarray) -> bool:
    """Whether source and target lie in one of the true masks (K, H, W) bool."""
    source, target = copy.source.full(true.shape[1:]), copy.target.full(true.shape[1:])
    shares = [min((source & mask).sum() / source.sum(), (target & mask).sum() / target.sum()) for mask in true]
    return max(shares, default=0.0) > TRUE_OVERLAP


def _is_outside(copy: Copy, true: np.ndarray) -> bool:
    """Whether source or target lie outside of all true masks (K, H, W) bool."""
    source, target, anywhere = copy.source.full(true.shape[1:]), copy.target.full(true.shape[1:]), true.any(axis=0)
    return min((source & anywhere).sum(), (target & anywhere).sum()) < FALSE_OVERLAP * source.sum()


def _panel_of(region: Region, panels: Sequence[Sequence[int]]) -> int:
    """Index of the panel, a box (x, y, width, height), that holds the middle of a region; -1 where none does."""
    x, y = region.x + region.mask.shape[1] / 2, region.y + region.mask.shape[0] / 2
    return next((k for k, (left, top, w, h) in enumerate(panels) if left <= x < left + w and top <= y < top + h), -1)


# Model and thresholds -----------------------------------------------------------------------------------------------


def fit(images: Sequence[Sequence[Candidate]]) -> dict[str, Any]:
    """The model of `copymove.scoring` and its thresholds, as plain numbers, from the candidates of each image.

    The model is an additive logistic regression by boosted trees (Friedman, Hastie and Tibshirani 2000), monotone
    where more of a feature can only speak for a copy, or only against it. The thresholds use scores from five-fold
    cross-validation grouped by image, so that the model never saw the candidates it scores. False candidates of
    forged images count as those of authentic images do: a look-alike is a look-alike.

    Raises:
        InputError: all candidates are true, or all are false.
    """
    labels = np.array([label for candidates in images for _, label in candidates])
    groups = np.repeat(np.arange(len(images)), [len(candidates) for candidates in images])
    if labels.min(initial=1) == labels.max(initial=0):
        raise InputError("calibration needs true and false candidates: give folders with forged and authentic images")
    x = np.array([[features[name] for name in FEATURES] for candidates in images for features, _ in candidates])
    model = untrained_model()
    log_odds = cross_val_predict(model, x, labels, groups=groups, cv=GroupKFold(5), method="decision_function")
    false = [log_odds[(groups == k) & (labels == 0)] for k in range(len(images))]
    highest = np.sort([values.max(initial=-20.0) for values in false])[::-1]  # of each image's false candidates
    return {
        "images": len(images),
        "candidates": {"true": int(labels.sum()), "false": int((1 - labels).sum())},
        "features": list(FEATURES),
        # false positive rate, least log-odds of the score
        "thresholds": [[rate, threshold_log_odds(highest, rate)] for rate in TARGET_FPRS],
        **model_to_dict(model.fit(x, labels)),
    }


def untrained_model() -> HistGradientBoostingClassifier:
    """The calibration's model before it is fitted."""
    return HistGradientBoostingClassifier(
        monotonic_cst=list(FEATURES.values()),
        max_iter=300,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=60,
        l2_regularization=5,
        early_stopping=False,
    )


def model_to_dict(model: HistGradientBoostingClassifier) -> dict[str, Any]:
    """The fitted model as plain numbers: its log-odds are `start` plus the value of one leaf of every tree.

    Each tree is five lists over its nodes. A sample goes to `left` where its feature is at most the threshold, else to
    `right`; both children of a leaf are the leaf itself.
    """
    written = []
    for (predictor,) in model._predictors:  # the library has no public view of its trees
        nodes = predictor.nodes
        leaf, itself = nodes["is_leaf"] > 0, np.arange(len(nodes))
        written.append(
            {
                "feature": np.where(leaf, 0, nodes["feature_idx"]).tolist(),
                "threshold": np.where(leaf, 0, nodes["num_threshold"]).tolist(),
                "left": np.where(leaf, itself, nodes["left"]).tolist(),
                "right": np.where(leaf, itself, nodes["right"]).tolist(),
                "value": nodes["value"].round(5).tolist(),
            }
        )
    return {"start": float(model._baseline_prediction[0, 0]), "trees": written}


def threshold_log_odds(highest: np.ndarray, rate: float) -> float:
    """Log-odds that are exceeded in at most a share `rate` of images like these, except with probability `RISK`.

    Args:
        highest: (n,) log-odds of the best false candidate of each image, in decreasing order.
        rate: false positive rate, over 0 to 1.
    Returns:
        Where the sample is large enough, a value within it: so few of the n images exceed it that a true rate above
        `rate` would show so few with a probability of at most `RISK` (one-sided binomial bound). Otherwise a value
        beyond the sample, whose tail is continued as an exponential (Hill's estimate on the log-odds).
    """
    allowed = int(binom.ppf(RISK, len(highest), rate)) - 1
    if allowed >= 0:
        return float(highest[allowed]) + 1e-6
    tenth = max(len(highest) // 10, 1)
    slope = float((highest[:tenth] - highest[tenth]).mean())
    return float(highest[0]) + slope * math.log(-math.log(RISK) / max(rate * len(highest), 1e-9)) * 0.5
