"""Format and size of an image file, read from its header and checked against the limits before anything is decoded."""

import math
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from images.frame_info import check_frame_size, check_size
from images.guest import guest_frames
from images.jpegxl import CODESTREAM as JPEGXL_CODESTREAM
from images.jpegxl import CONTAINER as JPEGXL_CONTAINER
from images.parsing import parsing, read_bytes
from images.tiff import SIGNATURES, read_tiff_header
from runtime.errors import InputError

# Pillow knows many more formats. One of them, EPS, would start Ghostscript on a file from a stranger.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM", "GIF")
# The last bytes of a complete file. MPO is a JPEG of several images.
ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}


@dataclass(frozen=True)
class Header:
    """What the header of an image file says."""

    format: str  # Pillow's name
    height: int  # in pixels, of the image as it is shown, that is after the EXIF orientation
    width: int
    orientation: int  # EXIF, 1 to 8
    guest: bool = False  # read in a process of its own (images/guarded.py)


def read_header(path: Path, max_megapixels: float = math.inf, number: int = 1) -> Header:
    """Read the header of an image, in a file of several that of one, from 1; nothing is decoded.

    Raises:
        InputError: the file is missing, not a regular file, not an image, or larger than `max_megapixels`.
    """
    Image.MAX_IMAGE_PIXELS = None  # our own limit below replaces Pillow's, which warns first and counts differently
    with parsing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata
        start = read_start(path)
        if (guest := guest_format(path, start)) is not None:
            return _guest_header(path, guest, max_megapixels, number)
        if start[:4] in SIGNATURES:
            tiff, format = read_tiff_header(path, number), "TIFF"
            height, width, orientation, pixel_bytes = tiff.height, tiff.width, tiff.orientation, tiff.pixel_bytes
        else:
            with Image.open(path, formats=FORMATS) as image:
                (width, height), format = image.size, image.format or ""
                pixel_bytes = _bytes_per_pixel(image, start)
                # Pillow decodes a whole PNG to look for EXIF behind the pixels; the EXIF before them is enough.
                exif = Image.Exif() if format == "PNG" and "exif" not in image.info else image.getexif()
                orientation = exif.get(ExifTags.Base.Orientation, 1)
    check_size(path, (height, width), pixel_bytes, os.stat(path).st_size, max_megapixels)
    if orientation in range(5, 9):  # these exchange rows and columns
        height, width = width, height
    return Header(format, height, width, orientation if orientation in range(1, 9) else 1)


def read_start(path: Path) -> bytes:
    """The first bytes of a file, which tell its format.

    Raises:
        InputError: it is empty, or not a regular file: reading from a pipe or a device may never end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError(f"cannot read {path}: it is not a regular file")
    with open(path, "rb") as file:
        start = file.read(136)
    if not start:
        raise InputError(f"cannot read {path}: the file is empty")
    return start


def guest_format(path: Path, start: bytes) -> str | None:
    """The format of a file that is read in a process of its own (images/guest.py), by its first bytes; else None."""
    suffix = path.suffix.lower()
    if start[128:132] == b"DICM" or suffix in (".dcm", ".dicom"):
        return "DICOM"
    if start[4:8] == b"ftyp":
        return "AVIF" if start[8:12] in (b"avif", b"avis") else "HEIF"
    if start.startswith((JPEGXL_CONTAINER, JPEGXL_CODESTREAM)):
        return "JPEGXL"
    if start.startswith(b"ZISRAWFILE"):
        return "CZI"
    if start.startswith(b"\xda\xce\xbe\x0a") or suffix == ".nd2":
        return "ND2"
    return "LIF" if start.startswith(b"\x70\0\0\0") and suffix == ".lif" else None


def _guest_header(path: Path, format: str, max_megapixels: float, number: int) -> Header:
    infos = guest_frames(path, format)
    if not 1 <= number <= len(infos):
        raise InputError(f"cannot read {path}: it has no image {number}; was it changed during the run?")
    check_frame_size(path, infos[number - 1], max_megapixels)
    return Header(format, infos[number - 1].height, infos[number - 1].width, 1, guest=True)


def _bytes_per_pixel(image: Image.Image, start: bytes) -> int:
    """Size of a decoded pixel; `start`: the first 26 bytes of the file."""
    if image.format == "PNG":  # Pillow gives the mode of 8 bit for colour images of 16 bit, too
        bits, colour_type = start[24], start[25]
        return {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}.get(colour_type, 4) * (2 if bits == 16 else 1)
    deep = image.format in ("JPEG2000", "PPM") or image.mode.startswith(("I", "F"))
    return len(image.getbands()) * (2 if deep else 1)


def check_complete(path: Path, format: str) -> None:
    """Raise InputError for a PNG or JPEG that is cut off; some versions of OpenCV return the part that is there."""
    end = ENDS.get(format)
    if end is None:
        return
    with open(path, "rb") as file:
        file.seek(-min(len(end), path.stat().st_size), os.SEEK_END)
        if file.read() == end:
            return
    # Other data may follow the end. Within the pixels of a JPEG the byte ff is followed by 00 or a restart marker
    # only, so the last start of scan (ff da) is a real one. The end of a thumbnail in the header lies before it.
    data = read_bytes(path)
    if data.rfind(end) < (data.rfind(b"\xff\xda") if format != "PNG" else 0):
        raise InputError(f"cannot read {path}: the {format} is cut off, its end is missing")
