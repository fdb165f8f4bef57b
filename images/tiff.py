"""Headers of TIFF files.

tifffile reads them, not Pillow: Pillow does not know every TIFF that OpenCV decodes, and its versions differ in
whether they apply the orientation.
"""

import logging
from pathlib import Path

import tifffile

from runtime.errors import InputError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first four bytes of TIFF and BigTIFF, in both byte orders


def read_tiff_header(path: Path) -> tuple[int, int, int, int]:
    """(height, width, orientation, bytes per pixel) of the first page; height and width as they are stored.

    Raises:
        InputError: the size is not a number. What tifffile raises about a damaged file is passed on.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it reports every unusual tag on stderr
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        values = page.imagelength, page.imagewidth, page.samplesperpixel, page.bitspersample
        orientation = page.tags.valueof("Orientation", 1)
    if not all(isinstance(value, int) and value > 0 for value in values):
        raise InputError(f"cannot read {path}: its TIFF header is damaged (size {values[1]} x {values[0]})")
    height, width, samples, bits = values
    return height, width, orientation if isinstance(orientation, int) else 1, samples * -(-bits // 8)
