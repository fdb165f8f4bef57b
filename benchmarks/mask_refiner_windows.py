"""Windows that the mask refiner learns from: copies of synthetic forgeries, aligned as the search aligns them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.accuracy import degrade_image
from copymove.geometry import invert_affine, scale_factor
from copymove.growth import grow_region
from copymove.image_features import ImageFeatures, compute_features
from copymove.mask_refiner import crop_pair
from copymove.measurements import PairMeasurements, measure_pair
from copymove.regions import Region, deepest_point
from copymove.screening import screen_candidates
from copymove.verification import MIN_FINE_NCC
from copymove.warping import warp_to_template
from images.masks import read_masks
from images.read import read_image
from runtime.files import read_json

SIDE = 96  # of a window, in pixels
MIN_TRUE_SHARE = 0.3  # share of a measured region that must be true; below it the affine map is taken to be wrong
EDGE_WINDOWS = 3  # windows along the outline of a copy that is larger than a window; one more lies anywhere in it
SHIFT = 6  # largest random shift of a window, in pixels
DEGRADED_SHARE = 0.4  # share of the forgeries that get noise or are saved as JPEG before they are measured
MAX_NOISE = 5.0  # largest standard deviation of that noise, in grey levels
JPEG_QUALITIES = (60, 96)  # lowest quality, and the first that is too high


@dataclass(frozen=True)
class Window:
    """A window around a true copy, compact enough that thousands fit into memory."""

    grey: np.ndarray  # (2, SIDE, SIDE) float16: template, and partner warped onto it, 0 to 255
    masks: np.ndarray  # packed bits of (4, SIDE, SIDE) bool: measured region, valid, informative, true region
    noise: float  # of the image, in grey levels
    weight: float  # the weights of a copy's windows sum to 1
    f1: float  # of the measured region against the true one, over the whole copy

    def unpacked_masks(self) -> np.ndarray:
        """The masks (4, SIDE, SIDE) bool: measured region, valid, informative, true region."""
        return np.unpackbits(self.masks).reshape(4, SIDE, SIDE) > 0


def read_windows(path: Path) -> tuple[str, list[Window]]:
    """Base image of a forgery made by synthesis.py, and the windows of all of its copies that can be measured.

    Args:
        path: FOLDER/forged/NAME.png, with NAME.json beside it and FOLDER/masks/NAME.npy.
    """
    cv2.setNumThreads(1)  # the forgeries are what runs in parallel
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    image, truth = read_image(path), read_json(path.with_suffix(".json"))
    if rng.random() < DEGRADED_SHARE:
        if rng.random() < 0.5:
            image = degrade_image(image, int(rng.integers(*JPEG_QUALITIES)), 0.0)
        else:
            image = degrade_image(image, None, rng.uniform(0, MAX_NOISE))
    masks = read_masks(path.parent.parent / "masks" / f"{path.stem}.npy", image.shape[:2])
    image_features, windows = compute_features(image), []
    for mask, content in zip(masks, truth["contents"], strict=True):
        for copy in content["copies"]:
            windows += _copy_windows(image_features, mask, content["source"], copy, rng)
    return truth["base"], windows


def _copy_windows(
    image_features: ImageFeatures,
    mask: np.ndarray,
    source: dict[str, Any],
    copy: dict[str, Any],
    rng: np.random.Generator,
) -> list[Window]:
    """Windows of one copy, aligned and measured by the search's own steps from its true map; none where that fails.

    Args:
        mask: (H, W) bool, source and copies together. source, copy: their entries in the JSON of synthesis.py.
    """
    affine, template_box, partner_box = np.array(copy["affine"]), source["box"], copy["box"]
    if scale_factor(affine) < 1:  # the search takes the coarser partner as template
        affine, template_box, partner_box = invert_affine(affine), partner_box, template_box
    template, partner = (_inside_box(mask, box) for box in (template_box, partner_box))
    x, y, radius = deepest_point(Region(0, 0, template))
    centre, radius = np.array([x, y], float), min(max(radius, 5.0), 20.0)
    disc = screen_candidates(image_features, affine[None], centre[None], np.array([radius]))
    if disc.band_ncc[0] <= 0.5:
        return []
    grown = grow_region(image_features, disc.affines[0], centre, radius, MIN_FINE_NCC)
    pair = measure_pair(image_features, grown) if grown else None
    if not pair or not pair.mask.any() or pair.fine_ncc <= MIN_FINE_NCC:
        return []
    whole = (0, 0, mask.shape[1], mask.shape[0])
    warped = warp_to_template(partner.view(np.uint8), pair.affine, whole, cv2.INTER_LINEAR)
    return _cut_windows(image_features, pair, template & (warped > 0), rng)


def _inside_box(mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The part of a mask (H, W) bool inside of a box (x, y, width, height)."""
    x, y, width, height = box
    part = np.zeros_like(mask)
    part[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
    return part


def _cut_windows(
    image_features: ImageFeatures, pair: PairMeasurements, true: np.ndarray, rng: np.random.Generator
) -> list[Window]:
    """One window of a small copy, several of a large one; none where the affine map is wrong.

    Args:
        true: (H, W) bool, the template's pixels whose copy is visible.
    """
    region = Region(pair.x, pair.y, pair.mask).full(image_features.shape)
    overlap = int((region & true).sum())
    if overlap < MIN_TRUE_SHARE * region.sum():
        return []
    f1 = float(2 * overlap / (region.sum() + true.sum()))
    ys, xs = np.nonzero(region | true)
    if max(np.ptp(ys), np.ptp(xs)) < SIDE - 16:
        centres = [((xs.min() + xs.max()) // 2, (ys.min() + ys.max()) // 2)]
    else:
        square = np.ones((3, 3), np.uint8)
        edges = [cv2.morphologyEx(m.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0 for m in (region, true)]
        centres = [(xs[k], ys[k]) for k in rng.integers(len(xs), size=1)]
        ys, xs = np.nonzero(edges[0] | edges[1])
        centres += [(xs[k], ys[k]) for k in rng.integers(len(xs), size=EDGE_WINDOWS)]
    windows = []
    for x, y in centres:
        left, top = (int(v) - SIDE // 2 + int(rng.integers(-SHIFT, SHIFT + 1)) for v in (x, y))
        box = (left, top, left + SIDE, top + SIDE)
        grey, masks = crop_pair(image_features, pair.affine, box, region, true)
        packed = np.packbits(masks)
        windows.append(Window(grey.astype(np.float16), packed, image_features.noise, 1 / len(centres), f1))
    return windows
