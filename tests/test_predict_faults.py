"""What goes wrong while predict.py runs costs as little as it can, and nothing that was done is lost."""

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detector import Detection
from tests.prediction import (
    SQUARES,
    Counting,
    clean,
    lines_of,
    predict_in,
    verdicts_of,
    write_image,
)
from tests.scripts import ROOT


@pytest.fixture
def four(tmp_path):
    """A folder of four images."""
    for number in range(4):
        write_image(tmp_path / f"in/{number}.png")
    return tmp_path / "in"


# One image ------------------------------------------------------------------------------------------------------------


def test_files_that_change(tmp_path, four):
    """Files that vanish, are cut off or become a pipe during the run cost themselves alone."""

    def detect(number, image):
        if number == 1:
            (four / "1.png").unlink()
            (four / "2.png").write_bytes((four / "2.png").read_bytes()[:100])
            (four / "3.png").unlink()
            os.mkfifo(four / "3.png")
        return clean(image)

    write_image(four / "4.png")
    assert predict_in(tmp_path / "out", four, load=Counting(detect)) == 4
    assert verdicts_of(tmp_path / "out") == ["clean", "error", "error", "error", "clean"]
    errors = [line["error"] for line in lines_of(tmp_path / "out")[1:4]]
    assert ["gone" in errors[0], "cut off" in errors[1], "regular" in errors[2]] == [True] * 3


def test_faults_cost_their_image(tmp_path, four, capfd):
    """A fault of the program has its traceback; memory that runs out, here beyond a limit, is no such fault."""
    limits = resource.getrlimit(resource.RLIMIT_AS)

    def detect(number, image):
        if number == 2:
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, limits[1]))
            try:
                bytearray(1 << 40)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
        if number == 3:
            return Detection(image.shape[:2], 0.0, ("no instance",), 0.5)
        return clean(image)

    assert predict_in(tmp_path / "out", four, load=Counting(detect)) == 4
    assert verdicts_of(tmp_path / "out") == ["clean", "error", "error", "clean"]
    errors = [line["error"] for line in lines_of(tmp_path / "out")[1:3]]
    assert errors[0] == "there was not enough memory to examine it"
    assert errors[1].startswith("fault of the program: AttributeError")
    assert capfd.readouterr().err.count("Traceback") == 1


@pytest.mark.slow
def test_lost_processes_cost_their_image(tmp_path):
    """An image on which its process dies, fails or hangs has a line with the reason; all others are examined."""
    for i in range(6):
        write_image(tmp_path / f"in/good{i}.png", SQUARES)
    write_image(tmp_path / "in/dies.png", corner=(1, 2, 3))
    write_image(tmp_path / "in/fails.png", corner=(1, 2, 4))
    write_image(tmp_path / "in/hangs.png", corner=(1, 2, 5))
    assert predict_in(tmp_path / "out", tmp_path / "in", num_workers=2, image_timeout=6.0) == 5
    errors = {Path(line["path"]).stem: line.get("error", "") for line in lines_of(tmp_path / "out")}
    assert len(errors) == 9 and [errors[f"good{i}"] for i in range(6)] == [""] * 6
    assert "memory" in errors["dies"] and "ZeroDivisionError: as asked" in errors["fails"]
    assert errors["hangs"] == "given up after 6 s (--image-timeout)"


# The whole run --------------------------------------------------------------------------------------------------------


def test_blocked_output_stops_the_run(tmp_path, four):
    """Where the output folder cannot be written no other image would fare better."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report").write_text("in the way")
    with pytest.raises(OSError, match="report"):
        predict_in(tmp_path / "out", four)
    assert lines_of(tmp_path / "out") == []


def test_full_disk_during_a_search(tmp_path, four):
    """numba writes what it has compiled: that the disk is full then is no fault of the image."""

    def detect(number, image):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        predict_in(tmp_path / "out", four, load=Counting(detect))
    assert lines_of(tmp_path / "out") == []


def test_full_disk_and_resume(tmp_path, four):
    """A disk that is full while results are written ends the run; with space again it goes on and loses nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def detect(number, image):
        if number == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return clean(image)

    load = Counting(detect)
    try:
        with pytest.raises(OSError, match="File too large"):
            predict_in(tmp_path / "out", four, load=load)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert verdicts_of(tmp_path / "out") == ["clean", "clean"]
    assert predict_in(tmp_path / "out", four, load=load, resume=True) == 0
    assert load.images == 5 and verdicts_of(tmp_path / "out") == ["clean"] * 4


def test_power_cut_leaves_empty_files(tmp_path, four):
    """Images whose files are empty are examined again, but only after the machine was started anew."""
    predict_in(tmp_path / "out", four)
    lines = lines_of(tmp_path / "out")
    entry = tmp_path / "out/report/images" / lines[1]["name"] / "entry.json"
    pixels = tmp_path / "out/report/images" / lines[2]["name"] / "thumb.webp"
    whole = entry.read_bytes(), pixels.read_bytes()
    load = Counting()
    predict_in(tmp_path / "out", four, load=load, resume=True)
    assert load.images == 0
    entry.write_bytes(b"")
    pixels.write_bytes(b"")
    os.utime(tmp_path / "out/predictions.jsonl", (0, 0))  # before this machine was started
    predict_in(tmp_path / "out", four, load=load, resume=True)
    assert load.images == 2 and lines_of(tmp_path / "out") == lines
    assert (entry.read_bytes(), pixels.read_bytes()) == whole


def test_restarted_job_goes_on(tmp_path, four, monkeypatch):
    """torchrun starts a failed job again with the same command, without --resume."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def detect(number, image):
        if number == 3:
            raise KeyboardInterrupt
        return clean(image)

    load = Counting(detect)
    with pytest.raises(KeyboardInterrupt):
        predict_in(tmp_path / "out", four, load=load)
    predict_in(tmp_path / "out", four, load=load)
    assert load.images == 5 and len(lines_of(tmp_path / "out")) == 4


def test_leftovers_are_removed(tmp_path, four):
    """Temporary files of a run that was killed go when the next one ends."""
    predict_in(tmp_path / "out", four)
    for name in (".predictions.jsonl.7.tmp", ".submission.csv.7.tmp", "report/.index.html.7.tmp", "masks/.a.png.7.tmp"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    predict_in(tmp_path / "out", four, resume=True)
    assert not list((tmp_path / "out").rglob(".*"))


SLOW_RUN = """
import sys, time
from pathlib import Path
import predict
from config import PredictSettings
from tests.prediction import detect_red

def load(settings):
    return slow

def slow(image):
    time.sleep(0.15)
    return detect_red(image)

if __name__ == "__main__":
    source, out, resume = sys.argv[1:]
    settings = PredictSettings(paths=(Path(source),), out=Path(out), num_workers=2, resume=resume == "resume")
    sys.exit(predict.main(settings, load))
"""


@pytest.mark.slow
def test_killed_run_goes_on(tmp_path):
    """After kill -9 and --resume every image has exactly one line, one mask and one entry."""
    expected = sorted(str(write_image(tmp_path / f"in/{i}.png", SQUARES)) for i in range(40))
    script, out = tmp_path / "slow.py", tmp_path / "out"
    script.write_text(SLOW_RUN)

    def start(resume):
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "in"), str(out), resume],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    process, lines = start("new"), out / "predictions.jsonl"
    end = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert 3 <= lines.read_bytes().count(b"\n") < 40
    resumed = start("resume")
    printed, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 3 and "40 images: 40 with findings" in printed
    assert [line["path"] for line in lines_of(out)] == expected
    assert len(list((out / "masks").iterdir())) == 40
    assert len(list((out / "report/images").iterdir())) == 40
