"""Decode an image file with tifffile, OpenCV or Pillow, and keep what their C libraries print off the terminal."""

import contextlib
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from images.header import FORMATS, Header
from images.parsing import read_bytes
from images.raster import Raster, upright
from images.tiff import decode_tiff
from runtime.errors import InputError

BY_PILLOW = ("GIF",)  # formats that OpenCV reads otherwise in each of its versions, or not at all


def decode(path: Path, header: Header, number: int = 1) -> Raster:
    """Pixels of one image of a file, from 1, upright.

    Raises:
        InputError: the file is damaged, or of a kind that is not read. Other exceptions of the libraries are passed on.
    """
    if header.guest:
        raise InputError(f"cannot read {path}: a mask is not read from {header.format}; save it as PNG")
    if header.format == "TIFF":
        raster = decode_tiff(path, number)
    elif header.format in BY_PILLOW:
        raster = _of_pillow(decode_with_pillow(path))
    else:
        raster = _decode_with_opencv(path)
    turned = {
        name: upright(value, header.orientation)
        for name in ("values", "alpha")
        if (value := getattr(raster, name)) is not None
    }
    return replace(raster, **turned)


def _of_pillow(image: Image.Image) -> Raster:
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        return Raster(pixels[..., :3], pixels[..., 3])
    return Raster(np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB")))


def _decode_with_opencv(path: Path) -> Raster:
    _silence_opencv()
    try:
        data = np.frombuffer(read_bytes(path), np.uint8)
        with _quiet_stderr:
            pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)  # upright only where it drops the alpha: so never
    except cv2.error as fault:
        raise InputError(f"cannot read {path}: {' '.join((fault.err or str(fault)).split())}") from None
    if pixels is None or pixels.size == 0:
        raise InputError(f"cannot read {path}: it is damaged, cut off, or of a kind that OpenCV cannot read")
    if pixels.ndim == 2:
        return Raster(pixels)
    if pixels.shape[2] not in (3, 4):
        raise InputError(f"cannot read {path}: it has {pixels.shape[2]} channels; 1, 3 and 4 (with alpha) are allowed")
    return Raster(pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None)


def decode_with_pillow(path: Path) -> Image.Image:
    """The decoded image in the mode of the file, not upright. Pillow's exceptions are passed on."""
    with _quiet_stderr, warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
        warnings.simplefilter("ignore")  # about unusual metadata
        image.load()
    return image


def _silence_opencv() -> None:
    """OpenCV logs its own lines about damaged files, which do not name the file; our errors do."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # OpenCV 4 and 5
    set_level(0)  # silent


class _QuietStderr:
    """While any thread is inside, everything that is written to file descriptor 2 is discarded.

    libpng, libjpeg and libtiff print lines about damaged files there, which do not name the file; our errors do. Only
    decoding belongs inside: it reports to Python by exceptions.
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


_quiet_stderr = _QuietStderr()
