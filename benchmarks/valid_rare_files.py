"""Valid files of rarer image formats for the robustness benchmark: GIF, JPEG 2000, DICOM, HEIC, AVIF, JPEG XL; and of
the rarer kinds of TIFF."""

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

SHAPE = (40, 56)  # rows and columns, as the other valid files


def _noise(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, channels), dtype=np.uint8).squeeze()


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rare_tiffs() -> list[bytes]:
    """Compressions, layouts and stacks that Pillow does not write."""
    grey, colour = _noise(1), _noise()
    files = []
    for array, options in (
        (colour, {"photometric": "rgb", "compression": "zstd"}),
        (colour, {"photometric": "rgb", "compression": "jpeg2000"}),
        (colour, {"photometric": "rgb", "compression": "webp"}),
        (colour, {"photometric": "rgb", "compression": "jpegxl", "tile": (16, 32)}),
        (colour, {"photometric": "rgb", "compression": "lzma", "predictor": True}),
        (grey.astype(np.float32), {"compression": "lerc"}),
        (grey.astype(np.uint16) * 16, {"bitspersample": 12}),
        (np.moveaxis(colour, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}),
        (np.stack([grey] * 6).reshape(1, 3, 2, *SHAPE), {"ome": True, "metadata": {"axes": "TCZYX"}}),
        (np.stack([grey] * 6).reshape(3, 2, *SHAPE), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
        (np.dstack([colour, grey]), {"photometric": "separated"}),
        (grey, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
        (np.stack([grey] * 5), {"photometric": "minisblack", "planarconfig": "separate"}),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, **options)
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=True) as file:
        file.write(colour, subifds=1, photometric="rgb", tile=(16, 16))
        file.write(np.ascontiguousarray(colour[::2, ::2]), subfiletype=1, photometric="rgb")
    return [*files, buffer.getvalue()]


def _gifs() -> list[bytes]:
    frames = [Image.fromarray(np.roll(_noise(), k, axis=0)).quantize(32) for k in range(3)]
    return [
        _saved(frames[0], "GIF"),
        _saved(frames[0], "GIF", transparency=3),
        _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2),
    ]


def _jpeg2000s() -> list[bytes]:
    colour = Image.fromarray(_noise())
    return [
        _saved(colour, "JPEG2000"),
        _saved(colour.convert("L"), "JPEG2000", no_jp2=True),
        _saved(Image.fromarray(_noise(4)), "JPEG2000", irreversible=True, tile_size=(32, 32)),
        imagecodecs.jpeg2k_encode(_noise(1).astype(np.uint16) * 16, level=0, reversible=True),
    ]


def _dicom(values: np.ndarray, syntax: str, data: bytes | None = None, **changes: object) -> bytes:
    """One frame of a DICOM; `data`: its compressed bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    file.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    file.PlanarConfiguration = 0
    file.BitsAllocated = file.BitsStored = 8 * values.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(values.dtype.kind == "i")
    file.PixelData = values.tobytes() if data is None else pydicom.encaps.encapsulate([data])
    file["PixelData"].is_undefined_length = data is not None
    for name, value in changes.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _dicoms() -> list[bytes]:
    uid, grey, deep = pydicom.uid, _noise(1), _noise(1).astype(np.uint16) * 16
    lut = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        lut[f"{name}PaletteColorLookupTableData"] = np.arange(256, dtype=np.uint16).tobytes()
    return [
        _dicom(grey, uid.ExplicitVRLittleEndian),
        _dicom(_noise(), uid.ImplicitVRLittleEndian),
        _dicom(deep.astype(np.int16), uid.ExplicitVRLittleEndian, WindowCenter=900, WindowWidth=800, RescaleSlope=2,
               RescaleIntercept=-1000, PhotometricInterpretation="MONOCHROME1"),
        _dicom(np.concatenate([grey] * 3), uid.ExplicitVRLittleEndian, NumberOfFrames=3, Rows=SHAPE[0]),
        _dicom(grey, uid.ExplicitVRLittleEndian, **lut),
        _dicom(deep, uid.JPEGLSLossless, imagecodecs.jpegls_encode(deep)),
        _dicom(deep, uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode(deep)),
        _dicom(grey, uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(grey, codecformat="j2k", level=0)),
        _dicom(grey, uid.JPEGBaseline8Bit, _saved(Image.fromarray(grey), "JPEG")),
    ]  # fmt: skip


def _heics() -> list[bytes]:
    colour, buffer = Image.fromarray(_noise()), io.BytesIO()
    file = pillow_heif.from_pillow(colour)
    file.add_from_pillow(Image.fromarray(_noise(4)))
    file.save(buffer, quality=60)
    single = io.BytesIO()
    pillow_heif.from_pillow(colour.convert("L")).save(single, quality=-1)
    return [buffer.getvalue(), single.getvalue()]


def _avifs() -> list[bytes]:
    colour = Image.fromarray(_noise())
    return [
        _saved(colour, "AVIF", speed=10),
        _saved(Image.fromarray(_noise(4)), "AVIF", speed=10, quality=100),
        _saved(colour, "AVIF", speed=10, save_all=True, append_images=[colour]),
        imagecodecs.avif_encode(_noise().astype(np.uint16) * 4, bitspersample=10, level=90, speed=10),
    ]


def _jpegxls() -> list[bytes]:
    colour, encode = _noise(), imagecodecs.jpegxl_encode
    return [
        encode(colour, lossless=True),
        encode(colour, level=80, usecontainer=True),
        encode(_noise(1).astype(np.uint16) * 16, lossless=True, bitspersample=12),
        encode(np.stack([colour, colour]), lossless=True),
        encode(_noise(4), lossless=True),
    ]


RARE: dict[str, Callable[[], list[bytes]]] = {
    "gif": _gifs,
    "jpeg2000": _jpeg2000s,
    "dicom": _dicoms,
    "heic": _heics,
    "avif": _avifs,
    "jpegxl": _jpegxls,
}
