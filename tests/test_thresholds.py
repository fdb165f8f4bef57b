"""Thresholds come from kinds of images that took no part in the fit, of which each counts the same."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks.thresholds import left_out_threshold, measure_thresholds
from config import ThresholdSettings
from copymove.copies import Copy, SearchResult, VerifiedCopy
from copymove.regions import Region
from detector import Detection
from runtime.errors import InputError
from runtime.files import read_json, write_json


def test_kinds_count_alike():
    """A kind of many images does not outvote one of few: of the small one's images half may be flagged."""
    large, small = np.arange(1000.0), np.arange(2000.0, 2010.0)
    threshold = left_out_threshold([large, small], 0.25)
    assert (large >= threshold).mean() == 0 and (small >= threshold).mean() == 0.5


def test_rare_rates_are_extrapolated():
    """A rate that no sample of this size shows lies beyond the sample: of an exponential tail, at its true place."""
    values = np.random.default_rng(1).exponential(1.0, 2000)
    for rate in (1e-4, 1e-5):
        assert left_out_threshold([values], rate) == pytest.approx(-np.log(rate), rel=0.15)


def test_every_image_may_be_flagged():
    """At a rate of 1 nothing is held back."""
    assert left_out_threshold([np.array([3.0, -20.0])], 1.0) == -20.0


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    """Two kinds of images, with a search that gives an image the score of its first pixel in thousandths."""
    for name, levels in (("gels", (10, 20, 200, 250)), ("blots", (5, 5, 5, 100))):
        (tmp_path / name).mkdir()
        for k, level in enumerate(levels):
            cv2.imwrite(str(tmp_path / name / f"{k}.png"), np.full((40, 40, 3), level, np.uint8))
    region = Region(0, 0, np.ones((9, 9), bool))

    def detect(image):
        copy = Copy("dense", np.eye(2, 3), 9, 0.9, int(image[0, 0, 0]) / 1000, region, region)
        return Detection(image.shape[:2], 0.0, (), 0.1, search=SearchResult((), True, {}, (VerifiedCopy(copy),)))

    monkeypatch.setattr("benchmarks.thresholds.Detector", lambda matching: SimpleNamespace(detect=detect))
    write_json(tmp_path / "evidence.json", {"trees": [], "thresholds": []})
    return tmp_path


def test_thresholds_are_replaced(kinds, capsys):
    """The calibration keeps its trees; thresholds and measured rates are those of the kinds that were left out."""
    settings = ThresholdSettings((kinds / "gels", kinds / "blots"), kinds / "evidence.json", num_workers=1)
    measure_thresholds(settings)
    content = read_json(settings.out)
    scores = {rate: 1 / (1 + np.exp(-log_odds)) for rate, log_odds in content["thresholds"]}
    assert content["trees"] == [] and scores[0.3] == pytest.approx(0.1, abs=1e-4)  # 250 and 200: two of eight
    assert scores[0.001] > scores[0.01] > 0.25 > scores[0.3] > scores[1.0]
    assert content["left_out"]["images"] == {"gels": 4, "blots": 4}
    assert content["left_out"]["rates"]["gels"][5] == 0.5 and content["left_out"]["rates"]["blots"][5] == 0.0
    assert "gels" in capsys.readouterr().out


def test_kinds_need_names_and_images(kinds, tmp_path):
    """Two folders of one name, no folder, or a folder without images are refused in one line."""
    out = kinds / "evidence.json"
    for folders in ((), (kinds / "gels", kinds / "gels")):
        with pytest.raises(InputError, match="one folder a kind"):
            measure_thresholds(ThresholdSettings(folders, out))
    with pytest.raises(FileNotFoundError, match=r"make it with benchmark\.py calibrate"):
        measure_thresholds(ThresholdSettings((kinds / "gels",), tmp_path / "none.json"))
