"""Calibration: the score fitted on true and false candidates."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.accuracy import choose_images
from config import CalibrateSettings, MatchingSettings
from copymove.detect import detect_copies
from copymove.exact_blocks import find_exact_blocks
from copymove.regions import Region
from copymove.scoring import FEATURES
from copymove.suppression import BESIDE, IDENTICAL_GRAIN
from images.folders import ImageFile
from images.masks import read_masks
from images.read import read_image
from runtime.errors import InputError
from runtime.files import read_json, write_json
from runtime.workers import map_in_processes

DOUBT = 0.1  # share of samples in which the calibration may let more images pass than a threshold says


def calibrate(settings: CalibrateSettings) -> None:
    """Fit the logistic model of `matching.calibrated_score` and its thresholds, and write them."""
    image_files = [p for folder in settings.data for p in choose_images(folder, settings.limit)]
    held = [p for folder in settings.authentic for p in choose_images(folder, settings.limit) if not p.forged]
    found = list(map_in_processes(_labelled_features, image_files + held, settings.num_workers))
    content = {"command": "python benchmark.py " + " ".join(sys.argv[1:]), **fit(found)}
    write_json(settings.out, content)
    print(f"{settings.out}: {content['candidates']} candidates, thresholds {content['thresholds']}")


def fit(found: "Sequence[list[tuple[dict[str, float], int]]]") -> dict[str, Any]:
    """Logistic model over all candidates (facts, 0 or 1) of each image, and thresholds from the false ones.

    An additive logistic regression by boosted trees (Friedman, Hastie, Tibshirani 2000), monotone where more of a
    feature can only speak for a copy or against it. The thresholds use scores from a five-fold cross-fit over
    images, so that the model never saw what it judges. The false candidates of forged images count as those of
    authentic ones do: a repeat is a repeat.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold, cross_val_predict

    y = np.array([label for image_file in found for _, label in image_file])
    groups = np.repeat(np.arange(len(found)), [len(image_file) for image_file in found])
    if y.min(initial=1) == y.max(initial=0):
        raise InputError("calibration needs true and false candidates: give folders with forged and authentic images")
    x = np.array([[fact[name] for name in FEATURES] for image_file in found for fact, _ in image_file])
    model = untrained_model()
    odds = cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(5), method="decision_function")
    best = np.sort([odds[(groups == k) & (y == 0)].max(initial=-20.0) for k in range(len(found))])[::-1]
    return {
        "images": len(found),
        "candidates": {"true": int(y.sum()), "false": int((1 - y).sum())},
        "features": list(FEATURES),
        # share of images with a false alarm, log-odds of the score
        "thresholds": [[share, _tail(best, share)] for share in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)],
        **trees(model.fit(x, y)),
    }


def untrained_model() -> "HistGradientBoostingClassifier":
    """The calibration's model before it is fitted."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        monotonic_cst=list(FEATURES.values()),
        max_iter=300,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=60,
        l2_regularization=5,
        early_stopping=False,
    )


def trees(model: "HistGradientBoostingClassifier") -> dict[str, Any]:
    """The model's log-odds as plain numbers: `start` plus one leaf of every tree; a leaf's children are itself."""
    import numpy as np

    written = []
    for (predictor,) in model._predictors:  # the library has no public view of its trees
        nodes = predictor.nodes
        leaf, own = nodes["is_leaf"] > 0, np.arange(len(nodes))
        written.append(
            {
                "feature": np.where(leaf, 0, nodes["feature_idx"]).tolist(),
                "threshold": np.where(leaf, 0, nodes["num_threshold"]).tolist(),
                "left": np.where(leaf, own, nodes["left"]).tolist(),
                "right": np.where(leaf, own, nodes["right"]).tolist(),
                "value": nodes["value"].round(5).tolist(),
            }
        )
    return {"start": float(model._baseline_prediction[0, 0]), "trees": written}


def _tail(best: "np.ndarray", share: float) -> float:
    """Log-odds that at most `share` of such images pass, unless by bad luck; `best` are theirs, largest first.

    Of n images as many may pass as a share that large would let pass in at most `DOUBT` of samples (a one-sided
    binomial bound). Beyond the sample its tail goes on as an exponential (Hill's estimate on the log-odds).
    """
    from scipy.stats import binom

    allowed = int(binom.ppf(DOUBT, len(best), share)) - 1
    if allowed >= 0:
        return float(best[allowed]) + 1e-6
    tenth = max(len(best) // 10, 1)
    slope = float((best[:tenth] - best[tenth]).mean())
    return float(best[0]) + slope * math.log(-math.log(DOUBT) / max(share * len(best), 1e-9)) * 0.5


def _labelled_features(image_file: "ImageFile") -> list[tuple[dict[str, float], int]]:
    """Evidence of every verified candidate of an image and whether it is true: both regions lie in one true mask."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    image = read_image(image_file.image)
    shape = image.shape[:2]
    lossless = any(copy.covered_pixels > 220 for copy in find_exact_blocks(image))
    truth = image_file.image.with_suffix(".json")
    panels = [panel["box"] for panel in read_json(truth)["panels"]] if truth.is_file() else []
    kinds = ("keypoints", "objects", "dense")
    found = detect_copies(image, MatchingSettings(search_budget=120.0, matching_kinds=kinds))
    true = read_masks(image_file.mask, shape) if image_file.mask is not None else np.zeros((0, *shape), bool)
    rows = []
    for copy, fact in zip(found.copies, found.features, strict=True):
        source, target = copy.source.full(shape), copy.target.full(shape)
        inside = [min((source & t).sum() / source.sum(), (target & t).sum() / target.sum()) for t in true]
        if max(inside, default=0.0) > 0.35:
            rows.append((fact, 1))
            continue
        apart = min((source & true.any(axis=0)).sum(), (target & true.any(axis=0)).sum()) < 0.2 * source.sum()
        # What lies between is neither; what cannot count beside bit-identical copies is no false candidate either.
        # Panels of a composed figure may show one scene twice, as another crop or the next frame: neither, too.
        known = apart and _panel(copy.source, panels) == _panel(copy.target, panels)
        if known and (not lossless or fact["grain_ncc_p80"] >= BESIDE * IDENTICAL_GRAIN):
            rows.append((fact, 0))
    return rows


def _panel(region: "Region", panels: Sequence[Sequence[int]]) -> int:
    """Which of the boxes (x, y, width, height) holds the middle of a region; -1 where none does."""
    x, y = region.x + region.mask.shape[1] / 2, region.y + region.mask.shape[0] / 2
    return next((k for k, (left, top, w, h) in enumerate(panels) if left <= x < left + w and top <= y < top + h), -1)
