"""Load: a prediction of many images, many readers of one image cache, a run that is resumed with a million lines."""

import itertools
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.checks import Checks
from benchmarks.processes import ScriptProcess, processor_seconds, resident_memory, run_script, wait_until
from benchmarks.small_runs import COMPLETED, prediction_command, read_lines, write_dataset, write_images
from config import DataSettings, RobustnessSettings
from images.cache import DiskCache, ImageCache, read_letterboxed
from images.folders import find_images
from runtime.workers import map_in_processes

READERS, READS = 16, 60  # processes that read one cache, and images that each of them reads
CACHE_BYTES = 400_000  # limit of that cache: about half of what all images need
CACHE_SIDE = 112  # pixels of the model's input
MAX_SLOWDOWN = 0.2  # share by which the last tenth of the images may be slower, or faster, than the first
MAX_MEMORY_GROWTH = 1.1, 50  # factor and MiB by which memory may grow from the first tenth of the images to the last
MAX_RESUME_SECONDS = 10  # of the processor, for a run with a million lines to take up the next image


def put_under_load(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Try all kinds of load."""
    predict_many(settings, out, checks)
    read_one_cache(out, checks)
    resume_many_lines(settings.lines, out, checks)


# Many images --------------------------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """A moment of a prediction."""

    images: int  # that were done
    wall: float  # seconds since its start
    processor: float  # seconds of the processor
    memory: float  # MiB of all its processes


def predict_many(settings: RobustnessSettings, out: Path, checks: Checks) -> None:
    """Memory must not grow and the rate must stay the same from the first to the last tenth; the page must open."""
    write_varied_images(out / "in", settings.images, settings.seed)
    marks, status, output = _watch_prediction(out, settings.images, checks)
    checks.check(status in COMPLETED, f"{settings.images} images: status {status}; {output.strip().splitlines()[-2:]}")
    if len(marks) > 3:
        pairs = list(itertools.pairwise(marks))
        wall = [(b.images - a.images) / (b.wall - a.wall) for a, b in pairs]
        # Rates are compared by the processor's time, on which other work of the machine has less influence.
        rates = [(b.images - a.images) / (b.processor - a.processor) for a, b in pairs]
        checks.check(
            abs(rates[-1] / rates[0] - 1) <= MAX_SLOWDOWN,
            f"first and last tenth: {rates[0]:.1f} and {rates[-1]:.1f} images per processor second "
            f"({wall[0]:.1f} and {wall[-1]:.1f} per second)",
        )
        first, last = marks[1].memory, marks[-1].memory
        factor, margin = MAX_MEMORY_GROWTH
        checks.check(last < factor * first + margin, f"memory {first:.0f} MiB at first, {last:.0f} MiB at the end")
    open_page(out / "found" / "report" / "index.html", settings.images, checks)


def _watch_prediction(out: Path, count: int, checks: Checks) -> tuple[list[Mark], int, str]:
    """Predict OUT/in: a mark after each tenth of the images, exit status, and what was printed."""
    process, lines = ScriptProcess(*prediction_command(out / "in", out / "found")), out / "found" / "predictions.jsonl"
    marks: list[Mark] = []
    begun, done, position = time.monotonic(), 0, 0
    step = max(1, count // 10)
    while process.poll() is None:
        if lines.exists():
            with lines.open("rb") as file:
                file.seek(position)
                block = file.read()
            done, position = done + block.count(b"\n"), position + len(block)
        if done >= (marks[-1].images + step if marks else 1):  # from the first image on: starting is not counted
            wall = time.monotonic() - begun
            marks.append(Mark(done, wall, processor_seconds(process.pid), resident_memory(process.pid)))
            checks.note("{} images after {:.0f} s, {:.0f} of the processor, {:.0f} MiB".format(*marks[-1]))
        time.sleep(0.05)
    return marks, *process.finish()


def write_varied_images(folder: Path, count: int, seed: int) -> None:
    """Images of 256 to 512 px, cut from those of the demo; in every fifth one a rectangle occurs twice."""
    run_script("demo.py", folder.parent / "demo")
    sources = [cv2.imread(str(path)) for path in sorted((folder.parent / "demo").iterdir())]
    sources = [s if min(s.shape[:2]) >= 512 else cv2.resize(s, (640, 640)) for s in sources]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in tqdm(range(count), desc="images", disable=not sys.stderr.isatty()):
        source = sources[rng.integers(len(sources))]
        height, width = rng.integers(256, 513, 2)
        y, x = rng.integers(source.shape[0] - height + 1), rng.integers(source.shape[1] - width + 1)
        image = source[y : y + height, x : x + width].copy()
        if number % 5 == 0:
            image[height - 70 : height - 10, width - 90 : width - 10] = image[10:70, 10:90]
        cv2.imwrite(str(folder / f"{number:06}.jpg" if number % 2 else folder / f"{number:06}.png"), image)


def open_page(page: Path, count: int, checks: Checks) -> None:
    """Open the evidence page in a headless browser, where there is one."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        checks.note("no Chromium on this machine: the page was not opened")
        return
    begun = time.monotonic()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    command = [browser, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, errors="replace")
    shown = done.stdout.count('class="card"')
    checks.check(
        shown > 0 and done.returncode == 0,
        f"page of {count} images, {page.stat().st_size / 1e6:.1f} MB, opens in {time.monotonic() - begun:.1f} s "
        f"({shown} cards shown)",
    )


# One cache ----------------------------------------------------------------------------------------------------------


def read_one_cache(out: Path, checks: Checks) -> None:
    """Many processes read images through one cache that holds half of them; all must get what decoding gives."""
    write_dataset(out / "cached", 10)
    wrong = sum(map_in_processes(partial(_count_wrong_reads, out / "cached", out / "cache"), range(READERS), READERS))
    sizes = [path.stat().st_size for path in (out / "cache").glob(f"*{DiskCache.SUFFIX}")]
    checks.check(wrong == 0, f"{READERS} processes on one cache: {wrong} of {READERS * READS} images wrong")
    good = 0 < sum(sizes) <= CACHE_BYTES
    checks.check(good, f"the cache holds {len(sizes)} images, {sum(sizes)} of {CACHE_BYTES} bytes")


def _count_wrong_reads(data: Path, cache_folder: Path, seed: int) -> int:
    image_files, settings = find_images(data), DataSettings(data=data)
    cache, wrong = ImageCache(cache_folder, CACHE_BYTES / 1e9, CACHE_SIDE), 0
    for index in np.random.default_rng(seed).integers(0, len(image_files), READS):
        cached, plain = (read_letterboxed(image_files[index], CACHE_SIDE, settings, c) for c in (cache, None))
        wrong += not (np.array_equal(cached.image, plain.image) and np.array_equal(cached.coverage, plain.coverage))
    return wrong


# Many lines ---------------------------------------------------------------------------------------------------------


def resume_many_lines(count: int, out: Path, checks: Checks) -> None:
    """Resume a run with a million lines and one image left: how long until that image is done, and sorted in."""
    folder, run = out / "last", out / "lines"
    lines = run / "predictions.jsonl"
    write_images(folder, 2)
    (last := folder / "00000.png").rename(out / last.name)  # the other one is clean: its line is as short as most are
    process = ScriptProcess(*prediction_command(folder, run))
    wait_until(lambda: lines.exists() and lines.read_bytes().endswith(b"\n"), process)
    start_up = processor_seconds(process.pid)  # of a run without earlier lines
    process.finish()
    (line,) = read_lines(lines)
    with lines.open("a") as file:  # "~": sorts behind every absolute path, so that the next line must be sorted in
        file.writelines(json.dumps(line | {"path": f"/~/{number:07}.png"}) + "\n" for number in range(count))
    (out / last.name).rename(last)
    before = lines.stat()
    begun, process = time.monotonic(), ScriptProcess(*prediction_command(folder, run, "--resume"))
    resumed = wait_until(lambda: lines.stat().st_size > before.st_size, process)
    wall, seconds = time.monotonic() - begun, processor_seconds(process.pid) - start_up
    # By the processor's time, on which other work of the machine has less influence.
    checks.check(
        resumed and seconds < MAX_RESUME_SECONDS,
        f"{count} lines: the next image is done after {wall:.1f} s, {seconds:.1f} s of the processor more than without",
    )
    memory = resident_memory(process.pid)
    merged = wait_until(lambda: lines.stat().st_ino != before.st_ino, process)
    seconds = processor_seconds(process.pid) - start_up - seconds
    growth = resident_memory(process.pid) - memory
    process.kill_all()  # its page would show a million images
    checks.check(merged, f"its line is sorted in after {seconds:.1f} s more of the processor, {growth:.0f} MiB more")
