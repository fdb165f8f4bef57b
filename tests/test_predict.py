"""predict.py: what it reads, writes, survives and returns. The detector here is a plain one that marks red squares."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest

import predict
from config import PredictSettings
from copymove.copies import Copy, Instance
from copymove.regions import Region
from detector import Detection
from metrics import decode_annotation, decode_mask
from predict import Job
from runtime.command_line import from_dict, to_dict
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def detect_red(image: np.ndarray) -> Detection:
    """Two red squares of equal size are one instance; the first pixel can ask for trouble."""
    match image[0, 0].tolist():
        case [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGKILL)
        case [1, 2, 4]:
            raise ZeroDivisionError("as asked")
        case [1, 2, 5]:
            time.sleep(60)
    red = (image == (255, 0, 0)).all(axis=2)
    _, _, stats, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
    if len(stats) != 3:
        return Detection(red.shape, 0.0, (), 0.5, reason="no two squares")
    (x, y, w, h, _), (x2, y2, *_) = stats[1:].tolist()
    square = np.ones((h, w), bool)
    affine = np.array([[1.0, 0, x2 - x], [0, 1, y2 - y]])
    copy = Copy("exact", affine, 9, 1.0, 0.9, Region(x, y, square), Region(x2, y2, square))
    return Detection(red.shape, 0.9, (Instance(red, 0.9, (copy,)),), 0.5)


def load(settings: PredictSettings):
    return detect_red


def write_image(path: Path, squares=(), corner=(200, 200, 200), size=(40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 200, np.uint8)
    for x, y in squares:
        image[y : y + 8, x : x + 10] = (255, 0, 0)
    image[0, 0] = corner
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def run_in(out: Path, *paths: Path, **changes) -> int:
    return predict.main(PredictSettings(paths=paths, out=out, **{"num_workers": 0} | changes), load)


def test_lines_masks_submission_and_page(tmp_path):
    write_image(tmp_path / "in/a.png", squares=[(5, 10), (40, 20)])
    write_image(tmp_path / "in/deeper/b.png")
    status = run_in(tmp_path / "out", tmp_path / "in")
    found, nothing = lines_of(tmp_path / "out")
    assert status == 3
    assert found["path"] == str(tmp_path / "in/a.png") and nothing["path"] == str(tmp_path / "in/deeper/b.png")
    assert (found["verdict"], found["score"], found["width"], found["height"]) == ("found", 0.9, 60, 40)
    assert (nothing["verdict"], nothing["instances"], "mask" in nothing) == ("nothing found", [], False)
    instance, evidence = found["instances"][0], found["instances"][0]["evidence"][0]
    assert instance["area"] == 160 and instance["boxes"] == [[5, 10, 10, 8], [40, 20, 10, 8]]
    assert (evidence["source"], evidence["target"]) == ([5, 10, 10, 8], [40, 20, 10, 8])
    assert evidence["affine"] == [[1, 0, 35], [0, 1, 10]] and evidence["sentence"].startswith("This region appears")
    labels = cv2.imread(str(tmp_path / "out" / found["mask"]), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and labels.shape == (40, 60) and np.unique(labels).tolist() == [0, 1]
    assert (decode_mask(instance["runs"], (40, 60)) == (labels == 1)).all()
    rows = list(csv.DictReader((tmp_path / "out/submission.csv").open()))
    assert [row["case_id"] for row in rows] == ["a", "b"] and rows[1]["annotation"] == "authentic"
    assert (decode_annotation(rows[0]["annotation"], (40, 60))[0] == (labels == 1)).all()
    assert "a.png" in (tmp_path / "out/report/index.html").read_text()


def test_overlapping_instances_better_one_stands():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 1:3] = True, True
    labels = cv2.imdecode(np.frombuffer(predict._label_png(masks), np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels[:, 0].tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize(
    "found, broken, status", [(False, False, 0), (True, False, 3), (False, True, 4), (True, True, 5)]
)
def test_exit_status(tmp_path, found, broken, status):
    write_image(tmp_path / "in/a.png", squares=[(5, 10), (40, 20)] if found else [])
    if broken:
        (tmp_path / "in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert run_in(tmp_path / "out", tmp_path / "in") == status


def test_unreadable_file_is_recorded_with_its_reason(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    run_in(tmp_path / "out", tmp_path / "broken.jpg")
    (line,) = lines_of(tmp_path / "out")
    assert line["verdict"] == "unreadable" and "broken.jpg" in line["error"] and "mask" not in line


def test_a_name_that_is_not_utf8_goes_all_the_way(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\n'.png"
    os.rename(write_image(tmp_path / "a.png", squares=[(5, 10), (40, 20)]), path)
    assert run_in(tmp_path / "out", Path(os.fsdecode(path))) == 3
    (line,) = lines_of(tmp_path / "out")
    assert os.fsencode(line["path"]) == path and (tmp_path / "out" / line["mask"]).exists()


def test_equal_names_in_two_folders_stay_apart(tmp_path):
    for folder in ("x", "y"):
        write_image(tmp_path / folder / "same.png", squares=[(5, 10), (40, 20)])
    run_in(tmp_path / "out", tmp_path / "x", tmp_path / "y")
    lines = lines_of(tmp_path / "out")
    assert len({line["mask"] for line in lines}) == 2
    rows = list(csv.DictReader((tmp_path / "out/submission.csv").open()))
    assert [row["case_id"] for row in rows] == [line["name"] for line in lines]


def test_inputs_folders_globs_and_what_is_left_out(tmp_path):
    a = write_image(tmp_path / "in/a.png")
    b = write_image(tmp_path / "in/sub/B.PNG")
    write_image(tmp_path / "in/.hidden.png")
    write_image(tmp_path / "in/out/masks/m.png")
    literal = write_image(tmp_path / "in/c[1].png")
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "in/folder.png").mkdir()
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe.png")
    out = tmp_path / "in/out"
    everything = sorted(map(str, (a, b, literal)))
    assert predict.find_inputs([tmp_path / "in", a], out) == everything
    assert predict.find_inputs([tmp_path / "in/**/*.PNG"], out) == [str(b)]
    assert predict.find_inputs([literal], out) == [str(literal)]


@pytest.mark.parametrize(
    "paths, message", [([], "no PATH"), (["missing.png"], "does not exist"), (["empty"], "no pict")]
)
def test_nothing_to_read_is_a_mistake(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, FileNotFoundError), match=message):
        predict.find_inputs([Path(path) for path in paths], tmp_path / "out")


def test_a_pipe_given_by_name_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert run_in(tmp_path / "out", tmp_path / "pipe.png") == 4
    assert "not a regular file" in lines_of(tmp_path / "out")[0]["error"]


# Resume -----------------------------------------------------------------------------------------------------------


def test_resume_redoes_the_torn_line_and_only_that(tmp_path, monkeypatch):
    for name in "abc":
        write_image(tmp_path / f"in/{name}.png", squares=[(5, 10), (40, 20)])
    run_in(tmp_path / "out", tmp_path / "in")
    path = tmp_path / "out/predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 40])  # the third line is torn
    examined = []
    monkeypatch.setattr(sys.modules[__name__], "detect_red", lambda image: examined.append(1) or original(image))
    assert run_in(tmp_path / "out", tmp_path / "in", resume=True) == 3
    assert len(examined) == 1
    assert path.read_bytes() == whole


original = detect_red


def test_torn_line_is_cut_off_also_beyond_one_block(tmp_path):
    path = tmp_path / "lines"
    for whole, torn in ((b"", b"x" * 200_000), (b'{"a": 1}\n', b"y" * 70_000), (b"1\n2\n", b"")):
        path.write_bytes(whole + torn)
        predict.drop_torn_line(path)
        assert path.read_bytes() == whole


def test_resume_refuses_other_settings_and_missing_runs(tmp_path):
    write_image(tmp_path / "in/a.png")
    with pytest.raises(InputError, match="no run in"):
        run_in(tmp_path / "out", tmp_path / "in", resume=True)
    run_in(tmp_path / "out", tmp_path / "in")
    with pytest.raises(InputError, match="--resume"):
        run_in(tmp_path / "out", tmp_path / "in")
    with pytest.raises(InputError, match="--max-megapixels"):
        run_in(tmp_path / "out", tmp_path / "in", resume=True, max_megapixels=1.0)
    assert run_in(tmp_path / "out", tmp_path / "in", resume=True, num_workers=1) == 0


def test_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"path": "a", "verdict": "found"}\n{"pa\n{"path": "b", "verdict": "found"}\n')
    with pytest.raises(InputError, match="line 2 of"):
        list(predict.read_lines(tmp_path / "p.jsonl"))


def test_parts_of_all_ranks_become_one_file_without_doubles(tmp_path):
    def line(path):
        return json.dumps({"path": path, "verdict": "found"}) + "\n"

    (tmp_path / "predictions.jsonl").write_text(line("/c") + line("/a"))
    (tmp_path / "predictions.rank1.jsonl").write_text(line("/b") + line("/a"))
    predict.merge(tmp_path)
    assert [entry["path"] for entry in lines_of(tmp_path)] == ["/a", "/b", "/c"]
    assert not (tmp_path / "predictions.rank1.jsonl").exists()


# Processes --------------------------------------------------------------------------------------------------------


def test_a_dying_a_failing_and_a_hanging_image_cost_themselves_alone(tmp_path):
    for i in range(6):
        write_image(tmp_path / f"in/good{i}.png", squares=[(5, 10), (40, 20)])
    write_image(tmp_path / "in/dies.png", corner=(1, 2, 3))
    write_image(tmp_path / "in/fails.png", corner=(1, 2, 4))
    write_image(tmp_path / "in/hangs.png", corner=(1, 2, 5))
    status = run_in(tmp_path / "out", tmp_path / "in", num_workers=2, image_timeout=6.0)
    errors = {Path(line["path"]).stem: line.get("error", "") for line in lines_of(tmp_path / "out")}
    assert status == 5 and len(errors) == 9
    assert "memory" in errors["dies"]
    assert "ZeroDivisionError: as asked" in errors["fails"]
    assert "given up after 6 s" in errors["hangs"]
    assert [errors[f"good{i}"] for i in range(6)] == [""] * 6


def test_jobs_added_while_running_are_taken(tmp_path):
    a, b = (write_image(tmp_path / f"{name}.png") for name in "ab")
    queue = deque([Job(str(a))])
    seen = []
    for job, _ in predict.examine_all(queue, PredictSettings(paths=(), out=tmp_path / "out"), load, 1):
        seen.append(job.path)
        if len(seen) == 1:
            queue.append(Job(str(b)))
    assert seen == [str(a), str(b)]


SLOW_RUN = """
import sys, time
from pathlib import Path
import predict, test_predict
from config import PredictSettings

def load(settings):
    def detect(image):
        time.sleep(0.15)
        return test_predict.detect_red(image)
    return detect

if __name__ == "__main__":
    source, out, resume = sys.argv[1:]
    settings = PredictSettings(paths=(Path(source),), out=Path(out), num_workers=2, resume=resume == "resume")
    sys.exit(predict.main(settings, load))
"""


def test_killed_run_goes_on_with_every_image_exactly_once(tmp_path):
    expected = sorted(str(write_image(tmp_path / f"in/{i}.png", [(5, 10), (40, 20)])) for i in range(40))
    script, out = tmp_path / "slow.py", tmp_path / "out"
    script.write_text(SLOW_RUN)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))

    def start(resume):
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "in"), str(out), resume],
            env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    process = start("new")
    lines = out / "predictions.jsonl"
    end = time.monotonic() + 60
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = lines.read_bytes().count(b"\n")
    assert 3 <= before < 40
    resumed = start("resume")
    printed = resumed.communicate(timeout=120)[0].decode()
    assert resumed.returncode == 3 and "40 images: 40 with findings" in printed
    assert [line["path"] for line in lines_of(out)] == expected
    assert len(list((out / "masks").iterdir())) == 40
    assert len(list((out / "report/images").iterdir())) == 40


# PDF --------------------------------------------------------------------------------------------------------------


def put_image(document, page, image, x, y, width, height):
    import pypdfium2
    from PIL import Image

    placed = pypdfium2.PdfImage.new(document)
    placed.set_bitmap(pypdfium2.PdfBitmap.from_pil(Image.fromarray(image)))
    placed.set_matrix(pypdfium2.PdfMatrix().scale(width, height).translate(x, y))
    page.insert_obj(placed)


@pytest.fixture
def paper(tmp_path):
    """Page 1: one image. Page 2: two halves of a figure side by side, an icon, and an image below."""
    import pypdfium2

    rng = np.random.default_rng(0)
    left, right, below = (rng.integers(0, 256, (100, 80, 3), dtype=np.uint8) for _ in range(3))
    red = np.full((90, 120, 3), 200, np.uint8)
    red[10:18, 20:30] = red[50:58, 70:80] = (255, 0, 0)
    document = pypdfium2.PdfDocument.new()
    page = document.new_page(400, 500)
    put_image(document, page, red, 50, 300, 120, 90)
    page.gen_content()
    page = document.new_page(400, 500)
    put_image(document, page, left, 40, 300, 80, 100)
    put_image(document, page, right, 120, 300, 80, 100)
    put_image(document, page, below, 40, 100, 80, 100)
    put_image(document, page, below[:20, :20], 300, 100, 20, 20)
    page.gen_content()
    document.save(tmp_path / "paper.pdf")
    return tmp_path / "paper.pdf", left, right, below


def test_figures_of_a_pdf(paper):
    from images.pdf import find_figures, read_figure

    path, left, right, below = paper
    figures = find_figures(path)
    # From the upper left corner: the first image's top is 500 - (300 + 90) = 110 points down.
    assert [(f.page, f.figure, f.box) for f in figures] == [
        (1, 1, (50.0, 110.0, 170.0, 200.0)),
        (2, 1, (40.0, 100.0, 200.0, 200.0)),
        (2, 2, (40.0, 300.0, 120.0, 400.0)),
    ]
    assert (read_figure(path, 2, 2) == below).all()
    both = read_figure(path, 2, 1).astype(int)
    assert both.shape == (100, 160, 3) and np.abs(both - np.hstack([left, right])).mean() < 3
    with pytest.raises(InputError, match="no figure 3 on page 2"):
        read_figure(path, 2, 3)
    with pytest.raises(InputError, match="--max-megapixels"):
        read_figure(path, 1, 1, max_megapixels=0.001)


def test_pdf_lines_name_page_figure_and_box_and_resume(tmp_path, paper):
    (tmp_path / "in").mkdir()
    path = paper[0].rename(tmp_path / "in/paper.pdf")
    (tmp_path / "in/locked.pdf").write_bytes(b"%PDF-1.7 broken")
    assert run_in(tmp_path / "out", tmp_path / "in") == 5
    lines = lines_of(tmp_path / "out")
    assert [(line.get("page"), line.get("figure")) for line in lines] == [(None, None), (1, 1), (2, 1), (2, 2)]
    assert "locked.pdf" in lines[0]["error"]
    found = lines[1]
    assert found["path"] == str(path) and found["verdict"] == "found" and found["box"] == [50, 110, 170, 200]
    assert found["instances"][0]["boxes"] == [[20, 10, 10, 8], [70, 50, 10, 8]]
    whole = (tmp_path / "out/predictions.jsonl").read_bytes()
    (tmp_path / "out/predictions.jsonl").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 9])
    run_in(tmp_path / "out", tmp_path / "in", resume=True)
    again = lines_of(tmp_path / "out")
    assert again == lines


# Command line -----------------------------------------------------------------------------------------------------


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "predict.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip


def test_help_documents_the_exit_status_and_bad_usage_is_one_line(tmp_path):
    assert "3 something found" in " ".join(call("--help").stdout.split())
    bad = call("missing.png", "--out", tmp_path)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "missing.png" in bad.stderr
    unknown = call("a.png", "--out", tmp_path, "--nonsense", "1")
    assert unknown.returncode == 2 and "nonsense" in unknown.stderr
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    too_many = call(tmp_path / "a.png", "--out", tmp_path / "out", "--target-fpr", "2")
    assert too_many.returncode == 2 and "target_fpr is 2.0" in too_many.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copied(tmp_path):
    """Three images of noise; in the first one a block of 48 x 48 pixels stands twice."""
    rng = np.random.default_rng(0)
    for name in "abc":
        image = cv2.GaussianBlur(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), 1)
        if name == "a":
            image[90:138, 120:168] = image[20:68, 30:78]
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), image)
    return tmp_path / "in"


def test_pixel_evidence_needs_no_torch(tmp_path, copied):
    code = (
        "import sys, predict, config\n"
        "status = predict.main(config.parse(config.PredictSettings, sys.argv[1:]))\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    arguments = [
        copied,
        "--out",
        tmp_path / "out",
        "--evidence-only",
        "--matching-kinds",
        "exact",
        "--num-workers",
        "0",
    ]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    found, *others = lines_of(tmp_path / "out")
    assert [line["verdict"] for line in others] == ["nothing found"] * 2
    evidence = found["instances"][0]["evidence"][0]
    assert (evidence["kind"], evidence["rotation"], evidence["mirrored"]) == ("exact", 0.0, False)
    assert np.abs(np.array(evidence["affine"])[:, 2]).tolist() == [90, 70]


def test_ranks_share_the_images_and_the_first_one_merges(tmp_path, copied):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "predict.py"]
    options = ["--evidence-only", "--matching-kinds", "exact", "--num-workers", "0"]
    both = subprocess.run(
        [*command, str(copied), "--out", str(tmp_path / "two"), *options], cwd=ROOT, capture_output=True, text=True
    )
    assert both.returncode == 0, both.stderr
    assert call(copied, "--out", tmp_path / "one", *options).returncode == 3
    one, two = ([line | {"seconds": 0} for line in lines_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two and len(one) == 3
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        ["masks", "predictions.jsonl", "report", "settings.json", "submission.csv"]
    )


def test_a_broken_checkpoint_stops_the_run_with_one_line(tmp_path, copied):
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    done = call(copied, "--out", tmp_path / "out", "--checkpoint", tmp_path / "bad.pt", "--num-workers", "1")
    assert done.returncode == 2 and "bad.pt" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    again = call(
        copied, "--out", tmp_path / "out", "--evidence-only", "--matching-kinds", "exact", "--num-workers", "0"
    )
    assert again.returncode == 3  # nothing was begun


@pytest.mark.parametrize("options", [["--evidence-only", "--checkpoint", "x.pt"], ["--clustering", "x.json"]])
def test_settings_that_contradict_each_other(tmp_path, copied, options):
    done = call(copied, "--out", tmp_path / "out", *options)
    assert done.returncode == 2 and "--checkpoint" in done.stderr and not (tmp_path / "out").exists()


def test_settings_survive_a_round_trip():
    settings = PredictSettings(paths=(Path("a"), Path("b")), out=Path("o"), num_workers=3)
    back = from_dict(PredictSettings, to_dict(settings))
    assert [str(path) for path in back.paths] == ["a", "b"] and back.num_workers == 3
