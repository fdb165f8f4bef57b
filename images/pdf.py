"""Figures out of PDF files: where they stand and their pixels.

A figure is one raster image of a page, with its own pixels. Images that touch or nearly touch (the panels of one
figure, or strips into which a program cut an image) are one figure: there the page is drawn at the resolution of the
finest of them. Figures that are drawn of lines and text alone are not extracted.

PDFium, which does the work in pdfium.py, is a large library, and PDFs come from strangers: a file of 1 KB can ask for
hours of work (forms drawn within forms), one of 2 MB for many GB of memory (packed page contents). It therefore runs
in a process of its own, with limits on time and memory.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError

LEAST_SIDE = 64  # smaller images (icons, logos, rules) are not figures, in pixels
MAX_FIGURES = 5000  # in one file

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Figure:
    """One figure of a PDF."""

    page: int  # from 1
    figure: int  # on its page, from 1, from top to bottom
    box: Box  # in points (1/72 inch) from the upper left corner of the page as it is shown


@dataclass(frozen=True)
class Limits:
    """What the process that runs PDFium may use."""

    page_seconds: int = 8  # processor time for one page
    total_seconds: int = 300  # processor time for all pages
    memory: int = 2 << 30  # bytes


LIMITS = Limits()

ROOT = Path(__file__).resolve().parent.parent
# The project's folder comes first on the path: with `-m`, a folder `images` in the user's working directory would.
PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from images.pdfium import answer; answer(sys.argv[1:])"


def find_figures(path: Path) -> list[Figure]:
    """Figures of all pages, in reading order.

    Raises:
        InputError: the file is damaged or locked, or takes more time, memory or figures than is allowed.
    """
    return [Figure(page, figure, tuple(box)) for page, figure, box in _ask("figures", path)[0]]


def read_figure(path: Path, page: int, figure: int, max_megapixels: float = 200.0) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of one figure of `find_figures`.

    Raises:
        InputError: there is no such figure, it is larger than `max_megapixels`, or as `find_figures` does.
    """
    return _ask("pixels", path, page, figure, max_megapixels)[1]


def _ask(kind: str, path: Path, *where: Any) -> tuple[Any, np.ndarray | None]:
    """Ask pdfium.py, in a process of its own: the JSON of its answer, and the pixels where there are some.

    Raises:
        InputError: there is no answer.
    """
    limits = json.dumps(asdict(LIMITS))
    command = [sys.executable, "-c", PROGRAM, str(ROOT), limits, kind, str(path), *map(str, where)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread would reserve some of the allowed memory
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        head, pixels = process.stdout.readline(), None
        if kind == "pixels" and head:
            pixels = np.empty(json.loads(head), np.uint8)
            process.stdout.readinto(memoryview(pixels).cast("B"))
        message = process.stderr.read().decode("utf-8", "surrogateescape").strip().split("\n")[-1]
    status = process.returncode
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(
            f"cannot read {path}: a page takes longer than {LIMITS.page_seconds} s, or all pages more than "
            f"{LIMITS.total_seconds} s"
        )
    if status < 0:
        gigabytes = LIMITS.memory >> 30
        raise InputError(f"cannot read {path}: PDFium failed, perhaps for more than {gigabytes} GiB of memory")
    if status:
        raise InputError(message)
    return json.loads(head), pixels
