"""Determinism of every script, and equivariance of the search: mirrored or rotated images give the same findings."""

import re
from pathlib import Path

import numpy as np

from benchmarks.checks import Checks
from benchmarks.processes import run_script
from benchmarks.small_runs import training_command, write_backbone, write_dataset, write_forgeries
from config import MatchingSettings, RobustnessSettings
from detector import Detector
from images.folders import find_images
from images.read import read_image
from metrics import object_f1

MAY_DIFFER = ("*.html", "*.sqlite3", "events/*")  # files that hold dates
SECONDS = re.compile(rb'("seconds"|"images_per_second"): [0-9.e+-]+')  # measured times in JSON files
MIN_F1 = 0.9  # least oF1 between the transformed findings and the findings of the transformed image
TRANSFORMS = {"mirrored": lambda array: array[:, ::-1], "rotated": np.rot90}


def check_determinism(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Run every script twice with the same seed; all files must be equal to the bit, but for dates and times."""
    write_dataset(out / "data", 12)
    write_backbone(out / "backbone")
    data, run = out / "data", out / "run"  # both runs have the same folder: its path stands in their files
    best = run / "train" / "best.pt"
    commands = [
        ["synthesis.py", "--authentic", data / "authentic", "--out", run / "synthesis", "--count", 20],
        training_command(out, "run/train", 2),
        ["tuning.py", "--data", data, "--checkpoint", best, "--trials", 8, "--out", run / "tuning" / "tuned.json"],
        ["test.py", "--data", data, "--checkpoint", best, "--out", run / "test", "--modes", "embedding"],
        # With a budget that ends no search early on a busy machine.
        ["predict.py", data, "--out", run / "predict", "--evidence-only", "--num-workers", 2, "--search-budget", 3600],
    ]
    for name in ("first", "second"):
        for command in commands:
            status, output = run_script(*command)
            end = output[-300:] if status == 1 else ""
            checks.check(status in (0, 3), f"{name}: {command[0]} ends with {status} {end}")
        run.rename(out / name)
    for part in ("synthesis", "train", "tuning", "test", "predict"):
        equal, but_for_seconds, other = compare_folders(out / "first" / part, out / "second" / part)
        allowed = [name for name in other if any(Path(name).match(pattern) for pattern in MAY_DIFFER)]
        checks.check(
            allowed == other,
            f"{part}: {equal} files equal to the bit, {len(but_for_seconds)} but for seconds {but_for_seconds[:4]}, "
            f"other: {other}",
        )


def compare_folders(a: Path, b: Path) -> tuple[int, list[str], list[str]]:
    """Of the files of two folders: how many are equal, which are equal but for measured times, and which are not."""
    equal, but_for_seconds, other = 0, [], []
    names = {path.relative_to(root) for root in (a, b) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        data = [(root / name).read_bytes() if (root / name).is_file() else b"" for root in (a, b)]
        if data[0] == data[1]:
            equal += 1
        elif name.suffix in (".json", ".jsonl") and SECONDS.sub(b"", data[0]) == SECONDS.sub(b"", data[1]):
            but_for_seconds.append(str(name))
        else:
            other.append(str(name))
    return equal, but_for_seconds, other


def check_equivariance(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """The findings of a mirrored and of a rotated forgery must be the mirrored and rotated findings of the forgery."""
    write_forgeries(out, 4 * settings.transformed, settings.seed)
    detector = Detector(matching=MatchingSettings(search_budget=300.0))
    values: dict[str, list[float]] = {name: [] for name in TRANSFORMS}
    without_findings = 0
    for image_file in find_images(out / "data"):
        if not image_file.forged:
            continue
        scores = transformed_scores(detector, read_image(image_file.image))
        if scores is None:
            without_findings += 1
            continue
        for name, value in scores.items():
            values[name].append(value)
            if value < MIN_F1:
                checks.note(f"{image_file.id}, {name}: oF1 {value:.3f}")
        if len(values["rotated"]) == settings.transformed:
            break
    checks.note(f"{without_findings} further images in which nothing is found, transformed or not")
    for name, scores in values.items():
        good = sum(score >= MIN_F1 for score in scores)
        checks.check(
            good == len(scores) > 0,
            f"{name}: oF1 at least {MIN_F1} on {good} of {len(scores)} images with findings, "
            f"mean {np.mean(scores or [np.nan]):.3f}, least {min(scores, default=np.nan):.3f}",
        )


def transformed_scores(detector: Detector, image: np.ndarray) -> dict[str, float] | None:
    """oF1 of the findings of the transformed image against the transformed findings, for each of `TRANSFORMS`.

    None where nothing is found in the image nor in any transformed one.
    """
    masks = detector.detect(image).masks
    scores, anything = {}, len(masks) > 0
    for name, transform in TRANSFORMS.items():
        found = detector.detect(np.ascontiguousarray(transform(image))).masks
        expected = np.array([transform(mask) for mask in masks], bool).reshape(-1, *found.shape[1:])
        scores[name] = object_f1(found, expected)
        anything |= len(found) > 0
    return scores if anything else None
