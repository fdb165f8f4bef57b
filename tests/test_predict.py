"""predict.py: what it writes, returns and refuses, how it resumes. Its detector here marks red squares."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pypdfium2
import pytest
from PIL import Image

from metrics import decode_annotation, decode_mask
from runtime.errors import InputError
from tests.prediction import (
    FAST,
    SQUARES,
    Counting,
    detect_red,
    lines_of,
    predict_in,
    verdicts_of,
    write_image,
)
from tests.scripts import launch, launch_ranks

# What is written ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Folder with `in`, two images of which one has a finding, and `out`, the run over them."""
    folder = tmp_path_factory.mktemp("done")
    write_image(folder / "in/a.png", SQUARES)
    write_image(folder / "in/deeper/b.png")
    assert predict_in(folder / "out", folder / "in") == 3
    return folder


def test_lines(done):
    """One line for each image, with its verdict, and with the evidence of every finding."""
    found, clean = lines_of(done / "out")
    assert found["path"] == str(done / "in/a.png") and clean["path"] == str(done / "in/deeper/b.png")
    assert (found["verdict"], found["score"], found["width"], found["height"]) == ("found", 0.9, 60, 40)
    assert (clean["verdict"], clean["instances"], "mask" in clean) == ("clean", [], False)
    (instance,) = found["instances"]
    (evidence,) = instance["evidence"]
    assert instance["area"] == 160 and instance["boxes"] == [[5, 10, 10, 8], [40, 20, 10, 8]]
    assert (evidence["kind"], evidence["support"], evidence["ncc"], evidence["score"]) == ("exact", 9, 1.0, 0.9)
    assert (evidence["rotation"], evidence["scale"], evidence["mirrored"]) == (0.0, 1.0, False)
    assert (evidence["source"], evidence["target"]) == ([5, 10, 10, 8], [40, 20, 10, 8])
    assert evidence["affine"] == [[1, 0, 35], [0, 1, 10]] and evidence["sentence"].startswith("This region appears")


def test_masks_and_submission(done):
    """The label map, the line's run lengths and the submission show the same pixels."""
    found = lines_of(done / "out")[0]
    labels = cv2.imread(str(done / "out" / found["mask"]), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and labels.shape == (40, 60) and np.unique(labels).tolist() == [0, 1]
    assert (decode_mask(found["instances"][0]["rle"], (40, 60)) == (labels == 1)).all()
    rows = list(csv.DictReader((done / "out/submission.csv").open()))
    assert [row["case_id"] for row in rows] == ["a", "b"] and rows[1]["annotation"] == "authentic"
    assert (decode_annotation(rows[0]["annotation"], (40, 60))[0] == (labels == 1)).all()
    assert "a.png" in (done / "out/report/index.html").read_text()


def test_equal_names_stay_apart(tmp_path):
    """Two files of the same name have different masks and case ids."""
    for folder in ("x", "y"):
        write_image(tmp_path / folder / "same.png", SQUARES)
    predict_in(tmp_path / "out", tmp_path / "x", tmp_path / "y")
    lines = lines_of(tmp_path / "out")
    assert len({line["mask"] for line in lines}) == 2
    rows = list(csv.DictReader((tmp_path / "out/submission.csv").open()))
    assert [row["case_id"] for row in rows] == [line["name"] for line in lines]


@pytest.mark.parametrize(
    ("found", "broken", "status"), [(False, False, 0), (True, False, 3), (False, True, 4), (True, True, 5)]
)
def test_exit_status(tmp_path, capsys, found, broken, status):
    """It says whether something was found and whether something could not be examined."""
    write_image(tmp_path / "in/a.png", SQUARES if found else ())
    if broken:
        (tmp_path / "in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert predict_in(tmp_path / "out", tmp_path / "in") == status
    printed = capsys.readouterr().out
    assert f"{1 + broken} images: {int(found)} with findings" in printed and ("broken.png" in printed) == broken


def test_error_line(tmp_path):
    """A file that cannot be read has a line with the reason."""
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    predict_in(tmp_path / "out", tmp_path / "broken.jpg")
    (line,) = lines_of(tmp_path / "out")
    assert line["verdict"] == "error" and "broken.jpg" in line["error"] and "mask" not in line


# Resume ---------------------------------------------------------------------------------------------------------------


def test_resume_redoes_torn_line(tmp_path):
    """Only the image whose line was cut off is examined again, and the file is the same in the end."""
    for name in "abc":
        write_image(tmp_path / f"in/{name}.png", SQUARES)
    predict_in(tmp_path / "out", tmp_path / "in")
    path = tmp_path / "out/predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 40])
    load = Counting(lambda number, image: detect_red(image))
    assert predict_in(tmp_path / "out", tmp_path / "in", load=load, resume=True) == 3
    assert load.images == 1 and path.read_bytes() == whole


def test_resume_needs_the_same_settings(tmp_path):
    """Another run's folder, a missing run and other settings are refused; the number of workers may change."""
    write_image(tmp_path / "in/a.png")
    with pytest.raises(InputError, match="no run in"):
        predict_in(tmp_path / "out", tmp_path / "in", resume=True)
    predict_in(tmp_path / "out", tmp_path / "in")
    with pytest.raises(InputError, match="--resume"):
        predict_in(tmp_path / "out", tmp_path / "in")
    with pytest.raises(InputError, match=r"--max-megapixels was 200\.0, is 1\.0"):
        predict_in(tmp_path / "out", tmp_path / "in", resume=True, max_megapixels=1.0)
    assert predict_in(tmp_path / "out", tmp_path / "in", resume=True, num_workers=1) == 0


# PDF ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def paper(tmp_path):
    """A PDF of two pages with an image on each; the squares are on the first page."""
    document = pypdfium2.PdfDocument.new()
    red = np.full((90, 120, 3), 200, np.uint8)
    for x, y in SQUARES:
        red[y : y + 8, x : x + 10] = (255, 0, 0)
    for image in (red, np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8)):
        page = document.new_page(400, 500)
        placed = pypdfium2.PdfImage.new(document)
        placed.set_bitmap(pypdfium2.PdfBitmap.from_pil(Image.fromarray(image)))
        placed.set_matrix(pypdfium2.PdfMatrix().scale(image.shape[1], image.shape[0]).translate(50, 300))
        page.insert_obj(placed)
        page.gen_content()
    (tmp_path / "in").mkdir()
    document.save(tmp_path / "in/paper.pdf")
    return tmp_path / "in/paper.pdf"


def test_lines_of_a_pdf(tmp_path, paper):
    """Each figure has a line with its page, number and box; a resumed run finds the figure that is missing."""
    (tmp_path / "in/locked.pdf").write_bytes(b"%PDF-1.7 broken")
    assert predict_in(tmp_path / "out", tmp_path / "in") == 5
    lines = lines_of(tmp_path / "out")
    assert [(line.get("page"), line.get("figure")) for line in lines] == [(None, None), (1, 1), (2, 1)]
    assert "locked.pdf" in lines[0]["error"]
    found = lines[1]
    # From the upper left corner of the page: the top is 500 - (300 + 90) = 110 points down.
    assert (found["path"], found["verdict"], found["box"]) == (str(paper), "found", [50, 110, 170, 200])
    assert found["instances"][0]["boxes"] == [[5, 10, 10, 8], [40, 20, 10, 8]]
    path = tmp_path / "out/predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 9])
    predict_in(tmp_path / "out", tmp_path / "in", resume=True)
    assert lines_of(tmp_path / "out") == lines


# Command line ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """Three images of noise; in the first one a block of 48 x 48 pixels stands twice."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in "abc":
        image = cv2.GaussianBlur(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), 1)
        if name == "a":
            image[90:138, 120:168] = image[20:68, 30:78]
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), image)
    return tmp_path / "in"


def test_bad_usage_is_one_line(tmp_path):
    """The help tells the exit statuses; a mistake gives status 2 and writes nothing."""
    assert "3 something found" in " ".join(launch("predict.py", "--help").stdout.split())
    bad = launch("predict.py", "missing.png", "--out", tmp_path / "out")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "missing.png" in bad.stderr
    write_image(tmp_path / "a.png")
    too_many = launch("predict.py", tmp_path / "a.png", "--out", tmp_path / "out", "--target-fpr", "2")
    assert too_many.returncode == 2 and "target_fpr is 2.0" in too_many.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evidence_only": True, "checkpoint": Path("x.pt")}, "leave out --checkpoint"),
        ({"clustering": Path("x.json")}, "give its --checkpoint too"),
        ({"checkpoint": Path("x.pt")}, r"x\.pt does not exist"),
        ({"num_workers": -1}, "--num-workers is -1"),
    ],
)
def test_settings_that_cannot_work(tmp_path, changes, message):
    """They are refused before anything is written."""
    write_image(tmp_path / "a.png")
    with pytest.raises((InputError, FileNotFoundError), match=message):
        predict_in(tmp_path / "out", tmp_path / "a.png", **changes)
    assert not (tmp_path / "out").exists()


def test_pixel_evidence_needs_no_torch(tmp_path, copied):
    """The search on the pixels alone does not import it."""
    code = (
        "import sys, predict, config\n"
        "from runtime.command_line import parse\n"
        "status = predict.main(parse(config.PredictSettings, sys.argv[1:]))\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = launch("-c", code, copied, "--out", tmp_path / "out", *FAST, "--num-workers", 0)
    assert done.returncode == 3, done.stderr
    assert verdicts_of(tmp_path / "out") == ["found", "clean", "clean"]
    evidence = lines_of(tmp_path / "out")[0]["instances"][0]["evidence"][0]
    assert (evidence["kind"], evidence["rotation"], evidence["mirrored"]) == ("exact", 0.0, False)
    assert np.abs(np.array(evidence["affine"])[:, 2]).tolist() == [90, 70]


@pytest.mark.slow
def test_ranks_share_the_images(tmp_path, copied):
    """Two ranks write the same lines as one process, and leave nothing else behind."""
    both = launch_ranks("predict.py", copied, "--out", tmp_path / "two", *FAST, "--num-workers", "0")
    assert both.returncode == 0, both.stderr
    assert launch("predict.py", copied, "--out", tmp_path / "one", *FAST, "--num-workers", "0").returncode == 3
    one, two = ([line | {"seconds": 0} for line in lines_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two and len(one) == 3
    names = ["masks", "predictions.jsonl", "report", "settings.json", "submission.csv"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names


@pytest.mark.slow
def test_broken_checkpoint_stops_the_run(tmp_path):
    """One line says so, and the same folder can be used again, since nothing was examined."""
    write_image(tmp_path / "in/a.png")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    done = launch(
        "predict.py",
        tmp_path / "in",
        "--out",
        tmp_path / "out",
        "--checkpoint",
        tmp_path / "bad.pt",
        "--num-workers",
        "1",
    )
    assert done.returncode == 2 and "bad.pt" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert predict_in(tmp_path / "out", tmp_path / "in") == 0
    assert json.loads((tmp_path / "out/settings.json").read_text())["checkpoint"] is None
