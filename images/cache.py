"""Letterboxed images on disk, so that an epoch is not bound by decoding."""

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from config import DataSettings
from images.folders import ImageFile, read_pair
from images.letterbox import LetterboxedImage
from images.read import unreadable
from runtime.errors import InputError
from runtime.files import atomic_write


class ImageCache:
    """Letterboxed images on disk, so that an epoch is not bound by decoding. Safe for many processes at once.

    One file per image and input size: a JSON line (what it was made from, shapes, checksum), then the raw bytes of
    image and coverage, which are read about as fast as the disk gives them. A file is used only if the original's
    path, size and time of change are still the same and its checksum holds; otherwise it is made again. Files appear
    whole. Together they stay under the limit; an image beyond it is decoded every time.
    """

    VERSION = 1  # raise when the content of the files changes

    def __init__(self, folder: Path, limit_gb: float, size: int) -> None:
        """`folder` is made when missing; `limit_gb` in 10^9 bytes; `size` is S."""
        self.folder, self.limit, self.size = Path(folder), int(limit_gb * 1e9), size
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked_total() as total:
            for left in self.folder.glob(".*.tmp"):  # of a process that was killed: files are written under the lock
                left.unlink()
            total[0] = sum(path.stat().st_size for path in self.folder.glob("*.image"))

    def load(self, image_file: ImageFile) -> LetterboxedImage | None:
        """The cached content, or None where there is none that can be believed."""
        try:
            data = np.fromfile(self._path(image_file), np.uint8)
            made_from = self.made_from(image_file)
        except FileNotFoundError:
            return None
        try:
            end = data[:65536].tobytes().index(b"\n") + 1
            head = json.loads(data[:end].tobytes())
            if head["made_from"] != made_from or head["checksum"] != zlib.crc32(data[end:]):
                return None
            shapes = [head["image"], head["coverage"]]
        except (ValueError, KeyError, TypeError):
            return None  # cut off or damaged: it is made again
        middle = end + math.prod(shapes[0])
        return LetterboxedImage(
            data[end:middle].reshape(shapes[0]), data[middle:].reshape(shapes[1]), *head["original"]
        )

    def store(self, image_file: ImageFile, content: LetterboxedImage, made_from: list[str | int]) -> None:
        """Keep the content, if the limit allows. `made_from`: as it was before the image was read.

        Raises:
            InputError: the disk is full.
        """
        payload = content.image.tobytes() + content.coverage.tobytes()
        head = {
            "made_from": made_from,
            "image": content.image.shape,
            "coverage": content.coverage.shape,
            "original": (content.height, content.width),
            "checksum": zlib.crc32(payload),
        }
        data = json.dumps(head).encode() + b"\n" + payload
        path = self._path(image_file)
        try:
            with self._locked_total() as total:
                after = total[0] + len(data) - (path.stat().st_size if path.exists() else 0)
                if after <= self.limit:
                    atomic_write(path, lambda temporary: temporary.write_bytes(data), lasting=False)
                    total[0] = after
        except OSError as fault:
            raise InputError(
                f"cannot write to the cache {self.folder}: {fault.strerror}; free some space, lower --cache-gb, or "
                "leave --cache out"
            ) from None

    def _path(self, image_file: ImageFile) -> Path:
        name = json.dumps(
            [str(image_file.image.absolute()), str(image_file.mask and image_file.mask.absolute()), self.size]
        )
        return self.folder / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.image"

    def made_from(self, image_file: ImageFile) -> list[str | int]:
        """What tells whether the content is still that of the files: their paths, sizes and times of change."""
        stamps: list[str | int] = [self.VERSION, self.size]
        for path in filter(None, (image_file.image, image_file.mask)):
            status = path.stat()
            stamps += [str(path.absolute()), status.st_size, status.st_mtime_ns]
        return stamps

    @contextlib.contextmanager
    def _locked_total(self) -> Iterator[list[int]]:
        """The bytes in the folder, as a list of one number to be changed; one process at a time."""
        import fcntl

        with open(self.folder / "total", "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            total = [int(file.read() or 0)]
            yield total
            file.truncate(0)
            file.write(str(total[0]))


def read_letterboxed(
    image_file: ImageFile, size: int, settings: DataSettings, cache: ImageCache | None = None
) -> LetterboxedImage:
    """Content of an image, from the cache where it has it, else decoded and put there. Raises as `read_pair`."""
    if cache is None:
        return LetterboxedImage.of(*read_pair(image_file, settings), size)
    content = cache.load(image_file)
    if content is None:
        try:
            made_from = cache.made_from(image_file)
        except FileNotFoundError as fault:
            raise unreadable(Path(fault.filename), fault) from None
        content = LetterboxedImage.of(*read_pair(image_file, settings), size)
        cache.store(image_file, content, made_from)
    return content
