"""Small data sets, and command lines of small runs on them, for the robustness benchmark and the tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones import random_backbone
from benchmarks.processes import run_script

QUICK_PREDICTION = ("--evidence-only", "--matching-kinds", "exact")  # options that make predict.py quick
COMPLETED = (0, 3, 4, 5)  # exit statuses of predict.py at the end of a run that was not interrupted


def write_dataset(folder: Path, count: int, side: int = 100) -> None:
    """`count` base images of blurred noise, each authentic and forged: with a square that occurs twice."""
    rng = np.random.default_rng(0)
    for name in ("authentic", "forged", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 1.5)
        cv2.imwrite(str(folder / "authentic" / f"{number}.png"), image)
        mask = np.zeros((1, side, side), np.uint8)
        patch = cv2.GaussianBlur(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8), (0, 0), 1.5)
        for y, x in ((3, 5), (55, 40)):
            image[y : y + 30, x : x + 30] = patch
            mask[0, y : y + 30, x : x + 30] = 1
        cv2.imwrite(str(folder / "forged" / f"{number}.png"), image)
        np.save(folder / "masks" / f"{number}.npy", mask)


def write_images(folder: Path, count: int, side: int = 96) -> None:
    """Small images of blurred noise; in every third one a square occurs twice."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 1.2)
        if number % 3 == 0:
            image[55:90, 50:85] = image[4:39, 6:41]
        cv2.imwrite(str(folder / f"{number:05}.png"), image)


def write_backbone(folder: Path) -> None:
    """A tiny DINOv2 with random weights."""
    backbone = random_backbone(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56)
    backbone.save_pretrained(folder)


def write_forgeries(out: Path, count: int, seed: int) -> None:
    """Forgeries in OUT/data, made by synthesis.py of the demo's images, shrunk to at most 360 px."""
    run_script("demo.py", out / "demo")
    (out / "small").mkdir(exist_ok=True)
    for path in (out / "demo").iterdir():
        image = cv2.imread(str(path))
        zoom = min(1.0, 360 / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(out / "small" / f"{path.stem}.png"), small)
    options = ["--panel-probability", 0, "--min-jpeg-quality", 90, "--max-jpeg-quality", 95, "--num-workers", 1]
    folders = ["--authentic", out / "small", "--out", out / "data"]
    run_script("synthesis.py", *folders, "--count", count, "--authentic-count", 1, "--seed", seed, *options)


def training_command(out: Path, run: str, epochs: int, checkpoint_seconds: float = 0.5) -> list[object]:
    """A small training on OUT/data with the backbone OUT/backbone into the run folder OUT/run."""
    return ["train.py", "--data", out / "data", "--out", out / run, "--backbone", out / "backbone", "--epochs", epochs,
            "--batch-size", 2, "--gradient-accumulation-steps", 2, "--num-workers", 0, "--synthesis-probability", 0.5,
            "--image-size", 56, "--head-widths", 16, "--embedding-size", 8, "--checkpoint-seconds", checkpoint_seconds,
            "--patience", 99]  # fmt: skip


def prediction_command(folder: Path, out: Path, *more: object) -> list[object]:
    """A quick prediction of a folder."""
    return ["predict.py", folder, "--out", out, *QUICK_PREDICTION, "--num-workers", 2, *more]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSON lines file; none where there is no such file. Raises ValueError where a line is incomplete."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_predictions(out: Path) -> list[dict[str, Any]]:
    """Lines of a prediction without the seconds, the only value that may differ between two runs."""
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in read_lines(out / "predictions.jsonl")
    ]


def last_error(output: str) -> str:
    """The line of a script's output that tells why it stopped; empty where there is none."""
    return next((line for line in output.splitlines() if "error:" in line), "")


def unexpected_files(before: Sequence[Path], after: Sequence[Path]) -> list[str]:
    """Up to three paths that appeared or vanished between two listings."""
    return sorted(map(str, set(before) ^ set(after)))[:3]
