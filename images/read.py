"""Read an image file from anybody: its pixels as they are shown, or an `InputError` of one line that says why not.

Format and size are read from the header and checked against the limits before anything is decoded.
"""

from pathlib import Path

import cv2
import numpy as np

from images.decode import decode
from images.depth import row_blocks, to_8_bit
from images.header import check_complete, read_header
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
    """An image as it is shown: (H, W, 3) uint8 RGB, whatever its depth and channels.

    The EXIF orientation is applied; grey becomes three equal channels; transparent parts lie over white; of a file
    with several pages the first is read; other depths become 8 bit as `depth.to_8_bit` says.

    Raises:
        InputError: the file is missing, not an image, damaged, cut off, or larger than `max_megapixels`, which the
            header tells before anything is decoded. Damage within the pixels of a JPEG, WebP, JPEG 2000 or a file
            that is not compressed stays unnoticed where the decoder does not notice it.
    """
    path = Path(path)
    header = read_header(path, max_megapixels)
    check_complete(path, header.format)
    with parsing(path):
        pixels, premultiplied = decode(path, header)
        pixels = to_8_bit(pixels)
        if pixels.ndim == 2:
            return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        if pixels.shape[2] == 3:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return _over_white(pixels, premultiplied)


def _over_white(pixels: np.ndarray, premultiplied: bool) -> np.ndarray:
    """(H, W, 4) uint8 BGRA -> (H, W, 3) RGB; `premultiplied`: the colours are already multiplied by alpha."""
    result = np.empty((*pixels.shape[:2], 3), np.uint8)
    for rows in row_blocks(pixels):
        rgb, alpha = pixels[rows, :, 2::-1].astype(np.uint16), pixels[rows, :, 3:].astype(np.uint16)
        opaque = rgb if premultiplied else (rgb * alpha + 127) // 255
        result[rows] = np.minimum(opaque + (255 - alpha), 255)
    return result
