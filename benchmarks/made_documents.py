"""Small Office documents, archives and HTML files, written by hand: for tests, and to be mutated."""

import base64
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = np.random.default_rng(5).integers(0, 256, (200, 300, 3), dtype=np.uint8)
OTHER = PICTURE[::-1, ::-1].copy()
RELS = "http://schemas.openxmlformats.org/package/2006/relationships"
TYPE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
SPACES = (
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    f'xmlns:r="{TYPE}" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
    'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart" '
    'xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"'
)
OPEN_SPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{path}:1.0"'
    for name, path in (
        *(("office", "office"), ("draw", "drawing"), ("text", "text"), ("style", "style")),
        *(("fo", "xsl-fo-compatible"), ("presentation", "presentation")),
    )
)
OPEN_SPACES += ' xmlns:xlink="http://www.w3.org/1999/xlink"'


def png(pixels: np.ndarray = PICTURE) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_zip(path: Path, members: Mapping[str, str | bytes]) -> Path:
    """Write an archive of names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def relations(**targets: str) -> str:
    """A part that tells what ids stand for."""
    inner = "".join(
        f'<Relationship Id="{id}" Type="{TYPE}/{"officeDocument" if id == "main" else "image"}" Target="{target}"/>'
        for id, target in targets.items()
    )
    return f'<Relationships xmlns="{RELS}">{inner}</Relationships>'


def drawing(id: str, crop: str = "", frame: str = "", hidden: str = "") -> str:
    """A picture in a paragraph of a .docx."""
    return (
        f'<w:r><w:drawing><wp:inline><wp:docPr id="1" name="x"{hidden}/><a:graphic><a:graphicData><pic:pic>'
        f'<pic:blipFill><a:blip r:embed="{id}"/>{crop}</pic:blipFill><pic:spPr>{frame}</pic:spPr></pic:pic>'
        "</a:graphicData></a:graphic></wp:inline></w:drawing></w:r>"
    )


def slide_picture(id: str, crop: str = "", frame: str = "") -> str:
    """A picture on a slide."""
    return f'<p:pic><p:blipFill><a:blip r:embed="{id}"/>{crop}</p:blipFill><p:spPr>{frame}</p:spPr></p:pic>'


def docx(path: Path, *paragraphs: str, **members: str | bytes) -> Path:
    """A .docx of paragraphs, with the pictures a and b and further members (`__` stands for `/`, `_D_` for a dot)."""
    body = "".join(f"<w:p>{p if p.startswith('<') else f'<w:r><w:t>{p}</w:t></w:r>'}</w:p>" for p in paragraphs)
    further = {name.replace("__", "/").replace("_D_", "."): content for name, content in members.items()}
    parts = {
        "_rels/.rels": relations(main="word/document.xml"),
        "word/document.xml": f"<w:document {SPACES}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": relations(a="media/a.png", b="media/b.png", e="media/e.emf"),
        "word/media/a.png": png(),
        "word/media/b.png": png(OTHER),
        "word/media/e.emf": b"EMF",
    }
    return save_zip(path, parts | further)


def pptx(path: Path, *slides: str | tuple[str, str]) -> Path:
    """A .pptx; each slide is its shapes, or (attributes, shapes)."""
    slides = [slide if isinstance(slide, tuple) else ("", slide) for slide in slides]
    ids = "".join(f'<p:sldId id="{k}" r:id="s{k}"/>' for k in range(len(slides)))
    parts = {
        "_rels/.rels": relations(main="ppt/presentation.xml"),
        "ppt/presentation.xml": f"<p:presentation {SPACES}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(**{f"s{k}": f"slides/{k}.xml" for k in range(len(slides))}),
        "ppt/media/a.png": png(),
        "ppt/media/b.png": png(OTHER),
    }
    for k, (attributes, shapes) in enumerate(slides):
        parts[f"ppt/slides/{k}.xml"] = (
            f"<p:sld {SPACES} {attributes}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"
        )
        parts[f"ppt/slides/_rels/{k}.xml.rels"] = relations(a="../media/a.png", b="../media/b.png")
    return save_zip(path, parts)


def frame(name: str, style: str = "") -> str:
    """A picture of an OpenDocument file."""
    return f'<draw:frame draw:style-name="{style}"><draw:image xlink:href="Pictures/{name}"/></draw:frame>'


def open_document_file(path: Path, body: str, styles: str = "") -> Path:
    """An .odt or .odp with the pictures a.png and b.png."""
    content = (
        f"<office:document-content {OPEN_SPACES}><office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body>{body}</office:body></office:document-content>"
    )
    return save_zip(path, {"content.xml": content, "Pictures/a.png": png(), "Pictures/b.png": png(OTHER)})


def valid_documents(kind: str, folder: Path) -> list[bytes]:
    """Valid files of a kind (docx, pptx, odt, zip, html), of small pictures; `folder` is for files on the way."""
    small = png(PICTURE[:70, :80])
    crop = '<a:srcRect l="10000" b="5000"/>'
    path = folder / f"valid.{kind}"
    parts = {"word__media__a_D_png": small, "word__media__b_D_png": small}
    if kind == "docx":
        paragraphs = (drawing("a", crop), "Figure 3. Cells", drawing("b"), drawing("e"), "Table 1. Numbers")
        return [docx(path, *paragraphs, **parts).read_bytes()]
    if kind == "pptx":
        turned = '<a:xfrm rot="5400000" flipH="1"/>'
        group = f"<p:grpSp>{slide_picture('b', frame=turned)}</p:grpSp>"
        return [pptx(path, slide_picture("a", crop) + group, ('show="0"', slide_picture("a"))).read_bytes()]
    if kind == "odt":
        style = '<style:graphic-properties fo:clip="rect(0.1cm, 0in, 2mm, 3pt)"/>'
        styles = f'<style:style style:name="cut">{style}</style:style>'
        flow = f"<text:p>{frame('a.png', 'cut')}</text:p><text:p>Fig. S2: Controls</text:p>{frame('b.png')}"
        slides = f'<draw:page draw:style-name="cut">{frame("b.png")}</draw:page>'
        bodies = f"<office:text>{flow}</office:text>", f"<office:presentation>{slides}</office:presentation>"
        return [open_document_file(path, body, styles).read_bytes() for body in bodies]
    if kind == "zip":
        inner = docx(folder / "inner.docx", drawing("a"), "Figure 1. Cells", **parts).read_bytes()
        return [save_zip(path, {"a.png": small, "b/a.docx": inner, "z.eps": b"%!PS"}).read_bytes()]
    data = base64.b64encode(small).decode()
    text = f'<figure><img src="data:image/png;base64,{data}"><figcaption>Figure 2. Gels</figcaption></figure><svg>'
    return [f'<html><body>{text}</svg><p style="color:red">x<img src=b.png srcset="c.png 2x"></body>'.encode()]
