"""Read an image file from anybody: its pixels as they are shown, or an `InputError` of one line that says why not.

Format and size are read from the header and checked against the limits before anything is decoded.
"""

from pathlib import Path

import numpy as np

from images.decode import decode
from images.depth import Intensity
from images.guest import guest_pixels
from images.header import check_complete, guest_format, read_header, read_start
from images.parsing import parsing


def read_image_size(path: Path, max_megapixels: float) -> tuple[int, int]:
    """(H, W) of an image as it is shown. Refuses what `read_image` refuses, as far as that shows without decoding.

    Raises:
        InputError: the file is missing, not an image, cut off, or larger than `max_megapixels`.
    """
    header = read_header(path, max_megapixels)
    check_complete(path, header.format)
    return header.height, header.width


def read_image(path: Path, max_megapixels: float = 200.0) -> np.ndarray:
    """An image as it is shown: (H, W, 3) uint8 RGB, whatever its depth and channels; of a file of several the first.

    The orientation is applied; grey becomes three equal channels; transparent parts lie over white; other depths
    become 8 bit as images/depth.py says.

    Raises:
        InputError: the file is missing, not an image, damaged, cut off, or larger than `max_megapixels`, which the
            header tells before anything is decoded. Damage within the pixels of a JPEG, WebP, JPEG 2000 or a file
            that is not compressed stays unnoticed where the decoder does not notice it.
    """
    return read_with_intensity(path, max_megapixels)[0]


def read_with_intensity(
    path: Path, max_megapixels: float = 200.0, number: int = 1
) -> tuple[np.ndarray, Intensity | None]:
    """One image of a file, from 1, as `read_image` gives it; and how its values became 8 bit, where they had more.

    Raises:
        InputError: there is no such image, or as `read_image` does.
    """
    path = Path(path)
    with parsing(path):
        format = guest_format(path, read_start(path))
        if format is not None:  # it looks at the header itself: one process is enough
            return guest_pixels(path, format, number, max_megapixels)
    header = read_header(path, max_megapixels, number)
    check_complete(path, header.format)
    with parsing(path):
        return decode(path, header, number).to_rgb()
