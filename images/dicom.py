"""DICOM files by pydicom, compressed ones with imagecodecs. Runs in the process of images/guest.py.

An image is shown as the file asks for: rescaled, through its first window or its lookup table, black and white turned
round for MONOCHROME1, palettes and YCbCr as colours. Without a window it becomes 8 bit as images/depth.py says.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.pixels.decoders.base import get_decoder

from images import dicom_codecs
from images.depth import FULL_RANGE, Intensity
from images.frame_info import FrameInfo
from images.raster import Raster
from runtime.errors import InputError

WINDOW = "window of the file"
OVERLAYS = range(0x6000, 0x6100, 2)  # groups of graphics that may be drawn over the image


def frames(path: Path, format: str) -> list[FrameInfo]:
    """The frames of a file, and its overlays, which are not read."""
    data = _read(path, pixels=False)
    if not all(name in data for name in ("Rows", "Columns")):
        kind = f" ({str(data.Modality)[:16]})" if data.get("Modality") else ""
        return [FrameInfo(1, 1, 1, left_out=f"unsupported: DICOM without an image{kind}")]
    count = int(data.get("NumberOfFrames") or 1)
    size = int(data.Rows), int(data.Columns)
    bytes_of_pixel = int(data.get("SamplesPerPixel", 1)) * max(1, int(data.get("BitsAllocated", 8)) // 8)
    name = str(data.get("SeriesDescription") or "")[:80] or None
    infos = [
        FrameInfo(*size, bytes_of_pixel, f"frame {k} of {count}" if count > 1 else None, name)
        for k in range(1, min(count, 1_000_000) + 1)
    ]
    overlays = sum((group, 0x0010) in data for group in OVERLAYS)
    told = FrameInfo(*size, 1, "overlay", left_out="unsupported: DICOM overlay")
    return infos + [told] * overlays


def pixels(path: Path, format: str, number: int) -> Raster:
    """Pixels of one frame, from 1."""
    data = _read(path, pixels=True)
    _use_imagecodecs(data.file_meta.TransferSyntaxUID)
    values = pixel_array(data, index=number - 1)
    if values.ndim == 3:
        return Raster(values, bits=int(data.BitsStored))
    kind = str(data.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(values, data)[..., :3]
        deep = colours.dtype != np.uint8
        return Raster(colours, window=Intensity(0, 65535, FULL_RANGE, colours.dtype.name) if deep else None)
    rescaled, inverted = apply_modality_lut(values, _with_groups(data, number)), kind == "MONOCHROME1"
    return _windowed(data, number, rescaled, inverted)


def _read(path: Path, pixels: bool) -> pydicom.Dataset:
    data = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
    if not len(data):
        raise InputError(f"cannot read {path}: it is not a DICOM")
    if "TransferSyntaxUID" not in data.file_meta:  # without a header: as the parser took it
        plain, little = data.original_encoding
        uids = pydicom.uid
        data.file_meta.TransferSyntaxUID = (
            uids.ImplicitVRLittleEndian
            if plain
            else uids.ExplicitVRLittleEndian
            if little
            else uids.ExplicitVRBigEndian
        )
    return data


def _use_imagecodecs(syntax: Any) -> None:
    """Let pydicom decode with imagecodecs what neither numpy nor Pillow decodes."""
    if syntax in dicom_codecs.DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if "imagecodecs" not in decoder.available_plugins:
            decoder.add_plugin("imagecodecs", ("images.dicom_codecs", "decode_frame"))


def _with_groups(data: pydicom.Dataset, number: int) -> pydicom.Dataset:
    """The settings that say how a frame is shown, of the frame itself where the file has them frame by frame."""
    shown = pydicom.Dataset()
    shared = data.get("SharedFunctionalGroupsSequence") or []
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    groups = [data, *shared[:1], *own[number - 1 : number]]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            groups += list(group.get(name) or [])[:1]
    names = (
        *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
        *("VOILUTSequence", "BitsStored", "PixelRepresentation", "PhotometricInterpretation"),
    )
    for group in groups:
        for name in names:
            if name in group:
                shown[name] = group[name]
    return shown


def _windowed(data: pydicom.Dataset, number: int, values: np.ndarray, inverted: bool) -> Raster:
    """Values after the modality's transformation, with the range that the file wants to be shown."""
    shown = _with_groups(data, number)
    if shown.get("VOILUTSequence") or str(shown.get("VOILUTFunction", "LINEAR")) == "SIGMOID":
        values = apply_voi_lut(values, shown)
        table = shown.VOILUTSequence[0].LUTDescriptor if shown.get("VOILUTSequence") else None
        low, high = (0.0, 2.0 ** table[2] - 1) if table else (float(values.min()), float(values.max()))
        return Raster(values, white_is_zero=inverted, window=Intensity(low, high, WINDOW, values.dtype.name))
    centre, width = (_first(shown.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        bits = int(data.BitsStored) if values.dtype.kind == "u" else None
        return Raster(values, bits=bits, white_is_zero=inverted)
    if str(shown.get("VOILUTFunction", "LINEAR")) == "LINEAR_EXACT":
        low, high = centre - width / 2, centre + width / 2
    else:  # PS3.3, C.11.2.1.2
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return Raster(values, white_is_zero=inverted, window=Intensity(low, high, WINDOW, values.dtype.name))


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
