"""What one page of a PDF holds, as plain data: its raster images and what is seen of them, its lines, its text.

Whether an image is seen is found by drawing: the page is drawn with the image and without it, and what differs is
what a reader sees of the image. That holds for clips, masks, layers, covers and whatever else PDFium knows.
"""

import ctypes
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pypdfium2
import pypdfium2.raw as raw

from images.pdf import Box, View
from images.pdf_captions import Line, read_lines
from images.pdf_page import (
    INSET,
    Matrix,
    Page,
    PlacedObject,
    around,
    common,
    inactive,
    matrix_of,
    scaled,
    union,
    unmap_box,
    view_matrix,
    view_of,
)
from runtime.errors import InputError

MAX_SEEN = 64  # images of a page that are looked for one by one; further ones count as seen where they stand
PROBE = 1_000_000  # pixels of the drawings by which it is found what is seen
MAX_HIDDEN_PIXELS = 64_000_000  # images beyond this are not compared with what is shown of them
BACKGROUND = 0xFFFF00FE  # a colour that no image has; white would make white parts of images unseen
DIFFERENT = 24  # grey levels from which what is shown is something else than the image
HIDDEN_SHARE = 0.03  # of an image that is hidden, from which that is examined
HIDDEN_SIDE = 16  # pixels, the side of a square that fits into what is hidden
CONTENT = 3.0  # standard deviation of grey levels from which something is content
PATTERN_COLOUR = (191, 191, 191)  # by which PDFium tells of a coloured pattern
PATTERN_DPI = 300.0
PATTERN_COLOURS = 16  # colours from which a pattern holds an image
LEAST_PATTERN = 36.0  # points, the side of an area with a pattern
LEAST_POINTS = 0.5  # points, the side of an image
LEAST_SEEN = 16  # pixels from which something is seen
MAX_DATA = 256 << 20  # bytes of an image that are compared with others
MAX_PATTERNS = 8  # of a page that are looked at
NUDGE = 0.05  # pixels
RIGHT_ANGLE = 1e-3  # tangent of an angle that counts as none


@dataclass(frozen=True)
class Raster:
    """A raster image of a page."""

    index: int | None  # among `images_of` the page; None for what is painted with a pattern
    width: int  # its own pixels
    height: int
    matrix: tuple[float, ...]  # from its own pixels to the shown page: the six numbers of the upper two rows
    box: Box  # where it stands, perhaps beyond the page
    shown: Box | None  # the part of it that is seen; None where nothing is
    whole: bool  # whether all of it is seen
    hides: bool  # whether there is content in it that is not seen
    digest: str  # of its data, the same for the same image

    @property
    def upright(self) -> bool:
        """Whether its rows and columns run along those of the page, perhaps exchanged or mirrored."""
        a, b, _, c, d, _ = self.matrix
        straight = abs(b) + abs(c) <= RIGHT_ANGLE * (abs(a) + abs(d))
        return straight or abs(a) + abs(d) <= RIGHT_ANGLE * (abs(b) + abs(c))

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows as it is shown, if it is upright."""
        turned = abs(self.matrix[1]) > abs(self.matrix[0])
        return (self.height, self.width) if turned else (self.width, self.height)

    @property
    def resolution(self) -> tuple[float, float]:
        """Pixels per point along x and along y of the page; if it is not upright, the finer one for both."""
        if self.upright:
            columns, rows = self.shape
            return columns / (self.box[2] - self.box[0]), rows / (self.box[3] - self.box[1])
        a, b, _, c, d, _ = self.matrix
        finer = 1 / min(np.hypot(a, c), np.hypot(b, d))
        return finer, finer

    def view(self) -> View:
        """The page on the grid of this image, if it is upright."""
        columns, rows = self.shape
        left, top, right, bottom = self.box
        scale_x, scale_y = (columns - 2 * INSET) / (right - left), (rows - 2 * INSET) / (bottom - top)
        return View(scale_x, INSET - left * scale_x, scale_y, INSET - top * scale_y, columns, rows)


@dataclass(frozen=True)
class PageSurvey:
    """What a page holds."""

    width: float  # points
    height: float
    rasters: list[Raster]
    paths: np.ndarray  # (N, 4) float32 boxes of lines and areas
    drawn: np.ndarray  # (N,) bool: curves and slanted lines, which drawings have and tables have not
    lines: list[Line]
    too_deep: bool  # whether forms were nested deeper than is followed


def survey(page: Page) -> PageSurvey:
    """What a page holds."""
    with images_of(page) as (objects, images, of_page):
        rasters, groups = [], _same_place(images)
        for index, placed in enumerate(images):
            raster = raster_of(placed, index, page.box)
            if raster is not None and groups[index][0] == index:  # of images drawn twice the first one counts
                same = [images[k].handle for k in groups[index]] if index < of_page else None
                rasters.append(_look(page, placed, raster, same) if len(rasters) < MAX_SEEN else raster)
        rasters += _patterns(page, objects)
        boxes, drawn = _paths(objects)
        lines = read_lines(page.page, objects)
    return PageSurvey(page.width, page.height, rasters, boxes, drawn, lines, page.too_deep)


@contextmanager
def images_of(page: Page) -> Iterator[tuple[list[PlacedObject], list[PlacedObject], int]]:
    """All objects of a page; its images in the order in which they are counted, those of annotations last; and how
    many are not annotations'. Inside, all can be used.
    """
    objects = list(page.objects())
    images = [placed for placed in objects if placed.type == raw.FPDF_PAGEOBJ_IMAGE]
    of_page, opened = len(images), []
    try:
        for number in range(max(raw.FPDFPage_GetAnnotCount(page.page), 0)):
            annotation = raw.FPDFPage_GetAnnot(page.page, number)
            if annotation:
                opened.append(annotation)
                images += _images_of_annotation(page, annotation)
        yield objects, images, of_page
    finally:
        for annotation in opened:
            raw.FPDFPage_CloseAnnot(annotation)


def _images_of_annotation(page: Page, annotation: ctypes.c_void_p) -> list[PlacedObject]:
    """The images that an annotation shows. Its appearance is fitted into its rectangle; PDFium does not tell by which
    map, so that of the images alone is taken.
    """
    rectangle, count = raw.FS_RECTF(), raw.FPDFAnnot_GetObjectCount(annotation)
    if count <= 0 or not raw.FPDFAnnot_GetRect(annotation, rectangle):
        return []
    objects = page.objects_of(count, lambda k: raw.FPDFAnnot_GetObject(annotation, k))
    found = [placed for placed in objects if placed.type == raw.FPDF_PAGEOBJ_IMAGE]
    if not found:
        return []
    left, top, right, bottom = union([placed.box for placed in found])
    box = around(page.to_shown, (rectangle.left, rectangle.bottom, rectangle.right, rectangle.top))
    if right <= left or bottom <= top:
        return []
    x, y = (box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top)
    fit = np.array([[x, 0, box[0] - left * x], [0, y, box[1] - top * y], [0, 0, 1]])
    return [PlacedObject(p.handle, p.type, fit @ p.to_shown, around(fit, p.box)) for p in found]


def _same_place(images: Sequence[PlacedObject]) -> list[list[int]]:
    """For each image the numbers of the images with the same data in the same place."""
    groups: dict[tuple, list[int]] = {}
    result = []
    for index, placed in enumerate(images):
        key = (*(round(v, 1) for v in placed.box), digest_of(placed.handle))
        groups.setdefault(key, []).append(index)
        result.append(groups[key])
    return result


def digest_of(handle: ctypes.c_void_p) -> str:
    """A digest of the data of an image."""
    size = raw.FPDFImageObj_GetImageDataRaw(handle, None, 0)
    if not 0 < size <= MAX_DATA:
        return f"{size}"
    buffer = ctypes.create_string_buffer(size)
    raw.FPDFImageObj_GetImageDataRaw(handle, buffer, size)
    return hashlib.blake2b(buffer.raw, digest_size=12).hexdigest()


def raster_of(placed: PlacedObject, index: int, page_box: Box) -> Raster | None:
    """An image before it is looked for, as if all of it was seen on the page; None for one of hardly any size."""
    width, height = ctypes.c_uint(), ctypes.c_uint()
    raw.FPDFImageObj_GetImagePixelSize(placed.handle, width, height)
    columns, rows = width.value, height.value
    box = placed.box
    if min(columns, rows) < 2 or min(box[2] - box[0], box[3] - box[1]) < LEAST_POINTS:
        return None
    to_shown = (
        placed.to_shown @ matrix_of(placed.handle) @ np.array([[1 / columns, 0, 0], [0, -1 / rows, 1], [0, 0, 1]])
    )
    if abs(np.linalg.det(to_shown)) < 1e-12 or not np.isfinite(to_shown).all():
        return None
    shown = common(box, page_box)
    digest = digest_of(placed.handle)
    return Raster(index, columns, rows, tuple(to_shown[:2].ravel().tolist()), box, shown, shown == box, False, digest)


def _look(page: Page, placed: PlacedObject, raster: Raster, same: Sequence[ctypes.c_void_p] | None) -> Raster:
    """An image with what is seen of it.

    Args:
        same: the objects that are left out to see the difference; None: all annotations.
    """
    view = probe_of(raster)
    seen = _difference(page, raster, view, same)
    inside, hides = seen.size, False
    if not raster.upright:
        inside = (
            abs(np.linalg.det(matrix3(raster)[:2, :2])) * raster.width * raster.height * view.scale_x * view.scale_y
        )
    if seen.sum() < (1 - HIDDEN_SHARE) * inside:
        seen, hides = _compare(page, placed, raster, view, seen)
    if seen.sum() < LEAST_SEEN:
        return replace(raster, shown=None, whole=False, hides=hides)
    left, top, right, bottom = _bounds(seen)
    if max(left, top, view.width - right, view.height - bottom) <= 1:
        return replace(raster, whole=not hides, hides=hides)
    # PDFium widens clips to whole pixels. Moved a little to either side, both edges are exact in one of the drawings.
    for move in (-NUDGE, NUDGE):
        moved = replace(view, shift_x=view.shift_x + move, shift_y=view.shift_y + move)
        seen = seen & _difference(page, raster, moved, same) if hides else seen
    if seen.any():
        left, top, right, bottom = _bounds(seen)
    box = common(unmap_box(view, (left, top, right, bottom)), raster.shown)
    return replace(raster, shown=box or raster.shown, whole=False, hides=hides)


def _difference(page: Page, raster: Raster, view: View, same: Sequence[ctypes.c_void_p] | None) -> np.ndarray:
    """Which pixels of a view change when the objects, or all annotations, are left out."""
    if raster.shown is None:
        return np.zeros((view.height, view.width), bool)
    shown = page.draw(view, BACKGROUND)
    with inactive(same or ()):
        return (shown != page.draw(view, BACKGROUND, annotations=same is not None)).any(axis=2)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is marked in a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def probe_of(raster: Raster) -> View:
    """The view in which it is found what is seen of an image: its own grid, or a coarser one of a large image."""
    if raster.upright:
        view = raster.view()
    else:
        scale = raster.resolution[0]
        size = math.ceil((raster.box[2] - raster.box[0]) * scale), math.ceil((raster.box[3] - raster.box[1]) * scale)
        view = View(scale, -raster.box[0] * scale, scale, -raster.box[1] * scale, *(max(n, 1) for n in size))
    return scaled(view, min(1.0, (PROBE / (view.width * view.height)) ** 0.5))


def _compare(page: Page, placed: PlacedObject, raster: Raster, view: View, seen: np.ndarray) -> tuple[np.ndarray, bool]:
    """What is seen of an image when its own pixels are compared with the page; whether it hides content.

    What is not seen but looks as the image does (white on white) hides nothing.
    """
    if raster.width * raster.height > MAX_HIDDEN_PIXELS:
        return seen, False
    own = own_pixels(placed.handle)
    matrix = (view_matrix(view) @ matrix3(raster))[:2]
    # The centres of pixels are whole numbers to OpenCV.
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    size = (view.width, view.height)
    warped = cv2.warpAffine(own, matrix, size, flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.ones(own.shape[:2], np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    shown = page.draw(view)
    alike = inside & (np.abs(warped.astype(np.int16) - shown).max(axis=2) < DIFFERENT)
    whole = seen.sum() < LEAST_SEEN and alike.sum() > 0.9 * inside.sum() and warped[inside].std(axis=0).max() > CONTENT
    if whole and raster.shown is not None:  # another image with the same pixels lies over or under it
        return inside, False
    side = max(HIDDEN_SIDE * view.width / max(raster.shape[0], 1), 3, min(view.width, view.height) / 24)
    kernel = np.ones((math.ceil(min(side, view.height, view.width)),) * 2, np.uint8)
    hidden = cv2.morphologyEx((inside & ~seen & ~alike).astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    stencil = is_stencil(page, placed.handle) and seen.any()
    hides = not stencil and hidden.sum() >= HIDDEN_SHARE * inside.sum() and warped[hidden].std(axis=0).max() > CONTENT
    if not hides and seen.any():  # what is left out is of the colour of what lies there instead
        seen = seen | (inside & alike)
    return seen, bool(hides)


def own_pixels(handle: ctypes.c_void_p) -> np.ndarray:
    """The pixels of an image as they lie in the file: (H, W, 3) uint8 RGB, without masks."""
    bitmap = raw.FPDFImageObj_GetBitmap(handle)
    if not bitmap:
        raise InputError("PDFium cannot decode an image")
    pixels = pypdfium2.PdfBitmap.from_raw(bitmap).to_numpy()
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])  # from BGR, BGRx or BGRA


def as_shown(pixels: np.ndarray, raster: Raster) -> np.ndarray:
    """The pixels of an image, turned and mirrored as they are on the page if it is upright there."""
    if not raster.upright:
        return pixels
    a, b, _, c, d, _ = raster.matrix
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), b, c
    return np.ascontiguousarray(pixels[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1])


def is_stencil(page: Page, handle: ctypes.c_void_p) -> bool:
    """Whether an image is a mask through which a colour is painted: it has one bit for a pixel, and no colours."""
    found = raw.FPDF_IMAGEOBJ_METADATA()
    raw.FPDFImageObj_GetImageMetadata(handle, page.page, found)
    return found.bits_per_pixel == 1 and found.colorspace == raw.FPDF_COLORSPACE_UNKNOWN


def matrix3(raster: Raster) -> Matrix:
    """From the pixels of an image to the shown page."""
    return np.vstack([np.reshape(raster.matrix, (2, 3)), [0, 0, 1]])


def _patterns(page: Page, objects: Sequence[PlacedObject]) -> list[Raster]:
    """Areas that are painted with a pattern that holds an image."""
    found, looked = [], 0
    for placed in objects:
        box = common(placed.box, page.box)
        if placed.type != raw.FPDF_PAGEOBJ_PATH or box is None or looked >= MAX_PATTERNS:
            continue
        if min(box[2] - box[0], box[3] - box[1]) < LEAST_PATTERN or _fill_colour(placed.handle) != PATTERN_COLOUR:
            continue
        looked += 1
        scale = PATTERN_DPI / 72
        view = view_of(box, scale)
        shown = page.draw(view)
        with inactive([placed.handle]):
            seen = (shown != page.draw(view)).any(axis=2)
        colours = np.unique(shown[seen] // 8, axis=0)
        if len(colours) < PATTERN_COLOURS:
            continue
        matrix = (1 / scale, 0.0, box[0], 0.0, 1 / scale, box[1])
        found.append(Raster(None, view.width, view.height, matrix, box, box, True, False, ""))
    return found


def _fill_colour(handle: ctypes.c_void_p) -> tuple[int, ...] | None:
    mode, stroke = ctypes.c_int(), ctypes.c_int()
    if not raw.FPDFPath_GetDrawMode(handle, mode, stroke) or mode.value == raw.FPDF_FILLMODE_NONE:
        return None
    values = [ctypes.c_uint() for _ in range(4)]
    return tuple(v.value for v in values[:3]) if raw.FPDFPageObj_GetFillColor(handle, *values) else None


def _paths(objects: Sequence[PlacedObject]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all paths and shadings, and which of them are curves or slanted lines."""
    boxes, drawn = [], []
    for placed in objects:
        if placed.type not in (raw.FPDF_PAGEOBJ_PATH, raw.FPDF_PAGEOBJ_SHADING):
            continue
        left, top, right, bottom = placed.box
        segments = raw.FPDFPath_CountSegments(placed.handle) if placed.type == raw.FPDF_PAGEOBJ_PATH else 5
        boxes.append(placed.box)
        drawn.append(min(right - left, bottom - top) > 1 and segments not in (4, 5))
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(drawn, bool)
