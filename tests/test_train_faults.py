"""What goes wrong while train.py runs: signals, killed loaders, full disks, ranks that do not share a folder."""

import json
import os
import resource
import signal
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
import training_run
from benchmarks.processes import ScriptProcess, descendants, wait_until
from config import DataSettings, LoaderSettings, SynthesisSettings
from dataset import make_loader
from detector import Detector
from images.folders import find_images
from losses import ForgeryLoss
from runtime.errors import InputError


def terminate_at(monkeypatch, owner, name, number):
    """SIGTERM to this process, twice, at the start of the numbered call of a function."""
    function, calls = getattr(owner, name), []

    def interrupted(*arguments, **more):
        calls.append(1)
        for _ in range(2 if len(calls) == number else 0):
            assert callable(signal.getsignal(signal.SIGTERM))  # a second one would end this process
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **more)

    monkeypatch.setattr(owner, name, interrupted)


def run_of(folder):
    """Log without times, place and weights of a run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    state = torch.load(folder / "last.pt", weights_only=True)
    return log, state["progress"], {name: value.tolist() for name, value in state["model"]["head"].items()}


@pytest.mark.slow
def test_sigterm_saves_and_resumes(settings, monkeypatch, tmp_path):
    """In the first step, in accumulation and in validation: the resumed run equals one that never stopped."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert train.main(settings) == 0
    stopped = replace(settings, out=tmp_path / "stopped")
    places = [(ForgeryLoss, "forward", 1), (ForgeryLoss, "forward", 2), (Detector, "detect", 1)]
    for number, (owner, name, call) in enumerate(places):
        with monkeypatch.context() as patch:
            terminate_at(patch, owner, name, call)
            assert train.main(replace(stopped, resume=number > 0)) == 128 + signal.SIGTERM
    assert train.main(replace(stopped, resume=True)) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert run_of(stopped.out) == run_of(settings.out)


@pytest.mark.slow
def test_killed_loader_ends_the_training(data, backbone, tmp_path):
    """A loader process that is killed is one line, and the training does not wait for it."""
    arguments = ["--data", data, "--out", tmp_path / "run", "--backbone", backbone, "--image-size", 56, "--epochs", 500,
                 "--num-workers", 1, "--batch-size", 2, "--head-widths", 16, "--embedding-size", 8]  # fmt: skip
    process, log = ScriptProcess("train.py", *arguments), tmp_path / "run/log.jsonl"
    assert wait_until(lambda: log.exists() and log.stat().st_size > 0, process)
    loaders = [pid for pid in descendants(process.pid) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(loaders[0], signal.SIGKILL)
    status, printed = process.finish()
    assert status == 2 and "Traceback" not in printed, printed
    assert "was killed, probably" in printed.splitlines()[-1], printed


@pytest.mark.parametrize("fault", [ConnectionResetError, ConnectionRefusedError, EOFError])
def test_loader_killed_in_handing_over(data, fault, monkeypatch):
    """What a half handed over batch raises is said to be a killed process."""
    loader = make_loader(
        find_images(data), 56, DataSettings(data), LoaderSettings(num_workers=0), SynthesisSettings(), batch_size=2
    )

    def batches(_):
        yield from ()
        raise fault

    monkeypatch.setattr(type(loader._batches), "__iter__", batches)
    with pytest.raises(BrokenExecutor, match="was killed"):
        next(iter(loader))


def test_leftovers_are_removed(settings):
    """Temporary files of a training that was killed go when the next one starts."""
    settings.out.mkdir()
    for name in (".last.pt.7.tmp", ".log.jsonl.7.tmp"):
        (settings.out / name).write_text("half")
    train.main(replace(settings, epochs=1))
    assert not list(settings.out.glob(".*"))


def test_ranks_need_the_same_checkpoint(settings, monkeypatch):
    """On machines that do not share the folder only the first one has a last.pt: they do not train together."""
    train.main(replace(settings, epochs=1))
    before = (settings.out / "last.pt").read_bytes()
    monkeypatch.setattr(training_run, "gather", lambda items: [*items, (0, 0)])
    with pytest.raises(InputError, match=r"different places \(epoch, step\): \[\(1, 0\), \(0, 0\)\].*share"):
        train.main(replace(settings, epochs=1, resume=True))
    assert (settings.out / "last.pt").read_bytes() == before


def test_full_disk_keeps_whole_files(settings, monkeypatch):
    """A checkpoint that does not fit ends the training; no half of it is left, and the settings stay."""
    limits, end_epoch = resource.getrlimit(resource.RLIMIT_FSIZE), train.end_epoch

    def limited(run, figures):  # not before: numba also writes, what it has compiled
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # best.pt is smaller, last.pt is larger
        try:
            end_epoch(run, figures)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(train, "end_epoch", limited)
    with pytest.raises(OSError, match="File too large"):
        train.main(replace(settings, epochs=1))
    assert not (settings.out / "last.pt").exists() and not list(settings.out.glob(".*"))
    assert json.loads((settings.out / "settings.json").read_text())["epochs"] == 1
