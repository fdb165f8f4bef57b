"""Pictures and masks: finding, splitting, letterboxing, augmenting, labelling, loading (`reading.py` reads them).

A training sample goes through this file from top to bottom:

    folder -- find_pictures --> Picture -- read_image, read_masks --> (H, W, 3) uint8 and (K, H, W) bool
           -- Content.of --> picture and masks as they lie in the S x S input (this is cached)
           -- on-the-fly forgery, augmentation --> the same, changed
           -- letterbox, grid_labels --> image (S, S, 3) uint8, labels (G, G): 0 background, 1..K instance, -1 padding
           -- make_loader --> batches of one rank, in an order that depends on the seed and the epoch alone

Nothing here knows a model. torch and Albumentations are imported where they are used, so that a script's `--help`
and a prediction without torch need neither.
"""

import atexit
import contextlib
import copy
import hashlib
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from config import PATCH, DataSettings, InputError, LoaderSettings, SplitSettings, SynthesisSettings, write_whole
from reading import check_image, check_mask, read_image, read_masks, unreadable

PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm")
)
MASK_SUFFIXES = PICTURE_SUFFIXES | {".npy"}
SPLITS = ("train", "val", "test")
# Folders that mean nothing without those beside them.
_PARTS = frozenset(
    ("forged", "masks", "train_images", "train_masks", "supplemental_images", "supplemental_masks", "test_images")
)
PADDING = (124, 116, 104)  # RGB of what is not picture: the ImageNet mean, which normalisation turns into zero
BACKGROUND, IGNORED = 0, -1  # grid labels that are no instance

# Finding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """One picture of a folder."""

    id: str  # file stem (sub-folders joined by `__`); unique together with `forged`
    image: Path
    mask: Path | None  # None for authentic pictures and where the truth is unknown
    base: str  # the picture it was made from: pictures with the same base fall into the same split
    forged: bool | None  # None: truth unknown (test_images/)


def find_pictures(root: Path) -> list[Picture]:
    """All pictures of a folder, sorted by id, authentic before forged; the order of the directory has no influence.

    The names of the sub-folders tell the layout:

    - Recod.ai/LUC: `train_images/authentic/`, `train_images/forged/` with `train_masks/`; `supplemental_images/`
      (forged) with `supplemental_masks/`, their ids prefixed `supplemental__`; `test_images/` (truth unknown);
    - plain: `authentic/`, and `forged/` with `masks/`; either may be missing;
    - none of these names: every picture in the folder, at any depth, is authentic.

    Files that are no pictures by their suffix and hidden files are left alone. The base of a picture is its stem, so
    that authentic and forged of one id belong together; where a `<id>.json` with a text under "base" lies beside the
    picture, it is that text.

    Raises:
        InputError: the folder is missing or holds no picture, a forged picture has no mask, a mask has no picture,
            two files have one id, or data sets lie deeper inside (their masks would pass for authentic pictures).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the folder that holds the pictures")
    if root.resolve().name in _PARTS:
        raise InputError(f"{root} is a part of a data set; give the folder above it, which holds pictures and masks")
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    if folders & {"train_images", "supplemental_images", "test_images"}:
        train = root / "train_images"
        if train.is_dir() and not ((train / "authentic").is_dir() or (train / "forged").is_dir()):
            raise InputError(f"{train} holds neither authentic/ nor forged/")
        pictures = [
            *_unmasked(train / "authentic", forged=False),
            *_masked(train / "forged", root / "train_masks"),
            *_masked(root / "supplemental_images", root / "supplemental_masks", prefix="supplemental__"),
            *_unmasked(root / "test_images", forged=None),
        ]
    elif folders & {"authentic", "forged", "masks"}:
        pictures = [
            *_unmasked(root / "authentic", forged=False),
            *_masked(root / "forged", root / "masks"),
        ]
    else:
        pictures = _unmasked(root, forged=False)
    if not pictures:
        raise InputError(
            f"{root} holds no pictures ({' '.join(sorted(PICTURE_SUFFIXES))}); give a folder with authentic/, forged/ "
            "and masks/, with train_images/ and train_masks/, or one of authentic pictures"
        )
    return sorted(pictures, key=lambda picture: (picture.id, str(picture.forged)))


def _unmasked(folder: Path, forged: bool | None) -> list[Picture]:
    return [Picture(id, image, None, _base(image, id), forged) for id, image in picture_files(folder).items()]


def _masked(folder: Path, mask_folder: Path, prefix: str = "") -> list[Picture]:
    images, masks = picture_files(folder), picture_files(mask_folder, MASK_SUFFIXES)
    if lone := sorted(images.keys() - masks.keys()):
        raise InputError(f"no mask in {mask_folder} for {_some([images[id] for id in lone])}; add it or move them away")
    if lone := sorted(masks.keys() - images.keys()):
        raise InputError(f"no picture in {folder} for {_some([masks[id] for id in lone])}; add it or move them away")
    return [Picture(prefix + id, image, masks[id], _base(image, id), True) for id, image in images.items()]


def picture_files(folder: Path, suffixes: frozenset[str] = PICTURE_SUFFIXES) -> dict[str, Path]:
    """Files with one of the suffixes at any depth, by id (see `Picture`); empty where there is no such folder.

    Links to folders are followed, but no folder is entered twice.

    Raises:
        InputError: two files have one id, or a data set with masks lies inside.
    """
    found: dict[str, Path] = {}
    seen: set[tuple[int, int]] = set()

    def unlisted(fault: OSError) -> None:
        if fault.filename != str(folder) or not isinstance(fault, FileNotFoundError):
            raise InputError(f"cannot list {fault.filename}: {fault.strerror}; open it for reading or move it away")

    for parent, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link led back here, perhaps in a loop
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if inner := _PARTS & set(folders):
            raise InputError(f"{parent} holds a data set ({', '.join(sorted(inner))}); give that folder itself")
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            id = "__".join(path.relative_to(folder).with_suffix("").parts)
            if id in found:
                raise InputError(f"{found[id]} and {path} have the same id {id}; rename or remove one of them")
            found[id] = path
    return found


def _base(image: Path, id: str) -> str:
    note = image.with_suffix(".json")
    if not note.is_file():
        return id
    try:
        value = json.loads(note.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise InputError(f"{note} lies beside a picture but is not JSON ({fault}); mend it or move it away") from None
    base = value.get("base", id) if isinstance(value, dict) else id
    if not isinstance(base, str):
        raise InputError(f'"base" in {note} is {base!r}; it must be a text, the name of the base picture')
    return base


def _some(paths: Sequence[Path], most: int = 3) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(str, paths[:most])) + more


def split_pictures(
    pictures: Iterable[Picture], settings: SplitSettings, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Split of every base picture: base -> "train", "val" or "test".

    Bases with a forged picture and bases without are split apart, so that each split gets its share of both. Within
    each group the bases are ranked by a hash of seed and name; the first ones go to "val", the next to "test", the
    rest to "train". Three bases or more of a kind give at least one to each split whose fraction is not 0. The answer
    depends on names, seed and fractions only. Pictures whose truth is unknown take no part.

    Args:
        known: assignments to keep, for instance a checkpoint's; new bases fill up what is missing to the fractions.
    Raises:
        InputError: a fraction outside 0 to 1, nothing left to train on, or a `known` value that is no split.
    """
    fractions = {"val": settings.val_fraction, "test": settings.test_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        raise InputError(
            f"--val-fraction {settings.val_fraction} and --test-fraction {settings.test_fraction} must not be negative "
            "and must leave something to train on (sum under 1)"
        )
    known = known or {}
    if wrong := sorted(set(known.values()) - set(SPLITS)):
        raise InputError(f"unknown split {', '.join(map(repr, wrong))}; allowed: {', '.join(SPLITS)}")
    has_forged: dict[str, bool] = {}
    for picture in pictures:
        if picture.forged is not None:
            has_forged[picture.base] = has_forged.get(picture.base, False) or picture.forged
    split = {base: known[base] for base in has_forged if base in known}
    for kind in (True, False):
        bases = [base for base in has_forged if has_forged[base] is kind]
        new = sorted((base for base in bases if base not in known), key=lambda base: _rank(settings.split_seed, base))
        for name, fraction in fractions.items():
            wanted = max(round(fraction * len(bases)), int(fraction > 0 and len(bases) >= len(SPLITS)))
            missing = max(0, wanted - sum(split.get(base) == name for base in bases))
            split.update(dict.fromkeys(new[:missing], name))
            new = new[missing:]
        split.update(dict.fromkeys(new, "train"))
    return dict(sorted(split.items()))


def _rank(seed: int, base: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{base}".encode("utf-8", "surrogatepass")).digest()  # names may be any bytes


def select(pictures: Sequence[Picture], split: Mapping[str, str], name: str) -> list[Picture]:
    """The pictures of one split ("train", "val" or "test") whose truth is known, in the given order.

    Raises:
        InputError: there is none.
    """
    chosen = [picture for picture in pictures if picture.forged is not None and split.get(picture.base) == name]
    if not chosen:
        raise InputError(
            f"none of the {len(pictures)} pictures belong to the split {name!r}: add pictures, raise "
            "--val-fraction or --test-fraction when training, or score every picture with test.py --split all"
        )
    return chosen


# Reading --------------------------------------------------------------------------------------------------------


def read_pair(picture: Picture, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Picture (H, W, 3) uint8 RGB and its masks (K, H, W) bool (K = 0 without a mask). Raises as the two readers do."""
    image = read_image(picture.image, settings.max_megapixels)
    height, width = image.shape[:2]
    return image, np.zeros((0, height, width), bool) if picture.mask is None else read_masks(
        picture.mask, (height, width)
    )


def check_picture(picture: Picture, settings: DataSettings) -> None:
    """Check what can be told without decoding: kind, size, complete file, the mask's shape.

    Raises:
        InputError: as `read_image` and `read_masks` do.
    """
    shape = check_image(picture.image, settings.max_megapixels)
    if picture.mask is not None:
        check_mask(picture.mask, shape)


def readable_pictures(
    pictures: Iterable[Picture], settings: DataSettings, bar: Callable[[Iterable], Iterable] = iter
) -> tuple[list[Picture], list[str]]:
    """Check all pictures before any work is lost: (those that passed, one line for each that did not).

    Without `--skip-unreadable` the first bad one stops. This reads headers and looks for the end of each file, well
    under 1 ms a picture; what only decoding can show comes up later, see `read_all` and `ForgeryDataset`.

    Args:
        bar: wraps the pictures, for a progress bar.
    Raises:
        InputError: a picture is bad and `settings.skip_unreadable` is off, or all are bad.
    """
    good, bad = [], []
    for picture in bar(list(pictures)):
        try:
            check_picture(picture, settings)
        except InputError as fault:
            if not settings.skip_unreadable:
                raise InputError(f"{fault}; mend or remove it, or leave it out with --skip-unreadable") from None
            bad.append(str(fault))
        else:
            good.append(picture)
    if bad and not good:
        raise InputError(f"none of the {len(bad)} pictures can be read; the first: {bad[0]}")
    return good, bad


def read_all(
    pictures: Iterable[Picture], settings: DataSettings, skipped: list[str]
) -> Iterator[tuple[Picture, np.ndarray, np.ndarray]]:
    """Read picture after picture: (picture, image, masks) as `read_pair` does.

    With `--skip-unreadable` a picture that cannot be read is left out and a line about it appended to `skipped`,
    which the caller reports; without, it raises InputError.
    """
    for picture in pictures:
        try:
            image, masks = read_pair(picture, settings)
        except InputError as fault:
            if not settings.skip_unreadable:
                raise
            skipped.append(str(fault))
        else:
            yield picture, image, masks


# Letterbox and grid ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letterbox:
    """How a picture lies in the S x S input: scaled to fit, its corner in the input's top left corner.

    The corner, not the middle: only one side of the content then ends within a cell.
    """

    size: int  # S, side of the input in pixels
    height: int  # of the original picture in pixels
    width: int
    content_height: int  # of the picture in the input, in pixels
    content_width: int

    @classmethod
    def fit(cls, shape: tuple[int, int], size: int) -> "Letterbox":
        """Letterbox of a picture of `shape` (H, W) in pixels; `size` must be a positive multiple of 14."""
        if size <= 0 or size % PATCH:
            raise InputError(f"image size {size} is not a positive multiple of {PATCH}, the side of a patch")
        height, width = shape
        longer = max(height, width)
        return cls(size, height, width, max(1, round(height * size / longer)), max(1, round(width * size / longer)))

    @property
    def valid(self) -> np.ndarray:
        """(G, G) bool: the cells that count, see `valid_cells`."""
        content = np.zeros((self.size, self.size), np.uint8)
        content[: self.content_height, : self.content_width] = 255
        return valid_cells(content)

    def rows(self) -> np.ndarray:
        """(H,) int: row of cells for each row of the original; `grid[rows[:, None], columns]` is at full resolution."""
        return self._cells(self.height, self.content_height, int(self.valid[:, 0].sum()))

    def columns(self) -> np.ndarray:
        """(W,) int: column of cells for each column of the original."""
        return self._cells(self.width, self.content_width, int(self.valid[0].sum()))

    @staticmethod
    def _cells(pixels: int, content: int, cells: int) -> np.ndarray:
        centres = (np.arange(pixels) + 0.5) * content / pixels  # in pixels of the input
        return np.minimum((centres / PATCH).astype(np.int64), cells - 1)


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Scale a picture (H, W, 3) uint8 to fit into (S, S, 3) uint8, its aspect ratio kept, the rest `PADDING`.

    Raises:
        InputError: `size` is not a multiple of 14.
    """
    box = Letterbox.fit(image.shape[:2], size)
    return _pad(_resize(image, box.content_height, box.content_width), size, PADDING), box


def letterbox_masks(masks: np.ndarray, box: Letterbox) -> np.ndarray:
    """Masks (K, H, W) bool in the input: (K, S, S) uint8, 0 to 255, the share of each pixel that is covered."""
    return _pad_layers(_resize_layers(masks.astype(np.uint8) * 255, box), box.size)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averages where the picture shrinks, so that nothing small is stepped over; cubic where it grows."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _resize_layers(layers: np.ndarray, box: Letterbox) -> np.ndarray:
    """(K, H, W) uint8 -> (K, content height, content width); K may be 0."""
    shape = (box.content_height, box.content_width)
    return np.array([_resize(layer, *shape) for layer in layers], np.uint8).reshape(-1, *shape)


def _pad(pixels: np.ndarray, size: int, fill: tuple[int, ...] | int) -> np.ndarray:
    height, width = pixels.shape[:2]
    canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
    canvas[:height, :width], canvas[height:], canvas[:height, width:] = pixels, fill, fill
    return canvas


def _pad_layers(layers: np.ndarray, size: int) -> np.ndarray:
    canvas = np.zeros((len(layers), size, size), np.uint8)
    canvas[:, : layers.shape[1], : layers.shape[2]] = layers
    return canvas


def _share_per_cell(layers: np.ndarray) -> np.ndarray:
    """(..., S, S) uint8 0 to 255 or float 0 to 1 -> (..., G, G) float, the covered share of each 14 px cell."""
    *lead, height, width = layers.shape
    cells = layers.reshape(*lead, height // PATCH, PATCH, width // PATCH, PATCH)
    share = cells.mean(axis=(-3, -1), dtype=np.float64)
    return share / 255 if layers.dtype == np.uint8 else share


def valid_cells(content: np.ndarray) -> np.ndarray:
    """Cells that count, (G, G) bool, from the content mask (S, S), uint8 0 to 255 or float 0 to 1.

    A cell counts when at least half of it is content. Where no cell is that full (a picture a few pixels thin), those
    count that have half of what the fullest one has, so that every picture has cells.
    """
    share = _share_per_cell(content)
    return share >= (0.5 if share.max() >= 0.5 else share.max() / 2)


def grid_labels(coverage: np.ndarray, valid: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Labels of the grid's cells by covered area.

    A cell takes the instance that covers most of it, if that is at least `least` of the cell. An instance that gets no
    cell this way (too small or too thin) takes the cell that it covers most, the best covered instance first;
    where that is the only cell of another instance, its next best. One that lies in cells that do not count takes the
    nearest that does. Where nothing is left it stays without a cell.

    Args:
        coverage: (K, S, S), uint8 0 to 255 or float 0 to 1: share of each pixel that instance k covers.
        valid: (G, G) bool, G = S / 14: cells that are not padding.
        least: share of a cell, over 0 to 1.
    Returns:
        (G, G) int64: 0 background, 1..K instance, -1 padding.
    """
    labels = np.where(valid, BACKGROUND, IGNORED).astype(np.int64)
    if len(coverage) == 0:
        return labels
    share = _share_per_cell(coverage)  # (K, G, G)
    filled = valid & (share.max(axis=0) >= least)
    labels[filled] = share.argmax(axis=0)[filled] + 1
    homeless = [k for k in range(len(coverage)) if not (labels == k + 1).any()]
    for k in sorted(homeless, key=lambda k: -share[k].max()):
        wanted = np.where(valid, share[k], 0.0)
        if not wanted.any():
            wanted = np.where(valid, _near(share[k]), 0.0)
        counts = np.bincount(labels[labels > 0], minlength=len(coverage) + 1)
        wanted[(labels > 0) & (counts[np.maximum(labels, 0)] == 1)] = 0
        if wanted.any():
            labels[np.unravel_index(wanted.argmax(), wanted.shape)] = k + 1
    return labels


def _near(share: np.ndarray) -> np.ndarray:
    """Share spread to the eight neighbours."""
    return cv2.blur(share, (3, 3), borderType=cv2.BORDER_CONSTANT)


# Cache ----------------------------------------------------------------------------------------------------------


@dataclass
class Content:
    """A picture as it lies in the S x S input, without the padding around it.

    image: (h, w, 3) uint8 RGB, the longer side S. coverage: (K, h, w) uint8, 0 to 255, share of each pixel that
    instance k covers. height, width: of the original in pixels.
    """

    image: np.ndarray
    coverage: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, image: np.ndarray, masks: np.ndarray, size: int) -> "Content":
        """From a picture (H, W, 3) uint8 and its masks (K, H, W) bool."""
        box = Letterbox.fit(image.shape[:2], size)
        content = _resize(image, box.content_height, box.content_width)
        return cls(content, _resize_layers(masks.astype(np.uint8) * 255, box), box.height, box.width)


class ContentCache:
    """Letterboxed pictures on disk, so that an epoch is not bound by decoding. Safe for many processes at once.

    One file per picture and input size: a JSON line (what it was made from, shapes, checksum), then the raw bytes of
    picture and coverage, which are read about as fast as the disk gives them. A file is used only if the original's
    path, size and time of change are still the same and its checksum holds; otherwise it is made again. Files appear
    whole. Together they stay under the limit; a picture beyond it is decoded every time.
    """

    VERSION = 1  # raise when the content of the files changes

    def __init__(self, folder: Path, limit_gb: float, size: int) -> None:
        """`folder` is made when missing; `limit_gb` in 10^9 bytes; `size` is S."""
        self.folder, self.limit, self.size = Path(folder), int(limit_gb * 1e9), size
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked_total() as total:
            for left in self.folder.glob(".*.tmp"):  # of a process that was killed: files are written under the lock
                left.unlink()
            total[0] = sum(path.stat().st_size for path in self.folder.glob("*.picture"))

    def load(self, picture: Picture) -> Content | None:
        """The cached content, or None where there is none that can be believed."""
        try:
            data = np.fromfile(self._path(picture), np.uint8)
            made_from = self.made_from(picture)
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
        return Content(data[end:middle].reshape(shapes[0]), data[middle:].reshape(shapes[1]), *head["original"])

    def store(self, picture: Picture, content: Content, made_from: list[str | int]) -> None:
        """Keep the content, if the limit allows. `made_from`: as it was before the picture was read.

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
        path = self._path(picture)
        try:
            with self._locked_total() as total:
                after = total[0] + len(data) - (path.stat().st_size if path.exists() else 0)
                if after <= self.limit:
                    write_whole(path, lambda temporary: temporary.write_bytes(data), lasting=False)
                    total[0] = after
        except OSError as fault:
            raise InputError(
                f"cannot write to the cache {self.folder}: {fault.strerror}; free some space, lower --cache-gb, or "
                "leave --cache out"
            ) from None

    def _path(self, picture: Picture) -> Path:
        name = json.dumps([str(picture.image.absolute()), str(picture.mask and picture.mask.absolute()), self.size])
        return self.folder / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.picture"

    def made_from(self, picture: Picture) -> list[str | int]:
        """What tells whether the content is still that of the files: their paths, sizes and times of change."""
        stamps: list[str | int] = [self.VERSION, self.size]
        for path in filter(None, (picture.image, picture.mask)):
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


def read_content(picture: Picture, size: int, settings: DataSettings, cache: ContentCache | None = None) -> Content:
    """Content of a picture, from the cache where it has it, else decoded and put there. Raises as `read_pair`."""
    if cache is None:
        return Content.of(*read_pair(picture, settings), size)
    content = cache.load(picture)
    if content is None:
        try:
            made_from = cache.made_from(picture)
        except FileNotFoundError as fault:
            raise unreadable(Path(fault.filename), fault) from None
        content = Content.of(*read_pair(picture, settings), size)
        cache.store(picture, content, made_from)
    return content


# Samples --------------------------------------------------------------------------------------------------------


def augmentation() -> Any:
    """Albumentations pipeline for `image`, `masks` (the coverages and, last, what is picture).

    Turned pictures grow their frame, so that no copy falls off the edge and leaves its source labelled alone.
    """
    # The package asks the internet for a newer version when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    linear = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_LINEAR}
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomRotate90(p=0.5),
            A.Affine(rotate=(-45, 45), fit_output=True, fill=PADDING, fill_mask=0, p=0.25, **linear),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.5),
            A.ToGray(p=0.1),
            A.OneOf([A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2)), A.MotionBlur(blur_limit=(3, 5))], p=0.15),
            A.OneOf([A.GaussNoise(std_range=(0.005, 0.04)), A.ISONoise()], p=0.2),
            A.ImageCompression(quality_range=(50, 95), p=0.3),
        ]
    )


class ForgeryDataset:
    """Training samples: map-style, without torch. The same (seed, epoch, index) gives the same sample in any process.

    `dataset[index]` or `dataset[epoch, index]` is a dict: `image` (S, S, 3) uint8 RGB, `labels` (G, G) int64 (0
    background, 1..K instance, -1 padding), `id` (text) and `skipped`, lines about pictures that could not be read.

    A picture that cannot be read raises InputError; with `--skip-unreadable` the next one of its kind (authentic or
    forged) that can be read takes its place, always the same one, and `skipped` tells.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        size: int,
        data: DataSettings,
        loader: LoaderSettings,
        synthesis: SynthesisSettings,
        seed: int = 0,
    ) -> None:
        """`pictures`: with known truth, e.g. `select(...)`; `size`: S in pixels, a multiple of 14.

        Raises:
            InputError: no pictures, `size` is no multiple of 14, or a probability outside 0 to 1.
        """
        if not pictures:
            raise InputError("there are no pictures to train on; check the folder and the split fractions")
        if not 0 <= loader.synthesis_probability <= 1:
            raise InputError(f"--synthesis-probability {loader.synthesis_probability} is not within 0 to 1")
        if not 0 < loader.label_coverage <= 1:
            raise InputError(f"--label-coverage {loader.label_coverage} is not over 0 and at most 1")
        Letterbox.fit((1, 1), size)
        self.pictures, self.size, self.seed = list(pictures), size, seed
        self.data, self.loader, self.synthesis = data, loader, synthesis
        self.cache = ContentCache(loader.cache, loader.cache_gb, size) if loader.cache else None
        self.augmentation = augmentation() if loader.augment else None
        self.authentic = np.array([index for index, picture in enumerate(self.pictures) if not picture.forged])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        skipped: list[str] = []
        picture, content = self._read(index, skipped)
        rng = np.random.default_rng([self.seed, epoch, index])
        image, coverage = content.image, content.coverage
        if not picture.forged and self.loader.synthesis_probability > 0:
            image, coverage = self._forge(image, index, rng)
        inside = np.full((1, *image.shape[:2]), 255, np.uint8)
        if self.augmentation is not None:
            # One generator for all transforms. `set_random_seed` would give each one the same draws: a picture would
            # then be flipped both ways and turned, or none of it.
            self.augmentation.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            changed = self.augmentation(image=image, masks=np.concatenate([coverage, inside]))
            image, masks = changed["image"], np.asarray(changed["masks"])
            coverage, inside = masks[:-1], masks[-1:]
            image[inside[0] == 0] = PADDING  # colours were changed there too
        image, box = letterbox(image, self.size)
        coverage, inside = (_pad_layers(_resize_layers(layers, box), self.size) for layers in (coverage, inside))
        labels = grid_labels(coverage, valid_cells(inside[0]), self.loader.label_coverage)
        return {"image": image, "labels": labels, "id": picture.id, "skipped": skipped}

    def _read(self, index: int, skipped: list[str]) -> tuple[Picture, Content]:
        for picture in [*self.pictures[index:], *self.pictures[:index]]:
            if picture.forged != self.pictures[index].forged:
                continue
            try:
                return picture, read_content(picture, self.size, self.data, self.cache)
            except InputError as fault:
                if not self.data.skip_unreadable:
                    raise
                skipped.append(str(fault))
        raise InputError(f"no training picture of this kind can be read; the first of {len(skipped)}: {skipped[0]}")

    def _forge(self, image: np.ndarray, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A forgery with `synthesis_probability`, else the same without copies, so that only copies tell them apart."""
        import synthesis

        forged = bool(rng.random() < self.loader.synthesis_probability)
        others = rng.choice(self.authentic, size=min(4, len(self.authentic)), replace=False)
        panels = _Panels(self, others[others != index])
        try:
            forgery = synthesis.forge(image, self.synthesis, rng, forged, panels)
        except InputError:
            raise
        except ValueError:  # too small to hold two regions: it stays authentic
            return image, np.zeros((0, *image.shape[:2]), np.uint8)
        return forgery.image, forgery.masks.astype(np.uint8) * 255


class _Panels(Sequence):
    """Contents of other pictures, read only when a figure is composed of them."""

    def __init__(self, dataset: ForgeryDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.dataset._read(int(self.indices[position]), [])[1].image


# Loading --------------------------------------------------------------------------------------------------------


class StepSampler:
    """Order of one epoch, for one rank: batches of (epoch, index), each known from seed, epoch and step alone.

    The pictures are shuffled by (seed, epoch) and cut into optimiser steps of `batch_size * world * accumulation`.
    Rank r takes entries r, r + world, ... of a step's pictures and cuts them into batches of `batch_size`: which
    pictures a step has does not depend on how many ranks share it. The last step may be smaller; where it does not
    divide by the ranks, pictures from the start of the epoch's order fill it up, so that all ranks have the same
    batches. It may have fewer than `accumulation` batches, the last of them smaller (`step_sizes`).
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        epoch: int = 0,
        start_step: int = 0,
    ) -> None:
        """`length`: number of pictures. `start_step`: optimiser steps of the epoch that are done already."""
        if min(length, batch_size, world, accumulation) < 1 or not 0 <= rank < world:
            raise InputError(
                f"{length} pictures, batch size {batch_size}, accumulation {accumulation}, {world} ranks: each must be "
                f"at least 1, and the rank ({rank}) under the number of ranks"
            )
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world
        self.accumulation, self.seed = accumulation, seed
        self.set_epoch(epoch, start_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """What the next iteration gives: this epoch from this optimiser step on."""
        if not 0 <= start_step <= self.steps:
            raise InputError(f"start step {start_step} is not within 0 to {self.steps}, the steps of an epoch")
        self.epoch, self.start_step = epoch, start_step

    @property
    def step_pictures(self) -> int:
        """Pictures of a full optimiser step, all ranks together."""
        return self.batch_size * self.world * self.accumulation

    @property
    def steps(self) -> int:
        """Optimiser steps of a whole epoch."""
        return -(-self.length // self.step_pictures)

    def step_sizes(self, step: int) -> list[int]:
        """Sizes of this rank's batches in an optimiser step; the same on every rank."""
        pictures = -(-min(self.step_pictures, self.length - step * self.step_pictures) // self.world)
        return [min(self.batch_size, pictures - start) for start in range(0, pictures, self.batch_size)]

    def order(self) -> np.ndarray:
        """(length,) int: the epoch's order of pictures, the same on every rank."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.length)

    def __len__(self) -> int:
        return sum(len(self.step_sizes(step)) for step in range(self.start_step, self.steps))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, epoch = self.order(), self.epoch
        for step in range(self.start_step, self.steps):
            chunk = order[step * self.step_pictures : (step + 1) * self.step_pictures]
            filled = np.concatenate([chunk, np.resize(order, -len(chunk) % self.world)])
            mine = filled[self.rank :: self.world]
            for start in range(0, len(mine), self.batch_size):
                yield [(epoch, int(index)) for index in mine[start : start + self.batch_size]]


def collate(samples: list[dict[str, Any] | InputError]) -> dict[str, Any] | InputError:
    """Samples -> batch: `image` (B, S, S, 3) uint8, `labels` (B, G, G) int64, `num_labels` (int, 1 + the largest label,
    known here so that the loss need not ask the device), `ids`, `skipped`."""
    import torch

    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    labels = np.stack([sample["labels"] for sample in samples])
    return {
        "image": torch.from_numpy(np.stack([sample["image"] for sample in samples])),
        "labels": torch.from_numpy(labels),
        "num_labels": int(labels.max(initial=0)) + 1,
        "ids": [sample["id"] for sample in samples],
        "skipped": [line for sample in samples for line in sample["skipped"]],
    }


class _Reported:
    """The dataset with its InputErrors returned: a worker process would wrap them into many lines of traceback."""

    def __init__(self, dataset: ForgeryDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | InputError:
        try:
            return self.dataset[key]
        except InputError as fault:
            return fault


class Loader:
    """Batches of one rank (see `collate`) in the order of `sampler`; `sampler.set_epoch` says which epoch comes next.

    `skipped` collects a line for every picture that could not be read (with `--skip-unreadable`), each once.
    """

    def __init__(self, dataset: ForgeryDataset, sampler: StepSampler, workers: int) -> None:
        import torch

        self.dataset, self.sampler, self.skipped = dataset, sampler, dict[str, None]()
        self._batches = torch.utils.data.DataLoader(
            _Reported(dataset),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            multiprocessing_context=_context() if workers else None,
            generator=torch.Generator(),  # leaves the global one alone: a resumed run must draw the same numbers
        )
        # The workers ignore SIGTERM, which is how multiprocessing would end them at exit; this comes before it.
        atexit.register(self.close)

    def close(self) -> None:
        """End the worker processes. Happens by itself when the program ends."""
        iterator, self._batches._iterator = self._batches._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._received():
            if isinstance(batch, InputError):
                raise batch
            for line in batch.pop("skipped"):
                if line not in self.skipped:
                    self.skipped[line] = None
                    print(f"left out: {line}", file=sys.stderr)
            yield batch

    def _received(self) -> Iterator[Any]:
        """Batches of the workers. Raises BrokenExecutor where one was killed with its batch half handed over."""
        batches = iter(self._batches)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError) as fault:
                raise BrokenExecutor("a loader process was killed") from fault
            yield batch


def _context() -> multiprocessing.context.BaseContext:
    """This machine's way to start processes, with `_Flag` for the event by which torch ends its loader processes."""
    context = copy.copy(multiprocessing.get_context())
    context.Event = _Flag
    return context


class _Flag:
    """An event between processes without a lock: one that is killed in `is_set` leaves nothing that others wait for.

    Of multiprocessing.Event it has what torch's loader calls. That one takes a lock to be read, which every loader
    process does before each batch; one that was killed in there kept its training waiting for ever.
    """

    def __init__(self) -> None:
        self._value = multiprocessing.RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return self._value.value == 1


def _start_worker(_: int) -> None:
    """A loader process is one thread: the processes share the cores already."""
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach every process of the job. The main process saves and then ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(
    pictures: Sequence[Picture],
    size: int,
    data: DataSettings,
    loader: LoaderSettings,
    synthesis: SynthesisSettings,
    *,
    batch_size: int,
    accumulation: int = 1,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
) -> Loader:
    """Training batches of one rank. `size`: S in pixels; `batch_size`: pictures per rank and batch.

    Raises:
        InputError: no pictures, or a setting out of its range.
    """
    if loader.workers < 0:
        raise InputError(f"--workers {loader.workers} is negative; 0 reads in the main process")
    dataset = ForgeryDataset(pictures, size, data, loader, synthesis, seed)
    sampler = StepSampler(len(dataset), batch_size, rank, world, accumulation, seed)
    return Loader(dataset, sampler, loader.workers)
