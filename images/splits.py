"""Training, validation and test: no two images made from one base image fall into different splits."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from config import SplitSettings
from images.folders import ImageFile
from runtime.errors import InputError

SPLITS = ("train", "val", "test")


def split_images(
    image_files: Iterable[ImageFile], settings: SplitSettings, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Split of every base image: base -> "train", "val" or "test".

    Bases with a forged image and bases without one are split apart, so that each split gets its share of both. Within
    each of the two, the bases are ordered by a hash of seed and name; the first ones go to "val", the next to "test",
    the rest to "train". Where there are three bases or more, each split whose fraction is not 0 gets at least one. The
    result depends on names, seed and fractions only. Images whose truth is unknown are left out.

    Args:
        known: assignments to keep, for instance a checkpoint's; new bases are added until the fractions are reached.
    Raises:
        InputError: a fraction outside 0 to 1, nothing left to train on, or a `known` value that is not a split.
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
    for forged in (True, False):
        bases = [base for base in has_forged if has_forged[base] is forged]
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
        InputError: there are none.
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
