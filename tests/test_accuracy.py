"""The accuracy benchmark: which images it takes, what it does to them, and its tables."""

import json

import cv2
import numpy as np
import pytest

from benchmarks.accuracy import choose_images, degrade_image, measure_accuracy
from config import AccuracySettings
from copymove.copies import Instance
from detector import Detection
from runtime.errors import InputError

SHAPE = (40, 50)


def square(y, x):
    mask = np.zeros(SHAPE, bool)
    mask[y : y + 10, x : x + 10] = True
    return mask


class KnownDetector:
    """Tells images apart by their grey value: 10 is found exactly, 40 is an alarm, 30 runs out of time."""

    def __init__(self, matching):
        pass

    def detect(self, image):
        grey = int(image[0, 0, 0])
        mask = {10: square(0, 0) | square(20, 20), 40: square(5, 5)}.get(grey)
        instances = () if mask is None else (Instance(mask, 0.9, ()),)
        return Detection(SHAPE, 0.9 * len(instances), instances, 0.5, complete=grey != 30)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two forged images, of which the first says how it was forged, and two authentic ones."""
    monkeypatch.setattr("benchmarks.accuracy.Detector", KnownDetector)
    for name, grey in (("forged/a", 10), ("forged/b", 20), ("authentic/c", 30), ("authentic/d", 40)):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((*SHAPE, 3), grey, np.uint8))
    (tmp_path / "set" / "masks").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "set" / "masks" / f"{name}.npy", (square(0, 0) | square(20, 20))[None].astype(np.uint8))
    copies = [{"size": [40, 30], "rotation": 90.0, "scale": 1, "mirrored": False, "blending": "hard"},
              {"size": [150, 20], "rotation": 17.0, "scale": 1.3, "mirrored": True, "blending": "hard"}]  # fmt: skip
    truth = {"contents": [{"kind": "blob", "copies": copies}], "jpeg_quality": 80, "noise_sigma": None,
             "blur_sigma": None, "resize": None}  # fmt: skip
    (tmp_path / "set/forged/a.json").write_text(json.dumps(truth))
    return tmp_path / "set"


def test_table_and_records(folder, capsys):
    """One of two forgeries is found, one of two authentic images gives an alarm, one search ran out of time."""
    records = folder.parent / "records.jsonl"
    measure_accuracy(AccuracySettings(data=(folder,), num_workers=1, records=records))
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert " ".join(head.split()) == "set forged image recall oF1 pixel F1 authentic false alarms s/MP out of time"
    values = row.split()
    assert values[:7] == ["set", "2", "0.500", "0.500", "0.500", "2", "1"] and values[8] == "1"
    assert len(head) == len(row)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(line["id"], line["object_f1"], line["set"]) for line in lines] == [
        ("a", 1.0, str(folder)), ("b", 0.0, str(folder)), ("c", 1.0, str(folder)), ("d", 0.0, str(folder))
    ]  # fmt: skip


def test_tables_by_property(folder, capsys):
    """A forgery counts in the row of each of its copies; the one that does not say how it was forged in none."""
    measure_accuracy(AccuracySettings(data=(folder,), num_workers=1))
    tables = dict(part.partition("\n")[::2] for part in capsys.readouterr().out.split("\n\n")[1:])
    rows = {
        title.rpartition(" forged")[0].strip(): [row[:24].strip() for row in table.strip().splitlines()]
        for title, table in tables.items()
    }
    assert rows == {
        "size of copy": ["128 px and more", "32 to 64 px"],
        "kind of region": ["blob"],
        "rotation": ["other", "right angle"],
        "scale": ["1.25 and more", "none"],
        "mirrored": ["no", "yes"],
        "blending": ["hard"],
        "JPEG quality": ["80 to 90"],
        "noise, blur or resize": ["no"],
    }
    for row in "\n".join(tables.values()).strip().splitlines():
        assert not row or row[24:].split() == ["1", "1.000", "1.000", "1.000"]


def test_limited_images_are_evenly_spread(data):
    """Three of nine forged and three of nine authentic images."""
    assert [f.id for f in choose_images(data, 3)] == ["0", "3", "6"] * 2
    assert [f.forged for f in choose_images(data, 3)] == [True] * 3 + [False] * 3
    assert len(choose_images(data, None)) == len(choose_images(data, 100)) == 18


def test_degraded_images():
    """Noise has the given strength and is the same each time; JPEG changes the pixels; neither leaves them alone."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    noisy = degrade_image(grey, None, 5.0)
    assert noisy.astype(float).std() == pytest.approx(5.0, rel=0.05)
    assert (degrade_image(grey, None, 5.0) == noisy).all()
    assert (degrade_image(noisy, 50, 0.0) != noisy).any() and degrade_image(noisy, 50, 0.0).shape == noisy.shape
    assert degrade_image(noisy, None, 0.0) is noisy


def test_bad_quality_is_refused(folder, capsys):
    """Before any image is searched."""
    with pytest.raises(InputError, match="--jpeg is 0; it is a quality from 1 to 100"):
        measure_accuracy(AccuracySettings(data=(folder,), jpeg=0))
    assert capsys.readouterr().out == ""
