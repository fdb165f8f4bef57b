"""TIFF files by tifffile and imagecodecs: which images one holds, and the pixels of each.

A page may hold several images (samples that are no colours, such as the channels of a microscope), and a file several
pages. Of a pyramid only the largest level counts. Nothing outside of the file is opened, whatever its OME-XML says.
"""

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC

from images.colours import cmyk_to_rgb, lab_to_rgb, ycbcr_to_rgb
from images.raster import Raster
from runtime.errors import InputError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first four bytes of TIFF and BigTIFF, in both byte orders
COLOURS = {
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
    PHOTOMETRIC.ICCLAB: 3,
    PHOTOMETRIC.ITULAB: 3,
    PHOTOMETRIC.LINEAR_RAW: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
REFUSED = {PHOTOMETRIC.CFA: "raw data of a camera's sensor", PHOTOMETRIC.LOGL: "LogLuv", PHOTOMETRIC.LOGLUV: "LogLuv"}
REFUSED[PHOTOMETRIC.ITULAB] = "ITU L*a*b*"
JPEGS = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY)
APERIO_YCBCR = COMPRESSION.APERIO_JP2000_YCBC
AXES = {"C": "channel", "Z": "plane", "T": "time point"}  # axes of one field of view; any other axis counts pages
BROKEN_CHAIN = ("invalid page offset", "invalid offset to page", "corrupted tag list of page", "incompletely written",
                "ImageJ series metadata invalid")  # what tifffile logs where pages are missing  # fmt: skip
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of alpha (ExtraSamples)


@dataclass(frozen=True)
class TiffImage:
    """One image of a TIFF, in the file's order."""

    series: int  # number of the series in tifffile's list
    plane: int  # of the series, from 0
    samples: tuple[int, ...]  # of the page: one for grey, three or four for colours
    alpha: int | None  # the sample that is its alpha
    part: str | None  # which one it is, as `ImageSource.part`; None where it is the only one
    caption: str | None  # the name of its channel
    missing: bool  # its pixels lie in another file, which is not opened


@dataclass(frozen=True)
class TiffHeader:
    """What the header says about one image, as it is stored."""

    height: int
    width: int
    orientation: int  # as EXIF
    pixel_bytes: int  # bytes of all samples of a pixel, as they are decoded


class _Complaints(logging.Handler):
    """Takes what tifffile logs, so that nothing reaches stderr; keeps what is wrong with the chain of pages."""

    def __init__(self) -> None:
        super().__init__()
        self.broken_chain = self.circle = False

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one message."""
        self.circle |= "circular reference" in record.getMessage()
        self.broken_chain |= any(words in record.getMessage() for words in BROKEN_CHAIN)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[tifffile.TiffFile, _Complaints]]:
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    logger.propagate = False
    logger.addHandler(complaints)
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            len(file.pages)  # follows the chain to its end
            if complaints.circle:  # tifffile would go through the pages for ever
                raise InputError(f"cannot read {path}: it is damaged, its pages point to each other in a circle")
            yield file, complaints
    finally:
        logger.removeHandler(complaints)


def tiff_images(path: Path) -> tuple[list[TiffImage], bool]:
    """All images of a TIFF, and whether pages are missing: the file points to more than it holds.

    Raises:
        InputError: it holds none. What tifffile raises about a damaged file is passed on.
    """
    with _open(path) as (file, complaints):
        images = list(_images(file))
    if not images:
        raise InputError(f"cannot read {path}: the TIFF holds no image")
    return images, complaints.broken_chain


def read_tiff_header(path: Path, number: int = 1) -> TiffHeader:
    """Header of one image, from 1.

    Raises:
        InputError: there is no such image, or its size is not a number. What tifffile raises is passed on.
    """
    with _open(path) as (file, _):
        page = file.series[_pick(path, file, number).series].keyframe
        values = page.imagelength, page.imagewidth, page.samplesperpixel, page.bitspersample
        orientation = page.tags.valueof("Orientation", 1)
        depth = page.imagedepth
        sides = (page.tilelength, page.tilewidth) if page.is_tiled else (1, 1)
    if not all(isinstance(value, int) and value > 0 for value in (*values, depth)):
        raise InputError(f"cannot read {path}: its TIFF header is damaged (size {values[1]} x {values[0]})")
    height, width, samples, bits = values
    # Tiles may be much larger than the image; each is decoded as a whole.
    largest = max(1, math.prod(sides) / (height * width))
    pixel_bytes = math.ceil(samples * -(-bits // 8) * depth * largest)
    return TiffHeader(height, width, orientation if isinstance(orientation, int) else 1, pixel_bytes)


def decode_tiff(path: Path, number: int = 1) -> Raster:
    """Pixels of one image, from 1, as they are stored: not upright.

    Raises:
        InputError: there is no such image, or it is of a kind that is not read. What tifffile raises is passed on.
    """
    with _open(path) as (file, _):
        image = _pick(path, file, number)
        series = file.series[image.series]
        page = series.keyframe
        if page.photometric in REFUSED:
            raise InputError(f"cannot read {path}: {REFUSED[page.photometric]} is not read; save it as RGB or grey")
        if page.photometric == PHOTOMETRIC.YCBCR and page.compression not in JPEGS and page.bitspersample == 8:
            values = _by_libtiff(path, series.pages[image.plane].index)  # tifffile leaves the colours as they are
            return Raster(values[..., :3])
        values = _plane(path, series, image.plane)
        if values.dtype.kind == "c":
            raise InputError(f"cannot read {path}: it holds complex numbers; save their magnitude")
        return _raster(page, values, image)


def _pick(path: Path, file: tifffile.TiffFile, number: int) -> TiffImage:
    for k, image in enumerate(_images(file), 1):
        if k == number:
            return image
    reason = "the TIFF holds no image" if number == 1 else f"it has no image {number}; was it changed during the run?"
    raise InputError(f"cannot read {path}: {reason}")


# Which images there are ---------------------------------------------------------------------------------------------


def _images(file: tifffile.TiffFile) -> Iterator[TiffImage]:
    """The images of a file, in order."""
    whole = [k for k, series in enumerate(file.series) if not _is_reduced(series)]
    chosen = whole or list(range(len(file.series)))[:1]  # a file of thumbnails alone
    counts = {k: _sizes(file.series[k]) for k in chosen}
    pages_of = {k: math.prod(size for axis, size in outer if axis not in AXES) for k, outer in counts.items()}
    total, before = sum(pages_of.values()), 0
    for k in chosen:
        yield from _images_of_series(file, k, counts[k], total, before)
        before += pages_of[k]


def _is_reduced(series: tifffile.TiffPageSeries) -> bool:
    """Whether it is a smaller version of another image, or a mask of transparency (NewSubfileType)."""
    kind = series.keyframe.subfiletype
    return isinstance(kind, int) and bool(kind & 5)


def _sizes(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    """Axes and sizes of a series beside rows, columns and samples."""
    return [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"]


def _images_of_series(
    file: tifffile.TiffFile, k: int, outer: list[tuple[str, int]], total: int, before: int
) -> Iterator[TiffImage]:
    """Images of one series; `total` pages has the file, `before` of them in earlier series."""
    series, names = file.series[k], _channel_names(file, k)
    groups = _sample_groups(series.keyframe)
    may_miss = series.kind == "ome" and len(series.pages) == math.prod(size for _, size in outer)
    for plane, index in enumerate(product(*(range(size) for _, size in outer))):
        page, _ = _number(outer, index, {axis for axis, _ in outer} - AXES.keys())
        at, count = _number(outer, index, {"C"})
        words = [f"page {before + page + 1} of {total}"] if total > 1 else []
        inner = []
        for axis in ("Z", "T"):
            number, size = _number(outer, index, {axis})
            inner += [f"{AXES[axis]} {number + 1} of {size}"] if size > 1 else []
        for g, (samples, alpha) in enumerate(groups):
            channel, channels = at * len(groups) + g, count * len(groups)
            name = [f"channel {channel + 1} of {channels}"] if channels > 1 else []
            caption = (names[channel] or None) if len(names) == channels else None
            missing = may_miss and series.pages[plane] is None
            part = ", ".join([*words, *name, *inner]) or None
            yield TiffImage(k, plane, samples, alpha, part, caption, missing)


def _number(outer: list[tuple[str, int]], index: tuple[int, ...], axes: Set[str]) -> tuple[int, int]:
    """Which one, from 0, of how many an index is along some of the axes."""
    at, count = 0, 1
    for (axis, size), i in zip(outer, index, strict=True):
        if axis in axes:
            at, count = at * size + i, count * size
    return at, count


def _sample_groups(page: tifffile.TiffPage) -> list[tuple[tuple[int, ...], int | None]]:
    """Which samples of a page are one image, each with the sample that is its alpha."""
    count = page.samplesperpixel
    colours = COLOURS.get(page.photometric, 1)
    if count < colours or (page.photometric == PHOTOMETRIC.SEPARATED and page.tags.valueof("InkSet", 1) != 1):
        colours = 1
    extra = page.extrasamples
    alpha = colours if count > colours and extra and extra[0] in (ASSOCIATED, UNASSOCIATED) else None
    first = colours + (alpha is not None)
    return [(tuple(range(colours)), alpha), *(((k,), None) for k in range(first, count))]


def _channel_names(file: tifffile.TiffFile, k: int) -> list[str]:
    """Names of the channels of a series, as far as OME-XML gives them."""
    if not file.is_ome or not isinstance(file.ome_metadata, str):
        return []
    images = re.findall(r"<(?:\w+:)?Image\b.*?</(?:\w+:)?Image>", file.ome_metadata, re.DOTALL)
    if k >= len(images):
        return []
    channels = re.findall(r"<(?:\w+:)?Channel\b([^>]*)>", images[k])
    found = [re.search(r'\bName="([^"]*)"', attributes) for attributes in channels]
    return [name.group(1)[:80] if name else "" for name in found] if any(found) else []


# Pixels -------------------------------------------------------------------------------------------------------------


def _plane(path: Path, series: tifffile.TiffPageSeries, plane: int) -> np.ndarray:
    """(H, W, samples) of one plane of a series."""
    page = series.keyframe
    per_page = math.prod(size for axis, size in zip(page.axes, page.shape, strict=True) if axis not in "YXS")
    planes = math.prod(size for _, size in _sizes(series))
    if len(series.pages) * per_page == planes:
        found = series.pages[plane // per_page]
        if found is None:
            raise InputError(f"cannot read {path}: this plane lies in another file")
        return _of_page(path, found, plane % per_page)
    if series.dataoffset is not None:  # ImageJ's large stacks have one page, and all planes lie behind each other
        size = math.prod(page.shape)
        handle = series.parent.filehandle
        handle.seek(series.dataoffset + plane * size * page.dtype.itemsize)
        values = handle.read_array(series.parent.byteorder + page.dtype.char, size)
        return _samples_last(values.reshape(page.shape), page.axes)
    raise InputError(f"cannot read {path}: its {planes} planes lie in {len(series.pages)} pages, which is not read")


def _of_page(path: Path, page: Any, inner: int) -> np.ndarray:
    """(H, W, samples) of a page; `inner`: which of the planes that a page with depth holds."""
    keyframe = page.keyframe
    expected = 1 if keyframe.is_contiguous else math.prod(keyframe.chunked)
    if len(page.dataoffsets) < expected:
        raise InputError(f"cannot read {path}: it is damaged, {expected - len(page.dataoffsets)} strips are missing")
    # What a damaged file leaves out is 0, not what the memory happened to hold.
    values = page.asarray(out=np.zeros(keyframe.shape, keyframe.dtype), maxworkers=1)
    planes = values.reshape(-1, *(s for a, s in zip(keyframe.axes, keyframe.shape, strict=True) if a in "YXS"))
    return _samples_last(planes[inner], "".join(axis for axis in keyframe.axes if axis in "YXS"))


def _samples_last(values: np.ndarray, axes: str) -> np.ndarray:
    """(H, W, samples), whatever the order of the axes "Y", "X", and "S" where there is one."""
    if "S" not in axes:
        return values[..., None]
    return np.moveaxis(values, axes.index("S"), -1)


def _raster(page: tifffile.TiffPage, values: np.ndarray, image: TiffImage) -> Raster:
    """The image of a page's samples."""
    bits = page.bitspersample if values.dtype.kind == "u" else None
    alpha = None if image.alpha is None else values[..., image.alpha]
    shown = values[..., image.samples[0]] if len(image.samples) == 1 else values[..., list(image.samples)]
    if len(image.samples) > 1:
        colours = _to_rgb(page, shown)
        whole = colours.dtype == values.dtype
        return Raster(
            colours, alpha if whole else None, page.extrasamples[:1] == (ASSOCIATED,), bits if whole else None
        )
    if page.photometric == PHOTOMETRIC.PALETTE and image.samples == (0,) and page.colormap is not None:
        # 16 bits, of which some programs use the lower eight only.
        colours = page.colormap if page.colormap.max() <= 255 else page.colormap >> 8
        return Raster(shown, bits=bits, palette=np.ascontiguousarray(colours.T).astype(np.uint8))
    return Raster(
        shown,
        alpha,
        page.extrasamples[:1] == (ASSOCIATED,),
        bits,
        white_is_zero=page.photometric == PHOTOMETRIC.MINISWHITE,
    )


def _to_rgb(page: tifffile.TiffPage, values: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB of a page's three or four colours."""
    match page.photometric:
        case PHOTOMETRIC.SEPARATED:
            return cmyk_to_rgb(values)
        case PHOTOMETRIC.CIELAB | PHOTOMETRIC.ICCLAB:
            return lab_to_rgb(values, signed=page.photometric == PHOTOMETRIC.CIELAB)
    if page.compression == APERIO_YCBCR and values.dtype == np.uint8:
        return ycbcr_to_rgb(values)
    return values


def _by_libtiff(path: Path, index: int) -> np.ndarray:
    """(H, W, 3 or 4) uint8 RGB of a page of YCbCr colours."""
    with Image.open(path, formats=("TIFF",)) as file:
        file.seek(index)
        return np.asarray(file.convert("RGB"))
