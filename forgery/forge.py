"""Copy-move forgeries with exact instance masks, made out of an authentic image."""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from config import ContentKind, CopyBlending, CopyTransform, Degradation, SynthesisSettings
from forgery.contents import KIND_WEIGHTS, Composition, find_source
from forgery.degrade import degrade, draw_degradation, draw_index
from forgery.figures import annotate_figure, compose_figure
from forgery.paste import MIN_DIFFERENCE, add_copy, cut_source, draw_change
from runtime.errors import InputError

MIN_SIDE = 32  # smallest image that can be forged, in pixels


ATTEMPTS = 24  # tries for one content before the image counts as one without anything to copy


# Forged images of Recod.ai/LUC: the share of the image inside masks at the 5th, 25th, 50th, 75th and 95th
# percentile is 0.0026, 0.0075, 0.027, 0.081, 0.185. The targets differ a little: what is too large to find a place
# shrinks, and what is under the smallest side grows. CONTENT_PROBABILITIES: one, two, three, four in an image.
SHARE_PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


SHARES = (0.0010, 0.0026, 0.0060, 0.025, 0.092, 0.20, 0.33)


CONTENT_PROBABILITIES = (0.679, 0.255, 0.063, 0.003)


COPY_PROBABILITIES = (0.72, 0.16, 0.07, 0.05)  # copies of one content; ours, the data set gives no such number


@dataclass(frozen=True)
class Forgery:
    """A finished image and its truth.

    image: (H, W, 3) uint8 RGB. masks: (K, H, W) bool, one per content: the visible pixels of its source and of
    all its copies; K = 0 for an authentic image. record: JSON types; boxes are [x, y, width, height] and
    `affine` is 2 x 3, source pixel (x, y, 1) -> copy pixel, both in pixels of the finished image.
    """

    image: np.ndarray
    masks: np.ndarray
    record: dict[str, Any]


def forge(
    image: np.ndarray,
    settings: SynthesisSettings,
    rng: np.random.Generator,
    forged: bool = True,
    panels: Sequence[np.ndarray] = (),
) -> Forgery:
    """Turn an authentic image into a copy-move forgery; the same `rng` state gives the same forgery.

    image and panels: (H, W, 3) uint8 RGB. With `panel_probability` the image becomes a composed figure made of
    pieces of `image` and `panels`, no piece used twice. With forged=False the same is done without any copy.
    An image in which nothing can be copied so that it shows (all black, say) comes back with K = 0 and
    `record["forged"]` false. Raises ValueError for an image that is too small or of another type, InputError
    for settings out of range.
    """
    _check_settings(settings)
    _check_images([image, *panels], settings)
    plan = draw_degradation(settings, rng, image.shape)
    factor = plan["resize"] or 1.0
    smallest = math.ceil(settings.min_copy_pixels / factor) + (factor != 1.0)
    largest = math.inf if settings.max_copy_pixels is None else settings.max_copy_pixels / factor - (factor != 1.0)

    pixels, boxes, pieces = image.copy(), [(0, 0, image.shape[1], image.shape[0])], []
    if rng.random() < settings.panel_probability:
        composed = compose_figure([image, *panels], max(2 * smallest, 40), rng)
        if composed is not None:
            pixels, boxes, pieces = composed
    composition = Composition(pixels, np.zeros(pixels.shape[:2], np.int16), boxes, smallest, largest)
    if forged:
        _add_contents(composition, settings, rng)
    if composition.composed:
        annotate_figure(composition, rng)
    return _finish(composition, plan, pieces, rng)


def _check_images(images: Sequence[np.ndarray], settings: SynthesisSettings) -> None:
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


def _check_settings(settings: SynthesisSettings) -> None:
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
        raise InputError(f"copies of {lowest} to {highest} pixels; min_copy_pixels must be at least 4, and the smaller")
    if not 0 < settings.min_scale <= settings.max_scale:
        raise InputError(f"scales {settings.min_scale} to {settings.max_scale}; they must be above 0 and in order")
    lowest, highest = settings.min_jpeg_quality, settings.max_jpeg_quality
    if not 1 <= lowest <= highest <= 100:
        raise InputError(f"JPEG qualities {lowest} to {highest}; allowed: 1 to 100, in order")


def _add_contents(composition: Composition, settings: SynthesisSettings, rng: np.random.Generator) -> None:
    """Copy 1 to max_contents contents; their area together follows SHARES."""
    count = 1 + draw_index(CONTENT_PROBABILITIES[: settings.max_contents], rng)
    share = math.exp(np.interp(rng.random(), SHARE_PROBABILITIES, np.log(SHARES)))
    parts = rng.uniform(0.5, 1.5, count)
    total = share * composition.owner.size
    for area in total * parts / parts.sum():
        for attempt in range(ATTEMPTS):
            if _add_content(composition, settings, area, attempt / ATTEMPTS, rng):
                break


def _add_content(
    composition: Composition, settings: SynthesisSettings, area: float, ease: float, rng: np.random.Generator
) -> bool:
    """Choose a source and paste its copies, all together of about `area` pixels.

    `ease`, 0 to 1, grows with the attempts: smaller regions, simpler shapes, less structure. Returns False, with the
    image unchanged, if there is no such source or no copy finds a place.
    """
    kinds = [k for k in settings.content_kinds if k != "panel" or composition.composed]
    if ease > 0.2:
        kinds = [k for k in kinds if k not in ("object", "panel")] or kinds
    if not kinds:
        return False
    # Cells and bands are small: they seldom make up a large share of the image.
    rare = min(1.0, 0.02 * composition.owner.size / area)
    kind = kinds[draw_index([KIND_WEIGHTS[k] * (rare if k == "object" else 1) for k in kinds], rng)]
    copies = 1 + draw_index(COPY_PROBABILITIES[: settings.max_copies], rng)
    changes = [draw_change(settings, kind, rng) for _ in range(copies)]
    weight = 1 if ease < 0.7 else 0.5
    source = find_source(composition, kind, area * 0.05**ease / (1 + sum(c.scale**2 for c in changes)), weight, rng)
    if source is None:
        return False
    cutout = cut_source(composition.pixels, source.box, min(change.scale for change in changes))
    first = len(composition.sizes)
    composition.claim(*source.box[:2], source.mask)
    records = []
    for change in changes:
        blending = "hard" if kind == "panel" else settings.copy_blendings[rng.integers(len(settings.copy_blendings))]
        record = add_copy(composition, source, cutout, change, blending, weight * MIN_DIFFERENCE, rng)
        if record is not None:
            records.append(record)
    if not records:
        composition.owner[composition.owner == first] = 0
        composition.sizes.pop()
        composition.visible.pop()
        return False
    origin = {"box": list(source.box), "size": list(source.box[2:])}
    numbers = list(range(first, len(composition.sizes)))
    composition.contents.append({"kind": kind, "source": origin, "copies": records, "numbers": numbers})
    return True


def _finish(
    composition: Composition, plan: dict[str, Any], pieces: list[dict[str, Any]], rng: np.random.Generator
) -> Forgery:
    """Degrade the image, and bring masks, boxes and matrices to its final size."""
    height, width = composition.owner.shape
    size = (width, height)
    if plan["resize"] is not None:
        size = (max(1, round(width * plan["resize"])), max(1, round(height * plan["resize"])))
    image = degrade(composition.pixels, size, plan, rng)
    owner = composition.owner
    if size != (width, height):
        owner = cv2.resize(owner, size, interpolation=cv2.INTER_NEAREST_EXACT)
    zoom = np.array([size[0] / width, size[1] / height])
    masks = np.zeros((len(composition.contents), size[1], size[0]), bool)
    contents = []
    for mask, content in zip(masks, composition.contents, strict=True):
        mask[:] = np.isin(owner, content["numbers"])
        contents.append(
            {
                "kind": content["kind"],
                "source": _resized(content["source"], zoom),
                "copies": [_resized(copy, zoom) for copy in content["copies"]],
            }
        )
    record = {
        "forged": bool(contents),
        "size": list(size),
        "contents": contents,
        "panels": [_resized(piece, zoom) for piece in pieces],
    }
    return Forgery(image, masks, record | plan)


def _resized(entry: dict[str, Any], zoom: np.ndarray) -> dict[str, Any]:
    """A record's box, size and matrix after the image grew by `zoom` (x, y)."""
    scaled = dict(entry)
    for name in ("box", "size"):
        if name in entry:
            scaled[name] = [round(v) for v in np.array(entry[name]) * np.resize(zoom, len(entry[name]))]
    if "affine" in entry:
        # Pixel centres: x' = zoom (x + 1/2) - 1/2 on both sides of the map.
        to_final = np.array([[zoom[0], 0, zoom[0] / 2 - 0.5], [0, zoom[1], zoom[1] / 2 - 0.5], [0, 0, 1]])
        affine = np.vstack([entry["affine"], [0, 0, 1]])
        scaled["affine"] = (to_final @ affine @ np.linalg.inv(to_final))[:2].tolist()
    return scaled
