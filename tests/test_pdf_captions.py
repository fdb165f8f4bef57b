"""Figures of a PDF with what they are called; figures made of several images, of lines, and of both."""

import numpy as np
import pytest

from images.inputs import ImageSource
from images.pdf import read_contents, read_figure
from images.pdf_captions import Line, captions_of
from images.text_images import is_text
from tests.made_pdfs import TEXTURE, image, make_pdf, text

BARS = b"".join(b"%d 60 m %d %d l S\n" % (220 + 9 * k, 222 + 9 * k, 70 + 11 * k) for k in range(12))
LABELS = {
    "Figure 3. Cells after treatment": ("Figure 3", "Cells after treatment"),
    "Fig. S2: Loading controls": ("Fig. S2", "Loading controls"),
    "FIG. 1. Southern blots": ("Fig. 1", "Southern blots"),
    "Supplementary Figure 12 | Flow": ("Supplementary Figure 12", "Flow"),
    "Scheme 1 Synthesis": ("Scheme 1", "Synthesis"),
    "Table 1. Primers": ("Table 1", "Primers"),
    "Abb. 3: Zellen": ("Abb. 3", "Zellen"),
    "Abbildung 4. Zellen": ("Abbildung 4", "Zellen"),
    "Figure 2 – Cellules": ("Figure 2", "Cellules"),
    "Tableau 2 : Amorces": ("Tableau 2", "Amorces"),
    "图3 细胞": ("图 3", "细胞"),
    "图 4. 细胞": ("图 4", "细胞"),
    "Figure 5": ("Figure 5", ""),
}
RUNNING = ["Figure 3 shows the cells", "Fig. 2), the cells", "(Fig. 1). We find", "Figures 6 and 7", "Figure 3, which",
           "figured out 3 cells"]  # fmt: skip


@pytest.mark.parametrize("words", LABELS)
def test_captions(words):
    """A label at the beginning of a line, and the first words behind it, in several languages."""
    (caption,) = captions_of([Line((50, 300, 300, 309), words)])
    assert (caption.label, caption.words) == LABELS[words]


@pytest.mark.parametrize("words", RUNNING)
def test_running_text_is_no_caption(words):
    """A line of running text that begins with a reference is no caption."""
    assert captions_of([Line((50, 300, 300, 309), words)]) == []


def test_each_figure_has_its_caption(tmp_path):
    """Two figures side by side, each with its caption below; panels far apart with one caption are one figure."""
    objects = [image(TEXTURE), image(TEXTURE[::-1])]
    content = (
        b"q 100 0 0 100 30 280 cm /I Do Q q 100 0 0 100 230 280 cm /J Do Q q 100 0 0 100 230 140 cm /J Do Q\n"
        + text(30, 265, "Figure 1. Untreated cells")
        + text(230, 125, "Figure 2. Treated cells")
    )
    path = make_pdf(tmp_path / "a.pdf", [content], objects, b"/XObject<</I 10 0 R/J 11 0 R>>")
    first, second = read_contents(path).figures
    assert (first.label, first.caption, first.box) == ("Figure 1", "Untreated cells", (30, 20, 130, 120))
    assert (second.label, second.caption, second.box) == ("Figure 2", "Treated cells", (230, 20, 330, 260))
    assert (read_figure(path, first) == TEXTURE).all()
    pixels = read_figure(path, second)  # 2 pixels per point
    assert pixels.shape == (480, 200, 3) and (pixels[:200] == TEXTURE[::-1]).all()
    assert (pixels[280:] == TEXTURE[::-1]).all() and (pixels[200:280] == 255).all()
    (source, _) = ImageSource(str(path)).parts().images
    assert source.place["label"] == "Figure 1" and source.place["caption"] == "Untreated cells"


def test_lines_beside_an_image(tmp_path):
    """A chart beside an image under one caption belongs to the figure, which is drawn at 300 dpi."""
    content = b"q 100 0 0 100 100 60 cm /I Do Q\n" + BARS + text(100, 40, "Figure 1. Blot and chart")
    path = make_pdf(tmp_path / "a.pdf", [content], [image(TEXTURE)])
    contents = read_contents(path)
    (figure,) = contents.figures
    assert figure.label == "Figure 1" and figure.box[0] < 101 and figure.box[2] > 318 and contents.omissions == []
    height, width, _ = read_figure(path, figure).shape
    assert abs(width - (figure.box[2] - figure.box[0]) * 300 / 72) < 2 and height > 400


def test_line_art_is_told(tmp_path):
    """What is drawn of lines alone is not examined, and is named by its label where it has one."""
    path = make_pdf(tmp_path / "a.pdf", [BARS + text(220, 40, "Figure 2. Chart"), BARS], [image(TEXTURE)])
    parts = ImageSource(str(path)).parts()
    assert parts.images == []
    assert [(item.page, item.what, item.reason) for item in parts.not_examined] == [
        (1, "Figure 2", "line art"),
        (2, "drawing without a caption", "line art"),
    ]


def test_images_of_text():
    """Letters in rows are text; noise, and letters beside a grey field, are none."""
    page = np.full((600, 800, 3), 255, np.uint8)
    letter = np.random.default_rng(0).integers(0, 2, (9, 7)).astype(bool)
    for y in range(20, 560, 24):
        for x in range(20, 760, 10):
            page[y : y + 9, x : x + 7][letter] = 0
    assert is_text(page)
    page[300:500, 200:600] = 200
    assert not is_text(page)
    assert not is_text(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
