"""Accuracy of the search on the pixels on folders whose truth is known.

Prints one line per folder, then one table per property of the copies where the forgeries come from synthesis.py.
"""

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from config import AccuracySettings, DataSettings, MatchingSettings
from detector import Detector
from images.folders import ImageFile, find_images
from images.pairs import read_pair
from metrics import Record, record_to_dict, score_image
from runtime.errors import InputError
from runtime.files import atomic_write, read_json
from runtime.workers import map_in_processes

ANY_SIZE = DataSettings(Path(), max_megapixels=math.inf)  # how benchmark images are read

# Heading and value of each column of the first table, computed from a folder's results.
COLUMNS: dict[str, Callable[["Sequence[Result]"], str]] = {
    "forged": lambda results: f"{len(_forged(results))}",
    "image recall": lambda results: f"{_mean(r.pixel_tp > 0 for r in _forged(results)):.3f}",
    "oF1": lambda results: f"{_mean(r.object_f1 for r in _forged(results)):.3f}",
    "pixel F1": lambda results: f"{_mean(r.pixel_f1 for r in _forged(results)):.3f}",
    "authentic": lambda results: f"{len(_authentic(results))}",
    "false alarms": lambda results: f"{sum(r.n_predicted > 0 for r in _authentic(results))}",
    "s/MP": lambda results: f"{_median(r.record.seconds / r.megapixels for r in results):.2f}",
    "out of time": lambda results: f"{sum(not r.complete for r in results)}",
}


@dataclass(frozen=True)
class Result:
    """What came of one image."""

    record: Record
    megapixels: float
    complete: bool  # False when the time budget ended the search


def measure_accuracy(settings: AccuracySettings) -> None:
    """Search every image of every folder and print the tables; with `records` also write one JSON line per image."""
    if settings.jpeg is not None and not 1 <= settings.jpeg <= 100:
        raise InputError(f"--jpeg is {settings.jpeg}; it is a quality from 1 to 100")
    # All folders first: one that is missing is refused before any work is done.
    chosen = [(folder, choose_images(folder, settings.limit)) for folder in settings.data]
    described: list[tuple[Record, dict[str, Any]]] = []  # record and recorded truth of forgeries of synthesis.py
    lines: list[str] = []
    for number, (folder, image_files) in enumerate(chosen):
        jobs = [(image_file, settings.matching, settings.jpeg, settings.noise) for image_file in image_files]
        results = list(map_in_processes(_search_and_score, jobs, settings.num_workers))
        if number == 0:  # not earlier: an error message shall not follow an empty table
            print(f"{'set':24} {' '.join(f'{heading:>5}' for heading in COLUMNS)}")
        cells = [f"{value(results):>{max(len(heading), 5)}}" for heading, value in COLUMNS.items()]
        print(f"{folder.name:24} {' '.join(cells)}", flush=True)
        for image_file, result in zip(image_files, results, strict=True):
            lines.append(json.dumps({"set": str(folder), **record_to_dict(result.record)}))
            truth = image_file.image.with_suffix(".json")
            if result.record.n_true and truth.is_file():
                described.append((result.record, read_json(truth)))
    for title, rows_of in PROPERTIES.items():
        _print_by_property(title, described, rows_of)
    if settings.records is not None:
        atomic_write(settings.records, lambda path: path.write_text("\n".join(lines) + "\n"))


def choose_images(folder: Path, limit: int | None) -> list[ImageFile]:
    """The images of a folder whose truth is known, forged ones first.

    With a `limit`, at most so many forged and so many authentic ones, evenly spread over the sorted names.
    """
    chosen = []
    for forged in (True, False):
        part = [f for f in find_images(folder) if f.forged is forged and (f.mask is not None or not forged)]
        step = max(len(part) / limit, 1) if limit else 1
        chosen += [part[int(i * step)] for i in range(int(len(part) / step))]
    return chosen


def degrade_image(image: np.ndarray, jpeg: int | None, noise: float) -> np.ndarray:
    """Image (H, W, 3) uint8 RGB with Gaussian noise of standard deviation `noise`, then saved as JPEG and decoded.

    Args:
        jpeg: quality, 1 to 100; None leaves JPEG out.
        noise: in grey levels; 0 leaves noise out. The noise is the same for every image of one size.
    """
    if noise:
        added = np.random.default_rng(0).normal(0, noise, image.shape)
        image = np.clip(np.rint(image + added), 0, 255).astype(np.uint8)
    if jpeg is not None:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
        image = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return image


def _search_and_score(job: tuple[ImageFile, MatchingSettings, int | None, float]) -> Result:
    cv2.setNumThreads(1)  # the images are what runs in parallel
    image_file, matching, jpeg, noise = job
    image, true = read_pair(image_file, ANY_SIZE)
    image = degrade_image(image, jpeg, noise)
    detector = Detector(matching=matching)
    begun = time.perf_counter()
    detection = detector.detect(image)
    seconds = time.perf_counter() - begun
    record = score_image(image_file.id, detection.masks, true, detection.score, seconds)
    return Result(record, image.shape[0] * image.shape[1] / 1e6, detection.complete)


def _forged(results: Sequence[Result]) -> list[Record]:
    return [r.record for r in results if r.record.n_true]


def _authentic(results: Sequence[Result]) -> list[Record]:
    return [r.record for r in results if not r.record.n_true]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _median(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.median(values) if values else math.nan


# Accuracy by property of the copies ---------------------------------------------------------------------------------


def _copies(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [copy for content in truth["contents"] for copy in content["copies"]]


def _interval(value: float, edges: Sequence[float], unit: str) -> str:
    """Name of the interval between two of the edges (increasing) that holds the value; an edge belongs to the upper."""
    low = max((edge for edge in edges if edge <= value), default=None)
    high = min((edge for edge in edges if edge > value), default=None)
    if low is None:
        return f"under {high:g}{unit}"
    return f"{low:g}{unit} and more" if high is None else f"{low:g} to {high:g}{unit}"


def _rotation(degrees: float) -> str:
    return "none" if not degrees % 360 else "right angle" if not degrees % 90 else "other"


# For each table its title and a function from the JSON that synthesis.py writes to the rows in which the image counts:
# an image with two copies of different sizes counts in two rows.
PROPERTIES: dict[str, Callable[[dict[str, Any]], set[str]]] = {
    "size of copy": lambda truth: {_interval(max(copy["size"]), (32, 64, 128), " px") for copy in _copies(truth)},
    "kind of region": lambda truth: {content["kind"] for content in truth["contents"]},
    "rotation": lambda truth: {_rotation(copy["rotation"]) for copy in _copies(truth)},
    "scale": lambda truth: {
        "none" if copy["scale"] == 1 else _interval(copy["scale"], (0.8, 1.25), "") for copy in _copies(truth)
    },
    "mirrored": lambda truth: {"yes" if copy["mirrored"] else "no" for copy in _copies(truth)},
    "blending": lambda truth: {copy["blending"] for copy in _copies(truth)},
    "JPEG quality": lambda truth: {
        "none" if truth["jpeg_quality"] is None else _interval(truth["jpeg_quality"], (70, 80, 90), "")
    },
    "noise, blur or resize": lambda truth: {
        "yes" if truth["noise_sigma"] or truth["blur_sigma"] or (truth["resize"] or 1) != 1 else "no"
    },
}


def _print_by_property(
    title: str, described: Sequence[tuple[Record, dict[str, Any]]], rows_of: Callable[[dict[str, Any]], set[str]]
) -> None:
    rows: dict[str, list[Record]] = defaultdict(list)
    for record, truth in described:
        for row in rows_of(truth):
            rows[row].append(record)
    if rows:
        print(f"\n{title:24} {'forged':>6} {'image recall':>12} {'oF1':>6} {'pixel F1':>8}")
    for name, records in sorted(rows.items()):
        print(
            f"{name:24} {len(records):6} {_mean(r.pixel_tp > 0 for r in records):12.3f} "
            f"{_mean(r.object_f1 for r in records):6.3f} {_mean(r.pixel_f1 for r in records):8.3f}"
        )
