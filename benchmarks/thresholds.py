"""Measure the thresholds of the score on kinds of authentic images that took no part in fitting it.

On the kinds that a score was fitted on, a threshold promises more than it keeps on others. So each kind that was left
out counts the same, however many images of it there are, and the rate is the mean over kinds.
"""

import math
import sys
from collections.abc import Sequence

import cv2
import numpy as np

from benchmarks.accuracy import ANY_SIZE, choose_images
from benchmarks.calibrate import TARGET_FPRS
from config import MatchingSettings, ThresholdSettings
from detector import Detector
from images.folders import ImageFile
from images.pairs import read_pair
from runtime.errors import InputError
from runtime.files import read_json, write_json
from runtime.workers import map_in_processes

SEARCH = MatchingSettings(search_budget=120.0)
TAIL = 0.1  # share of images whose scores tell how the tail goes on beyond the sample
NO_FINDING = -20.0  # log-odds that stand for an image without any candidate
MARGIN = 1e-6  # by which a threshold lies over the score that it must not let pass


def measure_thresholds(settings: ThresholdSettings) -> None:
    """Replace the thresholds of a calibration by those of the kinds in `left_out`, one folder each, and print rates."""
    if not settings.out.is_file():
        raise FileNotFoundError(f"there is no calibration {settings.out}; make it with benchmark.py calibrate")
    names = [folder.name for folder in settings.left_out]
    if not names or len(set(names)) < len(names):
        raise InputError(f"--left-out has {names or 'no folder'}; give one folder a kind, each with a name of its own")
    # All folders first: one that is missing is refused before any work is done.
    kinds = {folder: [f for f in choose_images(folder, None) if not f.forged] for folder in settings.left_out}
    for folder, image_files in kinds.items():
        if not image_files:
            raise InputError(f"{folder} holds no authentic image; a threshold needs some of every kind")
    highest = {
        folder.name: np.array(list(map_in_processes(highest_log_odds, image_files, settings.num_workers)))
        for folder, image_files in kinds.items()
    }
    thresholds = [[rate, left_out_threshold(list(highest.values()), rate)] for rate in TARGET_FPRS]
    rates = {name: [float((values >= t).mean()) for _, t in thresholds] for name, values in highest.items()}
    command = "python benchmark.py " + " ".join(sys.argv[1:])
    measured = {"command": command, "images": {name: len(v) for name, v in highest.items()}, "rates": rates}
    write_json(settings.out, read_json(settings.out) | {"thresholds": thresholds, "left_out": measured})
    print(f"{'share flagged when asked for':28}" + "".join(f"{rate:>8g}" for rate, _ in thresholds))
    for name, values in highest.items():
        print(f"{name[:16]:16} {len(values):>4} images" + "".join(f"{rate:8.3f}" for rate in rates[name]))
    print(f"{'least score':28}" + "".join(f"{1 / (1 + math.exp(-t)):8.4f}" for _, t in thresholds))


def highest_log_odds(image_file: ImageFile) -> float:
    """Log-odds of the best copy that the search verifies in an authentic image."""
    cv2.setNumThreads(1)  # the images are what runs in parallel
    image, _ = read_pair(image_file, ANY_SIZE)
    scores = [verified.copy.score for verified in Detector(matching=SEARCH).detect(image).search.verified]
    best = min(max(scores, default=0.0), 1 - 1e-9)
    return math.log(best / (1 - best)) if best > 0 else NO_FINDING


def left_out_threshold(kinds: Sequence[np.ndarray], rate: float) -> float:
    """Log-odds that a share `rate` of images exceeds, in the mean over kinds of which each counts the same.

    Args:
        kinds: for each kind, the log-odds (n,) of the best copy in each of its authentic images.
        rate: false positive rate, over 0 to 1. A rate that the sample is too small to show is extrapolated: the tail is
            continued as an exponential (Hill 1975, on the log-odds).
    """
    values = np.concatenate(kinds)
    weights = np.concatenate([np.full(len(kind), 1 / (len(kinds) * len(kind))) for kind in kinds])
    order = np.argsort(-values, kind="stable")
    values, exceeding = values[order], np.cumsum(weights[order])
    allowed = int(np.searchsorted(exceeding, rate + 1e-9, side="right"))  # so many images may exceed it
    if allowed == len(values):
        return float(values[-1])
    if allowed:
        return float(values[allowed]) + MARGIN
    tail = exceeding <= TAIL
    slope = float((values[tail] - values[~tail][0]).mean()) if tail.any() and not tail.all() else 1.0
    return float(values[0]) + slope * math.log(exceeding[0] / rate) + MARGIN
