"""Pixels of any depth become 8 bit, by one rule for integers and floats.

The rule: from the 0.1th to the 99.9th percentile of all values, of all colours together, becomes 0 to 255; pixels
outside of what their eight neighbours hold count as the nearest of these. Percentiles, because one hot pixel of 65535
or one value of 1e30 would leave a few grey levels to all others between the least and the largest value; 0.1 %, because
few groups of hot pixels take more, and little of an image is clipped. The range is widened to what a 3 x 3 median
leaves, but for its 100 least and largest values: so a small bright cell in a large dark field keeps its texture.

Where the full range is meant, it is kept, so that what was 8 bit once comes back to the bit:

- integers within 0 to 255, and integers of 16 bits that are all multiples of 257 (8 bits, saved as 16);
- floats within 0 to 1, or within 0 to 255, and integers, where the range above covers half of 0 to 1, to 255 or to the
  largest number of their bits: no level would be gained that shows.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

BLOCK = 1 << 20  # most values that are converted at once
PERCENTILES = 0.1, 99.9
LARGEST_SPOT = 100  # so many extreme values of the median are left out, at most as many as the percentiles leave out
SAMPLES = 1 << 21  # about as many values are looked at, evenly spread rows and columns of a larger image
BY_PERCENTILES = "percentiles 0.1 and 99.9 without isolated pixels"
FULL_RANGE = "full range"


@dataclass(frozen=True)
class Intensity:
    """How values of an image became 8 bit: `low` became 0, `high` 255, what lies outside was clipped."""

    low: float
    high: float
    rule: str  # BY_PERCENTILES or FULL_RANGE
    dtype: str  # of the values in the file, as "uint16"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def row_blocks(pixels: np.ndarray) -> Iterator[slice]:
    """Slices of rows of about `BLOCK` values each, so that intermediate arrays stay small beside a large image."""
    rows = max(1, BLOCK // max(1, math.prod(pixels.shape[1:])))
    for start in range(0, len(pixels), rows):
        yield slice(start, start + rows)


def to_8_bit(pixels: np.ndarray, bits: int | None = None) -> tuple[np.ndarray, Intensity | None]:
    """Convert (H, W) or (H, W, C) of any numbers to uint8 of the same shape, by the rule at the top of this file.

    Values that are not finite become 0.

    Args:
        bits: how many bits an unsigned integer has; those of its type where not given.
    Returns:
        The pixels, and how they were mapped: None where they have 8 bits or fewer.
    """
    if pixels.dtype == bool:
        return pixels.view(np.uint8) * np.uint8(255), None
    if pixels.dtype == np.uint8:
        return (pixels if bits in (None, 8) else _scaled_up(pixels, bits)), None
    intensity = choose_intensity(pixels, bits)
    return map_to_8_bit(pixels, intensity), intensity


def _scaled_up(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Values of 1 to 7 bits."""
    largest = 2**bits - 1
    return np.rint(np.arange(256).clip(0, largest) * (255 / largest)).astype(np.uint8)[pixels]


def choose_intensity(pixels: np.ndarray, bits: int | None = None) -> Intensity:
    """The range of values that becomes 0 to 255; arguments as `to_8_bit`, of more than 8 bits."""
    least, most = _finite_range(pixels)
    name = pixels.dtype.name
    if pixels.dtype.kind in "ui" and least >= 0 and most <= 255:
        return Intensity(0, 255, FULL_RANGE, name)
    if pixels.dtype == np.uint16 and all((pixels[rows] % 257 == 0).all() for rows in row_blocks(pixels)):
        return Intensity(0, 65535, FULL_RANGE, name)
    low, high = _robust_range(pixels, least)
    full = _full_range(pixels, bits, least, most)
    if full is not None and (high - low >= full / 2 or high == low):
        return Intensity(0, full, FULL_RANGE, name)
    return Intensity(low, high, BY_PERCENTILES, name)


def _full_range(pixels: np.ndarray, bits: int | None, least: float, most: float) -> float | None:
    """The largest number of the range that such values have by convention; None where there is none."""
    if least < 0:
        return None
    if pixels.dtype.kind == "u":
        return 2.0 ** (bits or 8 * pixels.dtype.itemsize) - 1
    return 1.0 if most <= 1 and pixels.dtype.kind == "f" else 255.0 if most <= 255 else None


def map_to_8_bit(pixels: np.ndarray, intensity: Intensity) -> np.ndarray:
    """The values of an image as uint8 of the same shape; those that are not finite become 0."""
    result = np.empty(pixels.shape, np.uint8)
    low, high = float(intensity.low), float(intensity.high)
    if pixels.dtype == np.uint16:
        table = _shares(np.arange(65536.0), low, high)
        for rows in row_blocks(pixels):
            result[rows] = table[pixels[rows]]
        return result
    for rows in row_blocks(pixels):
        result[rows] = _shares(pixels[rows].astype(np.float64), low, high)
    return result


def _shares(values: np.ndarray, low: float, high: float) -> np.ndarray:
    finite = np.isfinite(values)
    # Half of every value, because the difference of two floats may be larger than the largest float.
    share = (np.where(finite, values, low).clip(low, high) / 2 - low / 2) / ((high / 2 - low / 2) or 1)
    return np.where(finite, np.rint(share * 255), 0).astype(np.uint8)


def _finite_range(pixels: np.ndarray) -> tuple[float, float]:
    """Least and largest of the finite values; 0 and 0 where there are none."""
    ranges = []
    for rows in row_blocks(pixels):
        values = pixels[rows][np.isfinite(pixels[rows])]
        if values.size:
            ranges += [float(values.min()), float(values.max())]
    return min(ranges, default=0.0), max(ranges, default=0.0)


def _robust_range(pixels: np.ndarray, least: float) -> tuple[float, float]:
    """The percentiles of the values, widened to that of their median; `least`: the least finite value."""
    step = math.ceil(math.sqrt(max(1.0, pixels.size / SAMPLES)))
    rough, smooth = [], []
    blocks = max(1, BLOCK // math.prod(pixels.shape[1:]) // step) * step  # rows at once, a multiple of the step
    for start in range(0, len(pixels), blocks):
        above = min(start, 1)
        rows = pixels[start - above : start + blocks + 1]
        chosen = (slice(above, above + blocks, step), slice(None, None, step))
        for plane in np.moveaxis(rows.reshape(*rows.shape[:2], -1), 2, 0):
            finite = np.isfinite(plane[chosen])
            for values, kept in zip(_without_outliers(plane, least), (rough, smooth), strict=True):
                kept.append(values[chosen][finite])
    share = 1 - PERCENTILES[1] / 100
    lows, highs = zip(
        _trimmed(np.concatenate(rough), share, math.inf),
        _trimmed(np.concatenate(smooth), share, LARGEST_SPOT / step**2),
        strict=True,
    )
    return min(lows), max(highs)


def _without_outliers(plane: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) within what the eight neighbours of each pixel hold, and the 3 x 3 median; not finite is `least`."""
    if min(plane.shape) < 3:
        return plane, plane
    # Of the ranks, because OpenCV takes no larger numbers than float32, which cannot tell 1 from 2 beside 1e30.
    if plane.dtype == np.uint16:
        levels, ranks = None, np.ascontiguousarray(plane)
    else:
        levels, ranks = np.unique(np.where(np.isfinite(plane), plane, least), return_inverse=True)
        ranks = ranks.reshape(plane.shape).astype(np.float32)
    around = np.ones((3, 3), np.uint8)
    around[1, 1] = 0
    within = np.clip(ranks, cv2.erode(ranks, around), cv2.dilate(ranks, around))
    median = cv2.medianBlur(ranks, 3)
    return (within, median) if levels is None else (levels[within.astype(np.int64)], levels[median.astype(np.int64)])


def _trimmed(values: np.ndarray, share: float, limit: float) -> tuple[float, float]:
    """Least and largest value without the given share of them at each end, and without more than `limit` of them."""
    if not values.size:
        return 0.0, 0.0
    left_out = int(min(share * values.size, limit))
    ordered = np.partition(values, (left_out, values.size - 1 - left_out))
    return float(ordered[left_out]), float(ordered[values.size - 1 - left_out])
