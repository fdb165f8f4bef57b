"""test.py: records, table and submission, the three modes, ranks, and what is refused."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import test
from config import DataSettings, MatchingSettings
from config import TestSettings as ScoreSettings  # pytest collects classes that are called Test
from detector import Detector
from images.read import read_image
from metrics import Record, decode_annotation, summarize
from runtime.errors import InputError
from tests.scripts import launch, launch_ranks


def scoring(data, run, out, **other):
    """Settings of a test; the embedding alone unless said otherwise, and a search for identical blocks only."""
    defaults = {"checkpoint": run / "best.pt", "modes": ("embedding",)}
    return ScoreSettings(
        DataSettings(data), out, **(defaults | {"matching": MatchingSettings(matching_kinds=("exact",))} | other)
    )


def test_records_and_submission(trained, data, tmp_path, capsys):
    """Every image of the split has one record, from which the table can be computed; the submission has its masks."""
    test.main(scoring(data, trained, tmp_path / "test"))
    assert "oF1, all images" in capsys.readouterr().out
    splits = json.loads((trained / "splits.json").read_text())
    expected = sorted(
        f"{folder}/{base}" for base in splits if splits[base] == "test" for folder in ("authentic", "forged")
    )
    lines = [json.loads(line) for line in (tmp_path / "test" / "records.jsonl").read_text().splitlines()]
    assert {line.pop("mode") for line in lines} == {"embedding"}
    records = [Record(**line) for line in lines]
    assert [record.id for record in records] == expected
    table = json.loads((tmp_path / "test" / "metrics.json").read_text())["modes"]["embedding"]["figures"]
    assert table == json.loads(json.dumps(summarize(records)))
    detector = Detector.load(trained / "best.pt").alone("embedding")
    rows = list(csv.DictReader((tmp_path / "test" / "submission.csv").open()))
    for row in rows:
        image = read_image(data / f"{row['case_id']}.png")
        masks = decode_annotation(row["annotation"], image.shape[:2])
        assert (masks == detector.detect(image).masks).all()


@pytest.mark.slow
def test_two_ranks_score_the_same(trained, data, tmp_path):
    """Two processes write the same submission as one, every image once."""
    arguments = ("test.py", "--data", data, "--checkpoint", trained / "best.pt", "--modes", "embedding", "--out")
    for done in (launch(*arguments, tmp_path / "one"), launch_ranks(*arguments, tmp_path / "two")):
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "submission.csv").read_text() for name in ("one", "two"))
    assert one == two and one.count("\n") == 7


def test_three_modes(trained, data, tmp_path):
    """The matching proves the squares that stand twice to the bit, whatever an untrained model proposes."""
    modes = ("embedding", "matching", "both")
    test.main(scoring(data, trained, tmp_path / "model", modes=modes, split="val"))
    scored = json.loads((tmp_path / "model" / "metrics.json").read_text())["modes"]
    assert tuple(scored) == modes
    for mode in ("matching", "both"):
        figures = scored[mode]["figures"]
        assert figures["of1_forged"]["value"] > 0.95 and figures["false_positive_rate"]["value"] == 0
        assert scored[mode]["images_per_second"] > 0
    lines = [json.loads(line) for line in (tmp_path / "model" / "records.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == [mode for mode in modes for _ in range(6)]
    test.main(scoring(data, trained, tmp_path / "pixels", checkpoint=None, split="all"))
    assert list(json.loads((tmp_path / "pixels" / "metrics.json").read_text())["modes"]) == ["matching"]


def test_refusals(trained, data, tmp_path):
    """Missing, foreign or damaged files, and flags that do not fit together."""
    settings = scoring(data, trained, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        test.main(replace(settings, checkpoint=tmp_path / "none.pt"))
    with pytest.raises(FileNotFoundError, match=r"make one with tuning\.py"):
        test.main(replace(settings, clustering=tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text('{"clustering": {"min_cluster": 3}}')
    with pytest.raises(InputError, match="unknown settings min_cluster"):
        test.main(replace(settings, clustering=tmp_path / "bad.json"))
    (tmp_path / "worse.json").write_text("not json")
    with pytest.raises(InputError, match="not a JSON file"):
        test.main(replace(settings, clustering=tmp_path / "worse.json"))
    other = tmp_path / "other" / "authentic"
    other.mkdir(parents=True)
    cv2.imwrite(str(other / "new.png"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(InputError, match="--split all"):
        test.main(replace(settings, checkpoint=None))
    with pytest.raises(InputError, match="--checkpoint too"):
        test.main(replace(settings, checkpoint=None, clustering=tmp_path / "x.json", split="all"))
    with pytest.raises(InputError, match="--split all"):
        test.main(replace(settings, data=DataSettings(other.parent)))
    checkpoint = torch.load(trained / "best.pt", weights_only=True)
    checkpoint["model"]["settings"]["embedding_size"] = 9
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(InputError, match="another head"):
        test.main(replace(settings, checkpoint=tmp_path / "other.pt"))
