"""Masks from files: arrays, label maps, black and white images."""

import math
from pathlib import Path

import cv2
import numpy as np

from images.read import decode, decode_with_pillow, parsing, read_header, unreadable, upright
from runtime.errors import InputError

MOST_INSTANCES = 1000  # in one mask: each is a layer of the image's size in memory


def read_masks(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The instance masks of an image of size `shape` (H, W): (K, H, W) bool; empty instances are dropped.

    A `.npy` holds (K, H, W) of 0 and 1 (or 0 and 255, or bool), or one (H, W) that is read like an image. An image is

    - one instance, where it has one value beside 0, whatever it is;
    - black and white with soft edges (antialiased, JPEG), one instance, cut at half: where every grey pixel lies
      within 3 px of a black and of a white one, so that half is the only place to cut;
    - a label map with the instances 1..K otherwise: small values (up to 64, gaps allowed) or all of 1..K in use; with
      a palette, the indices.

    Raises:
        InputError: the file is missing or damaged, another size than the image's, values that fit none of these, or
            a pickled `.npy`, which is never loaded because it may run code.
    """
    path = Path(path)
    check_mask(path, shape)
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


def check_mask(path: Path, image: tuple[int, int]) -> None:
    """Compare the shape in the header of a mask with its image's (H, W). Raises InputError as `read_masks` does."""
    if path.suffix.lower() == ".npy":
        shape = _read_npy_shape(path)
    else:
        header = read_header(path)
        shape = (header.height, header.width)
    if len(shape) not in (2, 3) or shape[-2:] != tuple(image):
        raise InputError(
            f"{path} has the shape {shape}, its image is {image[0]} rows x {image[1]} columns; "
            "a mask must be (K, H, W) or (H, W) of its image's size"
        )
    _check_instances(path, shape[0] if len(shape) == 3 else 1)


def _read_npy_shape(path: Path) -> tuple[int, ...]:
    advice = "save the mask with numpy.save as an array of 0 and 1"
    if path.exists() and not path.is_file():
        raise InputError(f"cannot read {path}: it is not a regular file")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            bytes_left = path.stat().st_size - file.tell()
    except OSError as fault:
        raise unreadable(path, fault) from None
    except Exception as fault:  # numpy parses a text of Python: its tokens, syntax, nesting and size may all be wrong
        with open(path, "rb") as file:
            pickled = file.read(1) == b"\x80"
        reason = " ".join(str(fault).split()) or type(fault).__name__
        reason = "it is a pickle, which may run code and is never loaded" if pickled else reason
        raise InputError(f"cannot read {path}: {reason}; {advice}") from None
    if dtype.hasobject:
        raise InputError(
            f"cannot read {path}: it holds pickled objects, which may run code and are never loaded; {advice}"
        )
    if dtype.kind not in "buif":
        raise InputError(f"cannot read {path}: it holds {dtype}; {advice}")
    if bytes_left < math.prod(shape) * dtype.itemsize:
        raise InputError(f"cannot read {path}: the file is cut off")
    return shape


def _read_npy(path: Path) -> np.ndarray:
    with parsing(path):
        return np.load(path, allow_pickle=False)


def _check_instances(path: Path, count: int) -> None:
    if count > MOST_INSTANCES:
        raise InputError(f"{path} holds {count} instances; at most {MOST_INSTANCES} are read, each a layer in memory")


def _read_mask_image(path: Path) -> np.ndarray:
    header = read_header(path)
    with parsing(path):
        if header.format == "TIFF":
            values = decode(path, header)[0]
        else:
            image = decode_with_pillow(path)
            values = upright(np.asarray(image), header.orientation)  # of a palette the indices
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
    """(H, W) of any numbers -> (K, H, W) bool; the rule is told in `read_masks`."""
    used = np.unique(values)
    labels = used[used != 0]
    if len(labels) <= 1 and np.isfinite(labels).all():
        return (values != 0)[None][: len(labels)]
    if labels[0] < 0 or (labels != np.rint(labels)).any():  # NaN, too, is unequal to itself
        raise InputError(f"{path} holds values from {used[0]} to {used[-1]}; a mask holds whole numbers from 0 on")
    full = 65535 if labels[-1] > 255 else 255
    black, white = values <= full // 8, values >= full - full // 8
    if white.any():
        near = np.ones((7, 7), np.uint8)
        grey = ~black & ~white
        if not (
            grey & ~(cv2.dilate(black.view(np.uint8), near) & cv2.dilate(white.view(np.uint8), near)).view(bool)
        ).any():
            return (values > full / 2)[None]
    if labels[-1] <= 64 or len(labels) == labels[-1]:
        _check_instances(path, len(labels))
        return values[None] == labels[:, None, None]
    raise InputError(
        f"{path} holds {len(labels)} values from {labels[0]} to {labels[-1]}, neither black and white nor a label map "
        "0, 1..K; save it as .npy (K, H, W) of 0 and 1, or as a label map"
    )
