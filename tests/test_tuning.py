"""Tuning: its objective against pixels, its files, and a search that was stopped."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import optuna
import pytest

import test
import tuning
from clustering import cascade
from config import ClusteringSettings, DataSettings, TuningSettings
from detector import Detector, draw
from images.folders import find_images
from images.pairs import read_pair
from metrics import object_f1
from runtime.errors import InputError
from tests.conftest import LOW_THRESHOLDS
from tests.test_test import scoring


def test_counting_cells_equals_counting_pixels(trained, data):
    """The score that tuning maximises is the score that test.py prints."""
    detector = Detector.load(trained / "best.pt").alone("embedding")
    for image_file in find_images(data):
        image, masks = read_pair(image_file, DataSettings(data))
        (embedding,) = detector.embed([image])
        example = tuning.Example.of(embedding, masks)
        for settings in (LOW_THRESHOLDS, replace(LOW_THRESHOLDS, growth_distance=0.01), ClusteringSettings()):
            full = draw(cascade(embedding.grid, settings).labels, embedding.box)
            predicted = np.stack([full == k for k in range(1, full.max() + 1)]) if full.max() else masks[:0]
            assert example.score(settings) == pytest.approx(object_f1(predicted, masks), abs=1e-9)


@pytest.mark.slow
def test_tuning_writes_what_test_reproduces(trained, data, tmp_path, capsys):
    """A search that was stopped goes on as one that never was, and test.py measures the oF1 that it reports."""
    settings = TuningSettings(DataSettings(data), trained / "best.pt", tmp_path / "tuned.json", trials=4)
    tuning.main(settings)
    stopped = json.loads(settings.out.read_text())
    assert stopped["of1"] >= stopped["of1_before"] and stopped["trials"] == 4 and stopped["images"] == 6
    tuning.main(replace(settings, trials=8))
    assert "going on with 4 trials" in capsys.readouterr().out
    tuned = json.loads(settings.out.read_text())
    assert tuned["trials"] == 8 and tuned["of1"] >= stopped["of1"]
    trials = list(csv.DictReader((tmp_path / "tuned.csv").open()))
    assert [int(row["trial"]) for row in trials] == list(range(8))
    assert max(float(row["of1"]) for row in trials) == tuned["of1"]
    assert cv2.imread(str(tmp_path / "tuned.png")) is not None
    # A search that was never stopped draws the same parameters.
    tuning.main(replace(settings, out=tmp_path / "whole.json", trials=8))
    assert list(csv.DictReader((tmp_path / "whole.csv").open())) == trials
    test.main(scoring(data, trained, tmp_path / "test", clustering=settings.out, split="val"))
    figures = json.loads((tmp_path / "test" / "metrics.json").read_text())["modes"]["embedding"]["figures"]
    assert figures["of1"]["value"] == pytest.approx(tuned["of1"], abs=1e-9) and figures["of1"]["images"] == 6
    with pytest.raises(InputError, match="another checkpoint, folder or seed"):
        tuning.main(replace(settings, seed=1))


def test_old_search_goes_on(trained, data, tmp_path):
    """A study whose identity has the names from before the renaming is continued."""
    settings = TuningSettings(DataSettings(data), trained / "best.pt", tmp_path / "tuned.json", 1, target_fpr=0.5)
    tuning.main(settings)
    study = optuna.load_study(study_name="cascade", storage=f"sqlite:///{tmp_path / 'tuned.sqlite3'}")
    identity = study.user_attrs["identity"]
    old = {"pictures": identity.pop("images"), "max_false_alarms": identity.pop("target_fpr")} | identity
    study.set_user_attr("identity", old)
    tuning.main(replace(settings, trials=2))
    assert json.loads(settings.out.read_text())["trials"] == 2
    with pytest.raises(InputError, match="another checkpoint, folder or seed"):
        tuning.main(replace(settings, target_fpr=0.1))


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
