"""Folders of images: which files belong together, in each of the layouts."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

IMAGE_SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
        *(".jp2", ".j2k", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
# Names of folders that are parts of a data set: without the folders beside them it is unknown what is forged.
PARTS = frozenset(
    ("forged", "masks", "train_images", "train_masks", "supplemental_images", "supplemental_masks", "test_images")
)


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder."""

    id: str  # file stem, after the names of sub-folders, joined by `__`; unique together with `forged`
    image: Path
    mask: Path | None  # None for authentic images and where the truth is unknown
    base: str  # the image it was made from: images with the same base fall into the same split
    forged: bool | None  # None: truth unknown (test_images/)


def find_images(root: Path) -> list[ImageFile]:
    """All images of a folder, sorted by id, authentic before forged. The order of the directory does not matter.

    The names of the sub-folders tell the layout:

    - Recod.ai/LUC: `train_images/authentic/`, `train_images/forged/` with `train_masks/`; `supplemental_images/`
      (forged) with `supplemental_masks/`, their ids prefixed `supplemental__`; `test_images/` (truth unknown);
    - plain: `authentic/`, and `forged/` with `masks/`; either may be missing;
    - none of these names: every image in the folder, at any depth, is authentic.

    Files whose suffix is not that of an image, and hidden files, are ignored. The base of an image is its id without
    prefix, so that the authentic and the forged image of one id belong together; where a file `<stem>.json` beside the
    image holds an object with a text under "base", the base is that text.

    Raises:
        InputError: the folder is missing or holds no image, a forged image has no mask, a mask has no image, two
            files have one id, or there are data sets deeper inside (their masks would be taken for authentic images).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the folder that holds the images")
    if root.resolve().name in PARTS:
        raise InputError(f"{root} is a part of a data set; give the folder above it, which holds images and masks")
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    if folders & {"train_images", "supplemental_images", "test_images"}:
        image_files = _recod_layout(root)
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


def _recod_layout(root: Path) -> list[ImageFile]:
    train = root / "train_images"
    if train.is_dir() and not ((train / "authentic").is_dir() or (train / "forged").is_dir()):
        raise InputError(f"{train} holds neither authentic/ nor forged/")
    return [
        *_unmasked(train / "authentic", forged=False),
        *_masked(train / "forged", root / "train_masks"),
        *_masked(root / "supplemental_images", root / "supplemental_masks", prefix="supplemental__"),
        *_unmasked(root / "test_images", forged=None),
    ]


def _unmasked(folder: Path, forged: bool | None) -> list[ImageFile]:
    return [ImageFile(id, path, None, _base(path, id), forged) for id, path in image_paths(folder).items()]


def _masked(folder: Path, mask_folder: Path, prefix: str = "") -> list[ImageFile]:
    images, masks = image_paths(folder), image_paths(mask_folder, MASK_SUFFIXES)
    if lone := sorted(images.keys() - masks.keys()):
        raise InputError(f"no mask in {mask_folder} for {_some([images[id] for id in lone])}; add it or move them away")
    if lone := sorted(masks.keys() - images.keys()):
        raise InputError(f"no image in {folder} for {_some([masks[id] for id in lone])}; add it or move them away")
    return [ImageFile(prefix + id, path, masks[id], _base(path, id), True) for id, path in images.items()]


def image_paths(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files with one of the suffixes at any depth, by id (see `ImageFile`); empty where there is no such folder.

    Links to folders are followed, but no folder is entered twice.

    Raises:
        InputError: two files have one id, a folder cannot be listed, or a data set with masks lies inside.
    """
    found: dict[str, Path] = {}
    entered: set[tuple[int, int]] = set()  # device and inode of each folder

    def refuse(fault: OSError) -> None:
        if fault.filename != str(folder) or not isinstance(fault, FileNotFoundError):
            raise InputError(f"cannot list {fault.filename}: {fault.strerror}; open it for reading or move it away")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:  # a link led here again, perhaps in a loop
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if inner := PARTS & set(folders):
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
    """The text under "base" in the JSON file beside the image; the id where there is none."""
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
