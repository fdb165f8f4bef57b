"""The objective of tuning."""

import numpy as np
import pytest

import tuning
from config import ClusteringSettings


def test_objective_respects_target_fpr():
    """By hand: oF1 of two forged images 0.4 and 0.2; a finding in one of four authentic ones."""

    class Known:
        def __init__(self, score, contents):
            self.counts, self.value = np.zeros((contents, 1, 1)), score

        def score(self, clustering):
            return self.value

    examples = [Known(0.4, 1), Known(0.2, 2), Known(1.0, 0), Known(1.0, 0), Known(0.0, 0), Known(1.0, 0)]
    value = {bound: tuning.objective(examples, ClusteringSettings(), bound) for bound in (None, 0.25, 0.2)}
    assert value == {None: pytest.approx(3.6 / 6), 0.25: pytest.approx(0.3), 0.2: pytest.approx(-0.05)}
