"""For the tests of predict.py: small images, and a detector that marks red squares."""

import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np

import predict
from config import PredictSettings
from copymove.copies import Copy, Instance
from copymove.regions import Region
from detector import Detection

SQUARES = ((5, 10), (40, 20))  # left upper corners of two squares that are the same content
FAST = ("--evidence-only", "--matching-kinds", "exact")  # the quickest search of the script


def write_image(path: Path, squares=(), corner=(200, 200, 200), size=(40, 60)) -> Path:
    """A grey image with red squares of 8 rows and 10 columns; the first pixel can ask `detect_red` for trouble."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 200, np.uint8)
    for x, y in squares:
        image[y : y + 8, x : x + 10] = (255, 0, 0)
    image[0, 0] = corner
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1])  # OpenCV cannot write names of any bytes
    return path


def detect_red(image: np.ndarray) -> Detection:
    """Two red squares of equal size are one instance."""
    match image[0, 0].tolist():
        case [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGKILL)
        case [1, 2, 4]:
            raise ZeroDivisionError("as asked")
        case [1, 2, 5]:
            time.sleep(60)
    red = (image == (255, 0, 0)).all(axis=2)
    _, _, stats, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
    if len(stats) != 3:
        return clean(image)
    (x, y, w, h, _), (x2, y2, *_) = stats[1:].tolist()
    square = np.ones((h, w), bool)
    affine = np.array([[1.0, 0, x2 - x], [0, 1, y2 - y]])
    copy = Copy("exact", affine, 9, 1.0, 0.9, Region(x, y, square), Region(x2, y2, square))
    return Detection(red.shape, 0.9, (Instance(red, 0.9, (copy,)),), 0.5)


def clean(image: np.ndarray) -> Detection:
    """A detection without instances."""
    return Detection(image.shape[:2], 0.0, (), 0.5)


def load_red(settings: PredictSettings):
    """As `predict.load_detector`."""
    return detect_red


class Counting:
    """Loads `detect`, called with the number of the image (from 1) and the image, and counts the images."""

    def __init__(self, detect=lambda number, image: clean(image)):
        self.detect, self.images = detect, 0

    def __call__(self, settings):
        def count(image):
            self.images += 1
            return self.detect(self.images, image)

        return count


def predict_in(out: Path, *paths: Path, load=load_red, **changes) -> int:
    """Exit status of predict.py, in this process."""
    return predict.main(PredictSettings(paths=paths, out=out, **{"num_workers": 0} | changes), load)


def lines_of(out: Path) -> list[dict]:
    """The lines that a run has written."""
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def verdicts_of(out: Path) -> list[str]:
    """The verdicts in the lines."""
    return [line["verdict"] for line in lines_of(out)]
