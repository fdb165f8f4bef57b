"""Attacks on training: killed, terminated and out of disk space, the resumed run must equal one that never stopped."""

import os
import random
import resource
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.checks import Checks
from benchmarks.processes import (
    ScriptProcess,
    descendants,
    is_running,
    rank_of,
    run_script,
    wait_for_growth,
    wait_until,
)
from benchmarks.small_runs import last_error, read_lines, training_command, write_backbone, write_dataset
from checkpoints import load_checkpoint
from config import RobustnessSettings
from runtime.errors import InputError

LONG, SHORT = 24, 6  # epochs of a run that is killed many times, and of one that is stopped a few times
TOLERANCE = 1e-6  # by which weights and logged values of two equal runs may differ


def attack_training(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Stop trainings of two ranks in every way, resume them, and compare them with two that never stopped."""
    write_dataset(out / "data", 24)
    write_backbone(out / "backbone")
    for name, epochs in (("whole", LONG), ("short", SHORT)):
        status, output = run_script(*training_command(out, name, epochs), ranks=2)
        checks.check(status == 0, f"two ranks, never stopped: status {status} {output[-200:] if status else ''}")
    kill_training(settings, out, checks)
    terminate_training(settings, out, checks)
    kill_one_rank(out, checks)
    kill_torchrun(out, checks)
    fill_disk(out, checks)


def kill_training(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Kill all processes at random moments, each time followed by --resume."""
    rng, run, moments = random.Random(settings.seed), out / "killed", Counter()
    command = training_command(out, "killed", LONG)
    last, log = run / "last.pt", run / "log.jsonl"
    for number in range(settings.kills):
        process = ScriptProcess(*command, *_resume(last), ranks=2)
        if number % 5 == 4:  # while it starts
            time.sleep(rng.uniform(0, 12))
        elif wait_for_growth(log, process):  # while it trains, validates and saves
            time.sleep(rng.uniform(0, 1.2))
        if process.poll() is not None:
            break
        process.kill_all()
        check_checkpoint(run / "best.pt", checks)
        moments[check_checkpoint(last, checks)] += 1
    checks.note(f"epoch and step of last.pt after each kill: {dict(moments)}")
    checks.check(moments.total() == settings.kills, f"{moments.total()} kills of {settings.kills}")
    status, output = run_script(*command, *_resume(last), ranks=2)
    checks.check(status == 0, f"the killed run ends, status {status} {output[-300:] if status else ''}")
    compare_runs(out, "killed", "whole", checks)
    temporary = sorted(path.name for path in run.glob(".*"))
    checks.check(not temporary, f"no temporary file is left behind {temporary[:4]}")


def _resume(last: Path) -> list[str]:
    return ["--resume"] if last.exists() else []


def check_checkpoint(path: Path, checks: Checks) -> str:
    """Epoch and step of a checkpoint, "none" where there is none; an incomplete one counts as a failure."""
    if not path.exists():
        return "none"
    try:
        progress = load_checkpoint(path).get("progress", {})
    except InputError as fault:
        checks.check(False, f"a checkpoint is damaged after a kill: {fault}")
        return "damaged"
    return f"{progress.get('epoch')}/{progress.get('step')}"


def terminate_training(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """SIGTERM to torchrun, every second time also to its ranks, which then get it twice; nothing may be lost."""
    rng, run = random.Random(settings.seed), out / "terminated"
    command = training_command(out, "terminated", SHORT, checkpoint_seconds=600)
    for number in range(4):
        process = ScriptProcess(*command, *_resume(run / "last.pt"), ranks=2)
        if wait_for_growth(run / "log.jsonl", process):
            time.sleep(rng.uniform(0, 0.5))
        for pid in [*(descendants(process.pid) if number % 2 else []), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        status, output = process.finish()
        done = check_checkpoint(run / "last.pt", checks)
        checks.check(status != 0 and "interrupted after" in output, f"SIGTERM: status {status}, saved at {done}")
    run_script(*command, "--resume", ranks=2)
    compare_runs(out, "terminated", "short", checks)


def kill_one_rank(out: Path, checks: Checks) -> None:
    """Kill the second rank; torchrun starts both again, and they go on from the last checkpoint."""
    process, log = ScriptProcess(*training_command(out, "rank", SHORT), ranks=2), out / "rank" / "log.jsonl"
    wait_until(lambda: (out / "rank" / "last.pt").exists() and log.read_bytes().count(b"\n") > 8, process)
    ranks = {rank_of(pid): pid for pid in descendants(process.pid)}
    if "1" not in ranks:
        checks.check(False, f"found no second rank to kill among {ranks}")
        process.kill_all()
        return
    os.kill(ranks["1"], signal.SIGKILL)
    status, output = process.finish()
    resumed = output.count("going on at epoch")
    end = output[-1500:] if status else ""
    checks.check(status == 0 and resumed == 1, f"one rank killed: status {status}, went on {resumed} time(s) {end}")
    compare_runs(out, "rank", "short", checks)


def kill_torchrun(out: Path, checks: Checks) -> None:
    """Kill torchrun alone: its ranks end too, and do not write beside the run that is resumed."""
    command = training_command(out, "launcher", SHORT)
    process = ScriptProcess(*command, ranks=2)
    wait_until((out / "launcher" / "last.pt").exists, process)
    started = descendants(process.pid)
    process.kill()
    process.finish()
    end = time.monotonic() + 20
    while any(map(is_running, started)) and time.monotonic() < end:
        time.sleep(0.1)
    remaining = [pid for pid in started if is_running(pid)]
    checks.check(
        not remaining and len(started) >= 2,
        f"torchrun killed: of the {len(started)} processes that it started {len(remaining)} are still running",
    )
    for pid in remaining:
        os.kill(pid, signal.SIGKILL)
    run_script(*command, "--resume", ranks=2)
    compare_runs(out, "launcher", "short", checks)


def fill_disk(out: Path, checks: Checks) -> None:
    """No file may grow beyond half a checkpoint: the last good one stays, and one line says what happened."""
    run, command = out / "full", training_command(out, "full", 3)
    last = run / "last.pt"
    process = ScriptProcess(*command)
    wait_until(last.exists, process)
    process.send_signal(signal.SIGTERM)
    process.finish()
    before, limit = last.read_bytes(), last.stat().st_size // 2

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    status, output = run_script(*command, "--resume", preexec_fn=limit_file_size)
    good = status == 2 and "Traceback" not in output
    checks.check(good, f"full disk: status {status}, {last_error(output)!r}")
    checks.check(last.read_bytes() == before, "full disk: the last good checkpoint is untouched")
    checks.check(not list(run.glob(".*.tmp")), "full disk: no temporary file is left behind")
    status, _ = run_script(*command, "--resume")
    run_script(*training_command(out, "one", 3))
    checks.check(status == 0, f"with space again it goes on to the end, status {status}")
    compare_runs(out, "full", "one", checks)


def compare_runs(out: Path, run: str, reference: str, checks: Checks) -> None:
    """Weights, log and progress of two runs must be equal, up to `TOLERANCE`."""
    states = [torch.load(out / name / "last.pt", weights_only=True) for name in (reference, run)]
    heads = [state["model"]["head"] for state in states]
    weights = max(float((heads[0][name] - heads[1][name]).abs().max()) for name in heads[0])
    logs = [read_lines(out / name / "log.jsonl") for name in (reference, run)]
    logged = max(
        (
            abs(a[key] - b[key])
            for a, b in zip(*logs, strict=False)
            for key in a
            if isinstance(a[key], int | float) and key != "seconds"
        ),
        default=0.0,
    )
    same = len(logs[0]) == len(logs[1]) and states[0]["progress"] == states[1]["progress"]
    checks.check(
        weights <= TOLERANCE and logged <= TOLERANCE and same,
        f"{run} equals {reference}: weights differ by {weights:g}, {len(logs[1])} of {len(logs[0])} log lines by "
        f"{logged:g}",
    )
