"""Figures out of PDF files: where they stand, what they are called, and their pixels as a reader sees them.

A figure is what is shown on the page: turned, cropped, clipped, masked and covered as it is there. Where a figure is
one raster image, upright or turned by right angles, the page is drawn on the image's own grid of pixels: every pixel
that is shown is then the image's own, to the bit. Images that belong together (the panels of one figure, or strips
into which a program cut an image) are one figure, drawn at the resolution of the finest of them; so are figures that
mix images and lines, at 300 dpi at least.

What a file holds but does not show (under a white rectangle, outside of a clip, in a hidden layer, off the page) is
a figure of its own, named hidden. What is not examined (line art, page furniture, small images) is an `Omission`.

PDFium, which does the work in pdfium.py, is a large library, and PDFs come from strangers: a file of 1 KB can ask for
hours of work (forms drawn within forms), one of 2 MB for many GB of memory (packed page contents). It therefore runs
in a process of its own (guarded.py), with limits on time and memory.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from images.guarded import Limits, ask

READER = "images.pdfium"
LEAST_SIDE = 64  # smaller images (icons, logos, rules) are not figures, in pixels
MAX_FIGURES = 5000  # in one file

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class View:
    """How the points of a page become pixels: x' = scale_x * x + shift_x, and y' alike."""

    scale_x: float  # pixels per point
    shift_x: float
    scale_y: float
    shift_y: float
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class Patch:
    """An image of a figure that is drawn on its own grid of pixels, without the other images."""

    image: int  # counted as `Figure.image`
    view: View
    column: int  # where it is put
    row: int


@dataclass(frozen=True)
class Figure:
    """One figure of a PDF, and how its pixels are made."""

    page: int  # from 1
    figure: int  # on its page, from 1, from top to bottom; hidden ones behind the others
    box: Box  # in points (1/72 inch) from the upper left corner of the page as it is shown
    label: str | None = None  # as "Figure 3"
    caption: str | None = None  # its first words
    hidden: bool = False  # whether it holds what is in the file but not shown
    view: View | None = None  # in which the page is drawn
    patches: list["Patch"] = field(default_factory=list)  # its images that are drawn one by one
    own_grid: bool = False  # whether that is the grid of one image, which is never drawn coarser
    image: int | None = None  # instead: the image whose own pixels it is, counted as `pdf_survey.images_of` does


@dataclass(frozen=True)
class Omission:
    """What a page, or the file (page None), holds and what is not examined."""

    page: int | None
    what: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Contents:
    """What a PDF holds."""

    figures: list[Figure]  # in reading order
    omissions: list[Omission]


LIMITS = Limits()


def read_contents(path: Path) -> Contents:
    """The figures of all pages, and what is not examined.

    Raises:
        InputError: the file is damaged or locked, or takes more time, memory or figures than is allowed.
    """
    answer = ask(READER, path, ["contents"], LIMITS)
    figures = [figure_from(values) for values in answer["figures"]]
    return Contents(figures, [Omission(**values) for values in answer["omissions"]])


def read_figure(path: Path, figure: Figure, max_megapixels: float = 200.0) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of one figure of `read_contents`.

    Raises:
        InputError: there is no such figure, it is larger than `max_megapixels`, or as `read_contents` does.
    """
    return ask(READER, path, ["pixels", asdict(figure), max_megapixels], LIMITS)


def figure_from(values: dict[str, Any]) -> Figure:
    """A figure from its JSON."""
    view = None if values["view"] is None else View(**values["view"])
    patches = [Patch(**patch | {"view": View(**patch["view"])}) for patch in values["patches"]]
    return Figure(**values | {"box": tuple(values["box"]), "view": view, "patches": patches})
