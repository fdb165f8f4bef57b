"""The labels of the candidates that the score is fitted on; how it is fitted is in test_scoring."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks.calibrate import calibrate, fit, labelled_candidates
from config import CalibrationSettings
from copymove.copies import Copy, SearchResult, VerifiedCopy
from copymove.regions import Region
from detector import Detection
from images.folders import find_images
from runtime.errors import InputError
from runtime.files import read_json

TRUE = {"grain_ncc_p80": 1.0}
PLAIN, GRAINLESS = {"grain_ncc_p80": 2.0}, {"grain_ncc_p80": 0.1}


def square(x, y):
    return Region(x, y, np.ones((20, 20), bool))


def verified(source, target, features):
    return VerifiedCopy(Copy("dense", np.eye(2, 3), 9, 0.9, 0.9, square(*source), square(*target)), features)


@pytest.fixture
def image_file(tmp_path, monkeypatch):
    """A forgery whose true mask is the squares at (10, 10) and (60, 10), and a search that verifies five candidates."""
    mask = np.zeros((100, 120), np.uint8)
    mask[10:30, 10:30] = mask[10:30, 60:80] = 1
    for name in ("forged", "masks"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "forged/a.png"), np.zeros((100, 120, 3), np.uint8))
    np.save(tmp_path / "masks/a.npy", mask[None])
    candidates = (
        verified((10, 10), (60, 10), TRUE),
        verified((10, 60), (80, 60), PLAIN),  # outside of the mask
        verified((20, 10), (80, 60), PLAIN),  # one partner outside of the mask
        verified((10, 55), (60, 75), GRAINLESS),
        verified((20, 20), (70, 20), PLAIN),  # a quarter of both partners inside of the mask
    )
    result = SearchResult((), True, {}, candidates)
    detection = Detection((100, 120), 0.0, (), 0.1, search=result)
    detector = SimpleNamespace(detect=lambda image: detection)
    monkeypatch.setattr("benchmarks.calibrate.Detector", lambda matching: detector)
    monkeypatch.setattr("benchmarks.calibrate.find_exact_blocks", lambda image: [])
    (image_file,) = find_images(tmp_path)
    return image_file


def test_candidates_get_their_labels(image_file):
    """True in one mask, false outside of all; what overlaps a mask in part has no label."""
    assert labelled_candidates(image_file) == [(TRUE, 1), (PLAIN, 0), (PLAIN, 0), (GRAINLESS, 0)]


def test_lossless_images_have_other_look_alikes(image_file, monkeypatch):
    """Beside copies that are identical to the bit, a candidate of little grain is dropped by the search anyway."""
    monkeypatch.setattr("benchmarks.calibrate.find_exact_blocks", lambda image: [SimpleNamespace(covered_pixels=500)])
    assert [label for features, label in labelled_candidates(image_file) if features is GRAINLESS] == []


def test_pairs_of_panels_are_left_out(image_file):
    """Two panels may show one scene: only candidates within one panel can be false."""
    panels = {"panels": [{"box": [0, 0, 50, 100]}, {"box": [50, 0, 70, 100]}]}
    image_file.image.with_suffix(".json").write_text(json.dumps(panels))
    assert [label for _, label in labelled_candidates(image_file)] == [1]
    panels = {"panels": [{"box": [0, 0, 120, 100]}]}
    image_file.image.with_suffix(".json").write_text(json.dumps(panels))
    assert [label for _, label in labelled_candidates(image_file)] == [1, 0, 0, 0]


def test_calibration_is_written(image_file, tmp_path, monkeypatch, capsys):
    """The file holds the command, and the model that `fit` makes of the candidates of all folders."""
    monkeypatch.setattr("benchmarks.calibrate.fit", lambda images: {"candidates": len(images), "thresholds": []})
    folder, out = image_file.image.parent.parent, tmp_path / "evidence.json"
    calibrate(CalibrationSettings(data=(folder,), authentic=(), out=out, num_workers=1))
    assert read_json(out)["command"].startswith("python benchmark.py ") and read_json(out)["candidates"] == 1
    assert "evidence.json: 1 candidates" in capsys.readouterr().out


def test_one_kind_of_candidates_is_refused():
    """A model needs true and false candidates."""
    with pytest.raises(InputError, match="give folders with forged and authentic images"):
        fit([[(PLAIN, 0)], [(PLAIN, 0)]])
