"""Formats that are read in a process of their own: DICOM, HEIC, AVIF, JPEG XL; and those that are told only."""

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

from images import guarded, guest
from images.inputs import ImageSource
from images.jpegxl import read_jpegxl_header
from images.read import read_image
from runtime.errors import InputError
from tests.made_files import noise
from tests.prediction import lines_of, predict_in

COLOUR = noise(64, 96)
GREY = COLOUR[..., 0]


def write_dicom(path, values, **changes):
    """A file of one or several frames, uncompressed."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    colour = values.ndim > 2 and values.shape[-1] == 3
    frames = values if values.ndim == 3 + colour else values[None]
    data.Rows, data.Columns = frames.shape[1:3]
    data.NumberOfFrames = len(frames)
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def parts_of(path):
    return ImageSource(str(path)).parts()


def test_dicom_window(tmp_path):
    """The window of the file is applied after its rescaling; the mapping is recorded."""
    values = GREY.astype(np.int16) * 8 - 1000
    path = write_dicom(
        tmp_path / "x.dcm", values, RescaleSlope=2, RescaleIntercept=24, WindowCenter=40, WindowWidth=400
    )
    (source,) = parts_of(path).images
    pixels, intensity = source.read_with_intensity(200.0)
    low, high = 40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2  # DICOM PS3.3, C.11.2.1.2
    expected = np.rint(((values * 2.0 + 24).clip(low, high) - low) / (high - low) * 255)
    assert (pixels[..., 0] == expected).all() and (intensity.low, intensity.high) == (low, high)
    assert intensity.rule == "window of the file"


def test_dicom_black_and_white_turned(tmp_path):
    """MONOCHROME1 is shown with white for the least value; colours stay what they are."""
    plain = read_image(write_dicom(tmp_path / "a.dcm", GREY))
    turned = read_image(write_dicom(tmp_path / "b.dcm", GREY, PhotometricInterpretation="MONOCHROME1"))
    assert (plain[..., 0] == GREY).all() and (turned == 255 - plain).all()
    assert (read_image(write_dicom(tmp_path / "c.dcm", COLOUR)) == COLOUR).all()


def test_dicom_frames(tmp_path):
    """Each frame is an image with its name; a file without an image is told."""
    path = write_dicom(tmp_path / "x.dcm", np.stack([GREY, GREY // 2, GREY // 3]))
    images = parts_of(path).images
    assert [image.part for image in images] == [f"frame {k} of 3" for k in (1, 2, 3)]
    assert (images[2].read(200.0)[..., 0] == GREY // 3).all()
    data = pydicom.dcmread(path)
    del data.PixelData, data.Rows, data.Columns
    data.Modality = "SR"
    data.save_as(tmp_path / "report.dcm")
    assert predict_in(tmp_path / "out", tmp_path / "report.dcm") == 6
    (line,) = lines_of(tmp_path / "out")
    assert line["reason"] == "unsupported: DICOM without an image (SR)"


@pytest.mark.parametrize("syntax, encode", [
    (pydicom.uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    (pydicom.uid.JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True, level=0)),
    (pydicom.uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode),
])  # fmt: skip
def test_dicom_compressions(tmp_path, syntax, encode):
    """Lossless compressions give the same pixels as none."""
    values = GREY.astype(np.uint16) * 16
    path = write_dicom(tmp_path / "x.dcm", values, BitsStored=12, HighBit=11)
    plain = read_image(path)
    data = pydicom.dcmread(path)
    data.PixelData = pydicom.encaps.encapsulate([encode(values)])
    data.file_meta.TransferSyntaxUID = syntax
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "y.dcm")
    assert (read_image(tmp_path / "y.dcm") == plain).all()


@pytest.mark.parametrize("bits", [8, 12])
def test_jpeg_xl(tmp_path, bits):
    """Lossless files come back to the bit, whether they lie in a container or not; the header tells size and bits."""
    values = COLOUR if bits == 8 else COLOUR.astype(np.uint16) * 16
    for container in (False, True):
        data = imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=bits, usecontainer=container)
        (tmp_path / "x.jxl").write_bytes(data)
        header = read_jpegxl_header(data)
        assert (header.height, header.width, header.bits, header.animated) == (64, 96, bits, False)
        assert np.abs(read_image(tmp_path / "x.jxl").astype(int) - COLOUR).max() <= (0 if bits == 8 else 1)
    (tmp_path / "m.jxl").write_bytes(imagecodecs.jpegxl_encode(np.stack([COLOUR, COLOUR[::-1]]), lossless=True))
    parts = parts_of(tmp_path / "m.jxl")
    assert (parts.images[0].read(200.0) == COLOUR).all() and "only the first" in parts.not_examined[0].reason


def test_avif(tmp_path):
    """As Pillow reads it, upright; of an animation the first frame."""
    Image.fromarray(COLOUR).save(tmp_path / "x.avif", quality=90)
    assert (read_image(tmp_path / "x.avif") == np.asarray(Image.open(tmp_path / "x.avif"))).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "o.avif", quality=90, exif=exif)
    assert (read_image(tmp_path / "o.avif") == np.rot90(read_image(tmp_path / "x.avif"), -1)).all()
    Image.fromarray(COLOUR).save(tmp_path / "m.avif", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])])
    parts = parts_of(tmp_path / "m.avif")
    assert [image.part for image in parts.images] == ["frame 1 of 2"] and parts.not_examined[0].count == 1


def test_heic(tmp_path):
    """Every image of a HEIC, as pillow-heif gives it."""
    file = pillow_heif.from_pillow(Image.fromarray(COLOUR))
    file.add_from_pillow(Image.fromarray(COLOUR[::-1].copy()))
    file.save(tmp_path / "x.heic", quality=-1)
    images = parts_of(tmp_path / "x.heic").images
    expected = [np.asarray(image) for image in pillow_heif.open_heif(tmp_path / "x.heic")]
    assert [image.part for image in images] == ["image 1 of 2", "image 2 of 2"]
    assert all((image.read(200.0) == pixels).all() for image, pixels in zip(images, expected, strict=True))


@pytest.mark.parametrize("name, start, package", [
    ("x.czi", b"ZISRAWFILE" + bytes(200), "czifile"),
    ("x.nd2", b"\xda\xce\xbe\x0a" + bytes(200), "nd2"),
    ("x.lif", b"\x70\0\0\0" + bytes(200), "liffile"),
])  # fmt: skip
def test_missing_reader_is_named(tmp_path, monkeypatch, name, start, package):
    """A format whose optional reader is missing is told with the command that installs it."""
    monkeypatch.setattr("images.frames.importlib.util.find_spec", lambda _: None)
    (tmp_path / name).write_bytes(start)
    assert predict_in(tmp_path / "out", tmp_path / name) == 6
    (line,) = lines_of(tmp_path / "out")
    assert line["reason"].endswith(f"install with: pip install {package}") and line["verdict"] == "not examined"


def test_foreign_formats_are_told(tmp_path, capsys):
    """A folder with a drawing and a Photoshop file is not plainly clean."""
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text("<svg/>")
    (tmp_path / "c.psd").write_bytes(b"8BPS")
    assert predict_in(tmp_path / "out", tmp_path / "a.png", tmp_path / "b.svg", tmp_path / "c.psd") == 6
    last = capsys.readouterr().out.strip().split("\n")[-1]
    assert "1 images: 0 with findings" in last and "1 unsupported: SVG" in last and "1 unsupported: Photoshop" in last


def test_limits_of_the_process(tmp_path, monkeypatch):
    """Size and memory are limited, and what is no DICOM is refused."""
    (tmp_path / "x.jxl").write_bytes(imagecodecs.jpegxl_encode(COLOUR))
    with pytest.raises(InputError, match=r"96 x 64 px, 0\.00614 megapixels; the limit is 0\.001"):
        read_image(tmp_path / "x.jxl", 0.001)
    (tmp_path / "x.dcm").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(InputError, match=r"x\.dcm"):
        read_image(tmp_path / "x.dcm")
    monkeypatch.setattr(guest, "LIMITS", guarded.Limits(memory=1 << 20))
    with pytest.raises(InputError, match=r"x\.jxl"):
        read_image(tmp_path / "x.jxl")
