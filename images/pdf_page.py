"""One page of a PDF as it is shown: where its objects stand, and the page drawn at any scale with PDFium.

Positions are in points from the upper left corner of the page as a reader sees it: cropped and turned. `Matrix` is an
affine map (3, 3) float64 of column vectors (x, y, 1).
"""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pypdfium2
import pypdfium2.raw as raw

from images.pdf import Box, View

Matrix = np.ndarray

DEEPEST = 36  # forms within forms that are followed; PDFium itself draws no deeper than 40
MAX_OBJECTS = 300_000  # of one page
INSET = 0.02  # pixels by which an image is drawn smaller than its own grid: rounding must not touch the next pixel
CLIP = 0.1  # pixels by which the edge of the page may reach into a pixel that is not drawn
WHITE = 0xFFFFFFFF


@dataclass(frozen=True)
class PlacedObject:
    """A page object that is not a form, and where it stands."""

    handle: ctypes.c_void_p
    type: int  # FPDF_PAGEOBJ_...
    to_shown: Matrix  # from the coordinates of its container to the shown page
    box: Box  # around it on the shown page, as far as the page reaches or beyond it


class Page:
    """A page, its size in points as it is shown, and its objects."""

    def __init__(self, page: pypdfium2.PdfPage) -> None:
        self.page = page
        self.width, self.height = page.get_size()
        self.box: Box = (0.0, 0.0, self.width, self.height)
        self.to_shown = (
            np.linalg.inv(self._to_page(1000, 1000)) * np.array([[self.width], [self.height], [1000]]) / 1000
        )
        self.counted = 0  # objects so far
        self.too_deep = False  # whether forms were nested deeper than is followed

    def _to_page(self, width: int, height: int) -> Matrix:
        """From a bitmap of this size, which the page fills, to the page's own coordinates."""
        corners = []
        for column, row in ((0, 0), (width, 0), (0, height)):
            x, y = ctypes.c_double(), ctypes.c_double()
            raw.FPDF_DeviceToPage(self.page, 0, 0, width, height, 0, column, row, x, y)
            corners.append((x.value, y.value))
        (x0, y0), (x1, y1), (x2, y2) = corners
        return np.array(
            [[(x1 - x0) / width, (x2 - x0) / height, x0], [(y1 - y0) / width, (y2 - y0) / height, y0], [0, 0, 1]]
        )

    def objects(self) -> Iterator[PlacedObject]:
        """All objects in the order in which they are drawn; those in forms, too."""
        return self.objects_of(
            raw.FPDFPage_CountObjects(self.page), lambda number: raw.FPDFPage_GetObject(self.page, number)
        )

    def objects_of(
        self,
        total: int,
        get: Callable[[int], ctypes.c_void_p],
        to_shown: Matrix | None = None,  # that of the page
        depth: int = 0,
    ) -> Iterator[PlacedObject]:
        """All of `total` objects that `get(number)` gives, and those in them."""
        to_shown = self.to_shown if to_shown is None else to_shown
        for number in range(total):
            handle = get(number)
            self.counted += 1
            if self.counted > MAX_OBJECTS or depth > DEEPEST:
                self.too_deep = True
                return
            type = raw.FPDFPageObj_GetType(handle)
            if type == raw.FPDF_PAGEOBJ_FORM:
                inside = max(raw.FPDFFormObj_CountObjects(handle), 0)
                yield from self.objects_of(
                    inside, partial(raw.FPDFFormObj_GetObject, handle), to_shown @ matrix_of(handle), depth + 1
                )
            else:
                box = around(to_shown, bounds_of(handle))
                if np.isfinite(box).all():
                    yield PlacedObject(handle, type, to_shown, box)

    def draw(self, view: View, background: int = WHITE, annotations: bool = True) -> np.ndarray:
        """The page in a view: (H, W, 3) uint8 RGB. What lies outside of the page is of the background's colour.

        Args:
            background: 0xAARRGGBB.
        """
        pixels = np.empty((view.height, view.width, 3), np.uint8)
        bitmap = raw.FPDFBitmap_CreateEx(
            view.width, view.height, raw.FPDFBitmap_BGR, pixels.ctypes.data_as(ctypes.c_void_p), 3 * view.width
        )
        try:
            raw.FPDFBitmap_FillRect(bitmap, 0, 0, view.width, view.height, background)
            # PDFium first shows the page on a bitmap of its size in whole points, and then maps that.
            size = max(int(self.width), 1), max(int(self.height), 1)
            wanted = view_matrix(view) @ self.to_shown @ self._to_page(*size)
            matrix = raw.FS_MATRIX(*wanted[:2].T.ravel().tolist())
            left, top, right, bottom = map_box(view, self.box)
            clip = raw.FS_RECTF(
                max(math.floor(left + CLIP), 0),
                max(math.floor(top + CLIP), 0),
                min(math.ceil(right - CLIP), view.width),
                min(math.ceil(bottom - CLIP), view.height),
            )
            flags = raw.FPDF_REVERSE_BYTE_ORDER | (raw.FPDF_ANNOT if annotations else 0)
            raw.FPDF_RenderPageBitmapWithMatrix(bitmap, self.page, matrix, clip, flags)
        finally:
            raw.FPDFBitmap_Destroy(bitmap)
        return pixels


def view_matrix(view: View) -> Matrix:
    """From the shown page to the pixels of a view."""
    return np.array([[view.scale_x, 0, view.shift_x], [0, view.scale_y, view.shift_y], [0, 0, 1]])


def map_box(view: View, box: Box) -> Box:
    """A box of the shown page in the pixels of a view."""
    return (
        view.scale_x * box[0] + view.shift_x,
        view.scale_y * box[1] + view.shift_y,
        view.scale_x * box[2] + view.shift_x,
        view.scale_y * box[3] + view.shift_y,
    )


def unmap_box(view: View, box: Box) -> Box:
    """A box of pixels of a view on the shown page."""
    return (
        (box[0] - view.shift_x) / view.scale_x,
        (box[1] - view.shift_y) / view.scale_y,
        (box[2] - view.shift_x) / view.scale_x,
        (box[3] - view.shift_y) / view.scale_y,
    )


def view_of(box: Box, scale_x: float, scale_y: float | None = None) -> View:
    """The view of a box of the page at so many pixels per point."""
    scale_y = scale_y or scale_x
    width, height = round((box[2] - box[0]) * scale_x), round((box[3] - box[1]) * scale_y)
    return View(scale_x, -box[0] * scale_x, scale_y, -box[1] * scale_y, max(width, 1), max(height, 1))


def scaled(view: View, factor: float) -> View:
    """A view made coarser: `factor` times as wide and high."""
    if factor == 1:
        return view
    width, height = max(round(view.width * factor), 1), max(round(view.height * factor), 1)
    x, y = width / view.width, height / view.height
    return View(view.scale_x * x, view.shift_x * x, view.scale_y * y, view.shift_y * y, width, height)


def cut(view: View, box: Sequence[int]) -> View:
    """The part of a view within a box of its pixels."""
    left, top, right, bottom = box
    return View(view.scale_x, view.shift_x - left, view.scale_y, view.shift_y - top, right - left, bottom - top)


def common(a: Box, b: Box) -> Box | None:
    """What two boxes share, or None."""
    box = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return box if box[0] < box[2] and box[1] < box[3] else None


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def matrix_of(handle: ctypes.c_void_p) -> Matrix:
    """The matrix of an image or a form: from its own coordinates to those of its container."""
    found = raw.FS_MATRIX()
    if not raw.FPDFPageObj_GetMatrix(handle, found):
        return np.eye(3)
    return np.array([[found.a, found.c, found.e], [found.b, found.d, found.f], [0, 0, 1]])


def bounds_of(handle: ctypes.c_void_p) -> Box:
    """The box around an object, (left, bottom, right, top) in the coordinates of its container."""
    values = [ctypes.c_float() for _ in range(4)]
    if not raw.FPDFPageObj_GetBounds(handle, *values):
        return 0.0, 0.0, 0.0, 0.0
    return tuple(value.value for value in values)


def around(matrix: Matrix, box: Sequence[float]) -> Box:
    """The box around a mapped box."""
    a, b, c, d = box
    xs, ys, _ = matrix @ np.array([[a, c, c, a], [b, b, d, d], [1, 1, 1, 1]])
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


@contextmanager
def inactive(handles: Sequence[ctypes.c_void_p]) -> Iterator[None]:
    """Inside, the page is drawn without these objects."""
    for handle in handles:
        raw.FPDFPageObj_SetIsActive(handle, False)
    try:
        yield
    finally:
        for handle in handles:
            raw.FPDFPageObj_SetIsActive(handle, True)
