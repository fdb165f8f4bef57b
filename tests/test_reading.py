"""Images and masks from files of all kinds, damaged and hostile ones too."""

import os
import pickle
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from images.folders import ImageFile, check_image_file, read_pair
from images.masks import read_masks
from images.read import BLOCK, _to_8_bit, read_image
from runtime.errors import InputError
from tests.test_dataset import block, data_settings, noise, save, save_npy

# Reading images -----------------------------------------------------------------------------------------------


def test_eight_bit_colour_grey_palette_and_bilevel(tmp_path):
    colour = noise(7, 9)
    assert (read_image(save(tmp_path / "c.png", colour)) == colour).all()
    assert (read_image(save(tmp_path / "c.tif", colour)) == colour).all()
    grey = colour[..., 0]
    assert (read_image(save(tmp_path / "g.png", grey)) == np.repeat(grey[..., None], 3, 2)).all()
    palette = Image.fromarray(grey % 2).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png") == np.array([[10, 20, 30], [200, 100, 50]])[grey % 2]).all()
    Image.fromarray((grey % 2).astype(bool)).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png")[..., 1] == grey % 2 * 255).all()


def test_transparent_parts_lie_over_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 128]]], np.uint8)
    # 128 / 255 of the colour and 127 / 255 of white: 200 -> 227.4, 100 -> 177.2, 0 -> 127
    expected = [[[200, 100, 0], [255, 255, 255], [227, 177, 127]]]
    for suffix in ("png", "tif", "webp"):
        Image.fromarray(rgba).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        result = read_image(tmp_path / f"a.{suffix}").astype(int)
        assert np.abs(result - expected).max() <= 1, suffix
    Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").tolist() == [[[90, 90, 90], [255, 255, 255]]]
    Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8), "LA").save(tmp_path / "la.tif")
    with pytest.raises(InputError, match=r"la\.tif.*save it as PNG"):
        read_image(tmp_path / "la.tif")


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),  # full range: divided by 257
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),  # a 12-bit camera: divided by 4095 / 255
        (np.array([[0, 100, 200]], np.uint16), [0, 100, 200]),  # eight bits in a 16-bit file stay what they are
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 2.0, 255.0]], np.float32), [0, 2, 255]),
        (np.array([[-1.0, 0.0, 3.0]], np.float32), [0, 64, 255]),
        (np.array([[np.nan, 0.25, np.inf]], np.float32), [0, 64, 0]),
        (np.array([[7.0, 7.0]], np.float64), [7, 7]),
        (np.array([[700.0, 700.0]], np.float64), [0, 0]),
        (np.array([[-100, 0, 100]], np.int16), [0, 128, 255]),
    ],
)
def test_depths_become_eight_bit(tmp_path, values, expected):
    tifffile.imwrite(tmp_path / "x.tif", values)
    assert read_image(tmp_path / "x.tif")[0, :, 0].tolist() == expected
    colour = np.stack([values, values, values[:, ::-1]], -1)
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb")
    read = read_image(tmp_path / "c.tif")
    assert read[0, :, 0].tolist() == expected and read[0, :, 2].tolist() == expected[::-1]
    if values.dtype == np.uint16:
        cv2.imwrite(str(tmp_path / "x.png"), values)
        assert read_image(tmp_path / "x.png")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16], stored[:16, 32:] = (255, 0, 0), (0, 0, 255)  # red top left, blue top right
    path = tmp_path / f"x.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(path, exif=exif, **({"quality": 95} if suffix != "png" else {}))
    shown = read_image(path).astype(int)
    # EXIF 2.3: where the stored first row and first column are in the image as shown
    red = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    blue = {1: "tr", 2: "tl", 3: "bl", 4: "br", 5: "bl", 6: "br", 7: "tr", 8: "tl"}[orientation]
    assert shown.shape == ((32, 48, 3) if orientation <= 4 else (48, 32, 3))
    corner = {"tl": (4, 4), "tr": (4, -5), "bl": (-5, 4), "br": (-5, -5)}
    assert np.abs(shown[corner[red]] - (255, 0, 0)).max() < 30
    assert np.abs(shown[corner[blue]] - (0, 0, 255)).max() < 30
    mask = block(*shown.shape[:2], 0, 0, 8)  # the mask is of the image as shown
    image = ImageFile("x", path, save_npy(tmp_path / "m.npy", mask), "x", True)
    check_image_file(image, data_settings(tmp_path))
    assert read_pair(image, data_settings(tmp_path))[1].shape == (1, *shown.shape[:2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "jp2", "ppm"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.97])
def test_a_cut_off_file_is_named_never_half_read(tmp_path, suffix, keep, capfd):
    path = tmp_path / f"x.{suffix}"
    cv2.imwrite(str(path), noise(90, 70))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=rf"cannot read .*x\.{suffix}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert "ERROR" not in capfd.readouterr().err


def test_cut_off_jpeg_with_a_thumbnail_and_complete_ones_with_something_behind(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(90, 70)).save(path)
    data = path.read_bytes()
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data  # an application segment holding a JPEG
    path.write_bytes(data[:2] + thumbnail + data[2:-200])
    with pytest.raises(InputError, match=r"x\.jpg: the JPEG is cut off"):
        check_image_file(ImageFile("x", path, None, "x", False), data_settings(tmp_path))
    path.write_bytes(data[:2] + thumbnail + data[2:] + b"\0" * 50)
    assert read_image(path).shape == (90, 70, 3)
    png = save(tmp_path / "x.png", noise(9, 7))
    png.write_bytes(png.read_bytes() + b"behind")
    assert (read_image(png) == noise(9, 7)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_off_files_that_opencv_would_half_read(tmp_path, suffix, monkeypatch):
    """OpenCV 4.10 returns a cut-off JPEG with its rest grey, as if nothing were wrong."""
    path = save(tmp_path / f"x.{suffix}", noise(90, 70))
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: noise(90, 70))
    with pytest.raises(InputError, match="cut off"):
        read_image(path)


def test_damaged_and_foreign_files(tmp_path):
    path = save(tmp_path / "x.png", noise(90, 70))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.png"):
        read_image(path)
    tiff = tmp_path / "x.tif"
    Image.fromarray(noise(90, 70)).save(tiff, compression="tiff_lzw")
    data = bytearray(tiff.read_bytes())
    data[2000:2040] = b"\xff" * 40
    tiff.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tif"):
        read_image(tiff)
    for name, content in {"a.png": b"hello", "b.jpg": b"\0" * 5000, "c.tif": b"II*\0" + b"\xff" * 40}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((6, 6, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(InputError, match=r"five\.tif"):
        read_image(tmp_path / "five.tif")


def test_size_limit_is_told_by_the_header(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", np.zeros((1000, 1001), np.uint8))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"1001 x 1000 px, 1 megapixels; the limit is 1 \(--max-megapixels\)"):
        read_image(path, 1.0)
    # A header alone that claims 100,000 x 100,000 px (a decompression bomb)
    bomb = bytearray(path.read_bytes())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"100000 x 100000 px, 1e\+04 megapixels"):
        read_image(path)


def png_header(path, width, height, bits, kind):
    """A PNG with a header, no pixels, and its end."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, kind, 0, 0, 0])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_deep_images_count_by_their_bytes(tmp_path, monkeypatch):
    """13,000 x 13,000 px with four channels of 16 bit are 1.35 GB, decoded out of 1.3 MB."""
    path = png_header(tmp_path / "x.png", 13_000, 13_000, 16, 6)
    with pytest.raises(InputError, match=r"13000 x 13000 px of 8 bytes, which count as 338 megapixels; .*--max-mega"):
        read_image(path)
    with pytest.raises(InputError, match="damaged"):  # within the limit: decoded, and only then found to be empty
        read_image(png_header(path, 100, 100, 16, 6))
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((100, 100, 3)), photometric="rgb")
    with pytest.raises(InputError, match=r"of 24 bytes, which count as 0\.06 megapixels; the limit is 0\.05"):
        read_image(tmp_path / "x.tif", 0.05)


def test_a_file_far_larger_than_its_image_is_not_read(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", noise(30, 40))
    os.truncate(path, 2_000_000_000)  # sparse: it takes no place on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(InputError, match=r"2 GB, far more than an image of the limit.*--max-megapixels"):
        read_image(path)


def test_an_eps_in_disguise_starts_no_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(ghostscript))
    path = tmp_path / "m.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (read_image, lambda path: read_masks(path, (6, 8))):
        with pytest.raises(InputError, match="not an image of a known format"):
            read(path)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("values", [[-1.7e308, 0, 1.7e308], [-3e38, 0, 3e38]])
def test_the_largest_floats(tmp_path, values):
    tifffile.imwrite(tmp_path / "x.tif", np.array([values], np.float64))
    assert read_image(tmp_path / "x.tif")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype, channels", [(np.uint16, 4), (np.float32, 3)])
def test_conversion_takes_little_memory_beside_the_image(dtype, channels):
    import tracemalloc

    pixels = np.random.default_rng(0).integers(0, 60_000, (1500, 2000, channels)).astype(dtype)
    tracemalloc.start()
    result = _to_8_bit(pixels)
    peak = tracemalloc.get_traced_memory()[1] - result.nbytes
    tracemalloc.stop()
    assert peak < 40 * BLOCK, peak  # bytes; the whole image as float64 would be 72 or 96 MB
    expected = pixels[::500, ::500] / (65535 if dtype == np.uint16 else 1)
    if dtype == np.float32:
        expected = (expected - pixels.min()) / (pixels.max() - pixels.min())
    assert np.abs(result[::500, ::500] - 255 * expected).max() <= 0.51


def test_tiff_with_a_size_that_is_no_number(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((40, 56), np.uint8))
    data = bytearray((tmp_path / "x.tif").read_bytes())
    at = data.index(b"\x00\x01")  # ImageWidth (256), little endian: type, count
    assert data[at + 2 : at + 8] in (b"\x03\0\x01\0\0\0", b"\x04\0\x01\0\0\0")
    data[at + 4 : at + 8] = (2).to_bytes(4, "little")  # two values instead of one
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tif"):
        read_image(tmp_path / "x.tif")


# Reading masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, one", [(np.uint8, 1), (np.uint8, 255), (bool, True), (np.int64, 1), (np.float32, 1)])
def test_npy_masks(tmp_path, dtype, one):
    masks = np.zeros((3, 6, 8), dtype)
    masks[0, 1:3, 1:4] = one
    masks[2, 4:, 5:] = one  # the second one is empty
    read = read_masks(save_npy(tmp_path / "m.npy", masks), (6, 8))
    assert read.dtype == bool and (read == (masks[[0, 2]] != 0)).all()
    read = read_masks(save_npy(tmp_path / "m.npy", masks[0]), (6, 8))
    assert (read == (masks[:1] != 0)).all()


def test_empty_npy_masks(tmp_path):
    assert read_masks(save_npy(tmp_path / "m.npy", np.zeros((0, 6, 8), np.uint8)), (6, 8)).shape == (0, 6, 8)
    assert read_masks(save_npy(tmp_path / "m.npy", np.zeros((2, 6, 8), np.uint8)), (6, 8)).shape == (0, 6, 8)
    fortran = np.asfortranarray(block(6, 8, 1, 2, 3))
    assert (read_masks(save_npy(tmp_path / "m.npy", fortran), (6, 8))[0] == fortran).all()


@pytest.mark.parametrize("value", [1, 100, 255])
def test_mask_image_with_one_value_is_one_instance(tmp_path, value):
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


def test_soft_black_and_white_is_cut_at_half(tmp_path):
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
    with pytest.raises(InputError, match=message):
        read_masks(save(tmp_path / "m.png", values), values.shape[:2])


def test_bad_masks(tmp_path):
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
def test_hostile_npy_headers_are_one_line(tmp_path, content):
    path = tmp_path / "m.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.npy") as caught:
        read_masks(path, (6, 8))
    assert "\n" not in str(caught.value)


def test_too_many_instances_are_refused_before_they_take_memory(tmp_path):
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
    monkeypatch.setenv("DATASET_TRAP", str(tmp_path / "sprung"))
    path = tmp_path / "m.npy"
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"m\.npy: it holds pickled objects.*never loaded"):
        read_masks(path, (6, 8))
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"m\.npy: it is a pickle.*never loaded"):
        read_masks(path, (6, 8))
    assert not (tmp_path / "sprung").exists()
