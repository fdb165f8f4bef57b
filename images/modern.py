"""HEIC, AVIF and JPEG XL, by pillow-heif, Pillow and imagecodecs. Runs in the process of images/guest.py."""

from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_heif
from PIL import ExifTags, Image

from images.frame_info import FrameInfo
from images.jpegxl import JpegXlHeader, read_jpegxl_header
from images.not_examined import FIRST_ONLY
from images.raster import Raster, upright
from runtime.errors import InputError

HEADER = 1 << 20  # bytes of a JPEG XL among which its header is looked for


def frames(path: Path, format: str) -> list[FrameInfo]:
    """The images of a file: of an animation the first; of a HEIC every one."""
    if format == "HEIF":
        images = list(pillow_heif.open_heif(path, convert_hdr_to_8bit=False))
        return [
            FrameInfo(image.size[1], image.size[0], 8, f"image {k} of {len(images)}" if len(images) > 1 else None)
            for k, image in enumerate(images, 1)
        ]
    if format == "AVIF":
        with Image.open(path, formats=("AVIF",)) as image:
            count, (width, height) = getattr(image, "n_frames", 1), image.size
        first = FrameInfo(height, width, 8, f"frame 1 of {count}" if count > 1 else None)
        return [
            first,
            *(replace(first, part=f"frame {k} of {count}", left_out=FIRST_ONLY) for k in range(2, count + 1)),
        ]
    header = _jpegxl_header(path)
    first = FrameInfo(header.height, header.width, 16, "first frame" if header.animated else None)
    return [first, *([replace(first, part="further frames", left_out=FIRST_ONLY)] if header.animated else [])]


def _jpegxl_header(path: Path) -> JpegXlHeader:
    with open(path, "rb") as file:
        return read_jpegxl_header(file.read(HEADER))


def pixels(path: Path, format: str, number: int) -> Raster:
    """Pixels of one image, from 1, upright."""
    if format == "HEIF":
        return _raster(np.asarray(list(pillow_heif.open_heif(path, convert_hdr_to_8bit=False))[number - 1]))
    data = path.read_bytes()
    if format == "JPEGXL":
        # Upright already; of an animation the first frame.
        return _raster(imagecodecs.jpegxl_decode(data, index=0, numthreads=1), _jpegxl_header(path).bits)
    with Image.open(path, formats=("AVIF",)) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if getattr(image, "n_frames", 1) > 1:  # imagecodecs would decode all frames, and crashes when asked for one
            return _raster(upright(np.asarray(image), orientation))
    values = imagecodecs.avif_decode(data, numthreads=1)
    bits = None
    if values.dtype == np.uint16:
        bits = 10 if int(values.max()) < 1024 else 12 if int(values.max()) < 4096 else 16
    return _raster(upright(values, orientation), bits)


def _raster(values: np.ndarray, bits: int | None = None) -> Raster:
    """(H, W), or (H, W, 1 to 4)."""
    if values.ndim == 2:
        return Raster(values, bits=bits)
    if values.ndim != 3 or values.shape[2] > 4:
        raise InputError(f"its pixels have the shape {values.shape}; grey and RGB, with or without alpha, are read")
    colours = values.shape[2] - 1 + values.shape[2] % 2
    shown = values[..., 0] if colours == 1 else values[..., :3]
    return Raster(shown, values[..., -1] if values.shape[2] % 2 == 0 else None, bits=bits)
