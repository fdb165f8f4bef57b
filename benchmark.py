"""Tables of accuracy and speed that the README shows.

    python benchmark.py accuracy --data DIR [DIR ...] --jpeg 90        pictures in parallel over processes
    python benchmark.py matching-speed --picture FILE
    python benchmark.py calibrate --data DIR --authentic DIR           writes weights/evidence.json
    python benchmark.py speed --data DIR                               cascade, losses, tuning, picture cache
    python benchmark.py step-speed --backbone NAME --batch-sizes 8 32  training steps and embedding on this device
    python benchmark.py study --train DIR --dev DIR --out DIR          variants of the learned path, with seeds
    python benchmark.py faults --kinds files bombs training            hostile files, kills, load; about an hour for all

A folder of synthesis.py has a JSON beside each picture: its forgeries are also shown by size of copy, kind of
region, rotation, scale, blending and JPEG quality.
"""

import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import config
from config import (
    AccuracySettings,
    CalibrateSettings,
    FaultsSettings,
    InputError,
    MatchingSettings,
    MatchingSpeedSettings,
    SpeedSettings,
    StepSpeedSettings,
    StudySettings,
)
from distributed import follow_parent

if TYPE_CHECKING:
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier

    from dataset import Picture
    from matching import Region
    from metrics import Record

DOUBT = 0.1  # share of samples in which the calibration may let more pictures pass than a threshold says
WIDTHS = (6, 6, 6, 8, 9, 6, 6, 4)  # of the columns of the accuracy table
Commands = (
    Annotated[AccuracySettings, tyro.conf.subcommand("accuracy")]
    | Annotated[MatchingSpeedSettings, tyro.conf.subcommand("matching-speed")]
    | Annotated[CalibrateSettings, tyro.conf.subcommand("calibrate")]
    | Annotated[SpeedSettings, tyro.conf.subcommand("speed")]
    | Annotated[StepSpeedSettings, tyro.conf.subcommand("step-speed")]
    | Annotated[StudySettings, tyro.conf.subcommand("study")]
    | Annotated[FaultsSettings, tyro.conf.subcommand("faults")]
)


def main(
    settings: AccuracySettings
    | MatchingSpeedSettings
    | CalibrateSettings
    | SpeedSettings
    | StepSpeedSettings
    | StudySettings
    | FaultsSettings,
) -> int | None:
    """Run the chosen table; the exit status where it is not 0."""
    if isinstance(settings, AccuracySettings):
        accuracy(settings)
    elif isinstance(settings, MatchingSpeedSettings):
        matching_speed(settings)
    elif isinstance(settings, CalibrateSettings):
        calibrate(settings)
    elif isinstance(settings, FaultsSettings):
        from faults import faults

        return faults(settings)
    elif isinstance(settings, StudySettings):
        from study import study

        return study(settings)
    elif isinstance(settings, StepSpeedSettings):
        from speed import step_speed

        step_speed(settings)
    else:
        from speed import speed

        speed(settings)
    return None


# Accuracy -------------------------------------------------------------------------------------------------------


def accuracy(settings: AccuracySettings) -> None:
    """Score every folder and print its line, then the tables by kind of copy where the truth is recorded."""
    from metrics import record_to_dict

    if settings.jpeg is not None and not 1 <= settings.jpeg <= 100:
        raise InputError(f"jpeg is {settings.jpeg}; it is a quality from 1 to 100")
    described: list[tuple[Record, dict[str, Any]]] = []
    lines: list[str] = []
    chosen = [(folder, choose(folder, settings.limit)) for folder in settings.data]  # a missing folder stops here
    head = ("forged", "found", "oF1", "pixel F1", "authentic", "alarms", "s/MP", "cut")
    for place, (folder, pictures) in enumerate(chosen):
        jobs = [(picture, settings.matching, settings.jpeg, settings.noise) for picture in pictures]
        results = list(parallel(_score, jobs, settings.workers))
        if place == 0:  # no head over an error
            print(f"{'set':24} " + " ".join(f"{name:>{width}}" for name, width in zip(head, WIDTHS, strict=True)))
        print(_line(folder.name, results), flush=True)
        for picture, (record, _, _) in zip(pictures, results, strict=True):
            lines.append(json.dumps({"set": str(folder), **record_to_dict(record)}))
            truth = picture.image.with_suffix(".json")
            if record.n_true and truth.is_file():
                described.append((record, config.read_json(truth)))
    for title, key in BY.items():
        _print_by(title, described, key)
    if settings.records is not None:
        config.write_whole(settings.records, lambda path: path.write_text("\n".join(lines) + "\n"))


def choose(folder: Path, limit: int | None) -> "list[Picture]":
    """Pictures of a folder whose truth is known; `limit` of the forged and of the authentic, evenly spread."""
    from dataset import find_pictures

    chosen = []
    for forged in (True, False):
        part = [p for p in find_pictures(folder) if p.forged is forged and (p.mask is not None or not forged)]
        step = max(len(part) / limit, 1) if limit else 1
        chosen += [part[int(i * step)] for i in range(int(len(part) / step))]
    return chosen


def parallel(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterable[Any]:
    """Results in order, over processes, with a bar."""
    from tqdm import tqdm

    if workers <= 1 or len(jobs) < 2:
        yield from tqdm(map(function, jobs), total=len(jobs), leave=False, disable=not sys.stderr.isatty())
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), initializer=follow_parent) as pool:
        yield from tqdm(pool.map(function, jobs), total=len(jobs), leave=False, disable=not sys.stderr.isatty())


def degrade(image: "np.ndarray", jpeg: int | None, noise: float) -> "np.ndarray":
    """Picture (H, W, 3) uint8 with Gaussian noise, then saved as JPEG and read again."""
    import cv2
    import numpy as np

    if noise:
        drawn = np.random.default_rng(0).normal(0, noise, image.shape)
        image = np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)
    if jpeg is not None:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
        image = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return image


def _score(job: "tuple[Picture, MatchingSettings, int | None, float]") -> "tuple[Record, float, bool]":
    """Record of one picture, its megapixels, and whether the search was complete."""
    import cv2
    import numpy as np

    from matching import find_instances
    from metrics import score_picture
    from reading import read_image, read_masks

    cv2.setNumThreads(1)
    picture, settings, jpeg, noise = job
    image = degrade(read_image(picture.image), jpeg, noise)
    shape = image.shape[:2]
    begun = time.perf_counter()
    found = find_instances(image, settings)
    seconds = time.perf_counter() - begun
    masks = np.array([i.mask for i in found.instances], bool).reshape(-1, *shape)
    true = read_masks(picture.mask, shape) if picture.mask is not None else np.zeros((0, *shape), bool)
    score = found.instances[0].score if found.instances else 0.0
    return score_picture(picture.id, masks, true, score, seconds), image.shape[0] * image.shape[1] / 1e6, found.complete


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


# Each table puts a forged picture into every row that one of its copies belongs to.
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


# Speed ----------------------------------------------------------------------------------------------------------


def matching_speed(settings: MatchingSpeedSettings) -> None:
    """Time and peak memory per size, each size in a process of its own."""
    jobs = [(settings.picture, size, settings.repeats, settings.matching) for size in settings.megapixels]
    for place, job in enumerate(jobs):
        # A fresh process, whose peak memory is this size's.
        with ProcessPoolExecutor(1, initializer=follow_parent) as pool:
            seconds, peak, stages = pool.submit(_time, job).result()
        if place == 0:  # no head over an error
            print(f"{'megapixels':>10} {'median s':>9} {'worst s':>8} {'s/MP':>6} {'peak MiB':>9}  seconds by stage")
        middle = statistics.median(seconds)
        parts = ", ".join(f"{name} {value:.2f}" for name, value in stages.items() if name != "all")
        print(f"{job[1]:10g} {middle:9.2f} {max(seconds):8.2f} {middle / job[1]:6.2f} {peak:9.0f}  {parts}", flush=True)


def _time(job: tuple[Path, float, int, MatchingSettings]) -> tuple[list[float], float, dict[str, float]]:
    import resource

    import cv2

    from matching import find_instances
    from reading import read_image

    cv2.setNumThreads(1)
    path, megapixels, repeats, settings = job
    image = read_image(path)
    find_instances(image[:128, :128].copy(), settings)  # compiled code is loaded
    zoom = math.sqrt(megapixels * 1e6 / (image.shape[0] * image.shape[1]))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    seconds, stages = [], {}
    for _ in range(repeats):
        begun = time.perf_counter()
        stages = find_instances(image, settings).seconds
        seconds.append(time.perf_counter() - begun)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, stages


# Calibration ----------------------------------------------------------------------------------------------------


def calibrate(settings: CalibrateSettings) -> None:
    """Fit the logistic model of `matching.calibrated_score` and its thresholds, and write them."""
    pictures = [p for folder in settings.data for p in choose(folder, settings.limit)]
    held = [p for folder in settings.authentic for p in choose(folder, settings.limit) if not p.forged]
    found = list(parallel(_facts, pictures + held, settings.workers))
    content = {"command": "python benchmark.py " + " ".join(sys.argv[1:]), **fit(found)}
    config.write_json(settings.out, content)
    print(f"{settings.out}: {content['candidates']} candidates, thresholds {content['thresholds']}")


def fit(found: "Sequence[list[tuple[dict[str, float], int]]]") -> dict[str, Any]:
    """Logistic model over all candidates (facts, 0 or 1) of each picture, and thresholds from the false ones.

    An additive logistic regression by boosted trees (Friedman, Hastie, Tibshirani 2000), monotone where more of a
    feature can only speak for a copy or against it. The thresholds use scores from a five-fold cross-fit over
    pictures, so that the model never saw what it judges. The false candidates of forged pictures count as those of
    authentic ones do: a repeat is a repeat.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold, cross_val_predict

    from matching import FEATURES

    y = np.array([label for picture in found for _, label in picture])
    groups = np.repeat(np.arange(len(found)), [len(picture) for picture in found])
    if y.min(initial=1) == y.max(initial=0):
        raise InputError("calibration needs true and false candidates: give folders with forged and authentic pictures")
    x = np.array([[fact[name] for name in FEATURES] for picture in found for fact, _ in picture])
    model = untrained_model()
    odds = cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(5), method="decision_function")
    best = np.sort([odds[(groups == k) & (y == 0)].max(initial=-20.0) for k in range(len(found))])[::-1]
    return {
        "pictures": len(found),
        "candidates": {"true": int(y.sum()), "false": int((1 - y).sum())},
        "features": list(FEATURES),
        # share of pictures with a false alarm, log-odds of the score
        "thresholds": [[share, _tail(best, share)] for share in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)],
        **trees(model.fit(x, y)),
    }


def untrained_model() -> "HistGradientBoostingClassifier":
    """The calibration's model before it is fitted."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from matching import FEATURES

    return HistGradientBoostingClassifier(
        monotonic_cst=list(FEATURES.values()),
        max_iter=300,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=60,
        l2_regularization=5,
        early_stopping=False,
    )


def trees(model: "HistGradientBoostingClassifier") -> dict[str, Any]:
    """The model's log-odds as plain numbers: `start` plus one leaf of every tree; a leaf's children are itself."""
    import numpy as np

    written = []
    for (predictor,) in model._predictors:  # the library has no public view of its trees
        nodes = predictor.nodes
        leaf, own = nodes["is_leaf"] > 0, np.arange(len(nodes))
        written.append(
            {
                "feature": np.where(leaf, 0, nodes["feature_idx"]).tolist(),
                "threshold": np.where(leaf, 0, nodes["num_threshold"]).tolist(),
                "left": np.where(leaf, own, nodes["left"]).tolist(),
                "right": np.where(leaf, own, nodes["right"]).tolist(),
                "value": nodes["value"].round(5).tolist(),
            }
        )
    return {"start": float(model._baseline_prediction[0, 0]), "trees": written}


def _tail(best: "np.ndarray", share: float) -> float:
    """Log-odds that at most `share` of such pictures pass, unless by bad luck; `best` are theirs, largest first.

    Of n pictures as many may pass as a share that large would let pass in at most `DOUBT` of samples (a one-sided
    binomial bound). Beyond the sample its tail goes on as an exponential (Hill's estimate on the log-odds).
    """
    from scipy.stats import binom

    allowed = int(binom.ppf(DOUBT, len(best), share)) - 1
    if allowed >= 0:
        return float(best[allowed]) + 1e-6
    tenth = max(len(best) // 10, 1)
    slope = float((best[:tenth] - best[tenth]).mean())
    return float(best[0]) + slope * math.log(-math.log(DOUBT) / max(share * len(best), 1e-9)) * 0.5


def _facts(picture: "Picture") -> list[tuple[dict[str, float], int]]:
    """Evidence of every verified candidate of a picture and whether it is true: both regions lie in one true mask."""
    import cv2
    import numpy as np

    from exact import find_exact
    from matching import BESIDE, IDENTICAL_GRAIN, find_instances
    from reading import read_image, read_masks

    cv2.setNumThreads(1)
    image = read_image(picture.image)
    shape = image.shape[:2]
    lossless = any(copy.blocks > 220 for copy in find_exact(image))
    truth = picture.image.with_suffix(".json")
    panels = [panel["box"] for panel in config.read_json(truth)["panels"]] if truth.is_file() else []
    kinds = ("keypoints", "objects", "dense")
    found = find_instances(image, MatchingSettings(seconds_per_image=120.0, matching_kinds=kinds))
    true = read_masks(picture.mask, shape) if picture.mask is not None else np.zeros((0, *shape), bool)
    rows = []
    for copy, fact in zip(found.copies, found.facts, strict=True):
        source, target = copy.source.full(shape), copy.target.full(shape)
        inside = [min((source & t).sum() / source.sum(), (target & t).sum() / target.sum()) for t in true]
        if max(inside, default=0.0) > 0.35:
            rows.append((fact, 1))
            continue
        apart = min((source & true.any(axis=0)).sum(), (target & true.any(axis=0)).sum()) < 0.2 * source.sum()
        # What lies between is neither; what cannot count beside bit-identical copies is no false candidate either.
        # Panels of a composed figure may show one scene twice, as another crop or the next frame: neither, too.
        known = apart and _panel(copy.source, panels) == _panel(copy.target, panels)
        if known and (not lossless or fact["grain_core"] >= BESIDE * IDENTICAL_GRAIN):
            rows.append((fact, 0))
    return rows


def _panel(region: "Region", panels: Sequence[Sequence[int]]) -> int:
    """Which of the boxes (x, y, width, height) holds the middle of a region; -1 where none does."""
    x, y = region.x + region.mask.shape[1] / 2, region.y + region.mask.shape[0] / 2
    return next((k for k, (left, top, w, h) in enumerate(panels) if left <= x < left + w and top <= y < top + h), -1)


if __name__ == "__main__":
    config.run(main, Commands)
