"""Entries: what the page says about one image, written as soon as it is examined."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from metrics import encode_mask, f1_matrix, object_f1_from_matrix

if TYPE_CHECKING:
    from detector import Detection
    from metrics import Record
from copymove.copies import Copy, Instance
from report.crops import BLANK, align_pair, shrink_image
from report.shapes import OUTLINE_POINTS, bounding_box, centroid, distinct_regions, svg_path
from report.words import describe_copy, describe_unproven, displacement

IMAGE_SIDE = 1400  # longest side of the image shown, pixels


THUMB_SIDE = 320  # longest side of a thumbnail


DIFFERENCE_GAIN = 4  # differences are shown this many times stronger


PROOFS = 8  # most pairs of one finding shown with cut-outs; the others are listed in words


# Okabe and Ito (2008): seven colours that the common kinds of colour blindness keep apart, RGB.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")


Entry = dict[str, Any]


def illustrate(
    folder: Path,
    name: str,
    path: str | Path,
    image: np.ndarray,
    detection: "Detection",
    *,
    page: int | None = None,
    figure: int | None = None,
    box: Sequence[float] | None = None,
    truth: np.ndarray | None = None,
    record: "Record | None" = None,
) -> Entry:
    """Write `folder/images/name/` for one image, whole or not at all, and return its entry.

    Args:
        folder: the report's folder.
        name: unique name of the image in this report, of letters, digits, `.`, `_`, `-` (`unique_name`).
        path: the image's path, shown as text.
        image: (H, W, 3) uint8 RGB.
        detection: what was found in it.
        page, figure, box: where in a PDF it came from: page and figure from 1, box (left, top, right, bottom) in
            points from the page's upper left corner.
        truth: (K, H, W) bool true instances, K = 0 for an authentic image; None when unknown.
        record: the image's score; its oF1 is computed from `truth` when not given.
    """
    final = folder / "images" / name
    temporary = folder / "images" / f".{name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        entry = _image_entry(name, path, detection) | _place(page, figure, box)
        _save(temporary / "thumb.webp", _fit(image, THUMB_SIDE), 75)
        _save(temporary / "image.webp", _fit(image, IMAGE_SIDE), 82)
        entry |= {"thumb": "thumb.webp", "image": "image.webp"}
        entry |= _draw_maps(temporary, detection)
        entry["instances"] = [_instance_entry(temporary, i, image, x) for i, x in enumerate(detection.instances, 1)]
        if truth is not None:
            entry["truth"] = _judge(entry["instances"], detection, truth, record)
        (temporary / "entry.json").write_text(json.dumps(entry))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return entry


def read_entry(folder: Path, name: str) -> Entry:
    """The entry that `illustrate` wrote for an image. Raises FileNotFoundError when there is none."""
    return json.loads((folder / "images" / name / "entry.json").read_text())


def error_entry(
    name: str,
    path: str | Path,
    error: str,
    *,
    page: int | None = None,
    figure: int | None = None,
    box: Sequence[float] | None = None,
) -> Entry:
    """Entry of an image that could not be examined, with the reason."""
    place = _place(page, figure, box)
    return {"name": name, "path": str(path), "uri": _uri(path), "verdict": "unreadable", "score": 0.0, "error": error,
            "instances": []} | place  # fmt: skip


def unique_name(path: str | Path, page: int | None = None, figure: int | None = None) -> str:
    """Name for an image's files: its readable stem and a hash of the whole path, the same in every run.

    At most 80 characters of `A-Za-z0-9._-`, so that it is safe in file names, URLs and HTML.
    """
    place = "" if page is None else f"-p{page}" + ("" if figure is None else f"-f{figure}")
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in Path(path).stem)[:48]
    digest = hashlib.sha256(os.fsencode(path) + place.encode()).hexdigest()[:12]
    return f"{stem.strip('_-') or 'picture'}{place}-{digest}"


def _image_entry(name: str, path: str | Path, detection: "Detection") -> Entry:
    return {
        "name": name,
        "path": str(path),
        "uri": _uri(path),
        "height": detection.shape[0],
        "width": detection.shape[1],
        "score": round(float(detection.score), 4),
        "verdict": "found" if detection.instances else "nothing found",
        "seconds": round(float(detection.seconds), 3),
        "complete": bool(detection.complete),
        "reason": detection.reason,
    }


def _place(page: int | None, figure: int | None, box: Sequence[float] | None) -> Entry:
    place = {"page": page, "figure": figure, "box": None if box is None else [round(float(v), 1) for v in box]}
    return {key: value for key, value in place.items() if value is not None}


def _uri(path: str | Path) -> str:
    return Path(os.path.abspath(path)).as_uri()


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    return shrink_image(image, min(1.0, side / max(image.shape[:2])))


def _save(path: Path, image: np.ndarray, quality: int = 101) -> None:
    """PNG or WebP, by the ending, of a grey, RGB or RGBA image; WebP quality over 100 is lossless."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    options = [cv2.IMWRITE_WEBP_QUALITY, quality] if path.suffix == ".webp" else []
    done, coded = cv2.imencode(path.suffix, image, options)
    if not done:
        raise RuntimeError(f"OpenCV could not code an image of {image.shape} as {path.suffix}")
    path.write_bytes(coded)  # not by OpenCV, which does not say that the disk is full


def _draw_maps(folder: Path, detection: "Detection") -> Entry:
    """The cascade's grid in the instances' colours and the map of distances, one pixel a cell."""
    entry: Entry = {}
    if detection.grid is not None:
        colours = np.array([(0, 0, 0, 0), *((*_rgb(colour), 150) for colour in COLOURS)], np.uint8)  # RGBA
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


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _instance_entry(folder: Path, number: int, image: np.ndarray, instance: "Instance") -> Entry:
    """All that the page says about an instance; cut-outs go to `folder`."""
    regions, pairs = distinct_regions(instance)
    best = _best_first(instance, pairs)
    joining = _joining([pairs[i] for i in best], len(regions))
    # What ties a further region to the finding is shown first, the strongest proof at the top.
    tying, closing = (
        [i for k, i in enumerate(best) if k in joining],
        [i for k, i in enumerate(best) if k not in joining],
    )
    order = tying + closing
    corners = max(40, OUTLINE_POINTS // max(len(regions), 1))
    runs = json.dumps(encode_mask(instance.mask))
    return {
        # Of the pixels, so that a reviewer's verdict stays with the finding it was given for.
        "id": hashlib.sha256(runs.encode()).hexdigest()[:12],
        "number": number,
        "score": round(float(instance.score), 4),
        "area": int(instance.mask.sum()),
        "outline": svg_path(instance.mask),
        "regions": [
            {
                "label": f"{number}{_letter(i)}",
                "outline": svg_path(region.mask, region.x, region.y, corners),
                "box": bounding_box(region),
                "centre": [round(v, 1) for v in centroid(region)],
            }
            for i, region in enumerate(regions)
        ],
        "lines": [list(pairs[i]) for i in tying],
        "sentence": "" if instance.copies else describe_unproven(instance),
        "copies": [
            _copy_entry(folder, f"{number}-{k}", image, instance.copies[i], pairs[i])
            for k, i in enumerate(order[:PROOFS], 1)
        ],
        "others": [
            {"from": pairs[i][0], "to": pairs[i][1], "sentence": describe_copy(instance.copies[i])}
            for i in order[PROOFS:]
        ],
    }


def _best_first(instance: "Instance", pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the copies, the strongest proof first; of equal ones those at the region that has most copies."""
    ends = [region for pair in pairs for region in pair]
    hub = max(ends, key=ends.count, default=None)

    def rank(i: int) -> tuple[float, bool, float]:
        copy = instance.copies[i]
        return -round(copy.score, 2), hub not in pairs[i], -copy.correlation

    return sorted(range(len(pairs)), key=rank)


def _joining(pairs: Sequence[tuple[int, int]], regions: int) -> set[int]:
    """The pairs, by index, that are enough to join all regions that any pair joins (a spanning forest), first come."""
    root = list(range(regions))

    def find(region: int) -> int:
        while root[region] != region:
            region = root[region]
        return region

    joining = set()
    for i, (source, target) in enumerate(pairs):
        if find(source) != find(target):
            root[find(target)] = find(source)
            joining.add(i)
    return joining


def _copy_entry(folder: Path, name: str, image: np.ndarray, copy: "Copy", pair: tuple[int, int]) -> Entry:
    aligned = align_pair(image, copy)
    files = {"source": f"{name}-source.webp", "copy": f"{name}-copy.webp", "difference": f"{name}-difference.webp"}
    # Small cut-outs are kept to the bit: they are the proof.
    quality = 101 if max(aligned.source.shape[:2]) <= 160 else 92
    _save(folder / files["source"], aligned.source, quality)
    _save(folder / files["copy"], aligned.copy, quality)
    shown = np.minimum(aligned.difference.astype(np.uint16) * DIFFERENCE_GAIN, 255).astype(np.uint8)
    shown[~aligned.within] = BLANK[1]
    _save(folder / files["difference"], shown, quality)
    inside = aligned.difference[aligned.compared]
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
        "inliers": int(copy.inliers),
        "correlation": round(float(copy.correlation), 4),
        "area": int(copy.source.mask.sum()),
        "size": [aligned.source.shape[1], aligned.source.shape[0]],
        "compared": svg_path(aligned.compared),
        "gain": None if aligned.gain is None else round(aligned.gain, 3),
        "offset": round(aligned.offset, 1),
        "identical": round(aligned.identical, 4),
        "median_difference": float(np.median(inside)) if inside.size else None,
    }


def _letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _judge(instances: list[Entry], detection: "Detection", truth: np.ndarray, record: "Record | None") -> Entry:
    """Compare with the truth: adds each found instance's F1 and returns the true instances with theirs.

    The F1 of an instance is that of the pair which the one-to-one assignment of oF1 gives it, 0 without a partner.
    """
    from scipy.optimize import linear_sum_assignment

    f1 = f1_matrix(detection.masks, truth)
    rows, columns = linear_sum_assignment(f1, maximize=True)
    partner = dict(zip(columns.tolist(), f1[rows, columns].tolist(), strict=True))
    for instance in instances:
        instance["f1"] = 0.0
    for row, value in zip(rows.tolist(), f1[rows, columns].tolist(), strict=True):
        instances[row]["f1"] = round(value, 4)
    return {
        "object_f1": round(record.object_f1 if record else object_f1_from_matrix(f1), 4),
        "instances": [
            {
                "f1": round(partner.get(k, 0.0), 4),
                "area": int(mask.sum()),
                "side": round(_copy_side(mask), 1),
                "outline": svg_path(mask),
            }
            for k, mask in enumerate(truth)
        ],
    }


def _copy_side(mask: np.ndarray) -> float:
    """Side in pixels of a square as large as the median connected part of a mask: the size of one copy."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return math.sqrt(float(np.median(areas))) if len(areas) else 0.0
