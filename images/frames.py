"""Which images one image file holds: pages, channels and planes of a TIFF; frames of an animation."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from images.header import FORMATS, read_header
from images.not_examined import NotExamined, over_max_pages
from images.parsing import parsing
from images.tiff import tiff_images

FIRST_ONLY = "only the first is examined"


@dataclass(frozen=True)
class Frame:
    """One image of a file."""

    number: int  # in the file, from 1
    part: str | None = None  # which one it is, as `ImageSource.part`; None where it is the only one
    caption: str | None = None  # the name of its channel


def frames_of(path: Path, max_pages: int) -> tuple[list[Frame], list[NotExamined]]:
    """The images of a file, at most `max_pages`, and what else it holds.

    Raises:
        InputError: the file is missing, not an image, or damaged.
    """
    with parsing(path):
        header = read_header(path)
        if header.format == "TIFF":
            return _tiff_frames(path, max_pages)
        return _first_frame(path)


def _tiff_frames(path: Path, max_pages: int) -> tuple[list[Frame], list[NotExamined]]:
    images, broken = tiff_images(path)
    frames = [Frame(k, image.part, image.caption) for k, image in enumerate(images, 1) if not image.missing]
    left_out = []
    if broken:
        left_out.append(NotExamined(str(path), None, "page", "damaged: the file points to more pages than it holds"))
    if missing := len(images) - len(frames):
        left_out.append(NotExamined(str(path), None, "plane", "lies in another file", missing))
    if len(frames) > max_pages:
        reason = over_max_pages(max_pages + 1, len(frames), len(frames), "image")
        left_out.append(NotExamined(str(path), None, "image", reason, len(frames) - max_pages))
    return frames[:max_pages], left_out


def _first_frame(path: Path) -> tuple[list[Frame], list[NotExamined]]:
    """The first frame of an animation, or of a JPEG that holds several images; the others are told."""
    with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
        warnings.simplefilter("ignore")  # about unusual metadata
        count = getattr(image, "n_frames", 1)
    if count == 1:
        return [Frame(1)], []
    reason = f"frames 2 to {count}: {FIRST_ONLY}" if count > 2 else f"frame 2: {FIRST_ONLY}"
    return [Frame(1, f"frame 1 of {count}")], [NotExamined(str(path), None, "frame", reason, count - 1)]
