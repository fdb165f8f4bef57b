"""Files of microscopes by optional libraries: CZI by czifile, ND2 by nd2, LIF by liffile.

Runs in the process of images/guest.py.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from images.frame_info import FrameInfo
from images.raster import Raster
from runtime.errors import InputError

AXES = {"C": "channel", "Z": "plane", "T": "time point", "N": "scene"}
ROWS, COLUMNS, SAMPLES = "Y", "X", "S"
CZI_NAMES = str.maketrans("0S", "SN")  # czifile calls colours 0 and scenes S


def frames(path: Path, format: str) -> list[FrameInfo]:
    """All planes of all images of a file."""
    with _opened(path, format) as images:
        infos = []
        for k, image in enumerate(images):
            outer = image.outer
            for index in product(*(range(size) for _, size in outer)):
                words = [f"image {k + 1} of {len(images)}"] if len(images) > 1 else []
                for (axis, size), at in zip(outer, index, strict=True):
                    words += [f"{AXES.get(axis, 'axis ' + axis)} {at + 1} of {size}"] if size > 1 else []
                at = dict(zip([axis for axis, _ in outer], index, strict=True)).get("C", 0)
                name = image.names[at] if at < len(image.names) else image.title
                infos.append(FrameInfo(image.height, image.width, image.pixel_bytes, ", ".join(words) or None, name))
        return infos


def pixels(path: Path, format: str, number: int) -> Raster:
    """Pixels of one plane, from 1."""
    with _opened(path, format) as images:
        left = number - 1
        for image in images:
            count = math.prod(size for _, size in image.outer)
            if left < count:
                values = image.plane(np.unravel_index(left, [size for _, size in image.outer]) if image.outer else ())
                return Raster(values if values.ndim == 2 else np.ascontiguousarray(values[..., :3]))
            left -= count
    raise InputError(f"cannot read {path}: it has no image {number}")


class _Image:
    """One image of a file: an array of named axes that is read plane by plane."""

    def __init__(
        self,
        axes: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        read: Any,
        names: Sequence[str] = (),
        title: str | None = None,
    ) -> None:
        """`read(position)` gives the array of the axes that a position, axis -> number, leaves over: "YX" or "YXS"."""
        sizes = dict(zip(axes, shape, strict=True))
        self.height, self.width = sizes[ROWS], sizes[COLUMNS]
        self.pixel_bytes = np.dtype(dtype).itemsize * sizes.get(SAMPLES, 1)
        self.outer = [(axis, size) for axis, size in sizes.items() if axis not in (ROWS, COLUMNS, SAMPLES)]
        self.read, self.names, self.title = read, list(names), title

    def plane(self, index: tuple[int, ...]) -> np.ndarray:
        """(H, W) or (H, W, S)."""
        position = {axis: int(at) for (axis, _), at in zip(self.outer, index, strict=True)}
        values = np.asarray(self.read(position))
        return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


@contextmanager
def _opened(path: Path, format: str) -> Iterator[list[_Image]]:
    with {"CZI": _czi, "ND2": _nd2, "LIF": _lif}[format](path) as images:
        yield images


@contextmanager
def _nd2(path: Path) -> Iterator[list[_Image]]:
    import nd2

    with nd2.ND2File(path) as file:
        axes, shape = "".join(file.sizes), tuple(file.sizes.values())
        loops = [axis for axis in axes if axis not in "CYXS"]

        def read(position: dict[str, int]) -> np.ndarray:
            sizes = [file.sizes[axis] for axis in loops]
            at = np.ravel_multi_index([position[axis] for axis in loops], sizes) if loops else 0
            values = file.read_frame(int(at))  # its channels together
            return values[position["C"]] if "C" in position else values

        names = [channel.channel.name for channel in file.metadata.channels or []] if file.metadata else []
        yield [_Image(axes, shape, file.dtype, read, names)]


@contextmanager
def _lif(path: Path) -> Iterator[list[_Image]]:
    import liffile

    with liffile.LifFile(path) as file:
        yield [_lif_image(image) for image in file.images if {ROWS, COLUMNS} <= set(image.dims)]


def _lif_image(image: Any) -> _Image:
    axes = "".join(image.dims)

    def read(position: dict[str, int]) -> np.ndarray:
        values = image.asarray()
        taken = values[tuple(position.get(axis, slice(None)) for axis in axes)]
        left = "".join(axis for axis in axes if axis not in position)
        return np.transpose(taken, [left.index(axis) for axis in (ROWS, COLUMNS, SAMPLES) if axis in left])

    return _Image(axes, image.shape, image.dtype, read, title=image.name)


@contextmanager
def _czi(path: Path) -> Iterator[list[_Image]]:
    import czifile

    with czifile.CziFile(path) as file:
        axes = file.axes.translate(CZI_NAMES)

        def read(position: dict[str, int]) -> np.ndarray:
            shape = tuple(1 if axis in position else size for axis, size in zip(axes, file.shape, strict=True))
            values = np.zeros(shape, file.dtype)
            for entry in file.filtered_subblock_directory:
                start = dict(zip(axes, (a - b for a, b in zip(entry.start, file.start, strict=True)), strict=True))
                size = dict(zip(axes, entry.shape, strict=True))
                if all(start[axis] <= at < start[axis] + size[axis] for axis, at in position.items()):
                    tile = entry.data_segment().data(resize=True)
                    inside = tuple(
                        slice(position[axis] - start[axis], position[axis] - start[axis] + 1)
                        if axis in position
                        else slice(None)
                        for axis in axes
                    )
                    place = tuple(
                        slice(None) if axis in position else slice(start[axis], start[axis] + size[axis])
                        for axis in axes
                    )
                    values[place] = tile[inside]
            return values.reshape([n for axis, n in zip(axes, shape, strict=True) if axis in (ROWS, COLUMNS, SAMPLES)])

        yield [_Image(axes, file.shape, file.dtype, read)]
