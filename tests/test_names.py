"""Names of files may hold any bytes: nothing breaks, and none reaches a terminal or a spreadsheet as a command."""

import os
from pathlib import Path

import numpy as np

import test
from config import SplitSettings
from images.folders import find_images
from images.splits import split_images
from metrics import score_image
from tests.prediction import lines_of, predict_in, write_image
from training_run import digest_of_images


def test_predicted_names_are_no_commands(tmp_path, capsys):
    """Names reach neither the terminal as control characters nor a spreadsheet as formulas."""
    for name in ("=1+1.png", "@SUM(A1).png", "plain.png"):
        write_image(tmp_path / "in" / name)
    (tmp_path / "in" / "\x1b[31m.png").write_bytes(b"broken")
    predict_in(tmp_path / "out", tmp_path / "in")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[31m" in printed
    cases = [row.split(",")[0] for row in (tmp_path / "out/submission.csv").read_text().splitlines()[1:]]
    assert "plain" in cases and len(cases) == 4
    assert not any(case.startswith(("=", "@")) for case in cases), cases


def test_scored_names_are_no_commands(tmp_path):
    """test.py writes the unique name of an image where a spreadsheet would take its case id for a formula."""
    names = {"=1+1": "1-1-0a", "+2": "2-0b", "-3": "3-0c", "@SUM(A1)": "SUM-0d", "\tx": "x-0e", "plain=1": "plain-0f"}
    results = [test.Result(case, "authentic", {}, name) for case, name in names.items()]
    test.write_results(tmp_path, results, "none")
    rows = (tmp_path / "submission.csv").read_text().splitlines()
    assert [row.removesuffix(",authentic") for row in rows[1:]] == [
        "1-1-0a", "2-0b", "3-0c", "SUM-0d", "x-0e", "plain=1",
    ]  # fmt: skip


def test_names_of_any_bytes_are_predicted(tmp_path):
    """A name that is no UTF-8 stands in the line as it is."""
    path = os.fsencode(tmp_path) + b"/\xff\n'.png"
    os.rename(write_image(tmp_path / "a.png"), path)
    assert predict_in(tmp_path / "out", Path(os.fsdecode(path))) == 0
    (line,) = lines_of(tmp_path / "out")
    assert os.fsencode(line["path"]) == path


def test_names_of_any_bytes_are_scored(tmp_path):
    """Splits, records and submission take names that are no UTF-8, and a `base` that is no text."""
    names = [os.fsdecode(name) for name in (b"\xff\xfe", b"new\nline", b"caf\xc3\xa9", b"plain")]
    for name in names:
        write_image(tmp_path / "in/authentic" / f"{name}.png")
        write_image(tmp_path / "in/forged" / f"{name}.png")
        write_image(tmp_path / "in/masks" / f"{name}.png")
    (tmp_path / "in/authentic/plain.json").write_text('{"base": "\\ud800"}')
    image_files = find_images(tmp_path / "in")
    splits = split_images(image_files, SplitSettings())
    assert len(image_files) == 8 and len(splits) == 5 and set(splits.values()) == {"train", "val", "test"}
    assert len(digest_of_images(image_files)) == 16
    empty = np.zeros((0, 40, 60), bool)
    results = [
        test.Result(p.id, "authentic", {"both": score_image(p.id, empty, empty, 0.0, 1.0)}, "") for p in image_files
    ]
    test.write_results(tmp_path / "out", results, "none")
    assert b"\n\xff\xfe,authentic\n" in (tmp_path / "out/submission.csv").read_bytes()
    assert len((tmp_path / "out/records.jsonl").read_text().splitlines()) == 8
