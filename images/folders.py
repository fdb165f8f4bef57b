"""Folders of images: layouts, splits, and reading an image with its masks."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import DataSettings, SplitSettings
from images.masks import check_mask, read_masks
from images.read import check_image, read_image
from runtime.errors import InputError

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm")
)


MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy"}


SPLITS = ("train", "val", "test")


# Folders that mean nothing without those beside them.
_PARTS = frozenset(
    ("forged", "masks", "train_images", "train_masks", "supplemental_images", "supplemental_masks", "test_images")
)


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder."""

    id: str  # file stem (sub-folders joined by `__`); unique together with `forged`
    image: Path
    mask: Path | None  # None for authentic images and where the truth is unknown
    base: str  # the image it was made from: images with the same base fall into the same split
    forged: bool | None  # None: truth unknown (test_images/)


def find_images(root: Path) -> list[ImageFile]:
    """All images of a folder, sorted by id, authentic before forged; the order of the directory has no influence.

    The names of the sub-folders tell the layout:

    - Recod.ai/LUC: `train_images/authentic/`, `train_images/forged/` with `train_masks/`; `supplemental_images/`
      (forged) with `supplemental_masks/`, their ids prefixed `supplemental__`; `test_images/` (truth unknown);
    - plain: `authentic/`, and `forged/` with `masks/`; either may be missing;
    - none of these names: every image in the folder, at any depth, is authentic.

    Files that are no images by their suffix and hidden files are left alone. The base of an image is its stem, so
    that authentic and forged of one id belong together; where a `<id>.json` with a text under "base" lies beside the
    image, it is that text.

    Raises:
        InputError: the folder is missing or holds no image, a forged image has no mask, a mask has no image,
            two files have one id, or data sets lie deeper inside (their masks would pass for authentic images).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the folder that holds the images")
    if root.resolve().name in _PARTS:
        raise InputError(f"{root} is a part of a data set; give the folder above it, which holds images and masks")
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    if folders & {"train_images", "supplemental_images", "test_images"}:
        train = root / "train_images"
        if train.is_dir() and not ((train / "authentic").is_dir() or (train / "forged").is_dir()):
            raise InputError(f"{train} holds neither authentic/ nor forged/")
        image_files = [
            *_unmasked(train / "authentic", forged=False),
            *_masked(train / "forged", root / "train_masks"),
            *_masked(root / "supplemental_images", root / "supplemental_masks", prefix="supplemental__"),
            *_unmasked(root / "test_images", forged=None),
        ]
    elif folders & {"authentic", "forged", "masks"}:
        image_files = [
            *_unmasked(root / "authentic", forged=False),
            *_masked(root / "forged", root / "masks"),
        ]
    else:
        image_files = _unmasked(root, forged=False)
    if not image_files:
        raise InputError(
            f"{root} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}); give a folder with authentic/, forged/ "
            "and masks/, with train_images/ and train_masks/, or one of authentic images"
        )
    return sorted(image_files, key=lambda image_file: (image_file.id, str(image_file.forged)))


def _unmasked(folder: Path, forged: bool | None) -> list[ImageFile]:
    return [ImageFile(id, image, None, _base(image, id), forged) for id, image in image_paths(folder).items()]


def _masked(folder: Path, mask_folder: Path, prefix: str = "") -> list[ImageFile]:
    images, masks = image_paths(folder), image_paths(mask_folder, MASK_SUFFIXES)
    if lone := sorted(images.keys() - masks.keys()):
        raise InputError(f"no mask in {mask_folder} for {_some([images[id] for id in lone])}; add it or move them away")
    if lone := sorted(masks.keys() - images.keys()):
        raise InputError(f"no image in {folder} for {_some([masks[id] for id in lone])}; add it or move them away")
    return [ImageFile(prefix + id, image, masks[id], _base(image, id), True) for id, image in images.items()]


def image_paths(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files with one of the suffixes at any depth, by id (see `Image`); empty where there is no such folder.

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
        raise InputError(f"{note} lies beside an image but is not JSON ({fault}); mend it or move it away") from None
    base = value.get("base", id) if isinstance(value, dict) else id
    if not isinstance(base, str):
        raise InputError(f'"base" in {note} is {base!r}; it must be a text, the name of the base image')
    return base


def _some(paths: Sequence[Path], most: int = 3) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(str, paths[:most])) + more


def split_images(
    image_files: Iterable[ImageFile], settings: SplitSettings, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Split of every base image: base -> "train", "val" or "test".

    Bases with a forged image and bases without are split apart, so that each split gets its share of both. Within
    each group the bases are ranked by a hash of seed and name; the first ones go to "val", the next to "test", the
    rest to "train". Three bases or more of a kind give at least one to each split whose fraction is not 0. The answer
    depends on names, seed and fractions only. Images whose truth is unknown take no part.

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
    for image_file in image_files:
        if image_file.forged is not None:
            has_forged[image_file.base] = has_forged.get(image_file.base, False) or image_file.forged
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


def select_split(image_files: Sequence[ImageFile], split: Mapping[str, str], name: str) -> list[ImageFile]:
    """The images of one split ("train", "val" or "test") whose truth is known, in the given order.

    Raises:
        InputError: there is none.
    """
    chosen = [
        image_file for image_file in image_files if image_file.forged is not None and split.get(image_file.base) == name
    ]
    if not chosen:
        raise InputError(
            f"none of the {len(image_files)} images belong to the split {name!r}: add images, raise "
            "--val-fraction or --test-fraction when training, or score every image with test.py --split all"
        )
    return chosen


def read_pair(image_file: ImageFile, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 RGB and its masks (K, H, W) bool (K = 0 without a mask). Raises as the two readers do."""
    image = read_image(image_file.image, settings.max_megapixels)
    height, width = image.shape[:2]
    return image, np.zeros((0, height, width), bool) if image_file.mask is None else read_masks(
        image_file.mask, (height, width)
    )


def check_image_file(image_file: ImageFile, settings: DataSettings) -> None:
    """Check what can be told without decoding: kind, size, complete file, the mask's shape.

    Raises:
        InputError: as `read_image` and `read_masks` do.
    """
    shape = check_image(image_file.image, settings.max_megapixels)
    if image_file.mask is not None:
        check_mask(image_file.mask, shape)


def readable_images(
    image_files: Iterable[ImageFile], settings: DataSettings, bar: Callable[[Iterable], Iterable] = iter
) -> tuple[list[ImageFile], list[str]]:
    """Check all images before any work is lost: (those that passed, one line for each that did not).

    Without `--skip-unreadable` the first bad one stops. This reads headers and looks for the end of each file, well
    under 1 ms an image; what only decoding can show comes up later, see `read_all` and `ForgeryDataset`.

    Args:
        bar: wraps the images, for a progress bar.
    Raises:
        InputError: an image is bad and `settings.skip_unreadable` is off, or all are bad.
    """
    good, bad = [], []
    for image_file in bar(list(image_files)):
        try:
            check_image_file(image_file, settings)
        except InputError as fault:
            if not settings.skip_unreadable:
                raise InputError(f"{fault}; mend or remove it, or leave it out with --skip-unreadable") from None
            bad.append(str(fault))
        else:
            good.append(image_file)
    if bad and not good:
        raise InputError(f"none of the {len(bad)} images can be read; the first: {bad[0]}")
    return good, bad


def read_all(
    image_files: Iterable[ImageFile], settings: DataSettings, skipped: list[str]
) -> Iterator[tuple[ImageFile, np.ndarray, np.ndarray]]:
    """Read image after image: (image, image, masks) as `read_pair` does.

    With `--skip-unreadable` an image that cannot be read is left out and a line about it appended to `skipped`,
    which the caller reports; without, it raises InputError.
    """
    for image_file in image_files:
        try:
            image, masks = read_pair(image_file, settings)
        except InputError as fault:
            if not settings.skip_unreadable:
                raise
            skipped.append(str(fault))
        else:
            yield image_file, image, masks
