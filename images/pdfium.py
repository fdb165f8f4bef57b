"""Find and draw the figures of a PDF with PDFium; the program that pdf.py starts in a process of its own."""

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pypdfium2
import pypdfium2.raw as raw

from images.pdf import LEAST_SIDE, MAX_FIGURES, Box, Figure, Limits
from runtime.errors import InputError

GAP = 6.0  # images that are nearer to each other are one figure, in points
MAX_DPI = 600.0  # finest resolution at which a figure of several images is drawn
POINTS_PER_INCH = 72.0
STEPS = 16  # positions on a page are taken from PDFium in sixteenths of a point


@dataclass(frozen=True)
class PlacedImage:
    """A raster image of a page."""

    image: pypdfium2.PdfImage
    box: Box  # where it stands, as `Figure.box`
    width: int  # its own pixels
    height: int

    @property
    def resolution(self) -> float:
        """Pixels per point along the longer side."""
        return max(self.width, self.height) / max(self.box[2] - self.box[0], self.box[3] - self.box[1])


def figures_of(path: Path, before_page: Callable[[], None] = lambda: None) -> list[Figure]:
    """Figures of all pages, in reading order; `before_page` is called before each page.

    Raises:
        InputError: the file is damaged or locked, or holds too many figures.
    """
    found: list[Figure] = []
    with _document(path) as document:
        for number in range(1, len(document) + 1):
            before_page()
            boxes = [_union(group) for group in _figure_groups(document[number - 1])]
            found += [Figure(number, k, box) for k, box in enumerate(boxes, 1)]
            if len(found) > MAX_FIGURES:
                raise InputError(f"{path} holds more than {MAX_FIGURES} figures; split it into smaller files")
    return found


def pixels_of(
    path: Path, page: int, figure: int, max_megapixels: float, before_page: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of one figure of `figures_of`.

    Raises:
        InputError: there is no such figure, it is larger than `max_megapixels`, or as `figures_of` does.
    """
    with _document(path) as document:
        before_page()
        groups = _figure_groups(document[page - 1]) if 1 <= page <= len(document) else []
        if not 1 <= figure <= len(groups):
            raise InputError(f"{path} has no figure {figure} on page {page}; was it changed during the run?")
        group = groups[figure - 1]
        if len(group) == 1:
            return _own_pixels(path, group[0], max_megapixels)
        return _drawn_pixels(document[page - 1], group, max_megapixels)


@contextmanager
def _document(path: Path) -> Iterator[pypdfium2.PdfDocument]:
    try:
        with pypdfium2.PdfDocument(path) as document:
            yield document
    except pypdfium2.PdfiumError as fault:
        raise InputError(f"cannot read {path}: {fault}; a locked PDF must be saved without its password") from None


def _figure_groups(page: pypdfium2.PdfPage) -> list[list[PlacedImage]]:
    """The images of a page, grouped by figure, from top to bottom and from left to right."""
    groups: list[list[PlacedImage]] = []
    for placed in _images(page):
        near = [group for group in groups if any(_near(placed.box, other.box) for other in group)]
        groups = [group for group in groups if group not in near] + [[placed, *(p for group in near for p in group)]]
    large = [group for group in groups if _is_large(group)]
    return sorted(large, key=lambda group: (_union(group)[1], _union(group)[0]))


def _images(page: pypdfium2.PdfPage) -> Iterator[PlacedImage]:
    for image in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]):
        width, height = image.get_px_size()
        box = _shown_box(page, image)
        if min(width, height) > 1 and box[2] > box[0] and box[3] > box[1]:
            yield PlacedImage(image, box, width, height)


def _shown_box(page: pypdfium2.PdfPage, image: pypdfium2.PdfImage) -> Box:
    """Where an image stands on the page as it is shown (rotated and cropped), without the part outside of the page."""
    left, bottom, right, top = image.get_bounds()
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
    form = image.container
    while form is not None:  # an image within a form is placed in the form's coordinates
        corners = [form.get_matrix().on_point(x, y) for x, y in corners]
        form = form.container
    width, height = page.get_size()
    size = round(width * STEPS), round(height * STEPS)
    shown = []
    for x, y in corners:
        column, row = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, 0, 0, *size, 0, x, y, column, row)
        shown.append((column.value / STEPS, row.value / STEPS))
    xs, ys = zip(*shown, strict=True)
    return max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), width), min(max(ys), height)


def _near(a: Box, b: Box) -> bool:
    return a[0] - GAP < b[2] and b[0] - GAP < a[2] and a[1] - GAP < b[3] and b[1] - GAP < a[3]


def _union(group: list[PlacedImage]) -> Box:
    """The smallest box around all images of a group."""
    lefts, tops, rights, bottoms = zip(*(placed.box for placed in group), strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _is_large(group: list[PlacedImage]) -> bool:
    """Whether a figure is at least `LEAST_SIDE` pixels wide and high at its own resolution."""
    left, top, right, bottom = _union(group)
    return min(right - left, bottom - top) * _finest(group) >= LEAST_SIDE


def _finest(group: list[PlacedImage]) -> float:
    """Pixels per point of the finest image."""
    return max(placed.resolution for placed in group)


def _own_pixels(path: Path, placed: PlacedImage, max_megapixels: float) -> np.ndarray:
    if placed.width * placed.height > max_megapixels * 1e6:
        raise InputError(
            f"an image in {path} has {placed.width} x {placed.height} pixels, more than {max_megapixels:g} megapixels; "
            "raise --max-megapixels"
        )
    return _to_rgb(placed.image.get_bitmap(render=False))


def _drawn_pixels(page: pypdfium2.PdfPage, group: list[PlacedImage], max_megapixels: float) -> np.ndarray:
    left, top, right, bottom = _union(group)
    area = (right - left) * (bottom - top)
    scale = min(_finest(group), MAX_DPI / POINTS_PER_INCH, (max_megapixels * 1e6 / area) ** 0.5)
    width, height = page.get_size()
    return _to_rgb(page.render(scale=scale, crop=(left, height - bottom, width - right, top)))


def _to_rgb(bitmap: pypdfium2.PdfBitmap) -> np.ndarray:
    pixels = bitmap.to_numpy()
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])  # from BGR, BGRx or BGRA


# The program ------------------------------------------------------------------------------------------------------


def answer(question: list[str]) -> None:
    """Answer one question of `pdf._ask`: on stdout, or why there is no answer on stderr and a status that is not 0."""
    limits, kind, path, *where = question
    allowed = Limits(**json.loads(limits))
    try:
        _answer(allowed, kind, Path(path), where)
    except MemoryError:
        sys.exit(f"cannot read {path}: it needs more than {allowed.memory >> 30} GiB of memory")
    except InputError as refusal:
        sys.stderr.buffer.write(os.fsencode(str(refusal)))  # the path may hold bytes that are not UTF-8
        sys.exit(1)
    except Exception as fault:  # what PDFium passes on of a damaged file may be anything, such as a size of zero
        sys.exit(f"cannot read {path}: {type(fault).__name__}: {' '.join(str(fault).split())}")


def _answer(limits: Limits, kind: str, path: Path, where: list[str]) -> None:
    """Write a line of JSON, and after it the pixels where they were asked for."""

    def grant_time() -> None:
        """Allow the processor time of one more page."""
        soft = min(int(time.process_time()) + limits.page_seconds + 1, limits.total_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, limits.total_seconds))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    grant_time()
    if kind == "figures":
        print(json.dumps([astuple(figure) for figure in figures_of(path, grant_time)]))
        return
    page, figure, max_megapixels = where
    pixels = pixels_of(path, int(page), int(figure), float(max_megapixels), grant_time)
    print(json.dumps(pixels.shape), flush=True)
    sys.stdout.buffer.write(np.ascontiguousarray(pixels).data)
