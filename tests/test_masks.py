"""Masks from files of all kinds, damaged and hostile ones too."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from images.masks import read_masks
from runtime.errors import InputError
from tests.made_files import block, save, save_npy


@pytest.mark.parametrize("dtype, one", [(np.uint8, 1), (np.uint8, 255), (bool, True), (np.int64, 1), (np.float32, 1)])
def test_npy_masks(tmp_path, dtype, one):
    """Arrays of several types; the empty instance is dropped."""
    masks = np.zeros((3, 6, 8), dtype)
    masks[0, 1:3, 1:4] = one
    masks[2, 4:, 5:] = one  # the second one is empty
    read = read_masks(save_npy(tmp_path / "m.npy", masks), (6, 8))
    assert read.dtype == bool and (read == (masks[[0, 2]] != 0)).all()
    read = read_masks(save_npy(tmp_path / "m.npy", masks[0]), (6, 8))
    assert (read == (masks[:1] != 0)).all()


def test_empty_npy_masks(tmp_path):
    """No instances, empty instances, and an array in Fortran order."""
    assert read_masks(save_npy(tmp_path / "m.npy", np.zeros((0, 6, 8), np.uint8)), (6, 8)).shape == (0, 6, 8)
    assert read_masks(save_npy(tmp_path / "m.npy", np.zeros((2, 6, 8), np.uint8)), (6, 8)).shape == (0, 6, 8)
    fortran = np.asfortranarray(block(6, 8, 1, 2, 3))
    assert (read_masks(save_npy(tmp_path / "m.npy", fortran), (6, 8))[0] == fortran).all()


@pytest.mark.parametrize("value", [1, 100, 255])
def test_one_value_is_one_instance(tmp_path, value):
    """An image with one value beside 0 is one instance, whatever value and format it has."""
    mask = block(20, 30, 3, 4, 9, value)
    for name in ("m.png", "m.bmp", "m.tif"):
        assert (read_masks(save(tmp_path / name, mask), (20, 30)) == (mask != 0)).all()
    rgb = np.repeat(mask[..., None], 3, 2)
    assert (read_masks(save(tmp_path / "m.png", rgb), (20, 30)) == (mask != 0)).all()
    opaque = np.dstack([rgb, np.full((20, 30), 255, np.uint8)])
    assert (read_masks(save(tmp_path / "m.png", opaque), (20, 30)) == (mask != 0)).all()
    Image.fromarray(mask != 0).save(tmp_path / "m.png")
    assert (read_masks(tmp_path / "m.png", (20, 30)) == (mask != 0)).all()
    assert read_masks(save(tmp_path / "m.png", mask * 0), (20, 30)).shape == (0, 20, 30)


def test_label_maps(tmp_path):
    """Grey, 16-bit and palette images of the instances 1..K, with and without gaps."""
    labels = block(20, 30, 0, 0, 5) + block(20, 30, 10, 10, 4, 2) + block(20, 30, 15, 20, 3, 7)
    expected = np.stack([labels == k for k in (1, 2, 7)])
    assert (read_masks(save(tmp_path / "m.png", labels), (20, 30)) == expected).all()
    assert (read_masks(save(tmp_path / "m.png", labels.astype(np.uint16)), (20, 30)) == expected).all()
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "p.png")
    assert (read_masks(tmp_path / "p.png", (20, 30)) == expected).all()
    many = np.repeat(np.arange(201, dtype=np.uint8), 4).reshape(6, 134)
    assert read_masks(save(tmp_path / "m.png", many), (6, 134)).shape[0] == 200


def test_soft_edges_are_cut_at_half(tmp_path):
    """Black and white with antialiased or JPEG edges is one instance."""
    sharp = block(60, 80, 20, 20, 30, 255)
    soft = cv2.GaussianBlur(sharp, (3, 3), 0)
    assert len(np.unique(soft)) > 2
    assert (read_masks(save(tmp_path / "m.png", soft), (60, 80)) == (soft > 127)).all()
    Image.fromarray(sharp).save(tmp_path / "m.jpg", quality=75)
    read = read_masks(tmp_path / "m.jpg", (60, 80))
    assert (read[0] == (sharp != 0)).all() and len(read) == 1


@pytest.mark.parametrize(
    "values, message",
    [
        (np.repeat(np.array([0, 85, 170, 255], np.uint8), 30).reshape(1, -1).repeat(20, 0), "neither black and white"),
        (np.repeat(np.array([0, 90, 200], np.uint8), 30).reshape(1, -1).repeat(20, 0), "neither black and white"),
        (np.dstack([block(20, 30, 1, 1, 5, 255)] * 2 + [block(20, 30, 1, 1, 6, 255)]), "coloured"),
        (np.dstack([block(20, 30, 1, 1, 5, 255)] * 4), "transparent"),
    ],
)
def test_ambiguous_mask_images_are_refused(tmp_path, values, message):
    """Grey areas, colours and transparency."""
    with pytest.raises(InputError, match=message):
        read_masks(save(tmp_path / "m.png", values), values.shape[:2])


def test_bad_masks(tmp_path):
    """Wrong sizes, values and files, each named in the error."""
    path = tmp_path / "m.npy"
    for array, message in [
        (np.zeros((2, 6, 9), np.uint8), r"\(2, 6, 9\), its image is 6 rows x 8 columns"),
        (np.zeros((6, 8, 2), np.uint8), r"\(6, 8, 2\)"),
        (np.zeros((1, 2, 6, 8), np.uint8), r"\(1, 2, 6, 8\)"),
        (np.full((1, 6, 8), 2, np.uint8), "0 and 1"),
        (np.full((6, 8), 0.5) * np.eye(6, 8) + np.eye(6, 8, 1), "whole numbers"),
        (np.full((6, 8), np.nan), "whole numbers"),
        (np.full((6, 8), "a"), "holds <U1"),
    ]:
        with pytest.raises(InputError, match=message):
            read_masks(save_npy(path, array), (6, 8))
    save_npy(path, np.zeros((2, 6, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"m\.npy: the file is cut off"):
        read_masks(path, (6, 8))
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"m\.npy"):
        read_masks(path, (6, 8))
    with pytest.raises(InputError, match=r"(3, 4).*6 rows x 8 columns"):
        read_masks(save(tmp_path / "m.png", np.zeros((3, 4), np.uint8)), (6, 8))


def npy(header, version=1, length=None):
    """A .npy file with this text as its header."""
    size = (len(header) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header


@pytest.mark.parametrize(
    "content",
    [
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8"),  # a bracket stays open
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8)}", 2, 2**32 - 1),  # 4 GB of header
        npy(b"(" * 9000),
        npy(b"{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (6, 8)}"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-6, 8)}"),
    ],
)
def test_hostile_npy_headers(tmp_path, content):
    """Headers that numpy's parser fails at in many ways are refused in one line."""
    path = tmp_path / "m.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.npy") as caught:
        read_masks(path, (6, 8))
    assert "\n" not in str(caught.value)


def test_too_many_instances_are_refused(tmp_path):
    """A label map of 256 x 256 px with 65,535 instances is 130 KB on disk, and 4.3 GB as layers."""
    labels = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)
    with pytest.raises(InputError, match="2239 instances; at most 1000"):
        read_masks(save(tmp_path / "m.png", labels), (40, 56))
    with pytest.raises(InputError, match="1001 instances; at most 1000"):
        read_masks(save_npy(tmp_path / "m.npy", np.ones((1001, 2, 3), np.uint8)), (2, 3))


class Trap:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["DATASET_TRAP"]),)


def test_pickled_npy_is_never_loaded(tmp_path, monkeypatch):
    """A pickle in a .npy, or in place of one, does not run."""
    monkeypatch.setenv("DATASET_TRAP", str(tmp_path / "sprung"))
    path = tmp_path / "m.npy"
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"m\.npy: it holds pickled objects.*never loaded"):
        read_masks(path, (6, 8))
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"m\.npy: it is a pickle.*never loaded"):
        read_masks(path, (6, 8))
    assert not (tmp_path / "sprung").exists()
