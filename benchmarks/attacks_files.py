"""Attacks through files: mutated ones through the readers, hostile files and names through the scripts."""

import os
import time
from pathlib import Path

from benchmarks.checks import Checks
from benchmarks.fuzz import campaign, reasons, summary
from benchmarks.guarded_reading import READERS
from benchmarks.hostile_files import BOMBS, SIDE, STEMS, write_hostile_folder
from benchmarks.processes import ScriptProcess, resident_memory, run_script
from benchmarks.small_runs import (
    COMPLETED,
    QUICK_PREDICTION,
    prediction_command,
    read_lines,
    read_predictions,
    training_command,
    unexpected_files,
    write_backbone,
    write_dataset,
)
from config import RobustnessSettings
from images.folders import find_images
from report.entries import CLEAN, ERROR

TERMINAL_COMMAND = "\x1b[31m"  # in a file's name; printed as it is, it would turn the terminal red


def attack_readers(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Read mutated files of every format."""
    for kind in READERS:
        counts = campaign(kind, -(-settings.files // len(READERS)), settings.seed, out)
        checks.check(counts["broken"] == 0, summary(kind, counts))
    for reason, count, example in reasons(out):
        checks.note(f"{count} like {example}: {reason}")


def attack_with_bombs(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Predict a folder of hostile files and names."""
    folder, found = out / "in", out / "found"
    write_hostile_folder(folder)
    before = _files_outside(out, found)
    lines, output = _predict_watched(folder, found, checks)
    for name, line in sorted(lines.items()):
        checks.note(f"{name[:40]!r}: {line['verdict']}; {line.get('error', '').replace(str(folder), '')[:150]}")
    refused = [name for name in BOMBS if lines.get(name, {}).get("verdict") == ERROR]
    checks.check(refused == list(BOMBS), f"{len(refused)} of {len(BOMBS)} bombs are refused")
    for name in ("bomb.png", "bomb.pdf"):
        error = lines.get(name, {}).get("error", "")
        good = all(words in error for words in (f"{SIDE} x {SIDE}", "200", "--max-megapixels"))
        checks.check(good, f"{name}: the message tells the size, the limit and the option that raises it")
    others = lines.keys() - set(BOMBS)
    clean = all(lines[name]["verdict"] == CLEAN for name in others)
    checks.check(clean, f"{len(others)} images with hostile names are examined")
    checks.check("\x1b" not in output, "no control character reaches the terminal")
    unexpected = unexpected_files(before, _files_outside(out, found))
    checks.check(not unexpected, f"nothing is written outside of --out {unexpected}")
    names = [image_file.image.name for image_file in find_images(folder / "links")]
    checks.check(names == ["a.png"], f"links in a loop: training reads {names}")


def _predict_watched(folder: Path, out: Path, checks: Checks) -> tuple[dict[str, dict], str]:
    """The lines of a prediction by file name, and what it printed; its memory is noted, its exit status checked."""
    begun, peak = time.monotonic(), 0.0
    environment = {"TMPDIR": str(out.parent)}
    command = ["predict.py", folder, "--out", out, *QUICK_PREDICTION, "--num-workers", 2]
    process = ScriptProcess(*command, env=environment)
    while process.poll() is None:
        peak = max(peak, resident_memory(process.pid))
        time.sleep(0.05)
    status, output = process.finish()
    lines = {os.path.basename(line["path"]): line for line in read_lines(out / "predictions.jsonl")}
    checks.note(f"{len(lines)} images in {time.monotonic() - begun:.0f} s, {peak:.0f} MiB at most in all processes")
    checks.check(status in COMPLETED, f"predict.py ends with status {status}")
    return lines, output


def attack_with_names(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Run every script that reads a data set on one with hostile names."""
    write_dataset(out / "data", len(STEMS))
    for number, stem in enumerate(STEMS):
        for path in (out / "data").glob(f"*/{number}.*"):
            path.rename(path.parent / (os.fsdecode(stem) + path.suffix))
    before = _files_outside(out, out / "run")
    write_backbone(out / "run" / "backbone")
    for command in _every_script(out):
        status, output = run_script(*command, env={"TMPDIR": str(out / "run")})
        good = status in (0, 3) and TERMINAL_COMMAND not in output
        end = output[-300:] if status not in (0, 3) else ""
        checks.check(good, f"hostile names through {command[0]}: status {status} {end}")
    unexpected = unexpected_files(before, _files_outside(out, out / "run"))
    checks.check(not unexpected, f"nothing is written outside of --out {unexpected}")
    count = len(read_predictions(out / "run" / "predict"))
    checks.check(count == 2 * len(STEMS), f"{count} predictions of {2 * len(STEMS)} images")


def _every_script(out: Path) -> list[list[object]]:
    """Command lines of all scripts that read a data set; they read OUT/data and write into OUT/run."""
    data, run = out / "data", out / "run"
    train = training_command(out, "run/train", 1)
    train[train.index("--backbone") + 1] = run / "backbone"
    best = run / "train" / "best.pt"
    return [
        ["synthesis.py", "--authentic", data / "authentic", "--out", run / "synthesis", "--count", 20],
        [*train, "--cache", run / "cache"],
        ["tuning.py", "--data", data, "--checkpoint", best, "--trials", 3, "--out", run / "tuned.json"],
        ["test.py", "--data", data, "--split", "all", "--checkpoint", best, "--out", run / "test", "--modes",
         "embedding"],
        prediction_command(data, run / "predict"),
        ["benchmark.py", "accuracy", "--data", data, "--matching-kinds", "exact", "--num-workers", 1, "--records",
         run / "records.jsonl"],
    ]  # fmt: skip


def _files_outside(folder: Path, out: Path) -> list[Path]:
    """All paths in a folder except `out` and what it holds."""
    return [path for path in folder.rglob("*") if path != out and out not in path.parents]
