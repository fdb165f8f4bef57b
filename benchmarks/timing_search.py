"""Time and memory of the search on the pixels by size of the image; torch is not loaded, it would count as memory."""

import math
import resource
import statistics
import time

import cv2

from config import SearchTimingSettings
from detector import Detector
from images.read import read_image
from runtime.workers import call_in_process


def time_search(settings: SearchTimingSettings) -> None:
    """Print seconds and peak memory of the search for each size of the image."""
    for number, megapixels in enumerate(settings.megapixels):
        # Each size has a process of its own, so that the peak memory is its own too.
        seconds, peak, stages = call_in_process(_search_at_size, settings, megapixels)
        if number == 0:  # not earlier: an error message shall not follow an empty table
            print(f"{'megapixels':>10} {'median s':>9} {'worst s':>8} {'s/MP':>6} {'peak MiB':>9}  seconds by stage")
        median = statistics.median(seconds)
        parts = ", ".join(f"{name} {value:.2f}" for name, value in stages.items() if name != "all")
        line = f"{megapixels:10g} {median:9.2f} {max(seconds):8.2f} {median / megapixels:6.2f} {peak:9.0f}  {parts}"
        print(line, flush=True)


def _search_at_size(settings: SearchTimingSettings, megapixels: float) -> tuple[list[float], float, dict[str, float]]:
    """Seconds of each run, peak memory of this process in MiB, and seconds of each stage of the last run."""
    cv2.setNumThreads(1)
    detector = Detector(matching=settings.matching)
    image = read_image(settings.image)
    detector.detect(image[:128, :128].copy())  # loads the compiled code
    zoom = math.sqrt(megapixels * 1e6 / (image.shape[0] * image.shape[1]))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    seconds, stages = [], {}
    for _ in range(settings.repeats):
        begun = time.perf_counter()
        stages = detector.detect(image).search.seconds
        seconds.append(time.perf_counter() - begun)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, stages
