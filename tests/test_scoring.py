"""The score: its thresholds, and the calibration that is read as it was fitted."""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.calibrate import fit, threshold_log_odds, untrained_model
from copymove.scoring import FEATURES, MAX_EXACT_SCORE, Calibration, exact_score, score_threshold
from runtime.errors import InputError


def test_fewer_false_alarms_need_higher_scores():
    """The threshold rises as the share of authentic images with a finding falls."""
    scores = [score_threshold(share) for share in (0.001, 0.01, 0.1, 1.0)]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(InputError, match="target_fpr"):
        score_threshold(0.0)


def test_exact_scores_follow_the_logistic_function():
    """70 px are as likely as not, each 12 px more multiply the odds by e, and large ones pass every threshold."""
    assert exact_score(70) == 0.5
    assert exact_score(82) == pytest.approx(np.e / (1 + np.e))
    assert exact_score(10**6) == MAX_EXACT_SCORE >= score_threshold(0.001)


def test_calibration_scores_as_its_library():
    """A model that was fitted, written and read again scores as the library's own does."""
    rng = np.random.default_rng(4)
    images = []
    for _ in range(40):
        labels = rng.random(12) < 0.2
        rows = rng.normal(0, 1, (12, len(FEATURES))) + labels[:, None] * 0.8
        named = [dict(zip(FEATURES, row.tolist(), strict=True)) for row in rows]
        images.append([(features, int(label)) for features, label in zip(named, labels, strict=True)])
    content = fit(images)
    calibration = Calibration.from_json(content)
    scores = np.array([calibration.score(features) for image in images for features, _ in image])
    x = np.array([[features[name] for name in FEATURES] for image in images for features, _ in image])
    y = np.array([label for image in images for _, label in image])
    model = untrained_model().fit(x, y)
    assert scores == pytest.approx(model.predict_proba(x)[:, 1], abs=2e-3)
    assert scores[y == 1].mean() > 0.5 > scores[y == 0].mean()
    # One image in a hundred: with 40 images that is beyond the sample, so no false candidate passes.
    odds = dict(map(tuple, content["thresholds"]))
    assert odds[0.001] > odds[0.01] > odds[0.1]


def test_thresholds_allow_for_bad_luck():
    """As many images pass as a share that large would let pass in less than a tenth of the samples, and no more."""
    best = np.arange(1000.0)[::-1]
    for share in (0.01, 0.03, 0.1):
        passing = int((best > threshold_log_odds(best, share)).sum())
        assert binom.cdf(passing, 1000, share) < 0.1 <= binom.cdf(passing + 1, 1000, share)
