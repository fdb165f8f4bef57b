"""What a PDF shows is what is examined: clips, masks, covers, layers, turns; and what it hides is named hidden."""

import numpy as np
import pytest

from images.inputs import ImageSource
from images.pdf import read_contents, read_figure
from tests.made_pdfs import DRAW, TEXTURE, image, make_pdf, stream

WHITE = np.full_like(TEXTURE, 255)
LEFT = TEXTURE[:, :100]
PLAIN = [image(TEXTURE)]


def forms(depth):
    """Objects from 10 on: forms within forms, the innermost of which draws the image."""
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 400 400]/Resources<</XObject<</I %d 0 R>>>>"
    inner = [stream(form % (11 + k), b"/I Do" if k < depth - 1 else DRAW) for k in range(depth)]
    return [*inner, image(TEXTURE)]


def triangle(background):
    """The texture, and the background below its diagonal."""
    return np.where(np.tri(200, k=-1)[..., None] > 0, background, TEXTURE).astype(np.uint8)


LAYERS = b"/OCProperties<</OCGs[12 0 R]/D<</OFF[12 0 R]>>>>"
LAYER = b"<</Type/OCG/Name(layer)>>"
MASK = (255 * (1 - np.tri(200, k=-1))).astype(np.uint8)
SHOWN = {
    "whole": (DRAW, PLAIN, {}, [TEXTURE]),
    "clip": (b"q 100 100 100 200 re W n " + DRAW + b"Q", PLAIN, {}, [LEFT, TEXTURE]),
    "crop box": (DRAW, PLAIN, {"page": b"/CropBox[100 100 200 300]"}, [LEFT, TEXTURE]),
    "white rectangle": (DRAW + b"1 g 200 100 100 200 re f", PLAIN, {}, [LEFT, TEXTURE]),
    "page turned": (DRAW, PLAIN, {"page": b"/Rotate 90"}, [np.rot90(TEXTURE, -1)]),
    "image turned": (b"q 0 200 -200 0 300 100 cm /I Do Q", PLAIN, {}, [np.rot90(TEXTURE)]),
    "image mirrored": (b"q -200 0 0 200 300 100 cm /I Do Q", PLAIN, {}, [TEXTURE[:, ::-1]]),
    "soft mask": (DRAW, [image(TEXTURE, b"/SMask 11 0 R"), image(MASK)], {}, [triangle(WHITE), TEXTURE]),
    "black under a soft mask": (
        DRAW,
        [image(np.zeros((200, 200), np.uint8), b"/SMask 11 0 R"), image(TEXTURE[..., 0])],
        {},
        [np.repeat(255 - TEXTURE[..., :1], 3, axis=2)],
    ),
    "forms": (b"/I Do", forms(16), {}, [TEXTURE]),
    "layer": (
        DRAW,
        [image(TEXTURE, b"/OC 12 0 R"), b"null", LAYER],
        {"catalog": LAYERS},
        [TEXTURE],
    ),
    "off the page": (b"q 200 0 0 200 900 100 cm /I Do Q", PLAIN, {}, [TEXTURE]),
    "drawn twice": (DRAW + DRAW, PLAIN, {}, [TEXTURE]),
    "twice the size": (b"q 380 0 0 380 10 10 cm /I Do Q", PLAIN, {}, [TEXTURE]),
}


@pytest.mark.parametrize("name", SHOWN)
def test_pixels_are_those_that_show(name, tmp_path):
    """The first figure is what a reader sees, to the bit; the second one is what the file holds besides."""
    content, objects, options, expected = SHOWN[name]
    path = make_pdf(tmp_path / "a.pdf", [content], objects, **options)
    figures = read_contents(path).figures
    assert [f.hidden for f in figures] == (
        [True] if name in ("layer", "off the page") else [False, True][: len(expected)]
    )
    for figure, pixels in zip(figures, expected, strict=True):
        assert (read_figure(path, figure) == pixels).all()


def test_colour_key_and_stencil(tmp_path):
    """A colour key leaves out a colour; a stencil paints its own colour. Both hide nothing."""
    blue = TEXTURE.copy()
    blue[:, 120:] = (0, 0, 255)
    path = make_pdf(tmp_path / "a.pdf", [DRAW], [image(blue, b"/Mask[0 0 0 0 255 255]")])
    (figure,) = read_contents(path).figures
    assert figure.box == (100, 100, 220, 300) and (read_figure(path, figure) == TEXTURE[:, :120]).all()
    bits = np.random.default_rng(0).integers(0, 2, (25, 200)).astype(bool).repeat(8, axis=0)
    head = b"/Type/XObject/Subtype/Image/Width 200/Height 200/BitsPerComponent 1/ImageMask true"
    path = make_pdf(tmp_path / "b.pdf", [b"1 0 0 rg " + DRAW], [stream(head, np.packbits(bits, axis=1).tobytes())])
    (figure,) = read_contents(path).figures
    assert (read_figure(path, figure) == np.where(bits[..., None], 255, (255, 0, 0))).all()


def test_tiling_pattern(tmp_path):
    """An area that is painted with an image as its pattern is a figure, drawn at 300 dpi."""
    head = b"/PatternType 1/PaintType 1/TilingType 1/BBox[0 0 200 200]/XStep 200/YStep 200"
    pattern = stream(head + b"/Resources<</XObject<</I 10 0 R>>>>", b"q 200 0 0 200 0 0 cm /I Do Q")
    content = b"/Pattern cs /P scn 0 0 200 200 re f"
    path = make_pdf(tmp_path / "a.pdf", [content], [image(TEXTURE), pattern], b"/Pattern<</P 11 0 R>>")
    (figure,) = read_contents(path).figures
    assert figure.box == (0, 200, 200, 400) and not figure.hidden
    pixels = read_figure(path, figure)
    assert pixels.shape == (833, 833, 3)
    middles = np.rint((np.arange(200) + 0.5) * 833 / 200 - 0.5).astype(int)
    assert np.abs(pixels[np.ix_(middles, middles)].astype(int) - TEXTURE).mean() < 20


def test_stamp(tmp_path):
    """An image that an annotation shows is a figure; one of a hidden annotation is a hidden figure."""
    form = stream(
        b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]/Resources<</XObject<</I 10 0 R>>>>", b"200 0 0 200 0 0 cm /I Do"
    )
    for flags, hidden in ((4, False), (2, True)):
        stamp = b"<</Type/Annot/Subtype/Stamp/Rect[100 100 300 300]/F %d/AP<</N 11 0 R>>>>" % flags
        path = make_pdf(tmp_path / "a.pdf", [b""], [image(TEXTURE), form, stamp], page=b"/Annots[12 0 R]")
        (figure,) = read_contents(path).figures
        assert figure.hidden == hidden and figure.box == (100, 100, 300, 300)
        assert (read_figure(path, figure) == TEXTURE).all()


def test_turned_by_some_degrees(tmp_path):
    """An image that stands askew is drawn as it stands, at its own resolution."""
    path = make_pdf(tmp_path / "a.pdf", [b"q 100 100 -100 100 200 50 cm /I Do Q"], PLAIN)
    (figure,) = read_contents(path).figures
    pixels = read_figure(path, figure)
    assert figure.box == (100, 150, 300, 350) and abs(pixels.shape[0] - 283) <= 1  # 200 points at 200 / 141.4
    assert (pixels[0, 0] == 255).all() and pixels[130:150, 130:150].std() > 20


def test_furniture_and_small_images(tmp_path):
    """The same small image in the same place of three pages is counted and not examined; on two pages it is."""
    logo = TEXTURE[:80, :160]
    place = b"q 80 0 0 40 20 350 cm /L Do Q\n"
    objects, names = [*PLAIN, image(logo)], b"/XObject<</I 10 0 R/L 11 0 R>>"
    path = make_pdf(tmp_path / "a.pdf", [place + DRAW] * 3, objects, names)
    parts = ImageSource(str(path)).parts()
    assert [source.page for source in parts.images] == [1, 2, 3]
    assert [(item.reason, item.count) for item in parts.not_examined] == [("page furniture", 3)]
    path = make_pdf(tmp_path / "b.pdf", [place + DRAW] * 2, objects, names)
    assert len(ImageSource(str(path)).parts().images) == 4


def test_too_deep_is_told(tmp_path):
    """Forms that are nested deeper than is followed are not silently left out."""
    parts = ImageSource(str(make_pdf(tmp_path / "a.pdf", [b"/I Do"], forms(60)))).parts()
    assert not parts.images and parts.not_examined[0].reason.startswith("over the limit of")
