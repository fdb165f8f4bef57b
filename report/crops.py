"""A copy and its source, cut out of the image and aligned so that their pixels can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from report.colours import FRAME_RGB

if TYPE_CHECKING:
    from copymove.copies import Copy
    from copymove.regions import Region

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive

CROP_SIDE = 400  # longest side of a cut-out, pixels
MIN_VARIANCE = 16.0  # squared grey levels; in flatter regions a change of contrast cannot be told from noise


@dataclass(frozen=True)
class AlignedPair:
    """Cut-outs of a source and its copy, the copy transformed so that it lies on the source pixel by pixel."""

    source: np.ndarray  # (h, w, 3) uint8 RGB
    copy: np.ndarray  # (h, w, 3) uint8 RGB
    in_image: np.ndarray  # (h, w) bool: where `copy` shows the image; elsewhere it has the colour FRAME_RGB
    compared: np.ndarray  # (h, w) bool: pixels inside both regions
    difference: np.ndarray  # (h, w) uint8: mean absolute difference over the channels, after matching contrast
    gain: float | None  # contrast of the copy relative to the source, mean over the channels; None where too flat
    offset: float  # mean brightness of the copy minus that of the source, grey levels
    identical: float  # share of the compared pixels that are equal in all channels without any matching, 0 to 1
    scale: float  # pixels of the cut-out per pixel of the image, at most 1


def align_pair(image: np.ndarray, copy: "Copy", side: int = CROP_SIDE) -> AlignedPair:
    """Cut the source and the copy out of an image with a margin around them, and align the copy with the source.

    Args:
        image: (H, W, 3) uint8 RGB.
        copy: its regions may reach beyond the image.
        side: longest side of the cut-outs in pixels; larger regions are shrunk.
    """
    shape = image.shape[:2]
    h, w = copy.source.mask.shape
    margin = max(6, round(0.15 * max(h, w)))
    left, top = copy.source.x, copy.source.y
    source_box = _clip((left - margin, top - margin, left + w + margin, top + h + margin), shape)
    copy_box = _clip(_mapped_box(source_box, copy.affine), shape)

    scale = min(1.0, side / max(source_box[2] - source_box[0], source_box[3] - source_box[1]))
    source = shrink_image(_crop(image, source_box), scale)
    unaligned = shrink_image(_crop(image, copy_box), scale)
    to_copy = np.vstack([copy.affine, (0, 0, 1)])
    transform = _image_to_crop(copy_box, unaligned) @ to_copy @ np.linalg.inv(_image_to_crop(source_box, source))

    def align(array: np.ndarray, interpolation: int) -> np.ndarray:
        size = source.shape[1::-1]
        return cv2.warpAffine(array, transform[:2], size, flags=interpolation | cv2.WARP_INVERSE_MAP)

    source_mask = shrink_image(_mask_in_box(copy.source, source_box), scale)
    copy_mask = align(shrink_image(_mask_in_box(copy.target, copy_box), scale), cv2.INTER_NEAREST)
    in_image = align(np.full(unaligned.shape[:2], 255, np.uint8), cv2.INTER_NEAREST) > 127
    compared = (source_mask > 127) & (copy_mask > 127)
    return _compare(source, align(unaligned, cv2.INTER_CUBIC), in_image, compared, scale)


def _compare(
    source: np.ndarray, copy: np.ndarray, in_image: np.ndarray, compared: np.ndarray, scale: float
) -> AlignedPair:
    """Fit the copy's brightness and contrast to the source's per channel (least squares inside `compared`) and take
    the difference."""
    s, c = source.astype(np.float32), copy.astype(np.float32)
    gain, offsets, fitted = None, np.zeros(3), c
    if compared.any():
        s_inside, c_inside = s[compared], c[compared]  # (n, 3)
        s_mean, c_mean = s_inside.mean(axis=0), c_inside.mean(axis=0)
        variance = c_inside.var(axis=0)
        covariance = ((s_inside - s_mean) * (c_inside - c_mean)).mean(axis=0)
        slope = np.where(variance > 1.0, covariance / np.maximum(variance, 1.0), 1.0)  # flat: match brightness only
        slope = np.clip(slope, 0.2, 5.0)
        fitted = (c - c_mean) * slope + s_mean
        offsets = c_mean - s_mean
        if variance.mean() >= MIN_VARIANCE:
            gain = float((1 / slope).mean())
    difference = np.clip(np.abs(s - fitted).mean(axis=2), 0, 255).astype(np.uint8)
    identical = (source == copy).all(axis=2)[compared]
    return AlignedPair(
        source=source,
        copy=np.where(in_image[..., None], copy, np.array(FRAME_RGB, np.uint8)),
        in_image=in_image,
        compared=compared,
        difference=difference,
        gain=gain,
        offset=float(offsets.mean()),
        identical=float(identical.mean()) if identical.size else 0.0,
        scale=scale,
    )


def shrink_image(array: np.ndarray, scale: float) -> np.ndarray:
    """An image (H, W) or (H, W, C) resized by `scale` with area averaging; itself where `scale` is 1 or more."""
    if scale >= 1:
        return array
    size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


def _mapped_box(box: Box, affine: np.ndarray) -> Box:
    """The upright box around the corners of a box after an affine map (2, 3), with a margin of 2 pixels."""
    x0, y0, x1, y1 = box
    corners = affine @ np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1, 1, 1, 1]], float)
    low, high = np.floor(corners.min(axis=1)).astype(int) - 2, np.ceil(corners.max(axis=1)).astype(int) + 3
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _clip(box: Box, shape: Sequence[int]) -> Box:
    """The part of a box inside an image of `shape` (height, width), at least one pixel."""
    height, width = shape
    x0, y0 = min(max(box[0], 0), width - 1), min(max(box[1], 0), height - 1)
    return x0, y0, min(max(box[2], x0 + 1), width), min(max(box[3], y0 + 1), height)


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return image[y0:y1, x0:x1]


def _image_to_crop(box: Box, crop: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) from pixels of the image to pixels of `crop`, which shows `box` and may have been shrunk."""
    x0, y0, x1, y1 = box
    height, width = crop.shape[:2]
    # Not quite the same number: both sides of the crop were rounded to whole pixels.
    scale_x, scale_y = width / (x1 - x0), height / (y1 - y0)
    # Pixel 0 has its centre at 0 and its border at -0.5.
    return np.array(
        [[scale_x, 0, 0.5 * scale_x - 0.5 - scale_x * x0], [0, scale_y, 0.5 * scale_y - 0.5 - scale_y * y0], [0, 0, 1]]
    )


def _mask_in_box(region: "Region", box: Box) -> np.ndarray:
    """The part of a region's mask inside a box of the image: (h, w) uint8, 0 or 255."""
    x0, y0, x1, y1 = box
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    h, w = region.mask.shape
    left, top, right, bottom = max(x0, region.x), max(y0, region.y), min(x1, region.x + w), min(y1, region.y + h)
    if left < right and top < bottom:
        part = region.mask[top - region.y : bottom - region.y, left - region.x : right - region.x]
        mask[top - y0 : bottom - y0, left - x0 : right - x0] = part * np.uint8(255)
    return mask
