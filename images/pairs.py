"""Pairs of an image and its masks: read them, or check by their headers alone that they can be read."""

from collections.abc import Iterable, Iterator

import numpy as np

from config import DataSettings
from images.folders import ImageFile
from images.masks import check_mask_size, read_masks
from images.read import read_image, read_image_size
from runtime.errors import InputError


def read_pair(image_file: ImageFile, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 RGB and its masks (K, H, W) bool; K = 0 without a mask.

    Raises:
        InputError: as `read_image` and `read_masks` do.
    """
    image = read_image(image_file.image, settings.max_megapixels)
    shape = image.shape[:2]
    return image, np.zeros((0, *shape), bool) if image_file.mask is None else read_masks(image_file.mask, shape)


def check_pair(image_file: ImageFile, settings: DataSettings) -> None:
    """Check everything that shows without decoding: kind and size of the image, complete file, shape of the mask.

    Raises:
        InputError: as `read_image` and `read_masks` do.
    """
    shape = read_image_size(image_file.image, settings.max_megapixels)
    if image_file.mask is not None:
        check_mask_size(image_file.mask, shape)


def readable_images(image_files: Iterable[ImageFile], settings: DataSettings) -> tuple[list[ImageFile], list[str]]:
    """Check all images before any work is lost: the images that pass, and one line for each that does not.

    Without `--skip-unreadable` the first bad one stops the program. `check_pair` takes well under 1 ms an image. What
    only decoding can show comes up later, see `read_pairs` and `ForgeryDataset`.

    Raises:
        InputError: an image is bad and `settings.skip_unreadable` is off, or all are bad.
    """
    good, bad = [], []
    for image_file in image_files:
        try:
            check_pair(image_file, settings)
        except InputError as fault:
            if not settings.skip_unreadable:
                raise InputError(f"{fault}; mend or remove it, or leave it out with --skip-unreadable") from None
            bad.append(str(fault))
        else:
            good.append(image_file)
    if bad and not good:
        raise InputError(f"none of the {len(bad)} images can be read; the first: {bad[0]}")
    return good, bad


def read_pairs(
    image_files: Iterable[ImageFile], settings: DataSettings, skipped: list[str]
) -> Iterator[tuple[ImageFile, np.ndarray, np.ndarray]]:
    """Read image after image: (image file, image, masks), the last two as `read_pair` gives them.

    With `--skip-unreadable` an image that cannot be read is left out and a line about it appended to `skipped`, for
    the caller to report. Without, it raises InputError.
    """
    for image_file in image_files:
        try:
            image, masks = read_pair(image_file, settings)
        except InputError as fault:
            if not settings.skip_unreadable:
                raise
            skipped.append(str(fault))
        else:
            yield image_file, image, masks
