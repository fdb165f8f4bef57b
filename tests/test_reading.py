"""Images from files of all kinds, damaged and hostile ones too."""

import contextlib
import os
import threading
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import EpsImagePlugin, Image

from benchmarks.hostile_files import write_png_bomb
from benchmarks.valid_files import valid_files
from images.depth import BLOCK, to_8_bit
from images.folders import ImageFile
from images.masks import read_masks
from images.pairs import check_pair, read_pair
from images.read import read_image
from runtime.errors import InputError
from tests.made_files import block, data_settings, noise, save, save_npy


def test_eight_bit_images(tmp_path):
    """Colour, grey, palette and black and white become (H, W, 3)."""
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
    """Transparency mixes the colour with white, also that of a grey TIFF."""
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
    assert read_image(tmp_path / "la.tif").tolist() == [[[90, 90, 90], [255, 255, 255]]]


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
    """Values derived by hand from the rules of `to_8_bit`."""
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
    """Each of the eight orientations shows the image upright; a mask belongs to the image as it is shown."""
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
    check_pair(image, data_settings(tmp_path))
    assert read_pair(image, data_settings(tmp_path))[1].shape == (1, *shown.shape[:2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "jp2", "ppm"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.97])
def test_cut_off_files_are_named(tmp_path, suffix, keep, capfd):
    """A file that is cut off anywhere is refused in one line, and decoders print nothing."""
    path = tmp_path / f"x.{suffix}"
    cv2.imwrite(str(path), noise(90, 70))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=rf"cannot read .*x\.{suffix}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert "ERROR" not in capfd.readouterr().err


def test_end_of_file_is_found(tmp_path):
    """The end of a thumbnail is not the end of the JPEG, and other data may follow the end."""
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(90, 70)).save(path)
    data = path.read_bytes()
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data  # an application segment holding a JPEG
    path.write_bytes(data[:2] + thumbnail + data[2:-200])
    with pytest.raises(InputError, match=r"x\.jpg: the JPEG is cut off"):
        check_pair(ImageFile("x", path, None, "x", False), data_settings(tmp_path))
    path.write_bytes(data[:2] + thumbnail + data[2:] + b"\0" * 50)
    assert read_image(path).shape == (90, 70, 3)
    png = save(tmp_path / "x.png", noise(9, 7))
    png.write_bytes(png.read_bytes() + b"behind")
    assert (read_image(png) == noise(9, 7)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_half_read_files_are_refused(tmp_path, suffix, monkeypatch):
    """OpenCV 4.10 returns a cut-off JPEG with its rest grey, as if nothing were wrong."""
    path = save(tmp_path / f"x.{suffix}", noise(90, 70))
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: noise(90, 70))
    with pytest.raises(InputError, match="cut off"):
        read_image(path)


def test_damaged_and_foreign_files(tmp_path):
    """Damaged files, and files that are no images, are named in the error."""
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


def test_size_limit_needs_no_decoding(tmp_path, monkeypatch):
    """An image over the limit is refused by its header, a decompression bomb too."""
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


def test_deep_images_count_by_bytes(tmp_path, monkeypatch):
    """13,000 x 13,000 px with four channels of 16 bit are 1.35 GB, decoded out of 1.3 MB."""
    path = png_header(tmp_path / "x.png", 13_000, 13_000, 16, 6)
    with pytest.raises(InputError, match=r"13000 x 13000 px of 8 bytes, which count as 338 megapixels; .*--max-mega"):
        read_image(path)
    with pytest.raises(InputError, match="damaged"):  # within the limit: decoded, and only then found to be empty
        read_image(png_header(path, 100, 100, 16, 6))
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((100, 100, 3)), photometric="rgb")
    with pytest.raises(InputError, match=r"of 24 bytes, which count as 0\.06 megapixels; the limit is 0\.05"):
        read_image(tmp_path / "x.tif", 0.05)


def test_oversized_files_are_not_read(tmp_path, monkeypatch):
    """A file far larger than any image within the limit is refused by its size."""
    path = save(tmp_path / "x.png", noise(30, 40))
    os.truncate(path, 2_000_000_000)  # sparse: it takes no place on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(InputError, match=r"2 GB, far more than an image of the limit.*--max-megapixels"):
        read_image(path)


def test_disguised_eps_starts_no_ghostscript(tmp_path, monkeypatch):
    """A file named .png that holds EPS is refused, and Pillow does not start Ghostscript on it."""
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
def test_largest_floats(tmp_path, values):
    """Floats whose difference overflows are scaled all the same."""
    tifffile.imwrite(tmp_path / "x.tif", np.array([values], np.float64))
    assert read_image(tmp_path / "x.tif")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype, channels", [(np.uint16, 4), (np.float32, 3)])
def test_conversion_takes_little_memory(dtype, channels):
    """What is computed on the way to 8 bit stays small beside the image."""
    pixels = np.random.default_rng(0).integers(0, 60_000, (1500, 2000, channels)).astype(dtype)
    tracemalloc.start()
    result, _ = to_8_bit(pixels)
    peak = tracemalloc.get_traced_memory()[1] - result.nbytes
    tracemalloc.stop()
    assert peak < 40 * BLOCK, peak  # bytes; the whole image as float64 would be 72 or 96 MB
    expected = pixels[::500, ::500] / (65535 if dtype == np.uint16 else 1)
    if dtype == np.float32:
        expected = (expected - pixels.min()) / (pixels.max() - pixels.min())
    assert np.abs(result[::500, ::500] - 255 * expected).max() <= (0.51 if dtype == np.uint16 else 4)  # ends clipped


def test_tiff_size_is_no_number(tmp_path):
    """A TIFF whose width is a list is named in the error."""
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((40, 56), np.uint8))
    data = bytearray((tmp_path / "x.tif").read_bytes())
    at = data.index(b"\x00\x01")  # ImageWidth (256), little endian: type, count
    assert data[at + 2 : at + 8] in (b"\x03\0\x01\0\0\0", b"\x04\0\x01\0\0\0")
    data[at + 4 : at + 8] = (2).to_bytes(4, "little")  # two values instead of one
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tif"):
        read_image(tmp_path / "x.tif")


def test_decoders_print_nothing(tmp_path, capfd):
    """What libpng and libjpeg print about damaged files is discarded, what others write to stderr is not."""
    write_png_bomb(tmp_path / "x.png", 8)
    data = (tmp_path / "x.png").read_bytes()
    packed = zlib.compress((b"\x09" + bytes(8)) * 8)
    chunk = b"IDAT" + packed
    head = (
        data[: data.index(b"IDAT") - 4] + len(packed).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    )
    (tmp_path / "x.png").write_bytes(head + data[-12:])
    jpeg = valid_files("jpeg", tmp_path)[0]
    (tmp_path / "x.jpg").write_bytes(jpeg[:-200] + b"\xff\xc4\xff\xd9" * 5 + jpeg[-100:])

    def read():
        for path in (tmp_path / "x.png", tmp_path / "x.jpg"):
            with contextlib.suppress(InputError):
                read_image(path)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().err == ""
    os.write(2, b"ours")
    assert capfd.readouterr().err == "ours"


def test_pipes_are_refused(tmp_path):
    """Reading from a pipe would wait for ever."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path / "a.png")
