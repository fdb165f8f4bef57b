"""What a user gives to be examined: files, folders, patterns and PDFs become images, each with where it came from.

A further kind of document that holds images needs its ending in `SUFFIXES` and a case of its own in
`ImageSource.holds_images`, `ImageSource.parts` and `ImageSource.read`, which know PDFs only so far.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from images.folders import IMAGE_SUFFIXES
from images.pdf import LEAST_SIDE, find_figures, read_figure
from images.read import read_image
from runtime.errors import InputError

SUFFIXES = IMAGE_SUFFIXES | {".pdf"}


@dataclass(frozen=True)
class ImageSource:
    """One image: a file, or a figure of a PDF. A PDF without a figure stands for all the figures in it."""

    path: str  # absolute
    page: int | None = None  # of a PDF, from 1
    figure: int | None = None  # on its page, from 1
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom on the page, in points

    @property
    def key(self) -> tuple[str, int, int]:
        """Path, page and figure (0 where there is none): what tells images apart, and their order."""
        return self.path, self.page or 0, self.figure or 0

    @property
    def place(self) -> dict[str, Any]:
        """Page, figure and box, as far as there are any."""
        place = {"page": self.page, "figure": self.figure, "box": self.box}
        return {name: value for name, value in place.items() if value is not None}

    @property
    def holds_images(self) -> bool:
        """Whether this is a file that holds images (`parts`), and no image itself."""
        return self.page is None and self.path.lower().endswith(".pdf")

    def parts(self) -> list["ImageSource"]:
        """The images that this file holds.

        Raises:
            InputError: the file cannot be read, or holds no image that is large enough.
        """
        figures = find_figures(Path(self.path))
        if not figures:
            raise InputError(f"the PDF holds no image of at least {LEAST_SIDE} x {LEAST_SIDE} pixels")
        return [ImageSource(self.path, f.page, f.figure, f.box) for f in figures]

    def read(self, max_megapixels: float) -> np.ndarray:
        """Pixels (H, W, 3) uint8 RGB.

        Raises:
            InputError: the file cannot be read, or its image is larger than `max_megapixels`.
        """
        if not os.path.isfile(self.path):  # reading from a pipe or a device may never end
            raise InputError(f"cannot read {self.path}: it is gone, or not a regular file")
        if self.page is None:
            return read_image(Path(self.path), max_megapixels)
        return read_figure(Path(self.path), self.page, self.figure, max_megapixels)


def find_inputs(paths: Sequence[Path], out: Path) -> list[str]:
    """Absolute paths of all images and PDFs, sorted, each once.

    Args:
        paths: files (taken whatever their name), folders (searched recursively, links to folders not followed), or
            patterns with `*`, `?`, `[...]` and `**`.
        out: folder whose content is never an input.
    Raises:
        FileNotFoundError: a path does not exist or a pattern matches nothing.
        InputError: there is no image at all.
    """
    if not paths:
        raise InputError("no PATH was given; give images, folders, globs or PDFs")
    found: set[str] = set()
    for path in paths:
        given = [str(path)] if os.path.lexists(path) else _matches(path)
        if not given:
            raise FileNotFoundError(f"{path} does not exist and matches nothing; give images, folders, globs or PDFs")
        for item in given:
            if os.path.isdir(item):
                found.update(_files_below(item))
            else:
                found.add(os.path.abspath(item))
    inside = os.path.join(os.path.abspath(out), "")
    found = {path for path in found if not path.startswith(inside)}
    if not found:
        raise InputError(
            f"no image under {', '.join(map(str, paths))}; looked for files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found)


def _matches(pattern: Path) -> list[str]:
    """What a pattern matches. Links to folders are not followed, so that a loop of links ends."""
    if not glob.has_magic(str(pattern)):
        return []
    root = Path(pattern.anchor) if pattern.anchor else Path()
    return [str(match) for match in root.glob(str(pattern.relative_to(pattern.anchor)))]


def _files_below(folder: str) -> Iterator[str]:
    def refuse(fault: OSError) -> None:
        raise fault  # os.walk would silently leave out a folder that it cannot list

    for parent, _, files in os.walk(folder, onerror=refuse):
        for file in files:
            path = os.path.join(parent, file)
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".") and os.path.isfile(path):
                yield os.path.abspath(path)
