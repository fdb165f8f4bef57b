"""Attacks on prediction: killed runs, workers and ranks, changing files, a full disk; no finding may be lost."""

import os
import random
import resource
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.checks import Checks
from benchmarks.processes import (
    ScriptProcess,
    descendants,
    rank_of,
    run_script,
    wait_for_growth,
    wait_until,
    worker_processes,
)
from benchmarks.small_runs import last_error, prediction_command, read_predictions, write_images
from config import RobustnessSettings
from report.entries import ERROR

COUNT = 500  # images of a run
CHANGED = 100  # of them are changed while a run goes on
FILE_LIMIT = 40_000  # bytes beyond which no file may grow on the disk that counts as full


def attack_prediction(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Disturb predictions in every way and compare their lines with those of a run that was never disturbed."""
    write_images(out / "in", COUNT)
    status, _ = run_script(*prediction_command(out / "in", out / "whole"))
    good = status == 3 and len(read_predictions(out / "whole")) == COUNT
    checks.check(good, f"{COUNT} images, never stopped: status {status}")
    kill_prediction(settings, out, checks)
    kill_workers(settings, out, checks)
    kill_jobs_of_ranks(settings, out, checks)
    kill_one_rank(out, checks)
    change_files(settings, out, checks)
    fill_disk(out, checks)


def _resume(out: Path) -> list[str]:
    return ["--resume"] if (out / "settings.json").exists() else []


def _count_lines(out: Path) -> int:
    """Lines that all ranks together have written."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("predictions*.jsonl"))


def kill_prediction(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Kill all processes at random moments, each time followed by --resume."""
    rng, run, counts = random.Random(settings.seed), out / "killed", []
    for number in range(settings.kills):
        process = ScriptProcess(*prediction_command(out / "in", run, *_resume(run)))
        least = _count_lines(run) + 1
        if 4 * number >= 3 * settings.kills:  # all images are examined: while it sorts the lines and writes the page
            least = COUNT
        wait_until(lambda least=least: _count_lines(run) >= least, process)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.kill_all()
        counts.append(_count_lines(run))
    status, _ = run_script(*prediction_command(out / "in", run, "--resume"))
    checks.check(
        status == 3 and len(counts) == settings.kills,
        f"{len(counts)} kills, after which {counts} lines were there; the last run ends with {status}",
    )
    same = read_predictions(run) == read_predictions(out / "whole")
    checks.check(same, "killed and resumed: every image once, the same lines as never stopped")
    illustrated = [len(list((out / name / "report" / "images").iterdir())) for name in ("whole", "killed")]
    temporary = [path.name for path in run.rglob(".*")]
    good = illustrated[0] == illustrated[1] and not temporary
    checks.check(good, f"{illustrated[1]} images are illustrated, left behind: {temporary[:3]}")


def kill_workers(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Kill workers at random moments, as the system does when memory runs out: each costs at most its own image."""
    rng, run, killed = random.Random(settings.seed), out / "worker", 0
    process = ScriptProcess(*prediction_command(out / "in", run))
    while killed < settings.kills:
        wait_for_growth(run / "predictions.jsonl", process)
        time.sleep(rng.uniform(0, 0.2))
        workers = worker_processes(process.pid)
        if process.poll() is not None or not workers:
            break
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
        killed += 1
    status, _ = process.finish()
    expected, found = ({line["path"]: line for line in read_predictions(out / name)} for name in ("whole", "worker"))
    lost = [path for path in found if found[path]["verdict"] == ERROR]
    same = all(found[path] == expected[path] for path in found.keys() - set(lost))
    checks.check(
        status in (3, 5) and found.keys() == expected.keys() and len(lost) <= killed and same,
        f"{killed} workers killed in one run: status {status}, {len(found)} lines, {len(lost)} images lost, the others "
        f"as never disturbed; {found[lost[0]]['error'] if lost else ''}",
    )


def kill_jobs_of_ranks(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Kill jobs of one to three ranks, each resumed by another number of ranks."""
    rng, run = random.Random(settings.seed), out / "ranks"
    for ranks in (2, 1, 3, 2):
        process = ScriptProcess(*prediction_command(out / "in", run, *_resume(run)), ranks=ranks)
        before = _count_lines(run)
        wait_until(lambda before=before: _count_lines(run) > before, process)
        time.sleep(rng.uniform(0, 0.3))
        process.kill_all()
    status, _ = run_script(*prediction_command(out / "in", run, "--resume"), ranks=2)
    same = read_predictions(run) == read_predictions(out / "whole")
    text = f"4 jobs of 1 to 3 ranks killed, then resumed by two: status {status}, same lines"
    checks.check(status == 0 and same, text)


def kill_one_rank(out: Path, checks: Checks) -> None:
    """Kill the second of two ranks; torchrun starts both again, and they go on."""
    run = out / "rank"
    process = ScriptProcess(*prediction_command(out / "in", run), ranks=2)
    wait_until(lambda: _count_lines(run) > 20, process)
    ranks = {rank_of(pid): pid for pid in descendants(process.pid) if pid not in worker_processes(process.pid)}
    os.kill(ranks["1"], signal.SIGKILL)
    status, output = process.finish()
    same = read_predictions(run) == read_predictions(out / "whole")
    end = output[-200:] if status else ""
    checks.check(status == 0 and same, f"one rank killed: torchrun goes on, status {status}, same lines {end}")


def change_files(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Files that are cut off, overwritten, deleted, or become a folder or a pipe while the run goes on."""
    shutil.copytree(out / "in", out / "moving")
    process, lines = ScriptProcess(*prediction_command(out / "moving", out / "moved")), out / "moved/predictions.jsonl"
    wait_until(lambda: lines.exists() and lines.read_bytes().count(b"\n") > 5, process)
    rng = random.Random(settings.seed)
    changed = rng.sample(sorted((out / "moving").iterdir()), CHANGED)
    for path in changed:
        _spoil(path, rng)
    status, _ = process.finish()
    found = read_predictions(out / "moved")
    errors = sum(line["verdict"] == ERROR for line in found)
    verdicts, expected = (
        {os.path.basename(line["path"]): line["verdict"] for line in lines}
        for lines in (found, read_predictions(out / "whole"))
    )
    untouched = expected.keys() - {path.name for path in changed}
    checks.check(
        status == 5 and len(found) == COUNT and all(verdicts[name] == expected[name] for name in untouched),
        f"{CHANGED} of {COUNT} files changed during the run: status {status}, {len(found)} lines, {errors} errors",
    )


def _spoil(path: Path, rng: random.Random) -> None:
    match rng.choice(("cut off", "overwritten", "folder", "pipe", "deleted")):
        case "cut off":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "overwritten":
            path.write_bytes(b"no image")
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "deleted":
            path.unlink()


def fill_disk(out: Path, checks: Checks) -> None:
    """No file may grow beyond `FILE_LIMIT`; with space again the run goes on and loses nothing."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))

    command = prediction_command(out / "in", out / "full")
    status, output = run_script(*command, preexec_fn=limit_file_size)
    good = status == 2 and "Traceback" not in output
    checks.check(good, f"full disk: status {status}, {last_error(output)!r}")
    status, _ = run_script(*command, "--resume")
    same = read_predictions(out / "full") == read_predictions(out / "whole")
    checks.check(status == 3 and same, f"then resumed: status {status}")
