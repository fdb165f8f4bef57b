"""One run at a time in a folder: what is refused, what a killed run leaves, disks without locks."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import train
from runtime.errors import InputError
from runtime.files import exclusive_lock, kernel_lock
from tests.prediction import lines_of, predict_in, write_image
from tests.scripts import ROOT

HOLDS = """
import os, pathlib, sys, time
from runtime.files import exclusive_lock
with exclusive_lock(pathlib.Path(sys.argv[1])):
    child = os.fork()
    if child == 0:  # as torch's loaders, which outlive a killed run by some seconds
        time.sleep(30)
        os._exit(0)
    print(child, flush=True)
    time.sleep(30)
"""


@pytest.mark.slow
def test_kill_frees_the_folder(tmp_path):
    """The lock ends with the run that holds it, also by kill -9 and while a child of that run lives on."""
    out = tmp_path / "new" / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, out], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    with pytest.raises(InputError, match=r"another run is at work in .*out; wait"), exclusive_lock(out):
        pass
    holder.kill()
    holder.wait()
    assert Path(f"/proc/{child}").exists()
    out.chmod(0o500)
    with exclusive_lock(out):
        assert list(out.iterdir()) == []
    os.kill(child, signal.SIGKILL)
    holder.stdout.close()


def test_refused_run_leaves_nothing(tmp_path):
    """The folder that was made for a run goes with it when the run is refused; a file is no folder."""
    with pytest.raises(InputError, match="refused"), exclusive_lock(tmp_path / "out"):
        raise InputError("refused")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="file is a file"), exclusive_lock(tmp_path / "file"):
        pass


def test_faults_of_the_run_pass(tmp_path):
    """What the run itself raises is not taken for a folder that is locked."""
    with pytest.raises(BlockingIOError, match="of the run"), exclusive_lock(tmp_path / "out"):
        raise BlockingIOError("of the run")


def test_lock_of_a_file(tmp_path):
    """A lock makes its file; a second holder is refused, or waits, and the first one's end lets it in."""
    with kernel_lock(tmp_path / "total"), pytest.raises(BlockingIOError), kernel_lock(tmp_path / "total", wait=False):
        pass
    with kernel_lock(tmp_path / "total"):
        assert [path.name for path in tmp_path.iterdir()] == ["total"]


def test_disk_without_locks(tmp_path, monkeypatch, capsys):
    """Some network disks have none: the run says so and goes on."""

    def failing(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", failing)
    write_image(tmp_path / "in/a.png")
    assert predict_in(tmp_path / "out", tmp_path / "in") == 0
    assert "out cannot be locked there (No locks available)" in capsys.readouterr().err


def test_second_prediction_is_refused(tmp_path):
    """It touches nothing of the run that is at work, and goes on once that has ended."""
    write_image(tmp_path / "in/a.png")
    predict_in(tmp_path / "out", tmp_path / "in")
    lines = tmp_path / "out/predictions.jsonl"
    lines.write_bytes(lines.read_bytes() + b'{"path": "/half')  # as the run that is at work may be writing it
    before = lines.read_bytes()
    with exclusive_lock(tmp_path / "out"), pytest.raises(InputError, match="another run"):
        predict_in(tmp_path / "out", tmp_path / "in", resume=True)
    assert lines.read_bytes() == before
    predict_in(tmp_path / "out", tmp_path / "in", resume=True)
    assert len(lines_of(tmp_path / "out")) == 1


def test_second_training_is_refused(settings):
    """It touches nothing of the training that is at work, and goes on once that has ended."""
    train.main(replace(settings, epochs=1))
    (settings.out / ".last.pt.7.tmp").write_text("as the training that is at work may be writing it")
    with exclusive_lock(settings.out), pytest.raises(InputError, match="another run"):
        train.main(replace(settings, epochs=1, resume=True))
    assert (settings.out / ".last.pt.7.tmp").exists()
    train.main(replace(settings, epochs=1, resume=True))
    assert not (settings.out / ".last.pt.7.tmp").exists()
