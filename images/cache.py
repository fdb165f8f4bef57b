"""Arrays that take long to make, kept by key: in memory, or in a folder that many processes share.

`MemoryCache` and `DiskCache` keep any arrays. `ImageCache` keeps letterboxed images in a `DiskCache`, so that an epoch
of training does not wait for decoding.
"""

import contextlib
import hashlib
import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import DataSettings
from images.folders import ImageFile
from images.letterbox import LetterboxedImage
from images.pairs import read_pair
from images.parsing import unreadable
from runtime.errors import InputError
from runtime.files import atomic_write, kernel_lock

FORMAT = 2  # version of the files of a DiskCache; raise it when their layout or the letterboxing changes


def content_key(*parts: str | np.ndarray) -> str:
    """A key for texts and arrays: 32 hexadecimal digits (BLAKE2b), different whenever one of the parts differs."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array {part.dtype.str} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part))
        else:
            data = part.encode("utf-8", "surrogatepass")  # a file's name may hold any bytes
            digest.update(f"text {len(data)} ".encode() + data)
    return digest.hexdigest()


class ArrayCache(ABC):
    """Lists of arrays by key. Whoever gets a list from the cache must not change its arrays."""

    @abstractmethod
    def load(self, key: str) -> list[np.ndarray] | None:
        """The arrays that were stored with this key, or None."""

    @abstractmethod
    def store(self, key: str, arrays: Sequence[np.ndarray]) -> None:
        """Keep the arrays."""

    def get(self, inputs: Sequence[str | np.ndarray], make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """What `make` makes of the inputs, which are its key: from the cache, or made now and stored.

        `inputs`: everything that the result depends on.
        """
        key = content_key(*inputs)
        arrays = self.load(key)
        if arrays is None:
            arrays = list(make())
            self.store(key, arrays)
        return arrays


class MemoryCache(ArrayCache):
    """Arrays in the memory of this process, without a limit."""

    def __init__(self) -> None:
        self._kept: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, key: str) -> list[np.ndarray] | None:
        """The arrays that were stored with this key, or None."""
        return self._kept.get(key)

    def store(self, key: str, arrays: Sequence[np.ndarray]) -> None:
        """Keep the arrays themselves, not copies of them."""
        self._kept[key] = list(arrays)


class DiskCache(ArrayCache):
    """Arrays in a folder that any number of processes may use at the same time.

    One file per key: a line of JSON (format, origin, types and shapes, checksum), then the raw bytes of the arrays.
    This is read about as fast as the disk delivers it, four times as fast as numpy's .npz. Files appear whole. A file
    that is damaged, or that was stored with another `origin`, counts as missing and is replaced. All files together
    stay under the limit; what would exceed it is not stored.
    """

    SUFFIX = ".arrays"

    def __init__(self, folder: Path, limit_gb: float = math.inf, advice: str = "free some space") -> None:
        """`folder` is made where it is missing; `limit_gb` in 10^9 bytes; `advice`: what to do when it is full."""
        self.folder, self.limit, self.advice = Path(folder), limit_gb * 1e9, advice
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked_total() as total:
            # Files are written under the lock: those that are unfinished now belong to a process that was killed.
            for unfinished in self.folder.glob(".*.tmp"):
                unfinished.unlink()
            total[0] = sum(path.stat().st_size for path in self.folder.glob(f"*{self.SUFFIX}"))

    def load(self, key: str, origin: Any = None) -> list[np.ndarray] | None:
        """The arrays that were stored with this key and origin, or None. They are writable views of one buffer."""
        try:
            data = np.fromfile(self._path(key), np.uint8)
        except FileNotFoundError:
            return None
        try:
            start = data[:65536].tobytes().index(b"\n") + 1
            head = json.loads(data[:start].tobytes())
            if [head["format"], head["origin"]] != [FORMAT, origin] or head["checksum"] != zlib.crc32(data[start:]):
                return None
            arrays = []
            for type_name, shape in head["arrays"]:
                end = start + np.dtype(type_name).itemsize * math.prod(shape)
                arrays.append(data[start:end].view(type_name).reshape(shape))
                start = end
        except (ValueError, KeyError, TypeError):  # the file was cut off or damaged
            return None
        return arrays

    def store(self, key: str, arrays: Sequence[np.ndarray], origin: Any = None) -> None:
        """Write the arrays, if the limit allows. `origin`: JSON that must be the same when they are loaded.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        payload = b"".join(array.tobytes() for array in arrays)
        head = {
            "format": FORMAT,
            "origin": origin,
            "arrays": [(array.dtype.str, array.shape) for array in arrays],
            "checksum": zlib.crc32(payload),
        }
        data, path = json.dumps(head).encode() + b"\n" + payload, self._path(key)
        try:
            with self._locked_total() as total:
                after = total[0] + len(data) - (path.stat().st_size if path.exists() else 0)
                if after <= self.limit:
                    atomic_write(path, lambda temporary: temporary.write_bytes(data), lasting=False)
                    total[0] = after
        except OSError as fault:
            raise InputError(f"cannot write to the cache {self.folder}: {fault.strerror}; {self.advice}") from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{self.SUFFIX}"

    @contextlib.contextmanager
    def _locked_total(self) -> Iterator[list[int]]:
        """Size of all files in bytes, as a list of one number that the block may change; one process at a time."""
        path = self.folder / "total"
        with kernel_lock(path), open(path, "r+") as file:
            total = [int(file.read() or 0)]
            yield total
            file.seek(0)
            file.truncate()
            file.write(str(total[0]))


class ImageCache:
    """Letterboxed images in a `DiskCache`, each as long as path, size and date of its files stay the same."""

    def __init__(self, folder: Path, limit_gb: float, size: int) -> None:
        """`folder` is made where it is missing; `limit_gb` in 10^9 bytes; `size`: S, the side of the model's input."""
        self.size = size
        advice = "free some space, lower --cache-gb, or leave --cache out"
        self.files = DiskCache(folder, limit_gb, advice)

    def get(self, image_file: ImageFile, make: Callable[[], LetterboxedImage]) -> LetterboxedImage:
        """The image as it was kept; where it was not, or its files have changed, `make` makes it and it is kept.

        Raises:
            InputError: a file of the image is missing, the disk is full, or as `make` does.
        """
        paths = [path.absolute() for path in (image_file.image, image_file.mask) if path is not None]
        key = content_key(str(self.size), *map(str, paths))
        try:
            states = [path.stat() for path in paths]  # before the files are read: they may change meanwhile
        except FileNotFoundError as fault:
            raise unreadable(Path(fault.filename), fault) from None
        origin = [[str(path), state.st_size, state.st_mtime_ns] for path, state in zip(paths, states, strict=True)]
        arrays = self.files.load(key, origin)
        if arrays is not None:
            image, coverage, (height, width) = arrays
            return LetterboxedImage(image, coverage, int(height), int(width))
        content = make()
        self.files.store(key, [content.image, content.coverage, np.array([content.height, content.width])], origin)
        return content


def read_letterboxed(
    image_file: ImageFile, size: int, settings: DataSettings, cache: ImageCache | None = None
) -> LetterboxedImage:
    """An image with its masks, letterboxed for an input of side `size`; from the cache where that has it.

    Raises:
        InputError: as `read_pair` and `ImageCache.get` do.
    """

    def make() -> LetterboxedImage:
        return LetterboxedImage.of(*read_pair(image_file, settings), size)

    return make() if cache is None else cache.get(image_file, make)
