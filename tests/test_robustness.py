"""The means of the robustness benchmark: processes that are watched and killed, folders that are compared."""

import time

import numpy as np

from benchmarks import robustness
from benchmarks.checks import Checks
from benchmarks.processes import (
    ScriptProcess,
    descendants,
    is_running,
    processor_seconds,
    rank_of,
    resident_memory,
    wait_for_growth,
    wait_until,
)
from benchmarks.repeatability import compare_folders, transformed_scores
from config import RobustnessSettings
from copymove.copies import Instance
from detector import Detection

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; x = bytearray(64 << 20); time.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""


def test_killed_process_takes_its_family(tmp_path):
    """A script's descendants are found, measured, and ended with it, also one in a session of its own."""
    script = tmp_path / "family.py"
    script.write_text(FAMILY.replace('time.sleep(60)"]', 'time.sleep(60)"], start_new_session=True'))
    process = ScriptProcess(script, env={"RANK": "7"})
    assert wait_until(lambda: resident_memory(process.pid) > 64, process, 60)
    (child,) = descendants(process.pid)
    assert is_running(child) and rank_of(child) == rank_of(process.pid) == "7"
    assert processor_seconds(process.pid) > 0
    process.kill_all()
    end = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert process.returncode == -9 and rank_of(child) == "" and descendants(process.pid) == []


def test_output_is_kept_whole(tmp_path):
    """More than a pipe holds, from both streams, with the exit status."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('x' * 10**6)\nsys.exit('the end')\n")
    status, output = ScriptProcess(script).finish()
    assert status == 1 and len(output) > 10**6 and output.endswith("the end\n")


def test_waiting_ends_with_the_process(tmp_path):
    """A condition that never comes true is given up when the process has ended; a file that grows is noticed."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(f"import time\ntime.sleep(0.5)\nopen({str(log)!r}, 'w').write('a')\ntime.sleep(0.5)\n")
    process = ScriptProcess(script)
    assert wait_for_growth(log, process)
    assert not wait_until(lambda: False, process)
    assert process.finish() == (0, "")


def test_folders_are_compared(tmp_path):
    """Equal to the bit, equal but for measured seconds, different, and missing on one side."""
    for name, seconds, word in (("a", 1.5, "one"), ("b", 2, "two")):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "same").write_bytes(b"same")
        (tmp_path / name / "sub" / "log.jsonl").write_text(f'{{"seconds": {seconds}, "loss": 3}}')
        (tmp_path / name / "other.json").write_text(f'{{"seconds": {seconds}, "word": "{word}"}}')
    (tmp_path / "b" / "more").write_bytes(b"more")
    assert compare_folders(tmp_path / "a", tmp_path / "b") == (1, ["sub/log.jsonl"], ["more", "other.json"])


class MaskDetector:
    """Finds one instance: what is bright; with `shift` it finds it that many pixels lower."""

    def __init__(self, shift=0):
        self.shift = shift

    def detect(self, image):
        mask = np.roll(image[..., 0] > 128, self.shift, axis=0)
        instances = (Instance(mask, 0.9, ()),) if mask.any() else ()
        return Detection(image.shape[:2], 0.0, instances, 0.0)


def test_equivariance_is_measured():
    """1 for a detector that follows the image, less for one that does not, nothing where nothing is found."""
    image = np.zeros((40, 60, 3), np.uint8)
    assert transformed_scores(MaskDetector(), image) is None
    image[5:25, 10:30] = 255
    assert transformed_scores(MaskDetector(), image) == {"mirrored": 1.0, "rotated": 1.0}
    scores = transformed_scores(MaskDetector(shift=5), image)
    assert scores["mirrored"] == 1.0 and scores["rotated"] < 0.8


def test_failed_checks_set_the_status(tmp_path, monkeypatch, capsys):
    """Every kind has a folder of its own; one check that failed makes the status 1."""

    def good(settings, out, checks: Checks):
        checks.check(out.is_dir(), out.name)

    def bad(settings, out, checks: Checks):
        checks.note("tried")
        checks.check(False, "broken")

    monkeypatch.setattr(robustness, "ATTACKS", {"files": good, "load": bad})
    assert robustness.attack(RobustnessSettings(kinds=("files",), out=tmp_path / "out")) == 0
    assert robustness.attack(RobustnessSettings(kinds=("files", "load"))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "ok   files" and lines[3] == "0 checks failed"
    assert lines[-4:-2] == ["     tried", "FAIL broken"] and lines[-1] == "1 checks failed"
