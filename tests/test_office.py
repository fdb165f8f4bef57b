"""Office documents, archives and HTML files: which pictures they show, as they show them, and what they hide."""

import base64
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from benchmarks.made_documents import (
    OTHER,
    PICTURE,
    docx,
    drawing,
    frame,
    open_document_file,
    png,
    pptx,
    relations,
    save_zip,
    slide_picture,
)
from config import MatchingSettings, PredictSettings
from images.inputs import ImageSource
from predict import main
from runtime.errors import InputError
from tests.made_pdfs import DRAW, TEXTURE, image, make_pdf

CROP = '<a:srcRect l="20000" b="10000"/>'  # 60 of 300 columns, 20 of 200 rows


def examined(path):
    """(part, page, label, hidden) and pixels of each image, and (part, reason) of what is not examined."""
    parts = ImageSource(str(path)).parts()
    images = [((s.part, s.page, s.label, s.hidden), s.read(200.0)) for s in parts.images]
    return [place for place, _ in images], [pixels for _, pixels in images], [
        (item.part, item.reason) for item in parts.not_examined
    ]  # fmt: skip


def same(found, expected):
    return len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_word_document(tmp_path):
    """Pictures in reading order with crops and captions; the whole of a cropped one is hidden; EMF is told."""
    path = docx(
        tmp_path / "a.docx",
        *("Text. " * 20, drawing("a"), "Figure 3. Cells", "Text. " * 20, drawing("b", CROP), "Abb. 4: Zellen"),
        drawing("e"),
    )
    places, pixels, left_out = examined(path)
    assert places == [
        ("word/media/a.png", None, "Figure 3", False),
        ("word/media/b.png", None, "Abb. 4", False),
        ("word/media/b.png, uncropped", None, "Abb. 4", True),
    ]
    assert same(pixels, [PICTURE, OTHER[:180, 60:], OTHER])
    assert left_out == [("word/media/e.emf", "unsupported: EMF")]


def test_run_on_a_word_document(tmp_path):
    """A picture that stands twice is two images, each with its line, its files and its row of the submission."""
    path = docx(tmp_path / "in/a.docx", drawing("a"), "Figure 1. Cells", drawing("a"), "Figure 2. Cells", drawing("b"))
    settings = PredictSettings(paths=(path,), out=tmp_path / "out", evidence_only=True, num_workers=0)
    assert main(replace(settings, matching=MatchingSettings(matching_kinds=("exact",)))) in (0, 3)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["Figure 1", "Figure 2", "Figure 2"]
    assert len({line["name"] for line in lines}) == 3
    rows = (tmp_path / "out/submission.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["a-f1", "a-f2", "a-f3"]


def test_word_furniture_and_unused(tmp_path):
    """Pictures of a header are furniture; a picture that is nowhere shown is hidden; charts are line art."""
    spaces = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    spaces += 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    header = f'<x {spaces}><a:blip r:embed="a"/></x>'
    rels = relations(a="media/a.png")
    chart = "<w:r><w:drawing><c:chart/></w:drawing></w:r>"
    members = {"word__header1_D_xml": header, "word___rels__header1_D_xml_D_rels": rels}
    places, pixels, left_out = examined(docx(tmp_path / "a.docx", chart, **members))
    assert places == [("word/media/b.png", None, None, True)] and same(pixels, [OTHER])
    assert left_out == [("word/media/a.png", "page furniture"), (None, "line art")]


def test_presentation(tmp_path):
    """Pictures in groups, turned and mirrored ones, slide by slide; those of a slide that is left out are hidden."""
    turned, mirrored = '<a:xfrm rot="5400000"/>', '<a:xfrm flipH="1"/>'
    caption = "<p:sp><p:txBody><a:p><a:r><a:t>Figure 7: Blots</a:t></a:r></a:p></p:txBody></p:sp>"
    group = f"<p:grpSp>{slide_picture('a', frame=turned)}</p:grpSp>"
    path = pptx(tmp_path / "a.pptx", caption + group, ('show="0"', slide_picture("b", frame=mirrored)))
    places, pixels, left_out = examined(path)
    assert places == [("ppt/media/a.png", 1, "Figure 7", False), ("ppt/media/b.png", 2, None, True)]
    assert same(pixels, [np.rot90(PICTURE, -1), OTHER[:, ::-1]]) and left_out == []


@pytest.mark.parametrize("suffix", [".odt", ".odp"])
def test_open_document(suffix, tmp_path):
    """Pictures with the crop of their style, which is given as lengths at 96 dpi, and their captions."""
    clip = 'fo:clip="rect(0in, 0in, 0.5in, 1in)"'  # top, right, bottom, left: 48 rows, 96 columns
    styles = f'<style:style style:name="cut"><style:graphic-properties {clip}/></style:style>'
    styles += '<style:style style:name="gone"><style:drawing-page-properties presentation:visibility="hidden"/>'
    styles += "</style:style>"
    flow = f"<text:p>{frame('a.png', 'cut')}</text:p><text:p>Fig. S2: Controls</text:p>"
    if suffix == ".odt":
        body, page, hidden = f"<office:text>{flow}<text:p>{frame('b.png')}</text:p></office:text>", None, False
    else:
        second = f'<draw:page draw:style-name="gone">{frame("b.png")}</draw:page>'
        body = f"<office:presentation><draw:page>{flow}</draw:page>{second}</office:presentation>"
        page, hidden = 1, True
    places, pixels, left_out = examined(open_document_file(tmp_path / f"a{suffix}", body, styles))
    assert places[:2] == [
        ("Pictures/a.png", page, "Fig. S2", False),
        ("Pictures/a.png, uncropped", page, "Fig. S2", True),
    ]
    assert places[2][::3] == ("Pictures/b.png", hidden) and left_out == []
    assert same(pixels, [PICTURE[:152, 96:], PICTURE, OTHER])


def test_archive(tmp_path):
    """Images, PDFs and documents in an archive, and in an archive in it; what is not read is told."""
    docx(tmp_path / "a.docx", drawing("a"), "Figure 1. Cells", drawing("b"))
    make_pdf(tmp_path / "p.pdf", [DRAW], [image(TEXTURE)])
    inner = save_zip(tmp_path / "inner.zip", {"x/b.png": png(OTHER)}).read_bytes()
    members = {"a.docx": (tmp_path / "a.docx").read_bytes(), "figs/p.pdf": (tmp_path / "p.pdf").read_bytes()}
    members |= {"inner.zip": inner, "z.eps": b"%!PS", "notes.txt": b"text", "__MACOSX/._a.png": b"", "broken.png": b"x"}
    places, pixels, left_out = examined(save_zip(tmp_path / "all.zip", members))
    assert places == [
        ("a.docx: word/media/a.png", None, "Figure 1", False),
        ("a.docx: word/media/b.png", None, "Figure 1", False),
        ("figs/p.pdf", 1, None, False),
        ("inner.zip: x/b.png", None, None, False),
    ]
    assert same(pixels, [PICTURE, OTHER, TEXTURE, OTHER])
    (broken, reason), eps = left_out
    assert broken == "broken.png" and reason.startswith("could not be read") and "/proc" not in reason
    assert eps == ("z.eps", "unsupported: PostScript")


def test_archive_bombs(tmp_path):
    """A member that unpacks to far more than it is, a locked one, and archives within archives are told."""
    path = save_zip(tmp_path / "a.zip", {"bomb.png": bytes(40 << 20), "a.png": png()})
    for depth in range(4):
        path = save_zip(tmp_path / f"{depth}.zip", {"deeper.zip": path.read_bytes(), "a.png": png()})
    places, _, left_out = examined(path)
    assert [place[0].count("deeper.zip") for place in places] == [0, 1, 2]
    assert "archives within each other" in left_out[0][1]
    assert examined(tmp_path / "a.zip")[2] == [("bomb.png", "over the limit of 200 unpacked bytes for a packed one")]


def test_damaged_documents(tmp_path):
    """No archive, one without a main part, one with entities: refused in one line; an encrypted one is told."""
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04 broken")
    save_zip(tmp_path / "b.docx", {"x.xml": "<x/>"})
    docx(tmp_path / "c.docx", word__document_D_xml='<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>')
    for name in ("a.docx", "b.docx", "c.docx"):
        with pytest.raises(InputError) as caught:
            ImageSource(str(tmp_path / name)).parts()
        assert "\n" not in str(caught.value) and name in str(caught.value)
    (tmp_path / "d.docx").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    assert examined(tmp_path / "d.docx") == ([], [], [(None, "locked")])


def test_html(tmp_path):
    """Pictures beside an HTML file and within it; nothing outside of its folder is opened."""
    (tmp_path / "b.png").write_bytes(png(OTHER))
    data = base64.b64encode(png()).decode()
    (tmp_path / "a.html").write_text(
        f'<figure><img src="data:image/png;base64,{data}"><figcaption>Figure 2. Gels</figcaption></figure>'
        '<p><img src="b.png"><p>图 4. 细胞</p><svg></svg><img src="../x.png"><img src="https://example.org/y.png">',
        encoding="utf-8",
    )
    places, pixels, left_out = examined(tmp_path / "a.html")
    assert places == [("picture 1, within the file", None, "Figure 2", False), ("b.png", None, "图 4", False)]
    assert same(pixels, [PICTURE, OTHER])
    outside = "lies outside of the folder"
    assert left_out == [(None, "line art"), ("../x.png", outside), ("https://example.org/y.png", outside)]


def test_archive_with_too_many_members(tmp_path, monkeypatch):
    """An archive of very many files is refused."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(20_001):
            archive.writestr(str(number), b"")
    with pytest.raises(InputError, match="more than 20000 files"):
        ImageSource(str(tmp_path / "a.zip")).parts()


def test_intensity_within_an_archive(tmp_path):
    """How the values of a deep image became 8 bit is told for a member of an archive as for a file."""
    values = np.random.default_rng(0).integers(200, 1200, (80, 90), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", values)
    archive = save_zip(tmp_path / "a.zip", {"deep.tif": (tmp_path / "deep.tif").read_bytes()})
    (member,) = ImageSource(str(archive)).parts().images
    pixels, intensity = member.read_with_intensity(200.0)
    expected, mapping = ImageSource(str(tmp_path / "deep.tif")).read_with_intensity(200.0)
    assert np.array_equal(pixels, expected) and intensity == mapping and mapping.high > 1000
