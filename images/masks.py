"""Read the instance masks of an image from a file: arrays, label maps, black and white images."""

import math
from pathlib import Path

import cv2
import numpy as np

from images.decode import decode, decode_with_pillow, upright
from images.header import read_header
from images.parsing import parsing, unreadable
from runtime.errors import InputError

MAX_INSTANCES = 1000  # in one mask; each is a layer of the image's size in memory
MAX_LABEL_WITH_GAPS = 64  # a label map whose labels are not exactly 1..K may use labels up to this
HOW_TO_SAVE = "save the mask with numpy.save as an array of 0 and 1"


def read_masks(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The instance masks of an image of `shape` (H, W): (K, H, W) bool; empty instances are dropped.

    A `.npy` holds (K, H, W) of 0 and 1 (or 0 and 255, or bool), or one (H, W) that is read like an image. An image is

    - one instance, if it has one value beside 0, whatever that value is;
    - one instance in black and white with soft edges (antialiased, JPEG), if every grey pixel lies within 3 px of a
      black and of a white one; it is cut at half;
    - otherwise a label map of instances 1..K: its labels are at most 64 (gaps allowed), or all of 1..K are in use. Of
      an image with a palette the indices are the labels.

    Raises:
        InputError: the file is missing, damaged or of another size than the image, its values fit none of these, or
            it is a pickled `.npy`, which is never loaded because it may run code.
    """
    path = Path(path)
    check_mask_size(path, shape)
    values = _read_npy(path) if path.suffix.lower() == ".npy" else _read_mask_image(path)
    if values.ndim == 2:
        return _split_labels(path, values)
    used = np.unique(values)
    if values.dtype != bool and not (set(used.tolist()) <= {0, 1} or set(used.tolist()) <= {0, 255}):
        raise InputError(
            f"{path} holds values from {used[0]} to {used[-1]}; a (K, H, W) mask holds 0 and 1, one layer per instance"
        )
    masks = values != 0
    return masks[masks.any(axis=(1, 2))]


def check_mask_size(path: Path, shape: tuple[int, int]) -> None:
    """Compare the shape in the header of a mask with the `shape` (H, W) of its image; nothing is decoded.

    Raises:
        InputError: the mask is missing, damaged or of another size, or has too many layers.
    """
    if path.suffix.lower() == ".npy":
        mask_shape = _read_npy_shape(path)
    else:
        header = read_header(path)
        mask_shape = (header.height, header.width)
    if len(mask_shape) not in (2, 3) or mask_shape[-2:] != tuple(shape):
        raise InputError(
            f"{path} has the shape {mask_shape}, its image is {shape[0]} rows x {shape[1]} columns; "
            "a mask must be (K, H, W) or (H, W) of its image's size"
        )
    _check_instances(path, mask_shape[0] if len(mask_shape) == 3 else 1)


def _check_instances(path: Path, count: int) -> None:
    if count > MAX_INSTANCES:
        raise InputError(f"{path} holds {count} instances; at most {MAX_INSTANCES} are read, each a layer in memory")


def _read_npy_shape(path: Path) -> tuple[int, ...]:
    """Shape in the header of a .npy whose values are plain numbers and all there."""
    if path.exists() and not path.is_file():
        raise InputError(f"cannot read {path}: it is not a regular file")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            available = path.stat().st_size - file.tell()  # bytes
    except OSError as fault:
        raise unreadable(path, fault) from None
    except Exception as fault:  # numpy parses the header as Python code, in which anything may be wrong
        with open(path, "rb") as file:
            pickled = file.read(1) == b"\x80"
        reason = " ".join(str(fault).split()) or type(fault).__name__
        reason = "it is a pickle, which may run code and is never loaded" if pickled else reason
        raise InputError(f"cannot read {path}: {reason}; {HOW_TO_SAVE}") from None
    if dtype.hasobject:
        raise InputError(
            f"cannot read {path}: it holds pickled objects, which may run code and are never loaded; {HOW_TO_SAVE}"
        )
    if dtype.kind not in "buif":
        raise InputError(f"cannot read {path}: it holds {dtype}; {HOW_TO_SAVE}")
    if available < math.prod(shape) * dtype.itemsize:
        raise InputError(f"cannot read {path}: the file is cut off")
    return shape


def _read_npy(path: Path) -> np.ndarray:
    with parsing(path):
        return np.load(path, allow_pickle=False)


def _read_mask_image(path: Path) -> np.ndarray:
    """(H, W) of any integers: the grey values, or the indices of an image with a palette."""
    header = read_header(path)
    with parsing(path):
        if header.format == "TIFF":
            values = decode(path, header).labels()
        else:
            values = upright(np.asarray(decode_with_pillow(path)), header.orientation)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        if (values[..., -1] != np.iinfo(values.dtype).max).any():
            raise InputError(f"{path} has transparent parts; a mask is black and white or a label map")
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise InputError(f"{path} is coloured; a mask is black and white, or a label map of values 0, 1..K")
        values = values[..., 0]
    return values


def _split_labels(path: Path, values: np.ndarray) -> np.ndarray:
    """(H, W) of any numbers -> (K, H, W) bool, by the rules of `read_masks`."""
    used = np.unique(values)
    labels = used[used != 0]
    if len(labels) <= 1 and np.isfinite(labels).all():
        return (values != 0)[None][: len(labels)]
    if labels[0] < 0 or (labels != np.rint(labels)).any():  # also NaN, which is unequal to itself
        raise InputError(f"{path} holds values from {used[0]} to {used[-1]}; a mask holds whole numbers from 0 on")
    full = 65535 if labels[-1] > 255 else 255
    if _is_soft_black_and_white(values, full):
        return (values > full / 2)[None]
    if labels[-1] <= MAX_LABEL_WITH_GAPS or len(labels) == labels[-1]:
        _check_instances(path, len(labels))
        return values[None] == labels[:, None, None]
    raise InputError(
        f"{path} holds {len(labels)} values from {labels[0]} to {labels[-1]}, neither black and white nor a label map "
        "0, 1..K; save it as .npy (K, H, W) of 0 and 1, or as a label map"
    )


def _is_soft_black_and_white(values: np.ndarray, full: int) -> bool:
    """Whether (H, W) values of 0 to `full` have white parts, and grey only where black and white lie within 3 px."""
    black, white = values <= full // 8, values >= full - full // 8
    if not white.any():
        return False
    near = np.ones((7, 7), np.uint8)
    near_both = cv2.dilate(black.view(np.uint8), near) & cv2.dilate(white.view(np.uint8), near)
    return not (~black & ~white & ~near_both.view(bool)).any()
