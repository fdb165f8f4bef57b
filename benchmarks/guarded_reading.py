"""Reading files in a process that watches what the reading does: the side of the fuzz campaign that runs there.

A reader may return what it read, or refuse the file with one line. It may not raise anything else, write a file,
start a process, open a connection, or load code from a pickle.
"""

import contextlib
import os
import resource
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector import Detector
from images.frames import frames_of
from images.guest import answer
from images.masks import read_masks
from images.members import contents, pixels
from images.parsing import parsing
from images.pdfium import contents_of, pixels_of
from images.read import read_with_intensity
from runtime.errors import InputError

MEMORY = 2 << 30  # bytes that the process may map beyond what it has when the guard starts
SHAPE = (40, 56)  # rows and columns of the image to which the masks belong
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.remove", "os.rename",
             "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.", "socket.connect",
             "socket.bind", "urllib.", "ftplib.", "smtplib.", "pickle.find_class", "code.__new__")  # fmt: skip

_events: list[str] = []  # forbidden events since the last file


def read(kind: str, path: Path, folder: Path) -> str:
    """Read a file as the scripts do: "read", or the one line that a user would get. Any other exception is a fault.

    Args:
        folder: holds the backbone of a checkpoint.
    """
    try:
        READERS[kind](path, folder)
    except (InputError, FileNotFoundError) as refusal:
        if "\n" in str(refusal):
            raise AssertionError(f"a message of several lines: {refusal!r}") from None
        return str(refusal)
    return "read"


def _read_image(path: Path, folder: Path) -> None:
    with contextlib.suppress(InputError):  # any image may also be a mask
        _read_mask(path, folder)
    frames, _ = frames_of(path, 3)
    for frame in frames:
        _check_pixels(read_with_intensity(path, 200.0, frame.number)[0])


def _check_pixels(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size, pixels.shape


def _read_mask(path: Path, folder: Path) -> None:
    masks = read_masks(path, SHAPE)
    assert masks.dtype == bool and masks.shape[1:] == SHAPE, masks.shape


def _read_pdf(path: Path, folder: Path) -> None:
    # Not in the process that usually reads PDFs: this one is guarded already.
    for figure in contents_of(path).figures[:3]:
        _check_pixels(pixels_of(path, figure, 200.0))


def _read_document(path: Path, folder: Path) -> None:
    for image in contents(path, path.name, 20, lambda: None).images[:3]:
        _check_pixels(pixels(path, image["way"], 200.0, lambda: None)[0])


def _read_checkpoint(path: Path, folder: Path) -> None:
    Detector.load(path, backbone=str(folder))


def _read_guest(format: str, path: Path, folder: Path) -> None:
    # Not in the process that usually reads these formats: this one is guarded already.
    with parsing(path):
        infos = answer(path, ["frames", format], lambda: None)
        numbers = [number for number, info in enumerate(infos[:3], 1) if info["left_out"] is None]
    for number in numbers:
        with parsing(path):
            pixels = answer(path, ["pixels", format, number, 200.0], lambda: None)
        _check_pixels(pixels)


READERS: dict[str, Callable[[Path, Path], None]] = {
    "png": _read_image,
    "jpeg": _read_image,
    "tiff": _read_image,
    "gif": _read_image,
    "jpeg2000": _read_image,
    "dicom": partial(_read_guest, "DICOM"),
    "heic": partial(_read_guest, "HEIF"),
    "avif": partial(_read_guest, "AVIF"),
    "jpegxl": partial(_read_guest, "JPEGXL"),
    "npy": _read_mask,
    "pdf": _read_pdf,
    "checkpoint": _read_checkpoint,
    **dict.fromkeys(("docx", "pptx", "odt", "zip", "html"), _read_document),
}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's audit hook (PEP 578): notes forbidden events."""
    if event == "open" and arguments[2] is not None and arguments[2] & WRITING and arguments[0] != os.devnull:
        _events.append(f"open {arguments[0]!r} for writing")
    elif event == "code.__new__" and str(arguments[1]).endswith(".pyx"):
        pass  # Cython makes a code object for each line of a library that raises an exception, for the traceback
    elif event.startswith(FORBIDDEN):
        _events.append(f"{event} {arguments!r:.200}")


def guarded_reader(kind: str, folder: Path, sample: Path) -> Callable[[Path], tuple[str, float]]:
    """Load what the readers need, limit the memory of this process, watch its events, and return `read_guarded`.

    Args:
        sample: a valid file of the format, read once so that every library is loaded before the guard starts.
    """
    cv2.setNumThreads(1)
    read(kind, sample, folder)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_audit)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # some decoders write warnings there, without the file's name
    return partial(read_guarded, kind, folder)


def read_guarded(kind: str, folder: Path, path: Path) -> tuple[str, float]:
    """What came of a file ("read", "refused: ..." or "broken: ..."), and the process's peak memory so far in bytes."""
    _events.clear()
    try:
        answer = read(kind, path, folder)
        outcome = answer if answer == "read" else f"refused: {answer}"
    except Exception as fault:
        frames = traceback.extract_tb(fault.__traceback__)
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:-5:-1])
        outcome = f"broken: {type(fault).__name__}: {fault} ({where})"
    if _events:
        outcome = f"broken: {'; '.join(_events[:3])}"
    return outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
