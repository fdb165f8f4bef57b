"""Figures of PDF files, and PDFs that ask for too much."""

import sys
from dataclasses import replace

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from benchmarks.hostile_files import gigabytes_of_content, nested_forms, pdf_stream, write_pdf
from images import pdf
from images.inputs import ImageSource
from images.pdf import read_contents, read_figure
from runtime.errors import InputError
from tests.made_pdfs import DRAW, TEXTURE, image, make_pdf


def put_image(document, page, pixels, x, y, width, height):
    placed = pypdfium2.PdfImage.new(document)
    placed.set_bitmap(pypdfium2.PdfBitmap.from_pil(Image.fromarray(pixels)))
    placed.set_matrix(pypdfium2.PdfMatrix().scale(width, height).translate(x, y))
    page.insert_obj(placed)


@pytest.fixture
def paper(tmp_path):
    """Page 1: one image. Page 2: two halves of a figure side by side, an icon, and an image below."""
    rng = np.random.default_rng(0)
    left, right, below = (rng.integers(0, 256, (100, 80, 3), dtype=np.uint8) for _ in range(3))
    document = pypdfium2.PdfDocument.new()
    page = document.new_page(400, 500)
    put_image(document, page, np.zeros((90, 120, 3), np.uint8), 50, 300, 120, 90)
    page.gen_content()
    page = document.new_page(400, 500)
    put_image(document, page, left, 40, 300, 80, 100)
    put_image(document, page, right, 120, 300, 80, 100)
    put_image(document, page, below, 40, 100, 80, 100)
    put_image(document, page, below[:20, :20], 300, 100, 20, 20)
    page.gen_content()
    document.save(tmp_path / "paper.pdf")
    return tmp_path / "paper.pdf", left, right, below


def test_figures_of_a_pdf(paper):
    """Images side by side are one figure, an icon is none; boxes are measured from the upper left corner."""
    path, left, right, below = paper
    figures = read_contents(path).figures
    # The first image's top is 500 - (300 + 90) = 110 points down.
    assert [(f.page, f.figure, f.box) for f in figures] == [
        (1, 1, (50.0, 110.0, 170.0, 200.0)),
        (2, 1, (40.0, 100.0, 200.0, 200.0)),
        (2, 2, (40.0, 300.0, 120.0, 400.0)),
    ]
    assert (read_figure(path, figures[2]) == below).all()
    assert (read_figure(path, figures[1]) == np.hstack([left, right])).all()
    with pytest.raises(InputError, match="no page 3"):
        read_figure(path, replace(figures[0], page=3))
    with pytest.raises(InputError, match="--max-megapixels"):
        read_figure(path, figures[0], max_megapixels=0.001)


def test_files_that_are_no_pdf(tmp_path):
    """PDFium's words reach the user in one line that names the file."""
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7 broken")
    with pytest.raises(InputError, match=r"cannot read .*x\.pdf: ") as caught:
        read_contents(tmp_path / "x.pdf")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_pdf_that_unpacks_to_gigabytes(tmp_path):
    """A page content of 3 GB, packed into less than 5 MB, exceeds the memory that PDFium may use."""
    write_pdf(tmp_path / "x.pdf", gigabytes_of_content(), [])
    assert (tmp_path / "x.pdf").stat().st_size < 5e6
    with pytest.raises(InputError, match=r"x\.pdf: its reader failed, perhaps for more than 2 GiB"):
        read_contents(tmp_path / "x.pdf")


def test_pdf_that_asks_for_hours(tmp_path, monkeypatch):
    """Forms that draw forms ten times each, four deep: 1.7 KB. The limit on processor time is 1 s here."""
    image = b"/Type/XObject/Subtype/Image/Width 9/Height 9/ColorSpace/DeviceGray/BitsPerComponent 8"
    write_pdf(tmp_path / "x.pdf", pdf_stream(b"", b"/F Do " * 10), [*nested_forms(4), pdf_stream(image, bytes(81))])
    monkeypatch.setattr(pdf, "LIMITS", replace(pdf.LIMITS, step_seconds=0))
    with pytest.raises(InputError, match=r"x\.pdf: a page takes longer than 0 s"):
        read_contents(tmp_path / "x.pdf")


def test_crash_of_pdfium(tmp_path, monkeypatch):
    """A process of PDFium that crashes is an error that names the file."""
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(InputError, match=r"x\.pdf: its reader failed"):
        read_contents(tmp_path / "x.pdf")


def test_locked_pdf_is_told(tmp_path):
    """A PDF that asks for a password is no damaged one: it is listed as locked, and not examined."""
    path = make_pdf(tmp_path / "a.pdf", [DRAW], [image(TEXTURE)])
    guard = b"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>" % (b"1f" * 32, b"2e" * 32)
    path.write_bytes(path.read_bytes().replace(b"/Root 1 0 R>>", b"/Root 1 0 R%s>>" % guard))
    parts = ImageSource(str(path)).parts()
    assert parts.images == [] and [item.reason for item in parts.not_examined] == ["locked"]
