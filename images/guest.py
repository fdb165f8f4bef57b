"""Rarer formats, read in a process of their own (images/guarded.py): DICOM, HEIC, AVIF, JPEG XL, CZI, ND2, LIF.

Each format has a module with two functions: `frames(path, format)` gives the images of a file, and
`pixels(path, format, number)` the `Raster` of one of them, from 1, upright.
"""

import importlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from images.depth import Intensity
from images.frame_info import FrameInfo, check_frame_size
from images.guarded import Limits, ask
from runtime.errors import InputError

LIMITS = Limits(step_seconds=120, total_seconds=1200, memory=6 << 30)
# Format -> module. Imported only in the process, and only when needed: some libraries may not be installed.
MODULES = {
    "DICOM": "images.dicom",
    "AVIF": "images.modern",
    "HEIF": "images.modern",
    "JPEGXL": "images.modern",
    "CZI": "images.microscopes",
    "ND2": "images.microscopes",
    "LIF": "images.microscopes",
}

_mappings: dict[int, Intensity | None] = {}  # in the process: of the images that were read, by number


def guest_frames(path: Path, format: str) -> list[FrameInfo]:
    """The images of a file, in order. Raises InputError where it cannot be read."""
    infos = ask("images.guest", path, ["frames", format], LIMITS, "reading it")
    return [FrameInfo(**info) for info in infos]


def guest_pixels(path: Path, format: str, number: int, max_megapixels: float) -> tuple[np.ndarray, Intensity | None]:
    """One image of a file, from 1: (H, W, 3) uint8 RGB; and how its values became 8 bit, where they had more.

    Raises:
        InputError: there is no such image, it is larger than `max_megapixels`, or cannot be read.
    """
    pixels = ask("images.guest", path, ["pixels", format, number, max_megapixels], LIMITS, "reading it")
    intensity = ask("images.guest", path, ["intensity", number], LIMITS, "reading it")
    return pixels, None if intensity is None else Intensity(**intensity)


def answer(path: Path, question: list[Any], grant_time: Callable[[], None]) -> Any:
    """In the process: the answer to one question, see images/guarded.py. Exceptions of the libraries are passed on.

    Raises:
        InputError: there is no such image, it is too large, or it cannot be read.
    """
    if question[0] == "intensity":
        mapping = _mappings[question[1]]
        return None if mapping is None else mapping.to_dict()
    format = question[1]
    reader = importlib.import_module(MODULES[format])
    infos = reader.frames(path, format)
    if question[0] == "frames":
        return [asdict(info) for info in infos]
    number, max_megapixels = question[2:]
    if not 1 <= number <= len(infos):
        raise InputError(f"cannot read {path}: it has no image {number}; was it changed during the run?")
    check_frame_size(path, infos[number - 1], max_megapixels)
    pixels, _mappings[number] = reader.pixels(path, format, number).to_rgb()
    return pixels
