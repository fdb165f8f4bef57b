"""One image's line in predictions.jsonl: what was found in it, for programs; and the submission made of all lines."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from metrics import AUTHENTIC, encode_mask, write_annotations
from report.entries import CLEAN, ERROR, FOUND, NOT_EXAMINED
from report.sentences import describe_copy
from report.shapes import bounding_box
from runtime.records import in_order

if TYPE_CHECKING:
    from copymove.copies import Copy, Instance
    from detector import Detection

Line = dict[str, Any]
# Path, part, page, figure, and what was not examined; empty or 0 where there is none.
Key = tuple[str, str, int, int, str]


def key_of(line: Line) -> Key:
    """What tells lines apart, and their order. Raises KeyError where it is no line."""
    left_out = f"{line['what']}: {line['reason']}" if line["verdict"] == NOT_EXAMINED else ""
    return line["path"], in_order(line.get("part", "")), line.get("page", 0), line.get("figure", 0), left_out


def result_line(
    path: str, name: str, place: Mapping[str, Any], detection: "Detection", intensity: Mapping[str, Any] | None = None
) -> Line:
    """Line of an image that was examined.

    Args:
        path: absolute path of the file.
        name: unique name of the image's files.
        place: what is known of `PLACE_KEYS`.
        intensity: how values of more than 8 bits became 8, where they had more.
    """
    line: Line = {"path": path, **place, "name": name, "width": detection.shape[1], "height": detection.shape[0]}
    line |= {"verdict": FOUND if detection.instances else CLEAN, "score": round(float(detection.score), 6)}
    line |= {"seconds": round(detection.seconds, 3), "complete": detection.complete}
    if intensity is not None:
        line["intensity"] = dict(intensity)
    line["searched"] = round(detection.searched, 4)
    if detection.reason:
        line["reason"] = detection.reason
    if detection.instances:
        line["mask"] = f"masks/{name}.png"
    return line | {"instances": [_describe_instance(instance) for instance in detection.instances]}


def error_line(path: str, name: str, place: Mapping[str, Any], error: str) -> Line:
    """Line of an image that could not be examined, with the reason; the others as for `result_line`."""
    return {"path": path, **place, "name": name, "verdict": ERROR, "score": 0.0, "error": error, "instances": []}


def not_examined_line(path: str, place: Mapping[str, Any], what: str, reason: str, count: int) -> Line:
    """Line of what a file holds and was not examined; `place` as far as there is any: part and page."""
    line: Line = {"path": path, **place, "verdict": NOT_EXAMINED, "what": what, "reason": reason, "count": count}
    return line | {"score": 0.0, "instances": []}


def _describe_instance(instance: "Instance") -> dict[str, Any]:
    return {
        "score": round(float(instance.score), 6),
        "area": int(instance.mask.sum()),
        "boxes": part_boxes(instance.mask),
        "rle": encode_mask(instance.mask),
        "evidence": [_describe_evidence(copy) for copy in instance.copies],
    }


def _describe_evidence(copy: "Copy") -> dict[str, Any]:
    return {
        "kind": copy.kind,
        "affine": copy.affine.tolist(),
        "rotation": copy.rotation,
        "scale": copy.scale,
        "mirrored": copy.mirrored,
        "support": int(copy.support),
        "ncc": float(copy.ncc),
        "score": float(copy.score),
        "source": bounding_box(copy.source),
        "target": bounding_box(copy.target),
        "sentence": describe_copy(copy),
    }


def part_boxes(mask: np.ndarray) -> list[list[int]]:
    """Boxes [x, y, width, height] in pixels of the 8-connected parts of a mask (H, W) bool, the largest part first."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = sorted(stats[1:].tolist(), key=lambda row: -row[cv2.CC_STAT_AREA])
    return [row[:4] for row in parts]


def label_map_png(masks: np.ndarray) -> bytes:
    """16-bit PNG of masks (N, H, W) bool, best first: 0 background, k instance; the better one where two overlap."""
    labels = np.zeros(masks.shape[1:], np.uint16)
    for k in range(len(masks), 0, -1):
        labels[masks[k - 1]] = k
    done, coded = cv2.imencode(".png", labels)
    if not done:
        raise OSError(f"could not code a label map of {labels.shape[1]} x {labels.shape[0]} pixels as PNG")
    return coded.tobytes()


def write_submission(path: Path, lines: Iterable[Line]) -> None:
    """Write a submission, `case_id,annotation`.

    case_id is the file's name without its ending (with page and figure of a PDF), or the image's unique name where
    two would be the same or a spreadsheet would take it for a formula. An image that could not be examined counts as
    authentic; what was not examined at all has no row.

    Args:
        lines: of all images; they are gone through twice.
    """

    def case(line: Line) -> str:
        place = f"-p{line['page']}" if "page" in line else ""
        place += f"-f{line['figure']}" if "figure" in line else ""
        return os.path.splitext(os.path.basename(line["path"]))[0] + place  # a million `Path`s would take a minute

    def images() -> Iterator[Line]:
        return (line for line in lines if line["verdict"] != NOT_EXAMINED)

    counts = Counter(map(case, images()))

    def rows() -> Iterator[tuple[str, str, str]]:
        for line in images():
            annotation = ";".join(json.dumps(instance["rle"]) for instance in line["instances"]) or AUTHENTIC
            yield case(line) if counts[case(line)] == 1 else line["name"], line["name"], annotation

    write_annotations(path, rows())
