"""Accuracy of the search on folders whose truth is known."""

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from metrics import Record
from config import AccuracySettings, MatchingSettings
from copymove.detect import detect_copies
from images.folders import ImageFile, find_images
from images.masks import read_masks
from images.read import read_image
from runtime.errors import InputError
from runtime.files import atomic_write, read_json
from runtime.workers import map_in_processes

WIDTHS = (6, 6, 6, 8, 9, 6, 6, 4)  # of the columns of the accuracy table


def accuracy(settings: AccuracySettings) -> None:
    """Score every folder and print its line, then the tables by kind of copy where the truth is recorded."""
    from metrics import record_to_dict

    if settings.jpeg is not None and not 1 <= settings.jpeg <= 100:
        raise InputError(f"jpeg is {settings.jpeg}; it is a quality from 1 to 100")
    described: list[tuple[Record, dict[str, Any]]] = []
    lines: list[str] = []
    chosen = [
        (folder, choose_images(folder, settings.limit)) for folder in settings.data
    ]  # a missing folder stops here
    head = ("forged", "found", "oF1", "pixel F1", "authentic", "alarms", "s/MP", "cut")
    for place, (folder, image_files) in enumerate(chosen):
        jobs = [(image_file, settings.matching, settings.jpeg, settings.noise) for image_file in image_files]
        results = list(map_in_processes(_score, jobs, settings.num_workers))
        if place == 0:  # no head over an error
            print(f"{'set':24} " + " ".join(f"{name:>{width}}" for name, width in zip(head, WIDTHS, strict=True)))
        print(_line(folder.name, results), flush=True)
        for image_file, (record, _, _) in zip(image_files, results, strict=True):
            lines.append(json.dumps({"set": str(folder), **record_to_dict(record)}))
            truth = image_file.image.with_suffix(".json")
            if record.n_true and truth.is_file():
                described.append((record, read_json(truth)))
    for title, key in BY.items():
        _print_by(title, described, key)
    if settings.records is not None:
        atomic_write(settings.records, lambda path: path.write_text("\n".join(lines) + "\n"))


def choose_images(folder: Path, limit: int | None) -> "list[ImageFile]":
    """Images of a folder whose truth is known; `limit` of the forged and of the authentic, evenly spread."""

    chosen = []
    for forged in (True, False):
        part = [p for p in find_images(folder) if p.forged is forged and (p.mask is not None or not forged)]
        step = max(len(part) / limit, 1) if limit else 1
        chosen += [part[int(i * step)] for i in range(int(len(part) / step))]
    return chosen


def recompress(image: "np.ndarray", jpeg: int | None, noise: float) -> "np.ndarray":
    """Image (H, W, 3) uint8 with Gaussian noise, then saved as JPEG and read again."""
    import cv2
    import numpy as np

    if noise:
        drawn = np.random.default_rng(0).normal(0, noise, image.shape)
        image = np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)
    if jpeg is not None:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
        image = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return image


def _score(job: "tuple[ImageFile, MatchingSettings, int | None, float]") -> "tuple[Record, float, bool]":
    """Record of one image, its megapixels, and whether the search was complete."""
    import cv2
    import numpy as np

    from metrics import score_image

    cv2.setNumThreads(1)
    image_file, settings, jpeg, noise = job
    image = recompress(read_image(image_file.image), jpeg, noise)
    shape = image.shape[:2]
    begun = time.perf_counter()
    found = detect_copies(image, settings)
    seconds = time.perf_counter() - begun
    masks = np.array([i.mask for i in found.instances], bool).reshape(-1, *shape)
    true = read_masks(image_file.mask, shape) if image_file.mask is not None else np.zeros((0, *shape), bool)
    score = found.instances[0].score if found.instances else 0.0
    return (
        score_image(image_file.id, masks, true, score, seconds),
        image.shape[0] * image.shape[1] / 1e6,
        found.complete,
    )


def _line(name: str, results: "Sequence[tuple[Record, float, bool]]") -> str:
    forged = [r for r, _, _ in results if r.n_true]
    authentic = [r for r, _, _ in results if not r.n_true]
    speed = statistics.median(r.seconds / megapixels for r, megapixels, _ in results) if results else math.nan
    cut = sum(not complete for _, _, complete in results)
    values = (
        f"{len(forged)}",
        f"{_mean(r.pixel_tp > 0 for r in forged):.3f}",
        f"{_mean(r.object_f1 for r in forged):.3f}",
        f"{_mean(r.pixel_f1 for r in forged):.3f}",
        f"{len(authentic)}",
        f"{sum(r.n_predicted > 0 for r in authentic)}",
        f"{speed:.2f}",
        f"{cut}",
    )
    return f"{name:24} " + " ".join(f"{value:>{width}}" for value, width in zip(values, WIDTHS, strict=True))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _copies(truth: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(content, copy) for content in truth["contents"] for copy in content["copies"]]


def _between(value: float, edges: Sequence[float], unit: str) -> str:
    low = max((e for e in edges if e <= value), default=None)
    high = min((e for e in edges if e > value), default=None)
    return (
        f"under {high:g}{unit}"
        if low is None
        else f"{low:g}{unit} and more"
        if high is None
        else f"{low:g} to {high:g}{unit}"
    )


# Each table puts a forged image into every row that one of its copies belongs to.
BY: dict[str, Callable[[dict[str, Any]], set[str]]] = {
    "size of copy": lambda t: {_between(max(c["size"]), (32, 64, 128), " px") for _, c in _copies(t)},
    "kind of region": lambda t: {content["kind"] for content in t["contents"]},
    "rotation": lambda t: {
        "none" if not c["rotation"] % 360 else "right angle" if not c["rotation"] % 90 else "other"
        for _, c in _copies(t)
    },
    "scale": lambda t: {"none" if c["scale"] == 1 else _between(c["scale"], (0.8, 1.25), "") for _, c in _copies(t)},
    "mirrored": lambda t: {"yes" if c["mirrored"] else "no" for _, c in _copies(t)},
    "blending": lambda t: {c["blending"] for _, c in _copies(t)},
    "JPEG quality": lambda t: {"none" if t["jpeg_quality"] is None else _between(t["jpeg_quality"], (70, 80, 90), "")},
    "noise, blur or resize": lambda t: {
        "yes" if t["noise_sigma"] or t["blur_sigma"] or (t["resize"] or 1) != 1 else "no"
    },
}


def _print_by(title: str, described: "Sequence[tuple[Record, dict]]", key: Callable[[dict], set[str]]) -> None:
    rows: dict[str, list[Record]] = defaultdict(list)
    for record, truth in described:
        for row in key(truth):
            rows[row].append(record)
    if rows:
        print(f"\n{title:24} {'forged':>6} {'found':>6} {'oF1':>6} {'pixel F1':>8}")
    for name, records in sorted(rows.items()):
        print(
            f"{name:24} {len(records):6} {_mean(r.pixel_tp > 0 for r in records):6.3f} "
            f"{_mean(r.object_f1 for r in records):6.3f} {_mean(r.pixel_f1 for r in records):8.3f}"
        )
