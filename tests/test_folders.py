"""Which files of a folder belong together, how they are split, and which of them can be read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from config import SplitSettings
from images.folders import ImageFile, find_images
from images.masks import read_masks
from images.pairs import read_pairs, readable_images
from images.splits import select_split, split_images
from runtime.errors import InputError
from tests.made_files import block, damage, data_settings, noise, plain_folder, save, save_npy

# Finding ----------------------------------------------------------------------------------------------------------


def test_competition_layout(tmp_path):
    """The folders of Recod.ai/LUC: ids, bases, truth and masks."""
    for kind in ("authentic", "forged"):
        save(tmp_path / "train_images" / kind / "7.png", noise(4, 5))
    save_npy(tmp_path / "train_masks" / "7.npy", np.ones((1, 4, 5), np.uint8))
    save(tmp_path / "supplemental_images" / "7.png", noise(4, 5))
    save_npy(tmp_path / "supplemental_masks" / "7.npy", np.ones((1, 4, 5), np.uint8))
    save(tmp_path / "test_images" / "9.png", noise(4, 5))
    found = find_images(tmp_path)
    assert [(p.id, p.base, p.forged, p.mask and p.mask.parent.name) for p in found] == [
        ("7", "7", False, None),
        ("7", "7", True, "train_masks"),
        ("9", "9", None, None),
        ("supplemental__7", "7", True, "supplemental_masks"),
    ]
    assert found[3].image == tmp_path / "supplemental_images" / "7.png"


@pytest.mark.parametrize("missing", [(), ("authentic",), ("forged", "masks")])
def test_plain_layout_and_its_halves(tmp_path, missing):
    """authentic/, or forged/ with masks/, may be missing."""
    plain_folder(tmp_path, 2)
    for name in missing:
        for path in (tmp_path / name).iterdir():
            path.unlink()
        (tmp_path / name).rmdir()
    expected = [(id, kind == "forged") for id in "01" for kind in ("authentic", "forged") if kind not in missing]
    assert [(p.id, p.forged) for p in find_images(tmp_path)] == expected


def test_other_folders_are_authentic(tmp_path):
    """A folder without one of the known names holds authentic images, at any depth."""
    save(tmp_path / "b" / "1.PNG", noise(4, 5))
    save(tmp_path / "a" / "1.jpg", noise(4, 5))
    save(tmp_path / "c.tif", noise(4, 5))
    save(tmp_path / ".hidden" / "d.png", noise(4, 5))
    (tmp_path / "README.txt").write_text("no image")
    assert [(p.id, p.base, p.forged) for p in find_images(tmp_path)] == [
        ("a__1", "a__1", False),
        ("b__1", "b__1", False),
        ("c", "c", False),
    ]


def test_json_names_the_base(tmp_path):
    """The base of an image is the text under "base" in the JSON beside it, else its id."""
    plain_folder(tmp_path, 3)
    (tmp_path / "forged" / "0.json").write_text(json.dumps({"base": "original-5"}))
    (tmp_path / "forged" / "1.json").write_text(json.dumps({"camera": "x"}))
    bases = {p.id: p.base for p in find_images(tmp_path) if p.forged}
    assert bases == {"0": "original-5", "1": "1", "2": "2"}


@pytest.mark.parametrize("text", ["{", '{"base": 3}'])
def test_bad_json_is_named(tmp_path, text):
    """A JSON file beside an image that is damaged, or whose base is not a text, is named in the error."""
    plain_folder(tmp_path, 1)
    (tmp_path / "forged" / "0.json").write_text(text)
    with pytest.raises(InputError, match=r"0\.json"):
        find_images(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    """Folders without images are refused."""
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        find_images(tmp_path)
    (tmp_path / "train_images").mkdir()
    with pytest.raises(InputError, match="neither authentic/ nor forged/"):
        find_images(tmp_path)


def test_images_masks_and_ids_match(tmp_path):
    """A forged image without mask, a mask without image, and two files of one id are refused."""
    root = plain_folder(tmp_path, 2)
    (root / "masks" / "1.npy").rename(root / "masks" / "5.npy")
    with pytest.raises(InputError, match=r"no mask in .*masks for .*forged/1\.png"):
        find_images(root)
    save(root / "masks" / "1.png", block(60, 90, 0, 0, 5, 255))
    with pytest.raises(InputError, match=r"no image in .*forged for .*masks/5\.npy"):
        find_images(root)
    (root / "masks" / "5.npy").unlink()
    assert len(find_images(root)) == 4
    save(root / "authentic" / "1.jpg", noise(4, 5))
    with pytest.raises(InputError, match=r"1\.jpg and .*1\.png have the same id"):
        find_images(root)


def test_parts_of_sets_are_refused(tmp_path):
    """Forged images and masks are never taken for authentic images of an unknown layout."""
    root = plain_folder(tmp_path / "collection" / "set", 1)
    with pytest.raises(InputError, match="set holds a data set"):
        find_images(tmp_path / "collection")
    for part in ("forged", "masks"):
        with pytest.raises(InputError, match="give the folder above"):
            find_images(root / part)


def test_links_pipes_and_odd_folders(tmp_path):
    """Links in a loop end, pipes are never opened, and folders named like files are no files."""
    root = plain_folder(tmp_path / "set", 1)
    (root / "authentic" / "loop").symlink_to(root / "authentic")
    (root / "authentic" / "again").symlink_to(tmp_path / "other")
    save(tmp_path / "other" / "5.png", noise(60, 90, 5))
    (tmp_path / "other" / "back").symlink_to(tmp_path / "other")
    (root / "authentic" / "folder.png").mkdir()
    (root / "authentic" / "0.json").mkdir()
    assert [p.id for p in find_images(root) if not p.forged] == ["0", "again__5"]
    os.mkfifo(root / "authentic" / "pipe.png")
    os.mkfifo(root / "authentic" / "pipe.json")
    good, bad = readable_images(find_images(root), data_settings(root, skip_unreadable=True))
    assert len(good) == 3 and len(bad) == 1 and "pipe.png: it is not a regular file" in bad[0]
    os.mkfifo(tmp_path / "m.npy")
    with pytest.raises(InputError, match="not a regular file"):
        read_masks(tmp_path / "m.npy", (60, 90))


def test_deeply_nested_json_is_named(tmp_path):
    """JSON that exceeds Python's depth of recursion is refused like other damage."""
    save(tmp_path / "a.png", noise(4, 5))
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"a\.json lies beside an image but is not JSON"):
        find_images(tmp_path)


# Splitting --------------------------------------------------------------------------------------------------------


def made_up_images(count, forged_every=2):
    authentic = [ImageFile(f"p{n}", Path(f"a/p{n}.png"), None, f"p{n}", False) for n in range(count)]
    forged = [ImageFile(f"p{n}", Path(f"f/p{n}.png"), Path("m"), f"p{n}", True) for n in range(0, count, forged_every)]
    return authentic + forged


def test_split_shares_are_exact():
    """Bases with and without a forged image are split in the same shares, and no base falls into two splits."""
    image_files = made_up_images(200)
    split = split_images(image_files, SplitSettings(val_fraction=0.1, test_fraction=0.25))
    for kind in (0, 1):  # even ids have a forged image
        names = [split[f"p{n}"] for n in range(200) if n % 2 == kind]
        assert [names.count(name) for name in ("train", "val", "test")] == [65, 10, 25]
    chosen = {name: select_split(image_files, split, name) for name in ("train", "val", "test")}
    assert [len(chosen[name]) for name in ("train", "val", "test")] == [195, 30, 75]
    assert not {p.base for p in chosen["train"]} & {p.base for p in chosen["val"] + chosen["test"]}


def test_split_depends_on_names_and_seed():
    """The order of the images does not matter."""
    image_files, config = made_up_images(60), SplitSettings()
    split = split_images(image_files, config)
    assert split_images(image_files[::-1], config) == split
    assert split_images(image_files, SplitSettings(split_seed=1)) != split


def test_known_splits_are_kept():
    """New bases are added until the fractions are reached."""
    image_files, config = made_up_images(40), SplitSettings(val_fraction=0.25, test_fraction=0.0)
    known = {f"p{n}": "val" for n in range(0, 6, 2)} | {"p1": "test", "not-here": "train"}
    split = split_images(image_files, config, known)
    assert {base: split[base] for base in known if base in split} == {k: v for k, v in known.items() if k != "not-here"}
    assert "not-here" not in split
    assert sum(split[f"p{n}"] == "val" for n in range(0, 40, 2)) == 5  # three known, two new
    assert sum(split[f"p{n}"] == "val" for n in range(1, 40, 2)) == 5


def test_small_sets_fill_every_split():
    """Three bases give one to every split; images whose truth is unknown take no part."""
    image_files = [*made_up_images(3, 1), ImageFile("t", Path("t.png"), None, "t", None)]
    split = split_images(image_files, SplitSettings())
    assert sorted(split.values()) == ["test", "train", "val"] and "t" not in split
    with pytest.raises(InputError, match="none of the 7 images belong to the split 'val'"):
        select_split(image_files, {}, "val")
    assert select_split(image_files, {**split, "t": "train"}, "train") == [
        p for p in image_files[:6] if split[p.base] == "train"
    ]


@pytest.mark.parametrize(
    "changes, known, message",
    [
        ({"val_fraction": -0.1}, None, "--val-fraction -0.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, None, "--test-fraction 0.5"),
        ({}, {"p0": "validation"}, "'validation'; allowed: train, val, test"),
    ],
)
def test_bad_split_settings(changes, known, message):
    """Fractions and known splits out of range are refused."""
    with pytest.raises(InputError, match=message):
        split_images(made_up_images(4), SplitSettings(**changes), known)


# Unreadable images ------------------------------------------------------------------------------------------------


def test_unreadable_images_stop_or_are_named(tmp_path):
    """The first bad image stops the program; with `--skip-unreadable` each is left out and named."""
    root = plain_folder(tmp_path, 4)
    (root / "forged" / "1.png").write_bytes((root / "forged" / "1.png").read_bytes()[:-300])
    save_npy(root / "masks" / "2.npy", np.zeros((1, 90, 60), np.uint8))
    image_files = find_images(root)
    with pytest.raises(InputError, match=r"forged/1\.png.*cut off.*--skip-unreadable"):
        readable_images(image_files, data_settings(root))
    good, bad = readable_images(image_files, data_settings(root, skip_unreadable=True))
    assert [p.image for p in good] == [
        p.image for p in image_files if p.image.name not in ("1.png", "2.png") or not p.forged
    ]
    assert len(bad) == 2 and "forged/1.png" in bad[0] and "masks/2.npy" in bad[1]
    for path in (root / "authentic").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 4 images can be read"):
        readable_images([p for p in image_files if not p.forged], data_settings(root, skip_unreadable=True))


def test_damage_found_by_decoding(tmp_path):
    """Damage that the header does not show is skipped, or raised, when the image is read."""
    root = plain_folder(tmp_path, 3)
    damage(root / "forged" / "1.png")
    config, image_files = data_settings(root, skip_unreadable=True), find_images(root)
    assert len(readable_images(image_files, config)[0]) == 6
    skipped = []
    read = list(read_pairs(image_files, config, skipped))
    assert [(p.id, p.forged) for p, _, _ in read] == [
        ("0", False),
        ("0", True),
        ("1", False),
        ("2", False),
        ("2", True),
    ]
    assert (read[1][1] == noise(60, 90, 0)).all() and (read[1][2][0] == block(60, 90, 0, 30, 30)).all()
    assert read[0][2].shape == (0, 60, 90)
    assert len(skipped) == 1 and "forged/1.png" in skipped[0]
    with pytest.raises(InputError, match=r"forged/1\.png"):
        list(read_pairs(image_files, data_settings(root), []))
