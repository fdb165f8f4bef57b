"""What a forgery cannot be made of is refused before anything is drawn."""

import typing
from collections.abc import Sequence

import numpy as np

from config import ContentKind, CopyBlending, CopyTransform, Degradation, SynthesisSettings
from forgery.draws import CONTENT_PROBABILITIES, COPY_PROBABILITIES
from runtime.errors import InputError

MIN_SIDE = 32  # smallest side of an image that can be forged, in pixels


def check_images(images: Sequence[np.ndarray], settings: SynthesisSettings) -> None:
    """Raise ValueError if an image is not (H, W, 3) uint8, or the first is too small for two regions."""
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is {image.dtype} of shape {image.shape}; it must be uint8 (H, W, 3)")
    height, width = images[0].shape[:2]
    least = max(MIN_SIDE, settings.min_copy_pixels + 2)
    if min(height, width) < least or max(height, width) < 2 * settings.min_copy_pixels:
        raise ValueError(
            f"the image has {width} x {height} pixels, too small for two regions of {settings.min_copy_pixels} "
            f"pixels; it needs {least} in the one direction and {max(least, 2 * settings.min_copy_pixels)} in the other"
        )


def check_settings(settings: SynthesisSettings) -> None:
    """Raise InputError for settings out of range."""
    for name, known in (
        ("content_kinds", ContentKind),
        ("copy_transforms", CopyTransform),
        ("copy_blendings", CopyBlending),
        ("degradations", Degradation),
    ):
        unknown = set(getattr(settings, name)) - set(typing.get_args(known))
        if unknown:
            raise InputError(f"{name} has {sorted(unknown)}; known: {', '.join(typing.get_args(known))}")
    if not settings.content_kinds or not settings.copy_blendings:
        raise InputError("content_kinds and copy_blendings need at least one entry each")
    for name in ("transform_probability", "panel_probability", "degrade_probability"):
        if not 0 <= getattr(settings, name) <= 1:
            raise InputError(f"{name} is {getattr(settings, name)}; allowed: 0 to 1")
    for name, weights in (("max_contents", CONTENT_PROBABILITIES), ("max_copies", COPY_PROBABILITIES)):
        if not 1 <= getattr(settings, name) <= len(weights):
            raise InputError(f"{name} is {getattr(settings, name)}; allowed: 1 to {len(weights)}")
    lowest, highest = settings.min_copy_pixels, settings.max_copy_pixels
    if lowest < 4 or (highest is not None and highest < lowest):
        raise InputError(
            f"min_copy_pixels is {lowest} and max_copy_pixels {highest}; the first must be at least 4, and not larger "
            "than the second"
        )
    if not 0 < settings.min_scale <= settings.max_scale:
        raise InputError(
            f"min_scale is {settings.min_scale} and max_scale {settings.max_scale}; the first must be above 0, and not "
            "larger than the second"
        )
    lowest, highest = settings.min_jpeg_quality, settings.max_jpeg_quality
    if not 1 <= lowest <= highest <= 100:
        raise InputError(
            f"min_jpeg_quality is {lowest} and max_jpeg_quality {highest}; allowed: 1 to 100, the first not larger "
            "than the second"
        )
