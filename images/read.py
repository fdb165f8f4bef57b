import contextlib
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from runtime.errors import InputError

# Pillow knows many more kinds; one of them (EPS) would start Ghostscript.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM")


MOST_BYTES = 4  # largest decoded image, in bytes for each pixel of the limit in megapixels: 8 bit with alpha


BLOCK = 1 << 20  # values that are converted at once


@dataclass(frozen=True)
class _Header:
    format: str  # Pillow's name
    height: int  # as shown, after the EXIF orientation
    width: int
    orientation: int  # EXIF, 1 to 8


@contextlib.contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn whatever a library raises about a file into one line: at files from strangers, parsers meet indices out of
    range, numbers that are none, nesting too deep, and sizes that no memory holds."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"cannot read {path}: it is not an image of a known format, or its header is damaged"
        ) from None
    except MemoryError:
        raise InputError(f"cannot read {path}: there is not enough memory for what it claims to hold") from None
    except Exception as fault:
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else " ".join(str(fault).split())
        raise InputError(f"cannot read {path}: {reason or type(fault).__name__}") from None


def read_header(path: Path, max_megapixels: float = math.inf) -> _Header:
    """Size and kind of an image, without decoding it."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit below replaces Pillow's, which warns first and counts differently
    with parsing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading from a pipe or a device may never end
            raise InputError(f"cannot read {path}: it is not a regular file")
        with open(path, "rb") as file:
            start = file.read(26)
        if not start:
            raise InputError(f"cannot read {path}: the file is empty")
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            # Pillow does not know every TIFF that OpenCV reads, nor does it turn them alike in all versions.
            format, (height, width, orientation, depth) = "TIFF", _read_tiff_header(path)
        else:
            with Image.open(path, formats=FORMATS) as image:
                (width, height), format = image.size, image.format or ""
                depth = _bytes_per_pixel(image, start)
                # Pillow decodes a whole PNG to look for EXIF behind the pixels; what stands before them is enough.
                exif = Image.Exif() if format == "PNG" and "exif" not in image.info else image.getexif()
                orientation = exif.get(ExifTags.Base.Orientation, 1)
    _check_size(path, (height, width), depth, status.st_size, max_megapixels)
    if orientation in range(5, 9):
        height, width = width, height
    return _Header(format, height, width, orientation if orientation in range(1, 9) else 1)


def _read_tiff_header(path: Path) -> tuple[int, int, int, int]:
    """(height, width, orientation, bytes per pixel) of the first page, height and width as stored."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells every odd tag on stderr
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        values = page.imagelength, page.imagewidth, page.samplesperpixel, page.bitspersample
        orientation = page.tags.valueof("Orientation", 1)
    if not all(isinstance(value, int) and value > 0 for value in values):
        raise InputError(f"cannot read {path}: its TIFF header is damaged (size {values[1]} x {values[0]})")
    height, width, samples, bits = values
    return height, width, orientation if isinstance(orientation, int) else 1, samples * -(-bits // 8)


def _bytes_per_pixel(image: Image.Image, start: bytes) -> int:
    """What a decoded pixel takes; `start`: the first 26 bytes of the file."""
    if image.format == "PNG":  # Pillow tells 8 bit of a 16-bit colour image
        bits, kind = start[24], start[25]
        return {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}.get(kind, 4) * (2 if bits == 16 else 1)
    deep = image.format in ("JPEG2000", "PPM") or image.mode.startswith(("I", "F"))
    return len(image.getbands()) * (2 if deep else 1)


def _check_size(path: Path, shape: tuple[int, int], depth: int, size: int, max_megapixels: float) -> None:
    """Refuse what would take too much memory: too many pixels, too many bytes of them, or too large a file."""
    (height, width), limit = shape, f"the limit is {max_megapixels:g} (--max-megapixels)"
    if height * width > max_megapixels * 1e6:
        raise InputError(f"{path} is {width} x {height} px, {height * width / 1e6:.3g} megapixels; {limit}")
    most = max_megapixels * MOST_BYTES  # 10^6 bytes
    if height * width * depth > most * 1e6:
        raise InputError(
            f"{path} is {width} x {height} px of {depth} bytes, which count as "
            f"{height * width * depth / MOST_BYTES / 1e6:.3g} megapixels; {limit}"
        )
    if size > 2 * most * 1e6:
        raise InputError(f"{path} has {size / 1e9:.3g} GB, far more than an image of the limit takes; {limit}")


def unreadable(path: Path, fault: OSError) -> InputError:
    """What the system says about a file, in one line."""
    return InputError(f"cannot read {path}: {fault.strerror or fault}")


def _check_complete(path: Path, format: str) -> None:
    """Stop at a PNG or JPEG that is cut off: some versions of OpenCV return the part that they could decode."""
    end = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}.get(format)
    if end is None:
        return
    with open(path, "rb") as file:
        file.seek(-min(len(end), path.stat().st_size), os.SEEK_END)
        if file.read() == end:
            return
    # Something may follow the end. Within the data of a JPEG ff comes before 00 or a restart marker only, so the last
    # start of scan (ff da) is a real one, and the end of a thumbnail in the header lies before it.
    data = _read_bytes(path)
    if data.rfind(end) < (data.rfind(b"\xff\xda") if format != "PNG" else 0):
        raise InputError(f"cannot read {path}: the {format} is cut off, its end is missing")


def check_image(path: Path, max_megapixels: float) -> tuple[int, int]:
    """Check what can be told without decoding: kind, size, complete file. Returns (H, W) as it is shown; raises
    InputError as `read_image` does."""
    header = read_header(path, max_megapixels)
    _check_complete(path, header.format)
    return header.height, header.width


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise unreadable(path, fault) from None


def read_image(path: Path, max_megapixels: float = 200.0) -> np.ndarray:
    """An image as it is shown: (H, W, 3) uint8 RGB, whatever its depth and channels.

    EXIF orientation is applied; grey becomes three equal channels; transparent parts lie over white; of a file with
    several pages the first is read. Depths other than 8 bit become 8 bit like this:

    - unsigned integers: divided by the largest value of the fewest bits (8 to 32) that hold the image's maximum, so
      that a 12-bit camera's image in a 16-bit file is not black; a full 16-bit range is divided by 257;
    - floats within 0 to 1: times 255; within 0 to 255: as they are;
    - other floats and integers with negative values: minimum to maximum becomes 0 to 255; what is not finite is 0.

    Raises:
        InputError: it is missing, not an image, damaged, cut off, or larger than `max_megapixels` (told by its header,
            before decoding). Damage within the data of a JPEG, WebP, JPEG 2000 or a file that is not compressed goes
            unnoticed where the decoder does not see it.
    """
    path = Path(path)
    header = read_header(path, max_megapixels)
    _check_complete(path, header.format)
    with parsing(path):
        pixels, premultiplied = decode(path, header)
        pixels = _to_8_bit(pixels)
        if pixels.ndim == 2:
            return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        if pixels.shape[2] == 3:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        over_white = np.empty((*pixels.shape[:2], 3), np.uint8)
        for rows in _blocks(pixels):
            rgb, alpha = pixels[rows, :, 2::-1].astype(np.uint16), pixels[rows, :, 3:].astype(np.uint16)
            over = rgb if premultiplied else (rgb * alpha + 127) // 255
            over_white[rows] = np.minimum(over + (255 - alpha), 255)
        return over_white


def _blocks(pixels: np.ndarray) -> Iterator[slice]:
    """Rows in blocks, so that what is computed on the way stays small beside a large image."""
    rows = max(1, BLOCK // max(1, math.prod(pixels.shape[1:])))
    for start in range(0, len(pixels), rows):
        yield slice(start, start + rows)


def decode(path: Path, header: _Header) -> tuple[np.ndarray, bool]:
    """(H, W), (H, W, 3) BGR or (H, W, 4) BGRA of any depth, upright; and whether colour is multiplied by alpha."""
    if header.format != "TIFF":  # OpenCV obeys the orientation only where it drops the alpha
        return upright(_decode_with_opencv(path), header.orientation), False
    try:
        mode = decode_with_pillow(path).mode  # OpenCV hands out a damaged TIFF as if nothing were wrong with it
    except UnidentifiedImageError:
        mode = ""  # of a kind that Pillow does not know
    if mode in ("LA", "PA"):
        raise InputError(f"cannot read {path}: OpenCV drops the transparency of a grey TIFF; save it as PNG")
    pixels = _decode_with_opencv(path)  # turns a TIFF upright, and multiplies 8-bit colour by alpha
    return pixels, pixels.dtype == np.uint8


def _decode_with_opencv(path: Path) -> np.ndarray:
    """(H, W), (H, W, 3) BGR or (H, W, 4) BGRA of any depth."""
    _silence_opencv()
    try:
        data = np.frombuffer(_read_bytes(path), np.uint8)
        with _quiet:
            pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as fault:
        raise InputError(f"cannot read {path}: {' '.join((fault.err or str(fault)).split())}") from None
    if pixels is None or pixels.size == 0:
        raise InputError(f"cannot read {path}: it is damaged, cut off, or of a kind that OpenCV cannot read")
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise InputError(f"cannot read {path}: it has {pixels.shape[2]} channels; 1, 3 and 4 (with alpha) are allowed")
    return pixels


def decode_with_pillow(path: Path) -> Image.Image:
    with _quiet, warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
        warnings.simplefilter("ignore")  # about odd metadata
        image.load()
    return image


def _silence_opencv() -> None:
    """OpenCV writes its own lines about damaged files to stderr; ours name the file."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # OpenCV 4 and 5
    set_level(0)  # silent


class _Quiet:
    """While it is entered, by any thread, what is written to file descriptor 2 is lost.

    libpng, libjpeg and libtiff write their lines about damaged files there, which do not name the file; ours do. Only
    decoding belongs inside, which raises what Python has to say.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.kept = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                with contextlib.suppress(OSError):  # there may be no descriptor 2
                    self.kept = os.dup(2)
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, 2)
                    os.close(null)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.kept >= 0:
                os.dup2(self.kept, 2)
                os.close(self.kept)
                self.kept = -1


_quiet = _Quiet()


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8: transposed from 5 on, then mirrored (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """uint8 of the same shape; the rule is told in `read_image`."""
    if pixels.dtype == np.uint8:
        return pixels
    result = np.empty(pixels.shape, np.uint8)
    if pixels.dtype == np.uint16:
        largest = 2 ** max(8, int(pixels.max()).bit_length()) - 1
        table = np.rint(np.arange(largest + 1) * (255 / largest)).astype(np.uint8)
        for rows in _blocks(pixels):
            result[rows] = table[pixels[rows]]
        return result
    low, high = _finite_range(pixels)
    if low >= 0 and np.issubdtype(pixels.dtype, np.integer):
        low, high = 0, 2 ** max(8, int(high).bit_length()) - 1
    elif low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    for rows in _blocks(pixels):
        values = pixels[rows].astype(np.float64)
        finite = np.isfinite(values)
        # Halves, since the difference of two floats may be beyond all floats.
        share = (np.where(finite, values, low) / 2 - low / 2) / ((high / 2 - low / 2) or 1)
        result[rows] = np.where(finite, np.rint(share * 255), 0)
    return result


def _finite_range(pixels: np.ndarray) -> tuple[float, float]:
    """Least and largest of the values that are finite; 0 and 0 where none is."""
    ranges = []
    for rows in _blocks(pixels):
        values = pixels[rows][np.isfinite(pixels[rows])]
        if values.size:
            ranges += [float(values.min()), float(values.max())]
    return min(ranges, default=0.0), max(ranges, default=0.0)
