"""How well instances were found: object F1 (oF1), pixel F1, image-level rates; and run lengths of masks.

**oF1**, the metric of the Recod.ai/LUC competition, for one image with n_gt true and n_pred predicted instance masks
at full resolution: predicted and true instances are assigned one to one such that the sum of their F1 is largest
(Hungarian method). oF1 is the mean of that F1 over the *true* instances, where a missed one counts 0, times
n_gt / max(n_gt, n_pred), which penalises extra instances. The score of a set of images is the mean over its images.

| case | oF1 |
|---|---|
| authentic, nothing found | 1 |
| authentic, something found | 0 |
| forged, nothing found | 0 |
| forged, all instances exact, in any order | 1 |
| n_gt instances of which k are found exactly, nothing else | k / n_gt |
| n_gt instances found exactly and e extra ones | n_gt / (n_gt + e) |

The other figures of the table are named in `FIGURES`: `false_positive_rate` is the share of authentic images with an
instance, `image_recall` the share of forged images in which a predicted and a true instance overlap. Masks are bool
arrays (N, H, W); N may be 0.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

AUTHENTIC = "authentic"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet may run a cell that begins with one of these


def f1_matrix(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 = 2 |P and T| / (|P| + |T|) of every predicted with every true mask; two empty masks have F1 0.

    Args:
        predicted: (N, H, W) bool.
        true: (M, H, W) bool.
    Returns:
        (N, M) float64 in [0, 1].
    Raises:
        ValueError: the images' sizes differ or the arrays are not bool.
    """
    if predicted.dtype != bool or true.dtype != bool:
        raise ValueError(f"masks must be bool arrays, not {predicted.dtype} and {true.dtype}")
    if predicted.ndim != 3 or predicted.shape[1:] != true.shape[1:]:
        raise ValueError(f"masks must be (N, H, W) of one size, not {predicted.shape} and {true.shape}")
    if len(predicted) == 0 or len(true) == 0:
        return np.zeros((len(predicted), len(true)))
    # One bit for each pixel: 8 times less memory to read than bool, 32 times less than a float matrix product.
    p, t = _pack(predicted), _pack(true)
    overlap = np.array([np.bitwise_count(row & t).sum(axis=1, dtype=np.int64) for row in p])
    return f1_from_counts(overlap, np.bitwise_count(p).sum(1, np.int64), np.bitwise_count(t).sum(1, np.int64))


def _pack(masks: np.ndarray) -> np.ndarray:
    """Masks (N, H, W) bool -> their bits, (N, ceil(H * W / 64)) uint64."""
    bits = np.packbits(masks.reshape(len(masks), -1), axis=1)
    padded = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)


def f1_from_counts(overlap: np.ndarray, predicted_area: np.ndarray, true_area: np.ndarray) -> np.ndarray:
    """F1 matrix (N, M) from overlaps (N, M) and areas (N,), (M,), all in pixels."""
    total = predicted_area[:, None] + true_area[None, :]
    return np.divide(2.0 * overlap, total, out=np.zeros(overlap.shape), where=total > 0)


def object_f1_from_matrix(f1: np.ndarray) -> float:
    """oF1 of one image from its F1 matrix (n_pred, n_gt); see the table at the top of this file."""
    n_pred, n_gt = f1.shape
    if n_gt == 0:
        return float(n_pred == 0)
    rows, columns = linear_sum_assignment(f1, maximize=True)
    return float(f1[rows, columns].sum() / n_gt * (n_gt / max(n_pred, n_gt)))


def object_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """oF1 of one image in [0, 1] from its masks (n_pred, H, W) and (n_gt, H, W) bool."""
    return object_f1_from_matrix(f1_matrix(predicted, true))


# Run lengths ----------------------------------------------------------------------------------------------------


def encode_mask(mask: np.ndarray) -> list[int]:
    """Run lengths [start, length, start, length, ...] of a mask (H, W) bool: 1-based, column-major, as on Kaggle."""
    flat = np.concatenate([[False], np.asarray(mask, bool).ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[0::2], edges[1::2]
    return np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()


def decode_mask(rle: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Mask (H, W) bool from its run lengths.

    Raises:
        ValueError: an odd count, runs that overlap or are not in order, or a run beyond the image.
    """
    values = np.asarray(rle, np.int64)
    if values.ndim != 1 or len(values) % 2:
        raise ValueError(f"run lengths are pairs of start and length, {len(values)} numbers were given")
    starts, lengths = values[0::2] - 1, values[1::2]
    size = shape[0] * shape[1]
    if len(values) and (lengths.min() < 1 or starts.min() < 0 or (starts + lengths).max() > size):
        raise ValueError(f"a run lies outside of the image of {shape[0]} x {shape[1]} pixels")
    if (starts[1:] < (starts + lengths)[:-1]).any():
        raise ValueError("runs overlap or are not in order")
    steps = np.zeros(size + 1, np.int8)
    steps[starts] += 1
    steps[starts + lengths] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape(shape, order="F")


def encode_annotation(masks: np.ndarray) -> str:
    """Annotation of a submission: `authentic`, or the instances' run lengths as JSON lists joined by `;`."""
    return ";".join(json.dumps(encode_mask(mask)) for mask in masks if mask.any()) or AUTHENTIC


def write_annotations(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write a submission, `case_id,annotation`.

    Args:
        rows: case id; a safe name of the image, which is written instead where a spreadsheet would take the id for
            a formula; annotation.
    """
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names may be any bytes
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case_id", "annotation"])
        writer.writerows([name if case.startswith(FORMULA_STARTS) else case, text] for case, name, text in rows)


def decode_annotation(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Masks (N, H, W) bool of an annotation; (0, H, W) for `authentic`. Raises ValueError where it is malformed."""
    if text.strip() == AUTHENTIC:
        return np.zeros((0, *shape), bool)
    return np.stack([decode_mask(json.loads(part), shape) for part in text.split(";")])


# One record per image, then the table -------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """Scores of one image; the whole table can be computed from the records."""

    id: str  # name of the image
    n_true: int  # true instances; 0 for an authentic image
    n_predicted: int  # predicted instances
    object_f1: float  # oF1
    pixel_tp: int  # pixels in a predicted and a true instance
    pixel_fp: int  # pixels in a predicted instance alone
    pixel_fn: int  # pixels in a true instance alone
    score: float  # the detector's score of the image, 0 to 1
    seconds: float  # time for this image

    @property
    def pixel_f1(self) -> float:
        """Pixel F1 of this image over the union of its instances; 1 when both unions are empty."""
        total = 2 * self.pixel_tp + self.pixel_fp + self.pixel_fn
        return 2 * self.pixel_tp / total if total else 1.0


def score_image(id: str, predicted: np.ndarray, true: np.ndarray, score: float, seconds: float) -> Record:
    """Record of one image from masks (n_pred, H, W) and (n_gt, H, W) bool."""
    found, truth = predicted.any(axis=0), true.any(axis=0)
    return Record(
        id=id,
        n_true=len(true),
        n_predicted=len(predicted),
        object_f1=object_f1(predicted, true),
        pixel_tp=int((found & truth).sum()),
        pixel_fp=int((found & ~truth).sum()),
        pixel_fn=int((~found & truth).sum()),
        score=float(score),
        seconds=float(seconds),
    )


def record_to_dict(record: Record) -> dict[str, object]:
    """Record as plain JSON types, for one line of a file."""
    return asdict(record)


def _is_forged(record: Record) -> bool:
    return record.n_true > 0


def _is_authentic(record: Record) -> bool:
    return record.n_true == 0


# The figures of the table: name -> its title, which records it is a mean over, its value for one record.
FIGURES: dict[str, tuple[str, Callable[[Record], bool], Callable[[Record], float]]] = {
    "of1": ("oF1, all images", lambda r: True, lambda r: r.object_f1),
    "of1_forged": ("oF1, forged images", _is_forged, lambda r: r.object_f1),
    "false_positive_rate": ("authentic images with a false alarm", _is_authentic, lambda r: float(r.n_predicted > 0)),
    "image_recall": ("forged images with a hit", _is_forged, lambda r: float(r.pixel_tp > 0)),
    "pixel_f1": ("pixel F1, mean over forged images", _is_forged, lambda r: r.pixel_f1),
    "pixel_precision": (
        "pixel precision, mean over forged images",
        _is_forged,
        lambda r: r.pixel_tp / max(r.pixel_tp + r.pixel_fp, 1),
    ),
    "pixel_recall": (
        "pixel recall, mean over forged images",
        _is_forged,
        lambda r: r.pixel_tp / max(r.pixel_tp + r.pixel_fn, 1),
    ),
}


def summarize(records: Sequence[Record], resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, float | int]]:
    """Compute the table of `FIGURES` from records.

    Returns:
        Name of a figure -> `value`, the mean over its images; `low` and `high`, its 95 % percentile bootstrap interval
        over images; `images`, their number. A figure without any image is left out, such as the false positive rate
        when all are forged.
    """
    rng = np.random.default_rng(seed)
    table: dict[str, dict[str, float | int]] = {}
    for name, (_, is_counted, value) in FIGURES.items():
        values = np.array([value(record) for record in records if is_counted(record)])
        if len(values) == 0:
            continue
        means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        table[name] = {"value": float(values.mean()), "low": float(low), "high": float(high), "images": len(values)}
    return table


def format_table(table: dict[str, dict[str, float | int]]) -> str:
    """The table as aligned text, one line for each figure."""
    lines = [f"{'':44} value    95 % interval   images"]
    for name, row in table.items():
        lines.append(
            f"{FIGURES[name][0]:44} {row['value']:.3f}   [{row['low']:.3f}, {row['high']:.3f}]   {row['images']}"
        )
    return "\n".join(lines)
