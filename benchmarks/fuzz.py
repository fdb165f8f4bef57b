"""Fuzz campaigns: thousands of mutated files of a format through its readers, in a guarded process."""

import json
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.guarded_reading import MEMORY, guarded_reader
from benchmarks.mutations import mutate
from benchmarks.valid_files import valid_files
from runtime.workers import Lost, run_jobs

SECONDS = 10.0  # longest time for one file
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", "npy": ".npy", "pdf": ".pdf", "checkpoint": ".pt"}
SUFFIXES |= {kind: f".{kind}" for kind in ("docx", "pptx", "odt", "zip", "html")}
SUFFIXES |= {"gif": ".gif", "jpeg2000": ".jp2", "dicom": ".dcm", "heic": ".heic", "avif": ".avif", "jpegxl": ".jxl"}


def campaign(kind: str, count: int, seed: int, out: Path) -> Counter:
    """Read `count` mutated files of a format.

    What broke a reader is kept in `out/broken/`, with the reason beside it. `out/watched/` is the home and the
    temporary folder of the process that reads: a file that appears there counts as broken too.

    Returns:
        How many files were "read", "refused" and "broken"; "slowest ms" and "peak MiB" of one file.
    """
    backbone, watched, broken = out / "backbone", out / "watched", out / "broken"
    for path in (backbone, watched, broken):
        path.mkdir(parents=True, exist_ok=True)
    files = valid_files(kind, backbone)
    sample, path = out / f"sample{SUFFIXES[kind]}", out / f"mutated{SUFFIXES[kind]}"
    sample.write_bytes(files[0])
    counts: Counter = Counter()
    rng = np.random.default_rng([seed, *kind.encode()])
    jobs = deque([sample])
    results = run_jobs(jobs, partial(guarded_reader, kind, backbone, sample), 1, SECONDS)
    environment = {"HOME": str(watched), "TMPDIR": str(watched), "HF_HUB_OFFLINE": "1"}
    with closing(results), _environment(**environment):
        next(results)  # of the sample: the process has started
        before = set(watched.rglob("*"))
        for number in tqdm(range(count), desc=kind, unit="file", disable=not sys.stderr.isatty()):
            path.write_bytes(mutate(kind, files, rng))
            begun = time.perf_counter()
            jobs.append(path)
            outcome, peak = _outcome(next(results)[1])
            counts["slowest ms"] = max(counts["slowest ms"], round(1000 * (time.perf_counter() - begun)))
            counts["peak MiB"] = max(counts["peak MiB"], round(peak / 2**20))
            word = outcome.partition(":")[0]
            counts[word] += 1
            if word == "broken":
                kept = broken / f"{kind}-{seed}-{number}{SUFFIXES[kind]}"
                kept.write_bytes(path.read_bytes())
                kept.with_suffix(".txt").write_text(outcome + "\n")
    for written in sorted(set(watched.rglob("*")) - before):
        counts["broken"] += 1
        print(f"written by a reader: {written}")
    return counts


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Inside, processes that are started get these variables."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _outcome(result: tuple[str, float] | Lost) -> tuple[str, float]:
    """What came of a file, and the peak memory; a process that died, hung or took too much memory is an outcome too."""
    if isinstance(result, Lost):
        return f"broken: {result.reason}", 0.0
    outcome, peak = result
    return (f"broken: {peak / 2**30:.1f} GiB of memory" if peak > MEMORY else outcome), peak


def reasons(out: Path) -> Iterator[tuple[str, int, str]]:
    """Each reason that broke a reader, how often it did, and the stem of a file that shows it; the most frequent first.

    Reasons that differ only in numbers and paths count as one.
    """
    texts = {file: file.read_text().strip() for file in sorted((out / "broken").glob("*.txt"))}
    plain = {file: re.sub(r"\d+|/\S+", "#", text) for file, text in texts.items()}
    for reason, count in Counter(plain.values()).most_common():
        example = next(file for file in texts if plain[file] == reason)
        yield texts[example], count, example.stem


def summary(kind: str, counts: Counter) -> str:
    """A campaign in one line of JSON."""
    return json.dumps({"kind": kind, **dict(sorted(counts.items()))})
