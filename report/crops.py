"""Cut-outs of a copy and its source, aligned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    pass
from copymove.copies import Copy
from copymove.regions import Region

CROP_SIDE = 400  # longest side of a cut-out


LEAST_SPREAD = 16.0  # variance in squared grey levels under which a change of contrast cannot be told from noise


BLANK = (230, 234, 239)  # RGB of what lies outside of the image: the page's frames


@dataclass(frozen=True)
class AlignedPair:
    """Source and copy cut out of the image, the copy brought back onto the source."""

    source: np.ndarray  # (h, w, 3) uint8 RGB
    copy: np.ndarray  # (h, w, 3) uint8 RGB
    within: np.ndarray  # (h, w) bool: where the copy's surroundings lie in the image; elsewhere the copy is blank
    compared: np.ndarray  # (h, w) bool: inside both regions
    difference: np.ndarray  # (h, w) uint8: mean absolute difference over the channels, brightness matched
    gain: float | None  # contrast of the copy relative to the source, mean over the channels; None where too flat
    offset: float  # brightness added to the copy, grey levels, at the source's mean
    identical: float  # share of the compared pixels that are equal in every channel as they stand, 0 to 1
    scale: float  # pixels of the cut-out per pixel of the image, at most 1


def align_pair(image: np.ndarray, copy: "Copy", side: int = CROP_SIDE) -> AlignedPair:
    """Cut source and copy out of an image (H, W, 3) uint8 with some surroundings, at most `side` pixels across."""
    height, width = image.shape[:2]
    h, w = copy.source.mask.shape
    margin = max(6, round(0.15 * max(h, w)))
    box = _clip(copy.source.x - margin, copy.source.y - margin, copy.source.x + w + margin, copy.source.y + h + margin,
                width, height)  # fmt: skip
    x0, y0, x1, y1 = box
    scale = min(1.0, side / max(x1 - x0, y1 - y0))
    # Where the cut-out lies around the copy: the corners of its box, mapped.
    corners = np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1, 1, 1, 1]], float)
    mapped = copy.affine @ corners
    low, high = np.floor(mapped.min(axis=1)).astype(int) - 2, np.ceil(mapped.max(axis=1)).astype(int) + 3
    there = _clip(*low, *high, width, height)

    source = shrink_image(image[y0:y1, x0:x1], scale)
    surroundings = shrink_image(image[there[1] : there[3], there[0] : there[2]], scale)
    size = source.shape[1::-1]
    whole = np.vstack([copy.affine, (0, 0, 1)])
    back = _between(there, surroundings) @ whole @ np.linalg.inv(_between(box, source))

    def brought_back(array: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.warpAffine(array, back[:2], size, flags=interpolation | cv2.WARP_INVERSE_MAP)

    source_mask = shrink_image(_cut(copy.source, box), scale)
    within = brought_back(np.full(surroundings.shape[:2], 255, np.uint8), cv2.INTER_NEAREST) > 127
    target_mask = brought_back(shrink_image(_cut(copy.target, there), scale), cv2.INTER_NEAREST)
    compared = (source_mask > 127) & (target_mask > 127)
    return _compare(source, brought_back(surroundings, cv2.INTER_CUBIC), within, compared, scale)


def _compare(
    source: np.ndarray, copy: np.ndarray, within: np.ndarray, compared: np.ndarray, scale: float
) -> AlignedPair:
    """Fit the copy's brightness and contrast to the source's inside `compared`, per channel, and take differences."""
    s, c = source.astype(np.float32), copy.astype(np.float32)
    gain, offsets, fitted = None, np.zeros(3), c
    if compared.any():
        inside_s, inside_c = s[compared], c[compared]  # (n, 3)
        means_s, means_c = inside_s.mean(axis=0), inside_c.mean(axis=0)
        spread = inside_c.var(axis=0)
        covariance = ((inside_s - means_s) * (inside_c - means_c)).mean(axis=0)
        back = np.where(spread > 1.0, covariance / np.maximum(spread, 1.0), 1.0)  # flat: brightness alone
        back = np.clip(back, 0.2, 5.0)
        fitted = (c - means_c) * back + means_s
        offsets = means_c - means_s
        if spread.mean() >= LEAST_SPREAD:
            gain = float((1 / back).mean())
    difference = np.clip(np.abs(s - fitted).mean(axis=2), 0, 255).astype(np.uint8)
    same = (source == copy).all(axis=2)[compared]
    return AlignedPair(
        source=source,
        copy=np.where(within[..., None], copy, np.array(BLANK, np.uint8)),
        within=within,
        compared=compared,
        difference=difference,
        gain=gain,
        offset=float(offsets.mean()),
        identical=float(same.mean()) if same.size else 0.0,
        scale=scale,
    )


def _between(box: Sequence[int], shrunk: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) from pixels of the image to those of the cut-out of `box`, which may have been shrunk."""
    x0, y0, x1, y1 = box
    height, width = shrunk.shape[:2]
    across, down = width / (x1 - x0), height / (y1 - y0)  # not quite equal: sides are whole pixels
    # The middle of pixel 0 lies at 0, its border at -0.5.
    return np.array([[across, 0, 0.5 * across - 0.5 - across * x0], [0, down, 0.5 * down - 0.5 - down * y0], [0, 0, 1]])


def shrink_image(array: np.ndarray, scale: float) -> np.ndarray:
    if scale >= 1:
        return array
    size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


def _clip(x0: int, y0: int, x1: int, y1: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a box inside the image, at least one pixel."""
    x0, y0 = min(max(int(x0), 0), width - 1), min(max(int(y0), 0), height - 1)
    return x0, y0, min(max(int(x1), x0 + 1), width), min(max(int(y1), y0 + 1), height)


def _cut(region: "Region", box: tuple[int, int, int, int]) -> np.ndarray:
    """A region's mask as it lies in a box of the image: (h, w) uint8, 0 or 255."""
    x0, y0, x1, y1 = box
    cut = np.zeros((y1 - y0, x1 - x0), np.uint8)
    h, w = region.mask.shape
    left, top, right, bottom = max(x0, region.x), max(y0, region.y), min(x1, region.x + w), min(y1, region.y + h)
    if left < right and top < bottom:
        part = region.mask[top - region.y : bottom - region.y, left - region.x : right - region.x]
        cut[top - y0 : bottom - y0, left - x0 : right - x0] = part * np.uint8(255)
    return cut
