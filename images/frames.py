"""Which images one image file holds: pages, channels and planes of a TIFF; frames of an animation."""

import importlib.util
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from images.folders import IMAGE_SUFFIXES
from images.guest import guest_frames
from images.header import FORMATS, guest_format, read_header, read_start
from images.not_examined import FIRST_ONLY, NotExamined, over_max_pages, unsupported
from images.parsing import parsing
from images.tiff import tiff_images

# Formats that may hold images and are not read: they are told, wherever they lie.
UNSUPPORTED = {
    **{".psd": "Photoshop", ".psb": "Photoshop", ".ai": "Illustrator", ".eps": "PostScript", ".ps": "PostScript"},
    **{".svg": "SVG", ".emf": "EMF", ".wmf": "WMF", ".cdr": "CorelDRAW", ".vsd": "Visio", ".vsdx": "Visio"},
    **{".dng": "raw data of a camera", ".cr2": "raw data of a camera", ".cr3": "raw data of a camera"},
    **{".nef": "raw data of a camera", ".arw": "raw data of a camera", ".xcf": "GIMP", ".vsi": "Olympus VSI"},
    **{".oib": "Olympus OIB", ".oif": "Olympus OIF", ".lof": "Leica LOF", ".pzfx": "GraphPad Prism"},
}
# Image files that are read: also TIFFs of microscopes and of pathology, and what is read in a process of its own.
READ_SUFFIXES = IMAGE_SUFFIXES | {
    *(".lsm", ".stk", ".svs", ".btf", ".tf8", ".dcm", ".dicom", ".heic", ".heif", ".avif", ".jxl"),
    *(".czi", ".nd2", ".lif"),
}
OPTIONAL = {"CZI": "czifile", "ND2": "nd2", "LIF": "liffile"}  # formats whose reader may be missing, and its package


@dataclass(frozen=True)
class Frame:
    """One image of a file."""

    number: int  # in the file, from 1
    part: str | None = None  # which one it is, as `ImageSource.part`; None where it is the only one
    caption: str | None = None  # the name of its channel


def missing_package(format: str) -> str | None:
    """The package that has to be installed to read a format; None where it is there."""
    package = OPTIONAL.get(format)
    return package if package and importlib.util.find_spec(package) is None else None


def frames_of(path: Path, max_pages: int) -> tuple[list[Frame], list[NotExamined]]:
    """The images of a file, at most `max_pages`, and what else it holds.

    Raises:
        InputError: the file is missing, not an image, or damaged.
    """
    with parsing(path):
        if (format := UNSUPPORTED.get(path.suffix.lower())) is not None:
            return [], [NotExamined(str(path), None, "file", unsupported(format))]
        guest = guest_format(path, read_start(path))
        if guest is not None and (package := missing_package(guest)):
            return [], [NotExamined(str(path), None, "file", unsupported(guest, package))]
        if guest is not None:
            return _guest_frames(path, guest, max_pages)
        if read_header(path).format == "TIFF":
            return _tiff_frames(path, max_pages)
        return _first_frame(path)


def _guest_frames(path: Path, format: str, max_pages: int) -> tuple[list[Frame], list[NotExamined]]:
    infos = guest_frames(path, format)
    frames = [Frame(k, info.part, info.caption) for k, info in enumerate(infos, 1) if info.left_out is None]
    reasons = Counter(info.left_out for info in infos if info.left_out is not None)
    return _limited(path, frames, [NotExamined(str(path), None, "frame", *item) for item in reasons.items()], max_pages)


def _limited(
    path: Path, frames: list[Frame], left_out: list[NotExamined], max_pages: int
) -> tuple[list[Frame], list[NotExamined]]:
    """The first `max_pages` of the frames; the others are told."""
    if len(frames) > max_pages:
        reason = over_max_pages(max_pages + 1, len(frames), len(frames), "image")
        left_out = [*left_out, NotExamined(str(path), None, "image", reason, len(frames) - max_pages)]
    return frames[:max_pages], left_out


def _tiff_frames(path: Path, max_pages: int) -> tuple[list[Frame], list[NotExamined]]:
    images, broken = tiff_images(path)
    frames = [Frame(k, image.part, image.caption) for k, image in enumerate(images, 1) if not image.missing]
    left_out = []
    if broken:
        left_out.append(NotExamined(str(path), None, "page", "damaged: the file points to more pages than it holds"))
    if missing := len(images) - len(frames):
        left_out.append(NotExamined(str(path), None, "plane", "lies in another file", missing))
    return _limited(path, frames, left_out, max_pages)


def _first_frame(path: Path) -> tuple[list[Frame], list[NotExamined]]:
    """The first frame of an animation, or of a JPEG that holds several images; the others are told."""
    with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
        warnings.simplefilter("ignore")  # about unusual metadata
        count = getattr(image, "n_frames", 1)
    if count == 1:
        return [Frame(1)], []
    reason = f"frames 2 to {count}: {FIRST_ONLY}" if count > 2 else f"frame 2: {FIRST_ONLY}"
    return [Frame(1, f"frame 1 of {count}")], [NotExamined(str(path), None, "frame", reason, count - 1)]
