"""Colours other than RGB become RGB."""

import cv2
import numpy as np

from images.depth import row_blocks


def cmyk_to_rgb(inks: np.ndarray) -> np.ndarray:
    """(H, W, 4) of unsigned integers, cyan, magenta, yellow and black, full at the largest number -> (H, W, 3) uint8.

    Without the profile of a press, as Pillow does it: light that black leaves over, less the share of the ink.

    Raises:
        ValueError: the inks are not unsigned integers.
    """
    if inks.dtype.kind != "u":
        raise ValueError(f"inks of type {inks.dtype} are not read")
    result = np.empty((*inks.shape[:2], 3), np.uint8)
    for rows in row_blocks(inks):
        full = np.iinfo(inks.dtype).max
        amounts = np.rint(inks[rows] * (255 / full)).astype(np.uint16)
        light = 255 - amounts[..., 3:]
        product = amounts[..., :3] * light + 128
        result[rows] = light - ((product >> 8) + product >> 8)
    return result


def ycbcr_to_rgb(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of full range (JFIF) -> (H, W, 3) uint8 RGB."""
    return cv2.cvtColor(np.ascontiguousarray(values[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)


def lab_to_rgb(values: np.ndarray, signed: bool) -> np.ndarray:
    """(H, W, 3) of 8 or 16 bits, CIE L*a*b*, -> (H, W, 3) uint8 sRGB, its white for that of the file.

    Args:
        signed: a* and b* are signed integers (TIFF's CIELAB), else their zero lies at half of the range (ICCLAB).
    Raises:
        ValueError: the values have another depth.
    """
    if values.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"L*a*b* of type {values.dtype} is not read")
    from skimage.color import lab2rgb  # takes long to import, and is rarely needed

    deep = values.dtype == np.uint16
    result = np.empty(values.shape, np.uint8)
    for rows in row_blocks(values):
        lightness = values[rows, :, 0] * (100 / (65535 if deep else 255))
        if signed:
            tones = values[rows, :, 1:].astype(np.int16 if deep else np.int8) / (256 if deep else 1)
        else:
            tones = (values[rows, :, 1:] - (32768.0 if deep else 128.0)) / (256 if deep else 1)
        result[rows] = np.rint(lab2rgb(np.dstack([lightness, tones])).clip(0, 1) * 255)
    return result
