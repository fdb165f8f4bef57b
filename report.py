"""The HTML page that shows what was found and why. It knows nothing of how it was found.

Two steps, so that memory stays flat for any number of pictures and a killed run loses nothing:

1. `illustrate` writes one folder per picture, `FOLDER/pictures/NAME/`: thumbnail, picture, the aligned cut-outs of
   every copy, and `entry.json`, all that the page says about it. It appears whole or not at all and can be called
   from any process.
2. `write_page` makes `FOLDER/index.html` out of those entries, one at a time. While everything together stays
   under `EMBED_BYTES` the images are embedded and the page is one file; beyond that they stay beside it.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from config import write_whole
from metrics import encode_mask, f1_matrix, object_f1_from_matrix

if TYPE_CHECKING:
    from detector import Detection
    from matching import Copy, Instance, Region
    from metrics import Record

EMBED_BYTES = 20_000_000  # the page is one file up to this size
PICTURE_SIDE = 1400  # longest side of the picture shown, pixels
THUMB_SIDE = 320  # longest side of a thumbnail
CROP_SIDE = 400  # longest side of a cut-out
DIFFERENCE_GAIN = 4  # differences are shown this many times stronger
OUTLINE_POINTS = 400  # most corners of one outline
PROOFS = 8  # most pairs of one finding shown with cut-outs; the others are listed in words
MISSED_F1 = 0.1  # a true instance matched worse than this counts as missed, a found one as false
LEAST_SPREAD = 16.0  # variance in squared grey levels under which a change of contrast cannot be told from noise
BLANK = (230, 234, 239)  # RGB of what lies outside of the picture: the page's frames
# Okabe and Ito (2008): seven colours that the common kinds of colour blindness keep apart, RGB.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
TEMPLATES = Path(__file__).resolve().parent / "templates"

Entry = dict[str, Any]


# In words ---------------------------------------------------------------------------------------------------------


def displacement(copy: "Copy") -> tuple[float, float]:
    """Way (right, down) in pixels from the middle of the source to the middle of its copy."""
    x, y = _centre(copy.source)
    moved = copy.affine @ (x, y, 1.0)
    return float(moved[0] - x), float(moved[1] - y)


def describe(copy: "Copy") -> str:
    """One sentence: where the region appears again, how it was turned and resized, how alike both are."""
    right, down = (round(v) for v in displacement(copy))
    ways = [f"{abs(right):,} px to the {'right' if right > 0 else 'left'}"] if right else []
    ways += [f"{abs(down):,} px {'down' if down > 0 else 'up'}"] if down else []
    changes = [" and ".join(ways) or "in the same place"]
    turn = round(copy.rotation)
    if copy.mirrored and abs(turn) == 180:  # the same map, said in the way that people see it
        changes.append("mirrored top to bottom")
    else:
        if turn:
            sense = "" if abs(turn) == 180 else " counter-clockwise" if turn > 0 else " clockwise"
            changes.append(f"rotated {abs(turn)} {'degree' if abs(turn) == 1 else 'degrees'}{sense}")
        if copy.mirrored:
            changes.append("mirrored left to right")
    if abs(copy.scale - 1) >= 0.005:
        changes.append(f"scaled {copy.scale:.2f}")
    if len(changes) == 1:
        changes.append("neither rotated nor scaled")
    area = int(copy.source.mask.sum())
    return f"This region appears again {', '.join(changes)}; correlation {copy.correlation:.2f} over {area:,} px."


def describe_unproven(instance: "Instance") -> str:
    """The sentence for an instance that the embedding alone proposes."""
    return (
        f"The trained model marks {int(instance.mask.sum()):,} px here as repeated content; "
        "no aligned copy was found on the pixels, so look closely before you rely on it."
    )


def bounding_box(region: "Region") -> list[int]:
    """Box [x, y, width, height] of a region's pixels in the picture; that of its mask when it is empty."""
    ys, xs = np.nonzero(region.mask)
    if len(xs) == 0:
        return [int(region.x), int(region.y), region.mask.shape[1], region.mask.shape[0]]
    left, top = int(xs.min()), int(ys.min())
    return [int(region.x) + left, int(region.y) + top, int(xs.max()) - left + 1, int(ys.max()) - top + 1]


def _centre(region: "Region") -> tuple[float, float]:
    """Mean (x, y) of a region's pixels; the middle of its box when the mask is empty."""
    ys, xs = np.nonzero(region.mask)
    if len(xs) == 0:
        return region.x + (region.mask.shape[1] - 1) / 2, region.y + (region.mask.shape[0] - 1) / 2
    return region.x + float(xs.mean()), region.y + float(ys.mean())


# Outlines ---------------------------------------------------------------------------------------------------------


def outline(mask: np.ndarray, x: int = 0, y: int = 0, corners: int = OUTLINE_POINTS) -> str:
    """SVG path around a mask.

    Args:
        mask: (h, w) bool.
        x, y: place of the mask's first pixel in the picture.
        corners: about how many corners the path may have; it follows the mask less closely where there are more.
    Returns:
        Path data of closed polygons through the middles of the border pixels, holes included (fill rule evenodd);
        empty for an empty mask.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=len, reverse=True)[: corners // 4]
    tolerance = 0.5
    while True:
        simple = [cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] for contour in contours]
        if sum(map(len, simple)) <= corners or tolerance > max(mask.shape):
            break
        tolerance *= 1.5
    parts = []
    for points in simple:
        parts.append("M" + "L".join(f"{px + x + 0.5:.1f} {py + y + 0.5:.1f}" for px, py in points) + "Z")
    return "".join(parts)


def _regions(instance: "Instance") -> tuple[list["Region"], list[tuple[int, int]]]:
    """The distinct regions of an instance, and for each copy the indices (source, target) among them.

    The copies of one content share their source, up to a few pixels: regions whose masks overlap with an IoU of
    at least 0.5 are one.
    """
    regions: list[Region] = []

    def index(region: "Region") -> int:
        for i, known in enumerate(regions):
            if _iou(known, region) >= 0.5:
                return i
        regions.append(region)
        return len(regions) - 1

    return regions, [(index(copy.source), index(copy.target)) for copy in instance.copies]


def _iou(a: "Region", b: "Region") -> float:
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1 = min(a.x + a.mask.shape[1], b.x + b.mask.shape[1])
    y1 = min(a.y + a.mask.shape[0], b.y + b.mask.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    overlap = a.mask[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x] & b.mask[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]
    common = int(overlap.sum())
    return common / max(int(a.mask.sum()) + int(b.mask.sum()) - common, 1)


# The proof: source and copy aligned -------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlignedPair:
    """Source and copy cut out of the picture, the copy brought back onto the source."""

    source: np.ndarray  # (h, w, 3) uint8 RGB
    copy: np.ndarray  # (h, w, 3) uint8 RGB
    within: np.ndarray  # (h, w) bool: where the copy's surroundings lie in the picture; elsewhere the copy is blank
    compared: np.ndarray  # (h, w) bool: inside both regions
    difference: np.ndarray  # (h, w) uint8: mean absolute difference over the channels, brightness matched
    gain: float | None  # contrast of the copy relative to the source, mean over the channels; None where too flat
    offset: float  # brightness added to the copy, grey levels, at the source's mean
    identical: float  # share of the compared pixels that are equal in every channel as they stand, 0 to 1
    scale: float  # pixels of the cut-out per pixel of the picture, at most 1


def align(image: np.ndarray, copy: "Copy", side: int = CROP_SIDE) -> AlignedPair:
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

    source = _shrink(image[y0:y1, x0:x1], scale)
    surroundings = _shrink(image[there[1] : there[3], there[0] : there[2]], scale)
    size = source.shape[1::-1]
    whole = np.vstack([copy.affine, (0, 0, 1)])
    back = _between(there, surroundings) @ whole @ np.linalg.inv(_between(box, source))

    def brought_back(array: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.warpAffine(array, back[:2], size, flags=interpolation | cv2.WARP_INVERSE_MAP)

    source_mask = _shrink(_cut(copy.source, box), scale)
    within = brought_back(np.full(surroundings.shape[:2], 255, np.uint8), cv2.INTER_NEAREST) > 127
    target_mask = brought_back(_shrink(_cut(copy.target, there), scale), cv2.INTER_NEAREST)
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
    """Matrix (3, 3) from pixels of the picture to those of the cut-out of `box`, which may have been shrunk."""
    x0, y0, x1, y1 = box
    height, width = shrunk.shape[:2]
    across, down = width / (x1 - x0), height / (y1 - y0)  # not quite equal: sides are whole pixels
    # The middle of pixel 0 lies at 0, its border at -0.5.
    return np.array([[across, 0, 0.5 * across - 0.5 - across * x0], [0, down, 0.5 * down - 0.5 - down * y0], [0, 0, 1]])


def _shrink(array: np.ndarray, scale: float) -> np.ndarray:
    if scale >= 1:
        return array
    size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


def _clip(x0: int, y0: int, x1: int, y1: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a box inside the picture, at least one pixel."""
    x0, y0 = min(max(int(x0), 0), width - 1), min(max(int(y0), 0), height - 1)
    return x0, y0, min(max(int(x1), x0 + 1), width), min(max(int(y1), y0 + 1), height)


def _cut(region: "Region", box: tuple[int, int, int, int]) -> np.ndarray:
    """A region's mask as it lies in a box of the picture: (h, w) uint8, 0 or 255."""
    x0, y0, x1, y1 = box
    cut = np.zeros((y1 - y0, x1 - x0), np.uint8)
    h, w = region.mask.shape
    left, top, right, bottom = max(x0, region.x), max(y0, region.y), min(x1, region.x + w), min(y1, region.y + h)
    if left < right and top < bottom:
        part = region.mask[top - region.y : bottom - region.y, left - region.x : right - region.x]
        cut[top - y0 : bottom - y0, left - x0 : right - x0] = part * np.uint8(255)
    return cut


# One picture ------------------------------------------------------------------------------------------------------


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
    """Write `folder/pictures/name/` for one picture, whole or not at all, and return its entry.

    Args:
        folder: the report's folder.
        name: unique name of the picture in this report, of letters, digits, `.`, `_`, `-` (`unique_name`).
        path: the picture's path, shown as text.
        image: (H, W, 3) uint8 RGB.
        detection: what was found in it.
        page, figure, box: where in a PDF it came from: page and figure from 1, box (left, top, right, bottom) in
            points from the page's upper left corner.
        truth: (K, H, W) bool true instances, K = 0 for an authentic picture; None when unknown.
        record: the picture's score; its oF1 is computed from `truth` when not given.
    """
    final = folder / "pictures" / name
    temporary = folder / "pictures" / f".{name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        entry = _describe_picture(name, path, detection) | _place(page, figure, box)
        _save(temporary / "thumb.webp", _fit(image, THUMB_SIDE), 75)
        _save(temporary / "picture.webp", _fit(image, PICTURE_SIDE), 82)
        entry |= {"thumb": "thumb.webp", "picture": "picture.webp"}
        entry |= _draw_maps(temporary, detection)
        entry["instances"] = [_describe_instance(temporary, i, image, x) for i, x in enumerate(detection.instances, 1)]
        if truth is not None:
            entry["truth"] = _judge(entry["instances"], detection, truth, record)
        (temporary / "entry.json").write_text(json.dumps(entry))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return entry


def read_entry(folder: Path, name: str) -> Entry:
    """The entry that `illustrate` wrote for a picture. Raises FileNotFoundError when there is none."""
    return json.loads((folder / "pictures" / name / "entry.json").read_text())


def unreadable(
    name: str,
    path: str | Path,
    error: str,
    *,
    page: int | None = None,
    figure: int | None = None,
    box: Sequence[float] | None = None,
) -> Entry:
    """Entry of a picture that could not be examined, with the reason."""
    place = _place(page, figure, box)
    return {"name": name, "path": str(path), "uri": _uri(path), "verdict": "unreadable", "score": 0.0, "error": error,
            "instances": []} | place  # fmt: skip


def unique_name(path: str | Path, page: int | None = None, figure: int | None = None) -> str:
    """Name for a picture's files: its readable stem and a hash of the whole path, the same in every run.

    At most 80 characters of `A-Za-z0-9._-`, so that it is safe in file names, URLs and HTML.
    """
    place = "" if page is None else f"-p{page}" + ("" if figure is None else f"-f{figure}")
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in Path(path).stem)[:48]
    digest = hashlib.sha256(os.fsencode(path) + place.encode()).hexdigest()[:12]
    return f"{stem.strip('_-') or 'picture'}{place}-{digest}"


def _describe_picture(name: str, path: str | Path, detection: "Detection") -> Entry:
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
    return _shrink(image, min(1.0, side / max(image.shape[:2])))


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


def _describe_instance(folder: Path, number: int, image: np.ndarray, instance: "Instance") -> Entry:
    """All that the page says about an instance; cut-outs go to `folder`."""
    regions, pairs = _regions(instance)
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
        "outline": outline(instance.mask),
        "regions": [
            {
                "label": f"{number}{_letter(i)}",
                "outline": outline(region.mask, region.x, region.y, corners),
                "box": bounding_box(region),
                "centre": [round(v, 1) for v in _centre(region)],
            }
            for i, region in enumerate(regions)
        ],
        "lines": [list(pairs[i]) for i in tying],
        "sentence": "" if instance.copies else describe_unproven(instance),
        "copies": [
            _describe_copy(folder, f"{number}-{k}", image, instance.copies[i], pairs[i])
            for k, i in enumerate(order[:PROOFS], 1)
        ],
        "others": [
            {"from": pairs[i][0], "to": pairs[i][1], "sentence": describe(instance.copies[i])} for i in order[PROOFS:]
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


def _describe_copy(folder: Path, name: str, image: np.ndarray, copy: "Copy", pair: tuple[int, int]) -> Entry:
    aligned = align(image, copy)
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
        "sentence": describe(copy),
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
        "compared": outline(aligned.compared),
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
                "outline": outline(mask),
            }
            for k, mask in enumerate(truth)
        ],
    }


def _copy_side(mask: np.ndarray) -> float:
    """Side in pixels of a square as large as the median connected part of a mask: the size of one copy."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return math.sqrt(float(np.median(areas))) if len(areas) else 0.0


# The page ---------------------------------------------------------------------------------------------------------


def write_page(
    folder: Path,
    entries: Callable[[], Iterable[Entry]],
    *,
    title: str,
    run: str,
    details: dict[str, str] | None = None,
    table: Sequence[Sequence[str]] = (),
    embed_bytes: int = EMBED_BYTES,
) -> Path:
    """Write `folder/index.html` out of the entries of `illustrate` and `unreadable`.

    Args:
        folder: the report's folder; entries' images lie under `folder/pictures/NAME/`.
        entries: called for each pass over the entries, which are never all in memory.
        title: heading of the page.
        run: identity of the run: the reviewer's verdicts are kept in the browser under it.
        details: lines of "how this was made" (settings, versions), shown at the foot.
        table: rows of a table of results, the first one its heading; shown where truth is known.
        embed_bytes: largest size of the page with its images inside; beyond it they stay beside the page.
    Returns:
        The page's path.
    """
    size, known, scores = 0, 0, []
    for entry in entries():
        known += "truth" in entry
        size += len(json.dumps(entry)) + sum(
            -(-_image(folder, entry, f).stat().st_size // 3) * 4 for f in _files(entry)
        )
        if "truth" in entry:
            truth = entry["truth"]
            scores.append((entry["score"], truth["object_f1"], [(t["side"], t["f1"]) for t in truth["instances"]]))
    embedded = size <= embed_bytes
    context = {
        "title": title,
        "run": run,
        "entries": (_with_sources(folder, entry, embedded) for entry in entries()),
        "details": details or {},
        "table": [list(row) for row in table],
        "plots": truth_plots(scores) if scores else [],
        "settings": {
            "run": run,
            "title": title,
            "colours": COLOURS,
            "known": known > 0,
            "missed": MISSED_F1,
            "gain": DIFFERENCE_GAIN,
        },
        "embedded": embedded,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    page = folder / "index.html"
    write_whole(page, lambda temporary: _render("report.html", context, temporary))
    return page


def _files(entry: Entry) -> Iterator[str]:
    """Names of the image files of an entry."""
    for key in ("thumb", "picture", "grid", "anomaly"):
        if key in entry:
            yield entry[key]
    for instance in entry["instances"]:
        for copy in instance["copies"]:
            yield from (copy["source"], copy["copy"], copy["difference"])


def _image(folder: Path, entry: Entry, file: str) -> Path:
    return folder / "pictures" / entry["name"] / file


def _with_sources(folder: Path, entry: Entry, embedded: bool) -> Entry:
    """An entry whose image files became what goes into `src`: data URIs, or paths relative to the page."""
    import base64

    def source(file: str) -> str:
        if not embedded:
            return f"pictures/{entry['name']}/{file}"
        kind = file.rsplit(".", 1)[1]
        return f"data:image/{kind};base64," + base64.b64encode(_image(folder, entry, file).read_bytes()).decode()

    entry = entry | {key: source(entry[key]) for key in ("thumb", "picture", "grid", "anomaly") if key in entry}
    for instance in entry["instances"]:
        for copy in instance["copies"]:
            copy |= {key: source(copy[key]) for key in ("source", "copy", "difference")}
    return entry


def _render(template: str, context: dict[str, Any], path: Path) -> None:
    """Stream a template to a file. Text is escaped for HTML, JSON also for script elements."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script, style = (TEMPLATES / "report.js").read_text(), (TEMPLATES / "report.css").read_text()
    context = context | {"script": script, "style": style, "script_hash": _csp_hash(script)}
    with open(path, "w", encoding="utf-8", errors="replace") as file:  # a path may hold bytes that are not UTF-8
        for piece in environment.get_template(template).generate(context):
            file.write(piece)


def _csp_hash(text: str) -> str:
    """Content-Security-Policy source of an inline script: nothing else on the page may run."""
    import base64

    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Plots ------------------------------------------------------------------------------------------------------------


def truth_plots(scores: Sequence[tuple[float, float, Sequence[tuple[float, float]]]]) -> list[dict[str, str]]:
    """The plots of a scored run, as SVG data URIs with a title and a caption.

    Args:
        scores: per picture its score, its oF1, and (side of a copy in pixels, F1) of each true instance; a picture
            without true instances is authentic.
    """
    import matplotlib

    matplotlib.use("Agg")
    plots = []
    sides = [pair for _, _, instances in scores for pair in instances]
    if sides:
        plots.append(_plot("F1 by size of copy", "Mean F1 of the true instances; a missed one counts 0.",
                           lambda axes: _plot_sizes(axes, sides)))  # fmt: skip
    forged = np.array([score for score, _, instances in scores if instances])
    authentic = np.array([score for score, _, instances in scores if not instances])
    plots.append(_plot("Scores of authentic and forged pictures", "0 is a picture in which nothing was found.",
                       lambda axes: _plot_scores(axes, authentic, forged)))  # fmt: skip
    if len(forged) and len(authentic):
        plots.append(_plot("False alarms against found", "Each step is one value of the score threshold.",
                           lambda axes: _plot_operating(axes, authentic, forged)))  # fmt: skip
    return plots


SIZE_EDGES = (0, 16, 32, 64, 128, 256, math.inf)  # pixels


def _plot_sizes(axes: Any, sides: Sequence[tuple[float, float]]) -> None:
    side, f1 = np.array(sides).T
    bins = np.digitize(side, SIZE_EDGES[1:-1])
    for i in range(len(SIZE_EDGES) - 1):
        values = f1[bins == i]
        if len(values):
            axes.bar(i, values.mean(), color=COLOURS[6], width=0.7)
            axes.text(i, values.mean() + 0.02, f"{values.mean():.2f}\nn = {len(values)}", ha="center", fontsize=9)
    labels = [f"{low}–{high}" for low, high in itertools.pairwise(SIZE_EDGES[:-1])]
    axes.set_xticks(range(len(labels) + 1), [*labels, f"over {SIZE_EDGES[-2]}"])
    axes.set(xlabel="side of a copy in pixels", ylabel="F1", ylim=(0, 1.2), yticks=np.linspace(0, 1, 6))


def _plot_scores(axes: Any, authentic: np.ndarray, forged: np.ndarray) -> None:
    edges = np.linspace(0, 1, 21)
    groups = [("authentic", authentic, COLOURS[1], ""), ("forged", forged, COLOURS[4], "//")]
    groups = [group for group in groups if len(group[1])]
    for i, (name, values, colour, hatch) in enumerate(groups):
        counts = np.histogram(np.clip(values, 0, 1), edges)[0]
        width = 0.05 / len(groups)
        axes.bar(edges[:-1] + (i + 0.5) * width, counts, width * 0.9, color=colour, hatch=hatch, edgecolor="white",
                 label=f"{name} ({len(values)})")  # fmt: skip
    axes.set(xlabel="score", ylabel="pictures", xlim=(0, 1))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)


def operating_points(authentic: np.ndarray, forged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of authentic (x) and forged (y) pictures with score >= t, for every threshold t from high to low.

    Begins at (0, 0). A score of 0 is "nothing found" and never passes, so the curve ends where all findings count.
    """
    thresholds = np.unique(np.concatenate([authentic, forged]))[::-1]
    thresholds = thresholds[thresholds > 0]
    x = np.array([0.0] + [float((authentic >= t).mean()) for t in thresholds])
    y = np.array([0.0] + [float((forged >= t).mean()) for t in thresholds])
    return x, y


def _plot_operating(axes: Any, authentic: np.ndarray, forged: np.ndarray) -> None:
    x, y = operating_points(authentic, forged)
    axes.plot(x, y, drawstyle="steps-post", color=COLOURS[6], linewidth=2, marker="o", markersize=3)
    axes.set(xlabel="share of authentic pictures with a false alarm", ylabel="share of forged pictures found",
             xlim=(-0.02, max(0.1, float(x.max()) * 1.1)), ylim=(0, 1.02))  # fmt: skip


def _plot(title: str, caption: str, draw: Callable[[Any], None]) -> dict[str, str]:
    import base64
    import io

    import matplotlib.pyplot as plt

    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"title": title, "caption": caption, "source": source}


PLOT_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#55606e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "svg.hashsalt": "report",  # the same plot is the same file
}

# What the curves of a run are called in its log, by panel.
CURVES: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "supcon", "separation", "uniformity"),
    "validation oF1": ("of1", "of1_forged"),
    "learning rate": ("learning_rate", "backbone_learning_rate"),
}


def plot_training(
    log: Sequence[dict[str, Any]],
    path: Path,
    x: str = "total_steps",
    curves: dict[str, Sequence[str]] | None = None,
) -> Path:
    """Draw the curves of a run as a PNG, one panel beside the other, whole or not at all.

    Args:
        log: rows of the run's log; a row holds `x` and any of the curves' values, missing or None where not measured.
        path: file to write.
        x: what runs along the horizontal axis: `total_steps`, `epoch`, `trial`, ...
        curves: panel title -> names of its values; `CURVES` when not given. Panels without values are left out.
    Raises:
        ValueError: no row holds `x` and a value.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = _panels(log, x, curves or CURVES)
    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.8 * len(panels), 3.4), layout="constrained", squeeze=False
        )
        for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
            for (name, points), (colour, dash) in zip(lines.items(), itertools.cycle(LINES)):
                marker = "o" if len(points) < 60 else ""
                label = name.replace("_", " ")
                axis.plot(*zip(*points, strict=True), dash, color=colour, marker=marker, markersize=3, label=label)
            axis.set(xlabel=x.replace("_", " "), title=title, yscale="log" if "rate" in title else "linear")
            axis.legend(frameon=False)
        write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
        plt.close(figure)
    return path


LINES = ((COLOURS[6], "-"), (COLOURS[4], "--"), (COLOURS[2], ":"), (COLOURS[0], "-."))


def _panels(
    log: Sequence[dict[str, Any]], x: str, curves: dict[str, Sequence[str]]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Panel -> curve -> points (x, y), without what the log does not hold."""
    panels = {}
    for title, names in curves.items():
        lines = {
            name: [(row[x], row[name]) for row in log if row.get(name) is not None and row.get(x) is not None]
            for name in names
        }
        if any(lines.values()):
            panels[title] = {name: points for name, points in lines.items() if points}
    if not panels:
        known = ", ".join(name for names in curves.values() for name in names)
        raise ValueError(f"no row of the log holds {x!r} and any of {known}")
    return panels


def write_run_page(
    path: Path,
    *,
    title: str,
    figures: Sequence[tuple[str, Path]] = (),
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = (),
    notes: Sequence[str] = (),
    details: dict[str, str] | None = None,
) -> Path:
    """Write the page of a training or tuning run, one self-contained HTML file.

    Args:
        path: the page, for example OUT/index.html.
        title: its heading.
        figures: (caption, PNG file) in order; the images are embedded.
        tables: (caption, rows), the first row being the heading.
        notes: paragraphs under the heading.
        details: settings and versions, shown at the foot.
    """
    import base64

    images = [
        {"title": caption, "source": "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()}
        for caption, file in figures
    ]
    context = {"title": title, "notes": list(notes), "figures": images, "details": details or {},
               "tables": [(caption, [list(map(str, row)) for row in rows]) for caption, rows in tables],
               "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}  # fmt: skip
    write_whole(path, lambda temporary: _render("run.html", context, temporary))
    return path
