"""Pixels of any depth become 8 bit."""

import math
from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 20  # most values that are converted at once


def row_blocks(pixels: np.ndarray) -> Iterator[slice]:
    """Slices of rows of about `BLOCK` values each, so that intermediate arrays stay small beside a large image."""
    rows = max(1, BLOCK // max(1, math.prod(pixels.shape[1:])))
    for start in range(0, len(pixels), rows):
        yield slice(start, start + rows)


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Convert an array of any numbers to uint8 of the same shape.

    - Unsigned integers are divided by the largest value of the fewest bits (8 to 32) that hold the image's maximum, so
      that an image of a 12-bit camera in a 16-bit file is not black; a full 16-bit range is divided by 257.
    - Floats within 0 to 1 are multiplied by 255; floats within 0 to 255 stay as they are.
    - Other floats, and integers with negative values: minimum to maximum becomes 0 to 255.

    Values that are not finite become 0.
    """
    if pixels.dtype == np.uint8:
        return pixels
    result = np.empty(pixels.shape, np.uint8)
    if pixels.dtype == np.uint16:
        largest = _largest_of_bits(int(pixels.max()))
        table = np.rint(np.arange(largest + 1) * (255 / largest)).astype(np.uint8)
        for rows in row_blocks(pixels):
            result[rows] = table[pixels[rows]]
        return result
    low, high = _finite_range(pixels)
    if low >= 0 and np.issubdtype(pixels.dtype, np.integer):
        low, high = 0, _largest_of_bits(int(high))
    elif low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    for rows in row_blocks(pixels):
        values = pixels[rows].astype(np.float64)
        finite = np.isfinite(values)
        # Half of every value, because the difference of two floats may be larger than the largest float.
        share = (np.where(finite, values, low) / 2 - low / 2) / ((high / 2 - low / 2) or 1)
        result[rows] = np.where(finite, np.rint(share * 255), 0)
    return result


def _largest_of_bits(maximum: int) -> int:
    """Largest number of as many bits as `maximum` needs, of 8 at least."""
    return 2 ** max(8, maximum.bit_length()) - 1


def _finite_range(pixels: np.ndarray) -> tuple[float, float]:
    """Least and largest of the finite values; 0 and 0 where there are none."""
    ranges = []
    for rows in row_blocks(pixels):
        values = pixels[rows][np.isfinite(pixels[rows])]
        if values.size:
            ranges += [float(values.min()), float(values.max())]
    return min(ranges, default=0.0), max(ranges, default=0.0)
