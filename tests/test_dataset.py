"""Images, masks, splits, letterbox, grid labels, samples, order, cache: on small made-up files."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config import DataSettings, LoaderSettings, SplitSettings, SynthesisSettings
from dataset import ForgeryDataset, StepSampler, _context, make_loader
from images.cache import ImageCache, read_letterboxed
from images.folders import ImageFile, find_images, read_all, readable_images, select_split, split_images
from images.letterbox import PADDING, Letterbox, grid_labels, letterbox, letterbox_masks, valid_cells
from images.masks import read_masks
from runtime.errors import InputError
from runtime.workers import Flag

ROOT = Path(__file__).parent.parent


def noise(height, width, seed=0):
    """An image with structure of several pixels, so that resizing keeps something of it."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def save_npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def block(height, width, top, left, side, value=1):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def plain_folder(root, count=4, size=(60, 90)):
    """`count` authentic images and as many forged ones of the same ids, each with one instance."""
    for number in range(count):
        save(root / "authentic" / f"{number}.png", noise(*size, number))
        save(root / "forged" / f"{number}.png", noise(*size, number))
        save_npy(root / "masks" / f"{number}.npy", block(*size, 5 * number, 30, 30)[None])
    return root


def data_settings(root, **changes):
    return DataSettings(data=root, **changes)


# Finding --------------------------------------------------------------------------------------------------------


def test_competition_layout(tmp_path):
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
    plain_folder(tmp_path, 2)
    for name in missing:
        for path in (tmp_path / name).iterdir():
            path.unlink()
        (tmp_path / name).rmdir()
    expected = [(id, kind == "forged") for id in "01" for kind in ("authentic", "forged") if kind not in missing]
    assert [(p.id, p.forged) for p in find_images(tmp_path)] == expected


def test_folder_without_known_names_is_authentic_at_any_depth(tmp_path):
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


def test_base_comes_from_the_json_beside_the_image(tmp_path):
    plain_folder(tmp_path, 3)
    (tmp_path / "forged" / "0.json").write_text(json.dumps({"base": "original-5"}))
    (tmp_path / "forged" / "1.json").write_text(json.dumps({"camera": "x"}))
    bases = {p.id: p.base for p in find_images(tmp_path) if p.forged}
    assert bases == {"0": "original-5", "1": "1", "2": "2"}


@pytest.mark.parametrize("text", ["{", '{"base": 3}'])
def test_bad_json_beside_a_image_is_named(tmp_path, text):
    plain_folder(tmp_path, 1)
    (tmp_path / "forged" / "0.json").write_text(text)
    with pytest.raises(InputError, match=r"0\.json"):
        find_images(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        find_images(tmp_path)
    (tmp_path / "train_images").mkdir()
    with pytest.raises(InputError, match="neither authentic/ nor forged/"):
        find_images(tmp_path)


def test_forged_without_mask_mask_without_image_and_double_ids(tmp_path):
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


def test_forged_images_and_masks_never_pass_for_authentic_ones(tmp_path):
    root = plain_folder(tmp_path / "collection" / "set", 1)
    with pytest.raises(InputError, match="set holds a data set"):
        find_images(tmp_path / "collection")
    for part in ("forged", "masks"):
        with pytest.raises(InputError, match="give the folder above"):
            find_images(root / part)


def test_links_in_a_loop_pipes_and_folders_named_like_files(tmp_path):
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


def test_json_nested_too_deep_is_named(tmp_path):
    save(tmp_path / "a.png", noise(4, 5))
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"a\.json lies beside an image but is not JSON"):
        find_images(tmp_path)


# Splitting ------------------------------------------------------------------------------------------------------


def made_up_images(count, forged_every=2):
    authentic = [ImageFile(f"p{n}", Path(f"a/p{n}.png"), None, f"p{n}", False) for n in range(count)]
    forged = [ImageFile(f"p{n}", Path(f"f/p{n}.png"), Path("m"), f"p{n}", True) for n in range(0, count, forged_every)]
    return authentic + forged


def test_split_shares_are_exact_within_both_kinds_and_ids_stay_together():
    image_files = made_up_images(200)
    split = split_images(image_files, SplitSettings(val_fraction=0.1, test_fraction=0.25))
    for kind in (0, 1):  # even ids have a forged image
        names = [split[f"p{n}"] for n in range(200) if n % 2 == kind]
        assert [names.count(name) for name in ("train", "val", "test")] == [65, 10, 25]
    chosen = {name: select_split(image_files, split, name) for name in ("train", "val", "test")}
    assert [len(chosen[name]) for name in ("train", "val", "test")] == [195, 30, 75]
    assert not {p.base for p in chosen["train"]} & {p.base for p in chosen["val"] + chosen["test"]}


def test_split_depends_on_names_and_seed_only():
    image_files, config = made_up_images(60), SplitSettings()
    split = split_images(image_files, config)
    assert split_images(image_files[::-1], config) == split
    assert split_images(image_files, SplitSettings(split_seed=1)) != split


def test_known_splits_are_kept_and_the_rest_fills_up():
    image_files, config = made_up_images(40), SplitSettings(val_fraction=0.25, test_fraction=0.0)
    known = {f"p{n}": "val" for n in range(0, 6, 2)} | {"p1": "test", "not-here": "train"}
    split = split_images(image_files, config, known)
    assert {base: split[base] for base in known if base in split} == {k: v for k, v in known.items() if k != "not-here"}
    assert "not-here" not in split
    assert sum(split[f"p{n}"] == "val" for n in range(0, 40, 2)) == 5  # three known, two new
    assert sum(split[f"p{n}"] == "val" for n in range(1, 40, 2)) == 5


def test_small_sets_have_something_in_every_split_and_unknown_truth_takes_no_part():
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
    with pytest.raises(InputError, match=message):
        split_images(made_up_images(4), SplitSettings(**changes), known)


# Unreadable images --------------------------------------------------------------------------------------------


def damage(path):
    """Damage that only decoding shows: the header and the end stay."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_readable_images_stops_or_names_and_counts(tmp_path):
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


def test_read_all_skips_what_only_decoding_shows(tmp_path):
    root = plain_folder(tmp_path, 3)
    damage(root / "forged" / "1.png")
    config, image_files = data_settings(root, skip_unreadable=True), find_images(root)
    assert len(readable_images(image_files, config)[0]) == 6
    skipped = []
    read = list(read_all(image_files, config, skipped))
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
        list(read_all(image_files, data_settings(root), []))


# Letterbox and grid ---------------------------------------------------------------------------------------------


def test_letterbox_of_worked_sizes():
    box = Letterbox.fit((85, 517), 462)  # 85 * 462 / 517 = 75.96 -> 76 px = 5.43 cells: the sixth is not half full
    assert (box.content_height, box.content_width) == (76, 462)
    assert box.valid.shape == (33, 33) and box.valid[:5].all() and not box.valid[5:].any()
    box = Letterbox.fit((3000, 2000), 462)  # 308 px = 22 cells
    assert (box.content_height, box.content_width) == (462, 308)
    assert box.valid[:, :22].all() and not box.valid[:, 22:].any()
    box = Letterbox.fit((7, 14), 28)  # 14 px of 28
    assert box.valid.tolist() == [[True, True], [False, False]]
    box = Letterbox.fit((21, 28), 28)  # 21 px: the second row is exactly half full and counts
    assert box.valid.all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 900), (85, 517), (40, 3200), (462, 462), (13, 9)])
def test_every_image_has_cells_and_every_pixel_lies_in_one(shape):
    image, box = letterbox(noise(*shape), 462)
    assert image.shape == (462, 462, 3) and image.dtype == np.uint8
    assert (image[box.content_height :] == PADDING).all()
    assert (image[:, box.content_width :] == PADDING).all()
    assert box.valid.any()
    rows, columns = box.rows(), box.columns()
    assert (len(rows), len(columns)) == shape and (np.diff(rows) >= 0).all() and (np.diff(columns) >= 0).all()
    assert box.valid[rows[:, None], columns].all()


def test_letterbox_keeps_the_image():
    image = noise(924, 462)
    small, box = letterbox(image, 462)
    assert (box.content_height, box.content_width) == (462, 231)
    mean = image.reshape(462, 2, 231, 2, 3).mean((1, 3))  # halved: the mean of 2 x 2 pixels
    assert np.abs(small[:, :231] - mean).max() <= 1
    same, _ = letterbox(image[:462], 462)
    assert (same == image[:462]).all()
    flat, _ = letterbox(np.full((3, 3, 3), 77, np.uint8), 28)
    assert (flat == 77).all()


@pytest.mark.parametrize("size", [0, -14, 461, 463])
def test_size_must_be_a_multiple_of_the_patch(size):
    with pytest.raises(InputError, match=f"image size {size} is not a positive multiple of 14"):
        letterbox(noise(5, 5), size)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_cell_aligned_masks_come_back_exactly(scale):
    cells = np.zeros((33, 22), int)
    cells[2:5, 3:9], cells[30:, 20:], cells[0, 0] = 1, 2, 3
    full = cells.repeat(14 * scale, 0).repeat(14 * scale, 1)  # 3 px of image per cell pixel and so on
    box = Letterbox.fit(full.shape, 462)
    labels = grid_labels(letterbox_masks(np.stack([full == k for k in (1, 2, 3)]), box), box.valid)
    assert (labels[:, :22] == cells).all() and (labels[:, 22:] == -1).all()
    assert (labels[box.rows()[:, None], box.columns()] == full).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([14, 28, 112, 462]))
def test_pixels_belong_to_the_cell_that_covers_their_centre(height, width, size):
    box = Letterbox.fit((height, width), size)
    cells = max(1, int(box.content_height / 14 + 0.5))  # a cell counts from half on
    for pixel in {0, height // 3, height - 1}:
        centre = (pixel + 0.5) / height * box.content_height
        assert box.rows()[pixel] == min(int(centre // 14), cells - 1)
    assert box.valid.sum() == cells * max(1, int(box.content_width / 14 + 0.5))


def coverage_of(*rectangles, size=56):
    layers = np.zeros((len(rectangles), size, size), np.uint8)
    for layer, (top, left, height, width) in zip(layers, rectangles, strict=True):
        layer[top : top + height, left : left + width] = 255
    return layers


ALL = np.ones((4, 4), bool)


def test_grid_labels_by_covered_area():
    assert (grid_labels(np.zeros((0, 56, 56), np.uint8), ALL) == 0).all()
    # 7 of 14 columns of a cell are enough, 6 are not; of two, the larger share wins
    labels = grid_labels(coverage_of((0, 0, 14, 21), (14, 0, 14, 20)), ALL)
    assert labels.dtype == np.int64
    assert labels[:2].tolist() == [[1, 1, 0, 0], [2, 0, 0, 0]]
    labels = grid_labels(coverage_of((0, 0, 14, 23), (14, 0, 14, 20), (28, 0, 28, 56)), ALL)
    assert labels.tolist() == [[1, 1, 0, 0], [2, 0, 0, 0], [3, 3, 3, 3], [3, 3, 3, 3]]
    labels = grid_labels(coverage_of((0, 0, 14, 22), (0, 20, 14, 36)), ALL)
    assert labels[0].tolist() == [1, 1, 2, 2]  # 8 px of the second cell against 8 px: the first of equals
    labels = grid_labels(coverage_of((0, 0, 14, 22), (0, 19, 14, 37)), ALL)
    assert labels[0].tolist() == [1, 2, 2, 2]  # 8 against 9
    # 10 and 3 of 14 columns: with another limit the first is not enough, or the second is
    labels = [
        grid_labels(coverage_of((0, 0, 14, 24), (14, 0, 14, 17)), ALL, least)[:2].tolist() for least in (0.8, 0.2)
    ]
    assert labels == [[[1, 0, 0, 0], [2, 0, 0, 0]], [[1, 1, 0, 0], [2, 2, 0, 0]]]
    assert (
        grid_labels(coverage_of((0, 0, 14, 23)) / 255.0, ALL) == grid_labels(coverage_of((0, 0, 14, 23)), ALL)
    ).all()


def test_padding_is_never_labelled():
    valid = ALL.copy()
    valid[2:] = False
    labels = grid_labels(coverage_of((0, 0, 56, 56)), valid)
    assert labels.tolist() == [[1] * 4, [1] * 4, [-1] * 4, [-1] * 4]


def test_tiny_instances_get_their_best_cell():
    # 5 x 5 px across four cells; most of it (4 x 3 px) in row 0, column 1
    labels = grid_labels(coverage_of((10, 13, 5, 4)), ALL)
    assert labels.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    # a line of 2 px along a whole row covers 1/7 of each cell: one of them is taken
    labels = grid_labels(coverage_of((30, 0, 2, 56)), ALL)
    assert (labels == 1).sum() == 1 and (labels[2] == 1).any()


def test_tiny_instances_that_want_the_same_cell():
    # Both lie mostly in cell (0, 0); the second one's next best is (0, 1).
    labels = grid_labels(coverage_of((0, 0, 6, 6), (8, 10, 4, 6)), ALL)
    assert labels[0].tolist() == [1, 2, 0, 0] and (labels[1:] == 0).all()
    # The better covered one is served first, whatever its number.
    labels = grid_labels(coverage_of((8, 10, 4, 6), (0, 0, 6, 6)), ALL)
    assert labels[0].tolist() == [2, 1, 0, 0]
    # A tiny one on top of a large one takes a cell of it, but never its last.
    labels = grid_labels(coverage_of((0, 0, 14, 28), (4, 4, 4, 4)), ALL)
    assert labels[0].tolist() == [2, 1, 0, 0]
    labels = grid_labels(coverage_of((0, 0, 14, 14), (4, 4, 4, 4)), ALL)
    assert labels[0].tolist() == [1, 0, 0, 0] and (labels != 2).all()


def test_an_instance_in_padding_takes_the_nearest_cell_that_counts():
    valid = np.array([[True] * 4] * 2 + [[False] * 4] * 2)
    labels = grid_labels(coverage_of((29, 30, 4, 4)), valid)  # in the third row, third column
    assert (labels[1, 1:4] == 1).sum() == 1 and (labels == 1).sum() == 1


def test_many_tiny_instances_all_get_a_cell():
    corners = [(14 * r + 3, 14 * c + 3, 5, 5) for r in range(4) for c in range(4)]
    labels = grid_labels(coverage_of(*corners), ALL)
    assert labels.reshape(-1).tolist() == list(range(1, 17))


def test_valid_cells_of_a_turned_image():
    content = np.zeros((56, 56), np.uint8)
    cv2.fillConvexPoly(content, np.array([[28, -5], [60, 28], [28, 60], [-5, 28]]), 255)  # a square on its corner
    corner, side = False, True
    assert valid_cells(content).tolist() == [
        [corner, side, side, corner],
        [side, side, side, side],
        [side, side, side, side],
        [corner, side, side, corner],
    ]


# Cache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def forged(tmp_path):
    """A forged image of 60 x 90 px with two instances."""
    image = save(tmp_path / "p.png", noise(60, 90))
    masks = np.stack([block(60, 90, 0, 0, 20), block(60, 90, 30, 40, 25)])
    return ImageFile("p", image, save_npy(tmp_path / "p.npy", masks), "p", True)


def same(a, b):
    return (
        (a.image.shape == b.image.shape and (a.image == b.image).all())
        and (a.coverage.shape == b.coverage.shape and (a.coverage == b.coverage).all())
        and (a.height, a.width) == (b.height, b.width)
    )


def test_cache_gives_what_decoding_gives(tmp_path, forged, monkeypatch):
    config, cache = data_settings(tmp_path), ImageCache(tmp_path / "cache", 1, 112)
    fresh = read_letterboxed(forged, 112, config)
    assert fresh.image.shape == (75, 112, 3) and fresh.coverage.shape == (2, 75, 112)
    assert (fresh.height, fresh.width) == (60, 90)
    assert same(read_letterboxed(forged, 112, config, cache), fresh)
    monkeypatch.setattr("images.folders.read_image", lambda *_: pytest.fail("decoded again"))
    assert same(read_letterboxed(forged, 112, config, cache), fresh)
    assert same(read_letterboxed(forged, 112, config, ImageCache(tmp_path / "cache", 1, 112)), fresh)  # later
    with pytest.raises(pytest.fail.Exception):
        read_letterboxed(forged, 56, config, ImageCache(tmp_path / "cache", 1, 56))  # another size


@pytest.mark.parametrize("which", ["image", "mask", "mask with the same size"])
def test_a_changed_file_is_read_again(tmp_path, forged, which):
    config, cache = data_settings(tmp_path), ImageCache(tmp_path / "cache", 1, 112)
    before = read_letterboxed(forged, 112, config, cache)
    if which == "image":
        save(forged.image, noise(60, 90, 1))
    else:
        count = 1 if which == "mask" else 2
        save_npy(forged.mask, np.stack([block(60, 90, 10, 10, 40)] * count))
    os.utime(forged.image if which == "image" else forged.mask, ns=(1, 1))
    after = read_letterboxed(forged, 112, config, cache)
    assert not same(before, after) and same(after, read_letterboxed(forged, 112, config))
    assert len(list((tmp_path / "cache").glob("*.arrays"))) == 1  # the old one has been replaced


@pytest.mark.parametrize("fault", ["cut", "empty", "flipped", "zeros", "foreign"])
def test_a_damaged_cache_file_is_made_again(tmp_path, forged, fault):
    config, cache = data_settings(tmp_path), ImageCache(tmp_path / "cache", 1, 112)
    fresh = read_letterboxed(forged, 112, config, cache)
    (path,) = (tmp_path / "cache").glob("*.arrays")
    data = bytearray(path.read_bytes())
    damaged = {
        "cut": data[:-7],
        "empty": b"",
        "flipped": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "zeros": data[:4000] + bytes(len(data) - 4000),  # a file whose end was not yet on the disk at a power cut
        "foreign": b"[1, 2]\n" + data,
    }
    path.write_bytes(damaged[fault])
    assert same(read_letterboxed(forged, 112, config, cache), fresh)
    assert path.read_bytes() == data


def test_cache_keeps_to_its_limit(tmp_path):
    root = plain_folder(tmp_path / "data", 6)
    image_files, config = find_images(root), data_settings(root)
    one = 75 * 112 * 3  # bytes of an authentic image, header not counted
    cache = ImageCache(tmp_path / "cache", 4 * (one + 9000) / 1e9, 112)
    contents = [read_letterboxed(image_file, 112, config, cache) for image_file in image_files]
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.arrays"))
    assert one < size <= 4 * (one + 9000)
    assert 1 < len(list((tmp_path / "cache").glob("*.arrays"))) < 12
    for image_file, content in zip(image_files, contents, strict=True):
        assert same(read_letterboxed(image_file, 112, config, cache), content)
    assert int((tmp_path / "cache" / "total").read_text()) == size


def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path, forged):
    cache = ImageCache(tmp_path / "cache", 1, 112)
    fresh = read_letterboxed(forged, 112, data_settings(tmp_path), cache)
    (tmp_path / "cache" / ".0123.arrays.7.tmp").write_bytes(b"half")
    (tmp_path / "cache" / "total").write_text("")  # killed between cutting it off and writing the sum
    cache = ImageCache(tmp_path / "cache", 1, 112)
    (path,) = (tmp_path / "cache").glob("*.arrays")
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {path.name, "total"}
    assert int((tmp_path / "cache" / "total").read_text()) == path.stat().st_size
    assert same(cache.get(forged, lambda: pytest.fail("it is there")), fresh)


def hammer(cache_folder, root, seed, answers):
    config, image_files = data_settings(root), find_images(root)
    cache = ImageCache(cache_folder, 200_000 / 1e9, 112)
    order = np.random.default_rng(seed).integers(0, len(image_files), 60)
    wrong = sum(
        not same(read_letterboxed(image_files[i], 112, config, cache), read_letterboxed(image_files[i], 112, config))
        for i in order
    )
    answers.put(wrong)


def test_cache_shared_by_processes(tmp_path):
    root = plain_folder(tmp_path / "data", 4)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=hammer, args=(tmp_path / "cache", root, n, answers)) for n in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [0] * 4
    for process in processes:
        process.join()
    files = list((tmp_path / "cache").glob("*.arrays"))
    assert 0 < sum(path.stat().st_size for path in files) <= 200_000
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([p.name for p in files] + ["total"])


def test_a_full_disk_is_told_in_one_line(tmp_path, forged, monkeypatch):
    cache = ImageCache(tmp_path / "cache", 1, 112)

    def full(path, write, lasting):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("images.cache.atomic_write", full)
    with pytest.raises(InputError, match=r"cannot write to the cache .*No space left.*--cache-gb"):
        read_letterboxed(forged, 112, data_settings(tmp_path), cache)


# Samples --------------------------------------------------------------------------------------------------------


def make_dataset(root, size=112, seed=0, **loader):
    config = data_settings(root)
    return ForgeryDataset(find_images(root), size, config, LoaderSettings(**loader), SynthesisSettings(), seed)


def test_sample_without_augmentation(tmp_path):
    root = plain_folder(tmp_path, 2, (56, 112))
    samples = make_dataset(root, augment=False)
    assert len(samples) == 4
    sample = samples[1]  # forged 0: a block of 30 px at row 0, column 30
    assert sample["id"] == "0" and sample["image"].dtype == np.uint8 and sample["labels"].dtype == np.int64
    assert (sample["image"][:56] == noise(56, 112)).all() and (sample["image"][56:] == PADDING).all()
    expected = np.zeros((8, 8), int)
    expected[:2, 2:4], expected[4:] = 1, -1  # columns 30 to 59: 12 and 14 px of cells 2 and 3, 4 of cell 4; rows 0, 1
    assert (sample["labels"] == expected).all()
    assert (samples[0]["labels"][:4] == 0).all()


def test_masks_follow_the_geometry(tmp_path):
    """The forged region alone is bright: wherever a cell is labelled, its pixels must be bright, and only there."""
    image = np.full((60, 100, 3), 20, np.uint8)
    image[8:38, 50:90] = 235
    save(tmp_path / "forged" / "x.png", image)
    save_npy(tmp_path / "masks" / "x.npy", (image[None, ..., 0] > 128).astype(np.uint8))
    samples = make_dataset(tmp_path, 224)
    shapes, turned = set(), 0
    for epoch in range(60):
        sample = samples[epoch, 0]
        cells = sample["image"].reshape(16, 14, 16, 14, 3).mean((1, 3, 4))
        labels, padding = sample["labels"], np.abs(cells - np.mean(PADDING)) < 2
        assert (cells[labels == 1] > 85).all() and (cells[labels == 0] < 150).all()
        assert padding[labels == -1].mean() > 0.5  # the others are the edge, less than half full
        assert 0.7 < (labels == 1).sum() / (labels >= 0).sum() / (30 * 40 / 6000) < 1.4
        top, left = np.argwhere(labels >= 0).min(0), np.argwhere(labels >= 0).max(0)
        shapes.add(tuple(left - top + 1))
        turned += len(np.unique((labels >= 0).sum(1))) > 2
        inside = cells[labels >= 0]
        assert inside.max() > 110 and inside.min() < 100
    assert (10, 16) in shapes and (16, 10) in shapes and 5 < turned < 30


def test_flips_and_turns_are_drawn_apart(tmp_path):
    """Albumentations seeds every transform alike when asked by `set_random_seed`: all would be applied or none."""
    image = np.full((112, 112, 3), 20, np.uint8)
    image[:28, :56] = 235
    save(tmp_path / "forged" / "x.png", image)
    save_npy(tmp_path / "masks" / "x.npy", (image[None, ..., 0] > 128).astype(np.uint8))
    samples = make_dataset(tmp_path)
    seen = {samples[epoch, 0]["labels"].tobytes() for epoch in range(150)}
    upright = (image[::14, ::14, 0] > 128).astype(np.int64)
    for turn in range(4):
        for flip in (upright, upright[:, ::-1]):
            assert np.ascontiguousarray(np.rot90(flip, turn)).tobytes() in seen


def test_samples_depend_on_seed_epoch_and_index_alone(tmp_path):
    root = plain_folder(tmp_path / "data", 3)
    loader = {"synthesis_probability": 0.5}
    samples, again = make_dataset(root, **loader), make_dataset(root, cache=tmp_path / "cache", **loader)
    first = {(e, i): samples[e, i] for e in range(2) for i in range(6)}
    for (epoch, index), sample in reversed(first.items()):  # another order, and with a cache
        for _ in range(2):
            other = again[epoch, index]
            assert (other["image"] == sample["image"]).all() and (other["labels"] == sample["labels"]).all()
    assert len({sample["image"].tobytes() for sample in first.values()}) == 12
    assert (samples[0]["image"] == samples[0, 0]["image"]).all()
    other_seed = make_dataset(root, seed=1, **loader)
    assert any((other_seed[0, i]["image"] != samples[0, i]["image"]).any() for i in range(6))


def test_authentic_images_become_forgeries_with_the_given_share(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", noise(100, 140, number))
    for probability, low, high in [(0.0, 0, 0), (0.5, 18, 42), (1.0, 55, 60)]:
        samples = make_dataset(tmp_path, 112, synthesis_probability=probability)
        forged = sum(samples[epoch, index]["labels"].max() > 0 for epoch in range(20) for index in range(3))
        assert low <= forged <= high, (probability, forged)


def test_images_too_small_for_a_copy_stay_authentic(tmp_path):
    save(tmp_path / "a.png", noise(2, 300))
    sample = make_dataset(tmp_path, 112, synthesis_probability=1.0)[0]
    assert sample["labels"].max() == 0 and (sample["labels"] == 0).any()


def test_unreadable_images_stop_or_are_replaced(tmp_path):
    root = plain_folder(tmp_path, 2)
    damage(root / "forged" / "0.png")
    image_files, loader = find_images(root), LoaderSettings(augment=False)
    with pytest.raises(InputError, match=r"forged/0\.png"):
        ForgeryDataset(image_files, 112, data_settings(root), loader, SynthesisSettings())[1]
    config = data_settings(root, skip_unreadable=True)
    samples = ForgeryDataset(image_files, 112, config, loader, SynthesisSettings())
    replaced = samples[1]
    assert (replaced["image"] == samples[3]["image"]).all() and replaced["id"] == "1"  # the other forged one
    assert len(replaced["skipped"]) == 1 and "forged/0.png" in replaced["skipped"][0]
    assert samples[0]["skipped"] == []
    only = ForgeryDataset([image_files[1]], 112, config, loader, SynthesisSettings())
    with pytest.raises(InputError, match=r"no training image of this kind .* first of 1: .*forged/0\.png"):
        only[0]


def test_bad_dataset_settings(tmp_path):
    root = plain_folder(tmp_path, 1)
    with pytest.raises(InputError, match="multiple of 14"):
        make_dataset(root, 100)
    with pytest.raises(InputError, match=r"--synthesis-probability 1\.5"):
        make_dataset(root, synthesis_probability=1.5)
    with pytest.raises(InputError, match="--label-coverage 0"):
        make_dataset(root, label_coverage=0.0)
    with pytest.raises(InputError, match="no images to train on"):
        ForgeryDataset([], 112, data_settings(root), LoaderSettings(), SynthesisSettings())


# Order ----------------------------------------------------------------------------------------------------------


def steps_of(sampler):
    """Batches of (epoch, index) grouped by optimiser step."""
    batches = iter(sampler)
    grouped = [[next(batches) for _ in sampler.step_sizes(step)] for step in range(sampler.start_step, sampler.steps)]
    assert next(batches, None) is None
    return grouped


def indices(step):
    return [index for batch in step for _, index in batch]


def indices_of(steps):
    return [index for step in steps for index in indices(step)]


def test_an_epoch_has_every_image_once_in_a_new_order():
    sampler = StepSampler(53, batch_size=4, gradient_accumulation_steps=2, seed=3)
    first = steps_of(sampler)
    assert sampler.steps == 7 and len(sampler) == 14  # 6 steps of 8 images and one of 5: batches of 4 and 1
    assert [[len(batch) for batch in step] for step in first] == [[4, 4]] * 6 + [[4, 1]]
    assert sampler.step_sizes(6) == [4, 1]
    assert sorted(indices_of(first)) == list(range(53))
    sampler.set_epoch(1)
    second = steps_of(sampler)
    assert {epoch for step in second for batch in step for epoch, _ in batch} == {1}
    assert sorted(indices_of(second)) == list(range(53))
    assert indices_of(first) != indices_of(second)
    assert indices_of(first) != indices_of(steps_of(StepSampler(53, 4, gradient_accumulation_steps=2, seed=4)))


@pytest.mark.parametrize("length", [48, 53, 50, 5, 1])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_steps_do_not_depend_on_the_number_of_ranks(length, world):
    alone = steps_of(StepSampler(length, batch_size=12, gradient_accumulation_steps=2))
    ranks = [StepSampler(length, 12 // world, rank, world, gradient_accumulation_steps=2) for rank in range(world)]
    shared = [steps_of(sampler) for sampler in ranks]
    assert len({len(sampler) for sampler in ranks}) == 1
    for number, step in enumerate(alone):
        parts = [indices(rank[number]) for rank in shared]
        assert len({tuple(map(len, rank[number])) for rank in shared}) == 1
        together = sorted(index for part in parts for index in part)
        if number < len(alone) - 1:
            assert together == sorted(indices(step))
            assert parts == [indices(step)[rank::world] for rank in range(world)]
        else:  # filled up so that all ranks have the same number
            assert set(indices(step)) <= set(together) and len(together) - len(step_images := indices(step)) < world
            assert len(together) == -(-len(step_images) // world) * world


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_resume_goes_on_where_the_epoch_stopped(start):
    whole = StepSampler(53, 4, gradient_accumulation_steps=2, seed=3, epoch=5)
    resumed = StepSampler(53, 4, gradient_accumulation_steps=2, seed=3, epoch=5, start_step=start)
    assert steps_of(resumed) == steps_of(whole)[start:]
    assert len(resumed) == len(list(resumed))


def test_bad_sampler_settings():
    for arguments in ((0, 4), (5, 0), (5, 4, 2, 2), (5, 4, 0, 1, 0)):
        with pytest.raises(InputError, match="at least 1"):
            StepSampler(*arguments)
    with pytest.raises(InputError, match="start step 3 is not within 0 to 2"):
        StepSampler(5, 4, start_step=3)


# Loading --------------------------------------------------------------------------------------------------------


def load(root, num_workers, epochs=(0, 1), start=0, **arguments):
    """Batches of some epochs as one list."""
    loader = make_loader(
        find_images(root),
        112,
        data_settings(root),
        LoaderSettings(num_workers=num_workers, synthesis_probability=0.5),
        SynthesisSettings(),
        batch_size=3,
        **arguments,
    )
    batches = []
    try:
        for epoch in epochs:
            loader.sampler.set_epoch(epoch, start)
            assert len(loader) == len(loader.sampler)
            batches += list(loader)
    finally:
        loader.close()
    return batches


def equal(first, second):
    return len(first) == len(second) and all(
        (a["image"] == b["image"]).all() and (a["labels"] == b["labels"]).all() and a["ids"] == b["ids"]
        for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_left_early_does_not_leak_into_the_next(tmp_path):
    root = plain_folder(tmp_path, 4)
    loader = make_loader(
        find_images(root), 112, data_settings(root), LoaderSettings(num_workers=2), SynthesisSettings(), batch_size=1
    )
    try:
        loader.sampler.set_epoch(0)
        next(iter(loader))
        loader.sampler.set_epoch(3)
        after = list(loader)
    finally:
        loader.close()
    order = [batch[0][1] for batch in StepSampler(8, 1, epoch=3)]
    assert [batch["ids"][0] for batch in after] == [loader.dataset.image_files[index].id for index in order]
    with pytest.raises(InputError, match="--num-workers -1 is negative"):
        make_loader(
            find_images(root),
            112,
            data_settings(root),
            LoaderSettings(num_workers=-1),
            SynthesisSettings(),
            batch_size=1,
        )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_batches_are_the_same_for_any_number_of_workers_and_after_a_resume(tmp_path):
    import torch

    root = plain_folder(tmp_path, 5)
    expected = load(root, 0)
    assert len(expected) == 8  # ten images: 3, 3, 3, 1, twice
    for batch, size in zip(expected, [3, 3, 3, 1] * 2, strict=True):
        assert batch["image"].shape == (size, 112, 112, 3) and batch["image"].dtype == torch.uint8
        assert batch["labels"].shape == (size, 8, 8) and batch["labels"].dtype == torch.int64
        assert isinstance(batch["num_labels"], int) and batch["num_labels"] == batch["labels"].max().item() + 1
        assert len(batch["ids"]) == size and "skipped" not in batch
    assert not equal(expected[:4], expected[4:])
    torch.manual_seed(7)  # the global generator has no part in it, and is left alone
    state = torch.get_rng_state()
    for num_workers in (2, 3):
        assert equal(load(root, num_workers), expected)
    assert (torch.get_rng_state() == state).all()
    assert equal(load(root, 2, epochs=[1], start=2), expected[6:])


def test_bad_images_in_workers_are_one_line_or_skipped(tmp_path, capsys):
    root = plain_folder(tmp_path, 3)
    damage(root / "forged" / "1.png")
    for num_workers in (0, 2):
        with pytest.raises(InputError, match=r"forged/1\.png") as caught:
            load(root, num_workers)
        assert "\n" not in str(caught.value) and type(caught.value) is InputError
    loader = make_loader(
        find_images(root),
        112,
        data_settings(root, skip_unreadable=True),
        LoaderSettings(num_workers=2),
        SynthesisSettings(),
        batch_size=2,
    )
    assert sum(len(batch["ids"]) for _ in range(2) for batch in loader) == 12
    loader.close()
    assert len(loader.skipped) == 1
    assert capsys.readouterr().err.count("forged/1.png") == 1


def test_signals_to_the_whole_job_leave_the_workers_to_the_main_process(tmp_path):
    root = plain_folder(tmp_path, 4)
    loader = make_loader(
        find_images(root), 112, data_settings(root), LoaderSettings(num_workers=1), SynthesisSettings(), batch_size=1
    )
    batches = iter(loader)
    next(batches)
    (child,) = multiprocessing.active_children()
    for kind in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, kind)
    assert len(list(batches)) == 7
    loader.close()
    child.join(10)
    assert child.exitcode == 0


def test_a_program_ends_although_it_leaves_its_workers_open(tmp_path):
    root = plain_folder(tmp_path, 2)
    program = f"""
from pathlib import Path
from config import *
from dataset import make_loader
from images.folders import find_images
root = Path({str(root)!r})
loader = make_loader(find_images(root), 112, DataSettings(data=root), LoaderSettings(num_workers=1), SynthesisSettings(),
                     batch_size=1)
next(iter(loader))
print("read")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


def test_a_killed_loader_process_leaves_nothing_that_others_wait_for(tmp_path):
    """Killed in the middle of asking whether the loader ends, as each does before every batch."""
    ends = _context().Event()

    def ask():
        while True:
            ends.is_set()

    fork, answers = multiprocessing.get_context("fork"), []
    for _ in range(10):
        asking = fork.Process(target=ask)
        asking.start()
        time.sleep(0.02)
        asking.kill()
        asking.join()
        thread = threading.Thread(target=lambda: answers.append(ends.is_set()), daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive(), "the answer never came"
    assert answers == [False] * 10
    root = plain_folder(tmp_path, 2)
    settings = DataSettings(data=root), LoaderSettings(num_workers=1), SynthesisSettings()
    loader = make_loader(find_images(root), 112, *settings, batch_size=1)
    next(iter(loader))
    worker, ends = loader._batches._iterator._workers[0], loader._batches._iterator._workers_done_event
    loader.close()
    assert isinstance(ends, Flag) and ends.is_set() and not worker.is_alive()


def test_importing_needs_neither_torch_nor_albumentations():
    program = "import dataset, sys; print(sorted({'torch', 'albumentations', 'tifffile', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
