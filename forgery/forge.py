"""Make a copy-move forgery with exact instance masks out of an authentic image."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from config import SynthesisSettings
from forgery.changes import draw_change
from forgery.checks import check_images, check_settings
from forgery.composition import Composition, Content
from forgery.contents import draw_kind, find_source
from forgery.degrade import DegradationPlan, degrade, draw_degradation
from forgery.draws import draw_areas, draw_copy_count
from forgery.figures import Panel, annotate_figure, compose_figure
from forgery.paste import MIN_DIFFERENCE, add_copy, cut_source

ATTEMPTS = 24  # tries for one content before the image counts as one in which nothing can be copied


@dataclass(frozen=True)
class Forgery:
    """A finished image and its truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    # (K, H, W) bool, one per content: the visible pixels of its source and of all its copies; K = 0 if authentic
    masks: np.ndarray
    # JSON types; boxes are [x, y, width, height]; `affine` is 2 x 3, source pixel (x, y, 1) -> copy pixel; both in
    # pixels of the finished image
    record: dict[str, Any]


def forge(
    image: np.ndarray,
    settings: SynthesisSettings,
    rng: np.random.Generator,
    forged: bool = True,
    panels: Sequence[np.ndarray] = (),
) -> Forgery:
    """Turn an authentic image into a copy-move forgery. The same state of `rng` gives the same forgery.

    With `panel_probability` the image becomes a composed figure made of pieces of `image` and `panels`, of which no
    piece is used twice. An image in which nothing can be copied so that it shows (one that is all black, for instance)
    comes back with K = 0 and `record["forged"]` false.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        forged: False does the same to the image, but copies nothing.
        panels: further images of that type.
    Raises:
        ValueError: an image is too small or of another type.
        InputError: settings are out of range.
    """
    check_settings(settings)
    check_images([image, *panels], settings)
    plan = draw_degradation(settings, rng, image.shape)
    factor = plan.resize or 1.0
    # One pixel of reserve, since sizes are rounded when the image is resized.
    smallest = math.ceil(settings.min_copy_pixels / factor) + (factor != 1.0)
    largest = math.inf if settings.max_copy_pixels is None else settings.max_copy_pixels / factor - (factor != 1.0)

    pixels, boxes, shown = image.copy(), [(0, 0, image.shape[1], image.shape[0])], []
    if rng.random() < settings.panel_probability:
        figure = compose_figure([image, *panels], max(2 * smallest, 40), rng)
        if figure is not None:
            pixels, shown = figure
            boxes = [panel.box for panel in shown]
    composition = Composition(pixels, np.zeros(pixels.shape[:2], np.int16), boxes, smallest, largest)
    if forged:
        for area in draw_areas(settings, composition.owner.size, rng):
            _add_content(composition, settings, area, rng)
    if composition.composed:
        annotate_figure(composition, rng)
    return _finish(composition, plan, shown, rng)


def _add_content(composition: Composition, settings: SynthesisSettings, area: float, rng: np.random.Generator) -> None:
    """Copy a content of about `area` pixels, all its regions together; later attempts make it easier to find one."""
    for attempt in range(ATTEMPTS):
        content = _try_content(composition, settings, area, attempt / ATTEMPTS, rng)
        if content is not None:
            composition.contents.append(content)
            return


def _try_content(
    composition: Composition, settings: SynthesisSettings, area: float, ease: float, rng: np.random.Generator
) -> Content | None:
    """Choose a source and paste its copies.

    The greater `ease`, 0 to 1, the smaller the regions, the simpler their shapes, the less structure is required.
    Returns None, with the image unchanged, if there is no such source or if no copy finds a place.
    """
    kind = draw_kind(composition, settings, area, ease > 0.2, rng)
    if kind is None:
        return None
    changes = [draw_change(settings, kind, rng) for _ in range(draw_copy_count(settings, rng))]
    weight = 1 if ease < 0.7 else 0.5
    source_area = area * 0.05**ease / (1 + sum(change.scale**2 for change in changes))
    source = find_source(composition, kind, source_area, weight, rng)
    if source is None:
        return None
    cutout = cut_source(composition.pixels, source.box, min(change.scale for change in changes))
    first = len(composition.sizes)
    composition.add_region(*source.box[:2], source.mask)
    copies = []
    for change in changes:
        blending = "hard" if kind == "panel" else settings.copy_blendings[rng.integers(len(settings.copy_blendings))]
        copy = add_copy(composition, source, cutout, change, blending, weight * MIN_DIFFERENCE, rng)
        if copy is not None:
            copies.append(copy)
    if not copies:
        composition.remove_last_region()
        return None
    origin = {"box": list(source.box), "size": list(source.box[2:])}
    return Content(kind, origin, copies, list(range(first, len(composition.sizes))))


def _finish(
    composition: Composition, plan: DegradationPlan, panels: Sequence[Panel], rng: np.random.Generator
) -> Forgery:
    """Degrade the image, and bring masks, boxes and matrices to its final size."""
    height, width = composition.owner.shape
    image = degrade(composition.pixels, plan, rng)
    size = plan.final_size(width, height)
    owner = composition.owner
    if size != (width, height):
        owner = cv2.resize(owner, size, interpolation=cv2.INTER_NEAREST_EXACT)
    zoom = np.array([size[0] / width, size[1] / height])
    masks = np.zeros((len(composition.contents), size[1], size[0]), bool)
    contents = []
    for mask, content in zip(masks, composition.contents, strict=True):
        mask[:] = np.isin(owner, content.regions)
        source, *copies = (_resized(region, zoom) for region in (content.source, *content.copies))
        contents.append({"kind": content.kind, "source": source, "copies": copies})
    record = {
        "forged": bool(contents),
        "size": list(size),
        "contents": contents,
        "panels": [_resized({"box": list(p.box), "image": p.image, "origin": list(p.origin)}, zoom) for p in panels],
    }
    return Forgery(image, masks, record | asdict(plan))


def _resized(entry: dict[str, Any], zoom: np.ndarray) -> dict[str, Any]:
    """A record's box, size and matrix after the image was scaled by `zoom` (x, y)."""
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
