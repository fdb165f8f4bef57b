"""Find and draw the figures of a PDF with PDFium; runs in a process of its own, see guarded.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
import pypdfium2.raw as raw

from images.not_examined import LOCKED, over_limit
from images.pdf import MAX_FIGURES, Contents, Figure, Omission, figure_from
from images.pdf_figures import figures_of, furniture_of, without_others
from images.pdf_page import DEEPEST, MAX_OBJECTS, Page, inactive, scaled
from images.pdf_survey import PageSurvey, as_shown, images_of, own_pixels, raster_of, survey
from images.text_images import is_text
from runtime.errors import InputError


class Locked(InputError):
    """A PDF that cannot be read without its password."""


GLIMPSE = 4_000_000  # pixels of the drawing in which it is found whether an image is one of text


def contents_of(path: Path, before_page: Callable[[], None] = lambda: None) -> Contents:
    """What a PDF holds; `before_page` is called before each page.

    Raises:
        InputError: the file is damaged, or holds too many figures.
    """
    try:
        return _survey_all(path, before_page)
    except Locked:
        return Contents([], [Omission(None, "file", LOCKED)])


def _survey_all(path: Path, before_page: Callable[[], None]) -> Contents:
    pages: list[PageSurvey] = []
    with _document(path) as document:
        for number in range(len(document)):
            before_page()
            page = document[number]
            try:
                pages.append(survey(Page(page)))
            finally:
                page.close()
        return _contents(path, document, pages)


def _contents(path: Path, document: pypdfium2.PdfDocument, pages: list[PageSurvey]) -> Contents:
    figures, omissions = [], []
    furniture, repeated = furniture_of(pages)
    for number, page in enumerate(pages):
        found, left_out = figures_of(page, number + 1, {k for at, k in furniture if at == number})
        if page.too_deep:
            left_out.append(
                Omission(
                    number + 1,
                    "objects within many forms",
                    over_limit(f"{DEEPEST} nested forms or {MAX_OBJECTS} objects"),
                )
            )
        figures += found
        omissions += left_out
        if len(figures) > MAX_FIGURES:
            raise InputError(f"{path} holds more than {MAX_FIGURES} figures; split it into smaller files")
    figures, others = without_others(figures, lambda figure: is_text(_glimpse(document, figure)))
    return Contents(figures, [*omissions, *others, *repeated])


def _glimpse(document: pypdfium2.PdfDocument, figure: Figure) -> np.ndarray:
    """A figure at its own resolution, or at a coarser one if it is large."""
    size = figure.view.width * figure.view.height
    return Page(document[figure.page - 1]).draw(scaled(figure.view, min(1.0, (GLIMPSE / size) ** 0.5)))


def pixels_of(
    path: Path, figure: Figure, max_megapixels: float, before_page: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of one figure of `contents_of`.

    Raises:
        InputError: there is no such figure, it is larger than `max_megapixels`, or as `contents_of` does.
    """
    with _document(path) as document:
        before_page()
        if not 1 <= figure.page <= len(document):
            raise InputError(f"{path} has no page {figure.page}; was it changed during the run?")
        page = Page(document[figure.page - 1])
        if figure.view is None:
            return _own_pixels(path, page, figure, max_megapixels)
        view = figure.view
        if view.width * view.height > max_megapixels * 1e6:
            if figure.own_grid:
                raise _too_large(path, view.width, view.height, max_megapixels)
            return page.draw(scaled(view, (max_megapixels * 1e6 / (view.width * view.height)) ** 0.5))
        pixels = page.draw(view)
        with images_of(page) as (_, images, _):
            patches = [patch for patch in figure.patches if patch.image < len(images)]
            for patch in patches:
                # The neighbours reach into its outermost pixels.
                with inactive([images[other.image].handle for other in patches if other is not patch]):
                    rows, columns = (
                        slice(patch.row, patch.row + patch.view.height),
                        slice(patch.column, patch.column + patch.view.width),
                    )
                    pixels[rows, columns] = page.draw(patch.view)
        return pixels


def _own_pixels(path: Path, page: Page, figure: Figure, max_megapixels: float) -> np.ndarray:
    """An image as it lies in the file, turned as it would be shown."""
    with images_of(page) as (_, images, _):
        if figure.image is None or not 0 <= figure.image < len(images):
            raise InputError(
                f"{path} has no image {figure.image} on page {figure.page}; was it changed during the run?"
            )
        raster = raster_of(images[figure.image], figure.image, page.box)
        if raster is None or raster.width * raster.height > max_megapixels * 1e6:
            raise _too_large(path, raster.width if raster else 0, raster.height if raster else 0, max_megapixels)
        return as_shown(own_pixels(images[figure.image].handle), raster)


def _too_large(path: Path, width: int, height: int, max_megapixels: float) -> InputError:
    return InputError(
        f"an image in {path} has {width} x {height} pixels, more than {max_megapixels:g} megapixels; "
        "raise --max-megapixels"
    )


@contextmanager
def _document(path: Path) -> Iterator[pypdfium2.PdfDocument]:
    try:
        with pypdfium2.PdfDocument(path) as document:
            yield document
    except pypdfium2.PdfiumError as fault:
        if getattr(fault, "err_code", None) == raw.FPDF_ERR_PASSWORD:
            raise Locked(f"cannot read {path}: it is locked; save it without its password") from None
        raise InputError(f"cannot read {path}: {fault}") from None


def answer(path: Path, question: list[Any], grant_time: Callable[[], None]) -> Any:
    """Answer a question of pdf.py in a guarded process."""
    if question[0] == "contents":
        return asdict(contents_of(path, grant_time))
    _, figure, max_megapixels = question
    return pixels_of(path, figure_from(figure), max_megapixels, grant_time)
