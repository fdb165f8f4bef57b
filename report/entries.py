"""Entries: what the page says about one image. Each is written to disk as soon as its image has been examined.

An entry is a dictionary that becomes JSON, with these keys:

- `name` (of its folder), `path`, `uri`; for an image out of a file that holds several, what is known of PLACE_KEYS;
- `verdict` ("found", "clean" or "error"), `score`, `error` (only with the verdict "error");
- `width`, `height`, `seconds`, `complete`, `searched`, `reason`, as in a Detection;
- `thumb`, `image`, `grid`, `anomaly`: names of image files in its folder;
- `instances`: what was found, each with its `regions`, its outline and its `copies` (see `_instance_entry`);
- `truth`, where it is known: `object_f1` and the true `instances` (see `_compare_with_truth`).
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from metrics import encode_mask, f1_matrix, object_f1_from_matrix
from report.colours import COLOURS, FRAME_RGB, to_rgb
from report.crops import align_pair, shrink_image
from report.pairs import Pair, distinct_regions, order_copies
from report.sentences import describe_copy, describe_unproven, displacement
from report.shapes import OUTLINE_POINTS, bounding_box, centroid, svg_path

if TYPE_CHECKING:
    from copymove.copies import Copy, Instance
    from copymove.regions import Region
    from detector import Detection
    from metrics import Record

FOUND, CLEAN, ERROR, NOT_EXAMINED = "found", "clean", "error", "not examined"  # verdicts
# Where an image comes from: `images.inputs.ImageSource` has the meaning of each.
PLACE_KEYS = ("part", "page", "figure", "box", "label", "caption", "hidden")

IMAGE_SIDE = 1400  # longest side of the image on its page, pixels
THUMB_SIDE = 320  # longest side of a thumbnail, pixels
DIFFERENCE_GAIN = 4  # differences are drawn this many times brighter
MAX_SHOWN_COPIES = 8  # copies of one instance that are shown with cut-outs; the others are listed in sentences
LOSSLESS_SIDE = 160  # cut-outs up to this side are stored without loss, since they are the evidence
LOSSLESS = 101  # the quality by which OpenCV means lossless WebP

FILE_KEYS = ("thumb", "image", "grid", "anomaly")  # of an entry: names of image files
COPY_FILE_KEYS = ("source", "copy", "difference")  # of each copy in it

Entry = dict[str, Any]


def write_entry(
    folder: Path,
    name: str,
    path: str | Path,
    image: np.ndarray,
    detection: "Detection",
    *,
    truth: np.ndarray | None = None,
    record: "Record | None" = None,
    **place: Any,
) -> Entry:
    """Write `folder/images/name/` for one image, whole or not at all, and return its entry.

    Args:
        folder: the report's folder.
        name: unique name of the image in this report, of letters, digits, `.`, `_`, `-` (see `unique_name`).
        path: the image's path, shown as text.
        image: (H, W, 3) uint8 RGB.
        detection: what was found in it.
        truth: (K, H, W) bool true instances, K = 0 for an authentic image; None when unknown.
        record: the image's scores; without it the oF1 is computed from `truth`.
        place: what of PLACE_KEYS is known. Page and figure are numbers from 1, box is (left, top, right, bottom) in
            points from the page's upper left corner.
    Raises:
        OSError: the files cannot be written.
    """
    final = folder / "images" / name
    temporary = folder / "images" / f".{name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        entry = _image_entry(name, path, detection) | _place(place)
        _save(temporary / "thumb.webp", _shrink_to(image, THUMB_SIDE), 75)
        _save(temporary / "image.webp", _shrink_to(image, IMAGE_SIDE), 82)
        entry |= {"thumb": "thumb.webp", "image": "image.webp"}
        entry |= _draw_maps(temporary, detection)
        entry["instances"] = [_instance_entry(temporary, i, image, x) for i, x in enumerate(detection.instances, 1)]
        if truth is not None:
            entry |= _compare_with_truth(entry["instances"], detection, truth, record)
        (temporary / "entry.json").write_text(json.dumps(entry))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return entry


def read_entry(folder: Path, name: str) -> Entry:
    """The entry that `write_entry` wrote for an image. Raises FileNotFoundError when there is none."""
    return json.loads((folder / "images" / name / "entry.json").read_text())


def error_entry(name: str, path: str | Path, error: str, **place: Any) -> Entry:
    """The entry of an image that could not be examined, with the reason; it has no files. `place`: as `write_entry`."""
    entry = {"name": name, "path": str(path), "uri": _uri(path), "verdict": ERROR, "score": 0.0, "error": error}
    return entry | {"instances": []} | _place(place)


def unique_name(path: str | Path, page: int | None = None, figure: int | None = None, part: str | None = None) -> str:
    """A name for an image's files, the same in every run: the readable part of its path, then a hash of all of it.

    At most 80 characters of `A-Za-z0-9._-`, so that it is safe in file names, URLs and HTML.
    """
    place = ("" if page is None else f"-p{page}") + ("" if figure is None else f"-f{figure}")
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in Path(path).stem)[:48]
    inside = "" if part is None else f"\0{part}"
    digest = hashlib.sha256(os.fsencode(path) + os.fsencode(inside + place)).hexdigest()[:12]
    return f"{stem.strip('_-') or 'image'}{place}-{digest}"


def entry_files(entry: Entry) -> Iterator[str]:
    """Names of the image files that belong to an entry."""
    yield from (entry[key] for key in FILE_KEYS if key in entry)
    for instance in entry["instances"]:
        for copy in instance["copies"]:
            yield from (copy[key] for key in COPY_FILE_KEYS)


def _image_entry(name: str, path: str | Path, detection: "Detection") -> Entry:
    return {
        "name": name,
        "path": str(path),
        "uri": _uri(path),
        "height": detection.shape[0],
        "width": detection.shape[1],
        "score": round(float(detection.score), 4),
        "verdict": FOUND if detection.instances else CLEAN,
        "seconds": round(float(detection.seconds), 3),
        "complete": bool(detection.complete),
        "searched": round(float(detection.searched), 4),
        "reason": detection.reason,
    }


def _place(place: Mapping[str, Any]) -> Entry:
    if unknown := place.keys() - set(PLACE_KEYS):
        raise TypeError(f"an entry has no {', '.join(sorted(unknown))}")
    known = {key: place[key] for key in PLACE_KEYS if place.get(key) not in (None, False)}
    return known | ({"box": [round(float(v), 1) for v in known["box"]]} if "box" in known else {})


def _uri(path: str | Path) -> str:
    return Path(os.path.abspath(path)).as_uri()


def _shrink_to(image: np.ndarray, side: int) -> np.ndarray:
    return shrink_image(image, side / max(image.shape[:2]))


def _save(path: Path, image: np.ndarray, quality: int = LOSSLESS) -> None:
    """Write a grey, RGB or RGBA image as PNG or WebP, whichever the path ends in; `quality` is that of WebP."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    options = [cv2.IMWRITE_WEBP_QUALITY, quality] if path.suffix == ".webp" else []
    done, encoded = cv2.imencode(path.suffix, image, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as {path.suffix}")
    path.write_bytes(encoded)  # OpenCV's own writer would not report a full disk


def _draw_maps(folder: Path, detection: "Detection") -> Entry:
    """Draw what the trained model saw, one pixel per cell: the cells of each instance and the anomaly of each cell."""
    entry: Entry = {}
    if detection.grid is not None:
        colours = np.array([(0, 0, 0, 0), *((*to_rgb(colour), 150) for colour in COLOURS)], np.uint8)  # RGBA
        labels = detection.grid.astype(int)
        _save(folder / "grid.png", colours[np.where(labels > 0, (labels - 1) % len(COLOURS) + 1, 0)])
        entry |= {"grid": "grid.png", "cells": list(detection.grid.shape)}
    if detection.anomaly is not None:
        top = float(np.nanmax(detection.anomaly, initial=0.0))
        grey = np.nan_to_num(detection.anomaly / max(top, 1e-6)).clip(0, 1) * 255
        coloured = cv2.applyColorMap(grey.astype(np.uint8), cv2.COLORMAP_CIVIDIS)
        _save(folder / "anomaly.png", cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB))
        entry |= {"anomaly": "anomaly.png", "anomaly_top": round(top, 3), "cells": list(detection.anomaly.shape)}
    return entry


def _instance_entry(folder: Path, number: int, image: np.ndarray, instance: "Instance") -> Entry:
    """All that the page says about the instance with this number (from 1); its cut-outs go to `folder`.

    `lines` are the pairs of regions that are drawn connected; `others` are the copies without cut-outs.
    """
    regions, pairs = distinct_regions(instance)
    connecting, further = order_copies(instance.copies, pairs)
    order = connecting + further
    rle = json.dumps(encode_mask(instance.mask))
    return {
        # A hash of the pixels, so that a reviewer's verdict stays with the finding that it was given for.
        "id": hashlib.sha256(rle.encode()).hexdigest()[:12],
        "number": number,
        "score": round(float(instance.score), 4),
        "area": int(instance.mask.sum()),
        "outline": svg_path(instance.mask),
        "regions": _region_entries(number, regions),
        "lines": [list(pairs[i]) for i in connecting],
        "sentence": "" if instance.copies else describe_unproven(instance),
        "copies": [
            _copy_entry(folder, f"{number}-{k}", image, instance.copies[i], pairs[i])
            for k, i in enumerate(order[:MAX_SHOWN_COPIES], 1)
        ],
        "others": [
            {"from": pairs[i][0], "to": pairs[i][1], "sentence": describe_copy(instance.copies[i])}
            for i in order[MAX_SHOWN_COPIES:]
        ],
    }


def _region_entries(number: int, regions: Sequence["Region"]) -> list[Entry]:
    """The regions of an instance, labelled 1a, 1b, ...; many regions share the corners of one outline."""
    corners = max(40, OUTLINE_POINTS // max(len(regions), 1))
    return [
        {
            "label": f"{number}{_letters(i)}",
            "outline": svg_path(region.mask, region.x, region.y, corners),
            "box": bounding_box(region),
            "centre": [round(v, 1) for v in centroid(region)],
        }
        for i, region in enumerate(regions)
    ]


def _letters(index: int) -> str:
    """a, b, ... z, aa, ab, ... for 0, 1, ... 25, 26, 27, ..."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _copy_entry(folder: Path, name: str, image: np.ndarray, copy: "Copy", pair: Pair) -> Entry:
    """What the page says about one copy; writes its three cut-outs to `folder`, their names beginning with `name`."""
    aligned = align_pair(image, copy)
    files = {key: f"{name}-{key}.webp" for key in COPY_FILE_KEYS}
    quality = LOSSLESS if max(aligned.source.shape[:2]) <= LOSSLESS_SIDE else 92
    _save(folder / files["source"], aligned.source, quality)
    _save(folder / files["copy"], aligned.copy, quality)
    drawn = np.minimum(aligned.difference.astype(np.uint16) * DIFFERENCE_GAIN, 255).astype(np.uint8)
    drawn[~aligned.in_image] = FRAME_RGB[1]
    _save(folder / files["difference"], drawn, quality)
    differences = aligned.difference[aligned.compared]
    return files | {
        "from": pair[0],
        "to": pair[1],
        "sentence": describe_copy(copy),
        "kind": copy.kind,
        "score": round(float(copy.score), 4),
        "affine": [[round(float(v), 5) for v in row] for row in copy.affine],
        "rotation": round(copy.rotation, 2),
        "scale": round(copy.scale, 4),
        "mirrored": copy.mirrored,
        "displacement": [round(v, 1) for v in displacement(copy)],
        "support": int(copy.support),
        "ncc": round(float(copy.ncc), 4),
        "area": int(copy.source.mask.sum()),
        "size": [aligned.source.shape[1], aligned.source.shape[0]],
        "compared": svg_path(aligned.compared),
        "gain": None if aligned.gain is None else round(aligned.gain, 3),
        "offset": round(aligned.offset, 1),
        "identical": round(aligned.identical, 4),
        "median_difference": float(np.median(differences)) if differences.size else None,
    }


def _compare_with_truth(
    instances: Sequence[Entry], detection: "Detection", truth: np.ndarray, record: "Record | None"
) -> Entry:
    """The keys `instances`, each with its F1, and `truth` of an entry.

    The F1 of an instance is the one with its partner in the one-to-one assignment of oF1, or 0 without a partner.
    """
    f1 = f1_matrix(detection.masks, truth)
    rows, columns = linear_sum_assignment(f1, maximize=True)
    of_found = dict(zip(rows.tolist(), f1[rows, columns].tolist(), strict=True))
    of_true = dict(zip(columns.tolist(), f1[rows, columns].tolist(), strict=True))
    true_instances = [
        {
            "f1": round(of_true.get(k, 0.0), 4),
            "area": int(mask.sum()),
            "side": round(_copy_side(mask), 1),
            "outline": svg_path(mask),
        }
        for k, mask in enumerate(truth)
    ]
    object_f1 = record.object_f1 if record else object_f1_from_matrix(f1)
    return {
        "instances": [found | {"f1": round(of_found.get(i, 0.0), 4)} for i, found in enumerate(instances)],
        "truth": {"object_f1": round(object_f1, 4), "instances": true_instances},
    }


def _copy_side(mask: np.ndarray) -> float:
    """The size of one copy: side in pixels of a square as large as the median connected part of a mask."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return math.sqrt(float(np.median(areas))) if len(areas) else 0.0
