"""Valid files of the formats that the robustness benchmark mutates, all small: PNG, JPEG, TIFF, NPY, PDF, checkpoints.

Office documents, archives and HTML are in made_documents.py.

Rarer formats are in valid_rare_files.py. WebP, BMP and PPM are read, too, but are not mutated.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pypdfium2
import tifffile
import torch
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from PIL import Image

from backbones import random_backbone
from benchmarks.guarded_reading import SHAPE
from benchmarks.made_documents import valid_documents
from benchmarks.valid_rare_files import RARE, rare_tiffs
from checkpoints import CHECKPOINT_FORMAT, model_state
from config import ModelSettings
from model import ForgeryModel
from runtime.command_line import to_dict

ORIENTATION = 0x0112  # EXIF and TIFF tag


def valid_files(kind: str, folder: Path) -> list[bytes]:
    """Valid files of one of the formats. A checkpoint's backbone goes into `folder`."""
    if kind == "checkpoint":
        return _checkpoints(folder)
    if kind in ("docx", "pptx", "odt", "zip", "html"):
        folder.mkdir(parents=True, exist_ok=True)
        return valid_documents(kind, folder)
    return (RARE | {"png": _pngs, "jpeg": _jpegs, "tiff": _tiffs, "npy": _npys, "pdf": _pdfs})[kind]()


def _noise(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, channels), dtype=np.uint8).squeeze()


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _pngs() -> list[bytes]:
    colour = Image.fromarray(_noise())
    deep = Image.fromarray(_noise(1).astype(np.uint16) * 16)
    return [
        _saved(colour, "PNG"),
        _saved(colour, "PNG", exif=_exif(6)),
        _saved(colour.convert("L"), "PNG"),
        _saved(colour.convert("1"), "PNG"),
        _saved(colour.quantize(16), "PNG", transparency=3),
        _saved(Image.fromarray(_noise(4)), "PNG"),
        _saved(deep, "PNG"),
    ]


def _jpegs() -> list[bytes]:
    colour = Image.fromarray(_noise())
    return [
        _saved(colour, "JPEG"),
        _saved(colour, "JPEG", progressive=True, quality=60),
        _saved(colour, "JPEG", exif=_exif(8), subsampling=0),
        _saved(colour.convert("L"), "JPEG", restart_marker_rows=1),
        _saved(colour.convert("CMYK"), "JPEG"),
    ]


def _tiffs() -> list[bytes]:
    colour = Image.fromarray(_noise())
    compressions = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files = [_saved(colour, "TIFF", compression=compression) for compression in compressions]
    files.append(_saved(colour.convert("1"), "TIFF", compression="group4"))
    for array, options in (
        (_noise(1).astype(np.uint16) * 16, {}),
        (_noise().astype(np.float32) / 255, {"photometric": "rgb"}),
        (_noise(), {"photometric": "rgb", "tile": (32, 32)}),
        (_noise(), {"photometric": "rgb", "bigtiff": True}),
        (_noise(), {"photometric": "rgb", "byteorder": ">", "rowsperstrip": 7}),
        (_noise(), {"photometric": "rgb", "extratags": [(ORIENTATION, "H", 1, 5, True)]}),
        (_noise(4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, **options)
        files.append(buffer.getvalue())
    return files + rare_tiffs()


def _npys() -> list[bytes]:
    files = []
    for shape, dtype, version in (
        ((2, *SHAPE), np.uint8, (1, 0)),
        (SHAPE, bool, (1, 0)),
        ((1, *SHAPE), np.float64, (2, 0)),
        (SHAPE, ">i2", (3, 0)),
    ):
        buffer = io.BytesIO()
        mask = np.zeros(shape, dtype)
        mask[..., 5:20, 8:30] = 1
        np.lib.format.write_array(buffer, np.asfortranarray(mask) if version == (2, 0) else mask, version)
        files.append(buffer.getvalue())
    return files


def _pdfs() -> list[bytes]:
    """Two images, written by Pillow (a page each), matplotlib and PDFium (side by side on one page)."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    return [
        _saved(colour, "PDF", save_all=True, append_images=[grey]),
        _pdf_of_matplotlib(pixels),
        _pdf_of_pdfium(colour),
    ]


def _pdf_of_matplotlib(pixels: np.ndarray) -> bytes:
    figure, buffer = Figure((3, 2)), io.BytesIO()
    FigureCanvasPdf(figure)
    for k in (1, 2):
        figure.add_subplot(1, 2, k).imshow(pixels)
    with matplotlib.rc_context({"pdf.compression": 0}):  # so that mutations also reach the page's content
        figure.savefig(buffer, format="pdf")
    return buffer.getvalue()


def _pdf_of_pdfium(image: Image.Image) -> bytes:
    document = pypdfium2.PdfDocument.new()
    page = document.new_page(400, 500)
    for x in (40, 130):
        placed = pypdfium2.PdfImage.new(document)
        placed.set_bitmap(pypdfium2.PdfBitmap.from_pil(image))
        placed.set_matrix(pypdfium2.PdfMatrix().scale(90, 80).translate(x, 300))
        page.insert_obj(placed)
    page.gen_content()
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def _checkpoints(folder: Path) -> list[bytes]:
    """A head on a frozen backbone, and one whose backbone was trained too."""
    backbone = random_backbone(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    backbone.save_pretrained(folder)
    files = []
    for unfrozen in (0, 1):
        settings = ModelSettings(
            backbone=str(folder), image_size=28, head_widths=(8,), embedding_size=4, unfreeze_blocks=unfrozen
        )
        content = {
            "format": CHECKPOINT_FORMAT,
            "model": model_state(ForgeryModel(settings, backbone)),
            "clustering": {"min_samples": 5},
            "splits": {"a": "train", "b": "val"},
            "identity": {"settings": to_dict(settings)},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files.append(buffer.getvalue())
    return files
