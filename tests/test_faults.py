"""Hostile files and faults in seconds; `python benchmark.py robustness` tries the same for minutes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import predict
import test
import train
import training_run
from benchmarks.processes import ROOT, ScriptProcess, descendants, is_running, wait_until
from benchmarks.small_runs import QUICK_PREDICTION, read_lines, write_dataset
from config import DataSettings, LoaderSettings, PredictSettings, SplitSettings, SynthesisSettings
from dataset import make_loader
from detector import Detection, Detector
from distributed import own_store
from images.folders import find_images
from images.splits import split_images
from metrics import score_image
from runtime.errors import InputError, one_line
from runtime.files import atomic_write, exclusive_lock, read_json, write_json


def nothing(settings):
    """A detector that finds nothing."""
    return lambda image: Detection(image.shape[:2], 0.0, (), 0.5)


def predicted(folder, out, load=nothing, **changes):
    status = predict.main(PredictSettings(paths=(folder,), out=out, **{"num_workers": 0} | changes), load)
    return status, read_lines(out / "predictions.jsonl")


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return path


# Names and folders --------------------------------------------------------------------------------------------------


def test_names_reach_neither_the_terminal_nor_a_spreadsheet_as_commands(tmp_path, capsys):
    for name in ("\x1b[31m.png", "=1+1.png", "@SUM(A1).png", "plain.png"):
        write_image(tmp_path / "in" / name).write_bytes(b"broken" if "31m" in name else b"")
        if "31m" not in name:
            write_image(tmp_path / "in" / name)
    predicted(tmp_path / "in", tmp_path / "out")
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[31m" in said
    cases = [row.split(",")[0] for row in (tmp_path / "out/submission.csv").read_text().splitlines()[1:]]
    assert "plain" in cases and len(cases) == 4
    assert not any(case.startswith(("=", "@")) for case in cases), cases
    assert one_line("a\n\tb\x07\udcff é") == r"a b\x07\udcff é"


def test_names_of_scored_images_are_no_commands_of_a_spreadsheet_either(tmp_path):
    names = {"=1+1": "1-1-0a", "+2": "2-0b", "-3": "3-0c", "@SUM(A1)": "SUM-0d", "\tx": "x-0e", "plain=1": "plain-0f"}
    results = [test.Result(case, "authentic", {}, name) for case, name in names.items()]
    test.write_results(tmp_path, results, "none")
    rows = (tmp_path / "submission.csv").read_text().splitlines()
    cases = [row.removesuffix(",authentic") for row in rows[1:]]
    assert cases == ["1-1-0a", "2-0b", "3-0c", "SUM-0d", "x-0e", "plain=1"]


def test_names_of_any_bytes_are_split_and_scored(tmp_path):
    write_dataset(tmp_path / "in", 4)
    for number, name in enumerate((b"\xff\xfe", b"new\nline", b"caf\xc3\xa9", b"plain")):
        for path in (tmp_path / "in").glob(f"*/{number}.*"):
            path.rename(path.parent / (os.fsdecode(name) + path.suffix))
    (tmp_path / "in/authentic/plain.json").write_text('{"base": "\\ud800"}')  # no text, but JSON
    image_files = find_images(tmp_path / "in")
    splits = split_images(image_files, SplitSettings())
    assert len(image_files) == 8 and len(splits) == 5 and set(splits.values()) == {"train", "val", "test"}
    training_run.digest_of_images(image_files)
    empty = np.zeros((0, 40, 60), bool)
    results = [
        test.Result(p.id, "authentic", {"both": score_image(p.id, empty, empty, 0.0, 1.0)}, "") for p in image_files
    ]
    test.write_results(tmp_path / "out", results, "none")
    assert b"\n\xff\xfe,authentic\n" in (tmp_path / "out/submission.csv").read_bytes()
    assert len(read_lines(tmp_path / "out/records.jsonl")) == 8


@pytest.mark.parametrize("reader", ["predict", "train"])
def test_a_folder_that_cannot_be_listed_is_named_not_left_out(tmp_path, monkeypatch, reader):
    write_image(tmp_path / "in/a.png")
    write_image(tmp_path / "in/closed/b.png")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises((PermissionError, InputError), match="closed"):
        if reader == "predict":
            predict.find_inputs([tmp_path / "in"], tmp_path / "out")
        else:
            find_images(tmp_path / "in")


# Prediction ---------------------------------------------------------------------------------------------------------


def test_files_that_vanish_or_change_during_the_run_cost_themselves_alone(tmp_path):
    paths = [write_image(tmp_path / f"in/{number}.png", number) for number in range(5)]

    def load(settings):
        def detect(image):
            if paths[1].exists():  # at the first image
                paths[1].unlink()
                paths[2].write_bytes(paths[2].read_bytes()[:300])
                paths[3].unlink()
                os.mkfifo(paths[3])
            return Detection(image.shape[:2], 0.0, (), 0.5)

        return detect

    status, lines = predicted(tmp_path / "in", tmp_path / "out", load)
    assert status == 4
    assert [line["verdict"] for line in lines] == ["nothing found", *["unreadable"] * 3, "nothing found"]
    assert ["gone" in lines[1]["error"], "cut off" in lines[2]["error"], "regular" in lines[3]["error"]] == [True] * 3


def load_that_notes(settings):
    def detect(image):
        with open(f"{settings.out}.pids", "a") as file:
            file.write(f"{os.getpid()} {image.shape[0]}\n")
        time.sleep(3.0 if image.shape[0] == 41 else 0.0)
        return Detection(image.shape[:2], 0.0, (), 0.5)

    return detect


def test_a_worker_killed_between_two_images_costs_nothing(tmp_path):
    """Workers that wait at one queue hold its lock in turn; killed there, the others would wait for ever."""
    image_files = [tmp_path / f"{height}.png" for height in (41, 42, 43, 44)]
    for path in image_files:
        cv2.imwrite(str(path), np.zeros((int(path.stem), 50, 3), np.uint8))
    queue = deque(predict.Job(str(path)) for path in image_files[:2])
    begun, verdicts = time.monotonic(), {}
    run = PredictSettings(paths=(tmp_path,), out=tmp_path / "out")
    for job, line in predict.examine_all(queue, run, load_that_notes, 2):
        verdicts[Path(job.path).stem] = line["verdict"]
        if job.path.endswith("42.png"):  # the other worker is busy with 41, this one waits
            pids = dict(reversed(text.split()) for text in Path(f"{run.out}.pids").read_text().splitlines())
            os.kill(int(pids["42"]), signal.SIGKILL)
            time.sleep(0.5)
            queue.extend(predict.Job(str(path)) for path in image_files[2:])
    assert verdicts == dict.fromkeys(("41", "42", "43", "44"), "nothing found")
    assert time.monotonic() - begun < 50


def test_what_fails_while_a_result_is_written_costs_its_image_alone(tmp_path, capfd):
    """A fault of ours has its traceback; memory that runs out, within a limit of this process, is the machine's."""
    for number in range(4):
        write_image(tmp_path / f"in/{number}.png", number)
    limits, numbers = resource.getrlimit(resource.RLIMIT_AS), iter(range(4))

    def load(settings):
        def detect(image):
            match next(numbers):
                case 1:
                    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, limits[1]))
                    try:
                        bytearray(1 << 40)
                    finally:
                        resource.setrlimit(resource.RLIMIT_AS, limits)
                case 2:
                    return Detection(image.shape[:2], 0.0, ("no instance",), 0.5)
            return Detection(image.shape[:2], 0.0, (), 0.5)

        return detect

    status, lines = predicted(tmp_path / "in", tmp_path / "out", load)
    assert status == 4
    assert [line["verdict"] for line in lines] == ["nothing found", *["unreadable"] * 2, "nothing found"]
    assert lines[1]["error"] == "there was not enough memory to examine it"
    assert lines[2]["error"].startswith("fault of the program: AttributeError")
    assert capfd.readouterr().err.count("Traceback") == 1


def test_an_output_folder_that_cannot_be_written_stops_the_run(tmp_path):
    write_image(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report").write_text("in the way")
    with pytest.raises(OSError, match="report"):
        predicted(tmp_path / "in", tmp_path / "out")
    assert read_lines(tmp_path / "out/predictions.jsonl") == []


def test_after_a_power_cut_images_with_empty_files_are_examined_again(tmp_path, monkeypatch):
    """Of what was written just before, files may be empty. Only a machine that has started since asks for a look."""
    for number in range(3):
        write_image(tmp_path / f"in/{number}.png", number)
    _, lines = predicted(tmp_path / "in", tmp_path / "out")
    entry = tmp_path / "out/report/images" / lines[1]["name"] / "entry.json"
    pixels = tmp_path / "out/report/images" / lines[2]["name"] / "thumb.webp"
    whole = entry.read_bytes(), pixels.read_bytes()
    examined = []

    def load(settings):
        return lambda image: examined.append(1) or Detection(image.shape[:2], 0.0, (), 0.5)

    predicted(tmp_path / "in", tmp_path / "out", load, resume=True)
    assert len(examined) == 0
    entry.write_bytes(b"")
    pixels.write_bytes(b"")
    os.utime(tmp_path / "out/predictions.jsonl", (0, 0))  # before this machine was started
    _, again = predicted(tmp_path / "in", tmp_path / "out", load, resume=True)
    assert len(examined) == 2 and again == lines
    assert (entry.read_bytes(), pixels.read_bytes()) == whole


def test_a_job_that_torchrun_starts_again_goes_on(tmp_path, monkeypatch):
    for number in range(3):
        write_image(tmp_path / f"in/{number}.png", number)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    examined = []

    def load(settings):
        def detect(image):
            examined.append(1)
            if len(examined) == 3:
                raise KeyboardInterrupt
            return Detection(image.shape[:2], 0.0, (), 0.5)

        return detect

    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "in", tmp_path / "out", load)
    _, lines = predicted(tmp_path / "in", tmp_path / "out", load)
    assert len(examined) == 4 and len(lines) == 3


def test_a_disk_that_fills_up_during_a_search_is_no_fault_of_the_image(tmp_path):
    write_image(tmp_path / "in/a.png")

    def load(settings):
        def detect(image):
            raise OSError(errno.ENOSPC, "No space left on device")  # as numba does when it keeps what it compiled

        return detect

    with pytest.raises(OSError, match="No space left"):
        predicted(tmp_path / "in", tmp_path / "out", load)
    assert read_lines(tmp_path / "out/predictions.jsonl") == []


def test_what_killed_runs_left_behind_is_removed(tmp_path):
    write_image(tmp_path / "in/a.png")
    predicted(tmp_path / "in", tmp_path / "out")
    for name in (".predictions.jsonl.7.tmp", ".submission.csv.7.tmp", "report/.index.html.7.tmp", "masks/.a.png.7.tmp"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    predicted(tmp_path / "in", tmp_path / "out", resume=True)
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_full_disk_stops_the_prediction_and_resume_loses_nothing(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"in/{number}.png", number)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [
        sys.executable,
        "predict.py",
        tmp_path / "in",
        "--out",
        tmp_path / "out",
        *QUICK_PREDICTION,
        "--num-workers",
        "0",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 2 and "File too large; free some space" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "out/predictions.jsonl")) == 4


# Files on the disk, and processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lasting", [True, False])
def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch, lasting):
    done = []

    def noted(name, function):
        def call(*arguments):
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "sync" else arguments[1]
            done.append((name, Path(what).name.partition(".x.")[0]))
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(os, "replace", noted("rename", os.replace))
    atomic_write(tmp_path / "x", lambda temporary: temporary.write_text("all"), lasting)
    names = [name for name, _ in done]
    assert names == (["sync", "rename", "sync"] if lasting else ["rename"])
    assert (tmp_path / "x").read_text() == "all" and [p.name for p in tmp_path.iterdir()] == ["x"]
    assert not lasting or done[-1] == ("sync", tmp_path.name)


def test_a_folder_that_knows_no_sync_is_no_fault_but_a_failing_disk_is(tmp_path, monkeypatch):
    def failing(number):
        def fsync(handle):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    write_json(tmp_path / "x", 1)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "x", 2)
    assert read_json(tmp_path / "x") == 1


HOLDS = """
import os, pathlib, sys, time, config
with config.only_run(pathlib.Path(sys.argv[1])):
    if os.fork() == 0:  # as torch's loaders, which outlive a killed run by some seconds
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(30)
"""


def test_one_run_at_a_time_in_a_folder_and_kill_9_frees_it(tmp_path):
    out = tmp_path / "new" / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, out], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    children = descendants(holder.pid)
    with pytest.raises(InputError, match=r"another run is at work in .*out; wait"), exclusive_lock(out):
        pass
    holder.kill()
    holder.wait()
    assert len(children) == 1 and is_running(children[0])
    out.chmod(0o500)
    with exclusive_lock(out):
        assert list(out.iterdir()) == []
    os.kill(children[0], signal.SIGKILL)
    holder.stdout.close()


def test_a_refused_run_leaves_no_folder_and_a_file_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="refused"), exclusive_lock(tmp_path / "out"):
        raise InputError("refused")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="file is a file"), exclusive_lock(tmp_path / "file"):
        pass


def test_a_disk_that_knows_no_locks_is_told_and_no_fault(tmp_path, monkeypatch, capsys):
    def failing(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", failing)
    write_image(tmp_path / "in/a.png")
    status, lines = predicted(tmp_path / "in", tmp_path / "out")
    assert status == 0 and len(lines) == 1
    assert "out cannot be locked there (No locks available)" in capsys.readouterr().err


def test_a_second_prediction_into_one_folder_is_refused_and_touches_nothing(tmp_path):
    write_image(tmp_path / "in/a.png")
    predicted(tmp_path / "in", tmp_path / "out")
    lines = tmp_path / "out/predictions.jsonl"
    lines.write_bytes(lines.read_bytes() + b'{"path": "/half')  # as the run that is at work may be writing it
    before = lines.read_bytes()
    with exclusive_lock(tmp_path / "out"), pytest.raises(InputError, match="another run"):
        predicted(tmp_path / "in", tmp_path / "out", resume=True)
    assert lines.read_bytes() == before
    assert len(predicted(tmp_path / "in", tmp_path / "out", resume=True)[1]) == 1


def test_a_killed_worker_of_the_benchmark_ends_it_with_one_line():
    code = (
        "import os, benchmark, config\n"
        "config.run(lambda _: list(benchmark.parallel(os._exit, [1, 2, 3], 2)), config.SpeedSettings)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "was killed" in done.stderr, done.stderr


def test_a_rank_ends_when_torchrun_was_killed(tmp_path):
    """It would go on writing beside the job that is started next."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, time, distributed\n"
        "ranks, _ = distributed.start()\n"
        f"open({str(tmp_path / 'pid')!r} + str(ranks.rank), 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    job = ScriptProcess(script, ranks=2, env={"PYTHONPATH": str(ROOT)})
    pids = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    assert wait_until(lambda: all(path.exists() and path.read_text() for path in pids), job)
    job.kill()
    job.finish()
    end = time.monotonic() + 20
    while any(is_running(int(path.read_text())) for path in pids):
        assert time.monotonic() < end, "the ranks live on"
        time.sleep(0.1)


@pytest.mark.parametrize("late", [(), (0,), (1, 2), (0, 2)])
def test_a_job_that_is_started_again_reads_nothing_of_the_starts_before(late):
    """torchrun keeps one store over all starts: addresses of ranks that have ended are in it."""
    from torch.distributed import HashStore, PrefixStore

    store, world = HashStore(), 3
    store.set("start", "killed")  # a start of which only rank 1 got as far as to join
    store.set("joins 1", "killed one")

    def join(number, rank, read):
        time.sleep(0.2 * (rank in late))
        own = own_store(PrefixStore("", store), rank, world)
        own.set(f"address {rank}", f"{number}.{rank}")
        read[rank] = [own.get(f"address {other}").decode() for other in range(world)]

    for number in range(3):
        read = {}
        threads = [threading.Thread(target=join, args=(number, rank, read), daemon=True) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert read == {rank: [f"{number}.{other}" for other in range(world)] for rank in range(world)}


def test_a_missing_folder_is_refused_before_any_table(tmp_path):
    write_image(tmp_path / "in/a.png")
    command = [sys.executable, "benchmark.py", "accuracy", "--data", tmp_path / "in", tmp_path / "missing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "missing" in done.stderr


# Training -----------------------------------------------------------------------------------------------------------


def terminate_at(monkeypatch, owner, name, number):
    """SIGTERM to this process, twice, at the start of the numbered call of a function."""
    whole, calls = getattr(owner, name), []

    def interrupted(*arguments, **more):
        calls.append(1)
        for _ in range(2 if len(calls) == number else 0):
            assert callable(signal.getsignal(signal.SIGTERM))  # a second one would end this process
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **more)

    monkeypatch.setattr(owner, name, interrupted)


def run_of(folder):
    import torch

    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder / "log.jsonl")]
    state = torch.load(folder / "last.pt", weights_only=True)
    return lines, state["progress"], {name: value.tolist() for name, value in state["model"]["head"].items()}


def test_sigterm_in_validation_in_accumulation_and_in_the_first_step(settings, monkeypatch, tmp_path):
    from losses import ForgeryLoss

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


def test_a_killed_loader_process_ends_the_training_with_one_line(settings, data, backbone, tmp_path):
    arguments = ["--data", data, "--out", tmp_path / "run", "--backbone", backbone, "--image-size", 56, "--num-workers", 1,
                 "--epochs", 500, "--batch-size", 2, "--head-widths", 16, "--embedding-size", 8]  # fmt: skip
    process, log = ScriptProcess("train.py", *arguments), tmp_path / "run/log.jsonl"
    assert wait_until(lambda: log.exists() and log.stat().st_size > 0, process)
    loaders = [pid for pid in descendants(process.pid) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(loaders[0], signal.SIGKILL)
    status, said = process.finish()
    assert status == 2 and "Traceback" not in said and "was killed, probably" in said.splitlines()[-1], said


@pytest.mark.parametrize("fault", [ConnectionResetError, ConnectionRefusedError, EOFError])
def test_a_loader_process_killed_while_it_hands_a_batch_over_is_told_as_such(data, fault, monkeypatch):
    loader = make_loader(
        find_images(data), 56, DataSettings(data), LoaderSettings(num_workers=0),
        SynthesisSettings(), batch_size=2,
    )  # fmt: skip

    def batches(_):
        yield from ()
        raise fault

    monkeypatch.setattr(type(loader._batches), "__iter__", batches)
    with pytest.raises(BrokenExecutor, match="was killed"):
        next(iter(loader))


def test_what_a_killed_training_left_behind_is_removed(settings):
    settings.out.mkdir()
    for name in (".last.pt.7.tmp", ".log.jsonl.7.tmp"):
        (settings.out / name).write_text("half")
    train.main(replace(settings, epochs=1))
    assert not list(settings.out.glob(".*"))


def test_a_second_training_into_one_folder_is_refused_and_touches_nothing(settings):
    train.main(replace(settings, epochs=1))
    (settings.out / ".last.pt.7.tmp").write_text("as the run that is at work may be writing it")
    with exclusive_lock(settings.out), pytest.raises(InputError, match="another run"):
        train.main(replace(settings, epochs=1, resume=True))
    assert (settings.out / ".last.pt.7.tmp").exists()
    train.main(replace(settings, epochs=1, resume=True))
    assert not (settings.out / ".last.pt.7.tmp").exists()


def test_ranks_that_read_different_checkpoints_do_not_train_together(settings, monkeypatch):
    """As on machines that do not share the folder: only the first one has a last.pt."""
    train.main(replace(settings, epochs=1))
    before = (settings.out / "last.pt").read_bytes()
    monkeypatch.setattr(distributed, "gather", lambda items: [*items, (0, 0)])
    with pytest.raises(InputError, match=r"different places \(epoch, step\): \[\(1, 0\), \(0, 0\)\].*share"):
        train.main(replace(settings, epochs=1, resume=True))
    assert (settings.out / "last.pt").read_bytes() == before


def test_a_full_disk_stops_the_training_and_keeps_what_is_whole(settings, monkeypatch):
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
