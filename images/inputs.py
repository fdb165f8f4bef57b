"""What a user gives to be examined: files, folders, patterns and documents become images, each with where it came from.

A further kind of document that holds images needs its ending in `SUFFIXES` and a case of its own in
`ImageSource.holds_images`, `ImageSource.parts` and `ImageSource.read`.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import MAX_PAGES
from images.depth import Intensity
from images.documents import DOCUMENT_SUFFIXES, document_contents, document_pixels
from images.frames import READ_SUFFIXES, UNSUPPORTED, frames_of
from images.not_examined import NotExamined
from images.pdf import LEAST_SIDE, Figure, read_contents, read_figure
from images.read import read_with_intensity
from runtime.errors import InputError
from runtime.records import in_order

SUFFIXES = READ_SUFFIXES | UNSUPPORTED.keys() | DOCUMENT_SUFFIXES | {".pdf"}


@dataclass(frozen=True)
class ImageSource:
    """One image: a file, or an image in a file that holds several. A file of these stands for all images in it.

    `part` tells images of one file apart where page and figure do not: two of them never have all three in common.
    """

    path: str  # absolute
    page: int | None = None  # of a document, from 1
    figure: int | None = None  # on its page, from 1
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom on the page, in points
    label: str | None = None  # as the document calls it: "Figure 3"
    caption: str | None = None  # the first words of the caption, or the name of a channel
    part: str | None = None  # which one it is: "channel 1 of 5", "page 2 of 3", or the name of an archive's member
    hidden: bool = False  # lies in the file, but is not shown to a reader
    frame: int | None = None  # which image of an image file, from 1; None: all that it holds
    drawing: Figure | None = field(default=None, repr=False, compare=False)  # how a figure of a PDF is drawn
    way: dict[str, Any] | None = field(default=None, repr=False, compare=False)  # to an image in a document

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What tells images apart, and their order: path, part, page and figure; as `report.lines.key_of`."""
        return self.path, in_order(self.part or ""), self.page or 0, self.figure or 0, ""

    @property
    def place(self) -> dict[str, Any]:
        """What is known of where the image comes from, beside its path, as far as there is any."""
        names = ("part", "page", "figure", "box", "label", "caption", "hidden")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, False)}

    @property
    def holds_images(self) -> bool:
        """Whether this is a file that holds images (`parts`), and no image itself."""
        return self.drawing is None and self.way is None and self.frame is None

    def parts(self, max_pages: int = MAX_PAGES) -> "Parts":
        """The images that this file holds, and what in it is not examined.

        Args:
            max_pages: most pages, channels and planes of an image file; the others are told as not examined.
        Raises:
            InputError: the file cannot be read, or holds nothing at all.
        """
        check_regular(self.path)
        suffix = os.path.splitext(self.path)[1].lower()
        if suffix in DOCUMENT_SUFFIXES:
            return self._parts_of_document(max_pages)
        if suffix != ".pdf":
            frames, left_out = frames_of(Path(self.path), max_pages)
            images = [ImageSource(self.path, part=f.part, caption=f.caption, frame=f.number) for f in frames]
            return Parts(images, left_out)
        contents = read_contents(Path(self.path))
        if not contents.figures and not contents.omissions:
            raise InputError(f"the PDF holds no image of at least {LEAST_SIDE} x {LEAST_SIDE} pixels")
        figures = [
            ImageSource(self.path, f.page, f.figure, f.box, f.label, f.caption, hidden=f.hidden, drawing=f)
            for f in contents.figures
        ]
        return Parts(figures, [NotExamined(self.path, o.page, o.what, o.reason, o.count) for o in contents.omissions])

    def _parts_of_document(self, max_pages: int) -> "Parts":
        images, left_out = document_contents(Path(self.path), max_pages)
        if not images and not left_out:
            raise InputError(f"cannot examine {self.path}: it holds no images")
        return Parts(
            [ImageSource(self.path, **fields) for fields in images],
            [NotExamined(self.path, **fields) for fields in left_out],
        )

    def read(self, max_megapixels: float) -> np.ndarray:
        """Pixels (H, W, 3) uint8 RGB; raises InputError as `read_with_intensity`."""
        return self.read_with_intensity(max_megapixels)[0]

    def read_with_intensity(self, max_megapixels: float) -> tuple[np.ndarray, Intensity | None]:
        """Pixels (H, W, 3) uint8 RGB, and how the values of an image of more than 8 bits became these.

        Raises:
            InputError: the file cannot be read, or its image is larger than `max_megapixels`.
        """
        check_regular(self.path)
        if self.way is not None:
            return document_pixels(Path(self.path), self.way, max_megapixels)
        if self.drawing is None:
            return read_with_intensity(Path(self.path), max_megapixels, self.frame or 1)
        return read_figure(Path(self.path), self.drawing, max_megapixels), None


@dataclass(frozen=True)
class Parts:
    """What a file holds."""

    images: list[ImageSource]
    not_examined: list[NotExamined] = field(default_factory=list)


def check_regular(path: str) -> None:
    """Raise InputError where a path is no regular file: reading from a pipe or a device may never end."""
    if not os.path.isfile(path):
        raise InputError(f"cannot read {path}: it is gone, or not a regular file")


def find_inputs(paths: Sequence[Path], out: Path) -> list[str]:
    """Absolute paths of all images and documents, sorted, each once.

    Args:
        paths: files (taken whatever their name), folders (searched recursively, links to folders not followed), or
            patterns with `*`, `?`, `[...]` and `**`.
        out: folder whose content is never an input.
    Raises:
        FileNotFoundError: a path does not exist or a pattern matches nothing.
        InputError: there is no image at all.
    """
    if not paths:
        raise InputError("no PATH was given; give images, folders, patterns or documents")
    found: set[str] = set()
    for path in paths:
        given = [str(path)] if os.path.lexists(path) else _matches(path)
        if not given:
            raise FileNotFoundError(
                f"{path} does not exist and matches nothing; give images, folders, patterns or documents"
            )
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
