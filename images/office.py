"""Pictures of Office documents (.docx, .pptx): where they stand, how they are cropped and turned, and their captions.

OpenDocument files are read by open_document.py. Both give `Picture`s of an archive that is open already.
"""

import posixpath
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from images.archives import read_xml
from images.pdf_captions import caption_in
from runtime.errors import InputError

MAX_PICTURES = 5000
A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
V = "{urn:schemas-microsoft-com:vml}"
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
RELATION = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"
PICTURES = ("blip", "imagedata")  # elements that show a member of the archive
SHAPES = ("pic", "sp", "anchor", "inline", "shape", "graphicFrame", "cxnSp")
LONG_TEXT = 80  # characters from which a paragraph is running text, across which no caption is looked for
CAPTION_DISTANCE = 8  # paragraphs and pictures between a picture and its caption

Crop = tuple[float, float, float, float]  # left, top, right, bottom: shares of the width and height that are cut off


@dataclass(frozen=True)
class Picture:
    """A picture of a document."""

    member: str  # its file in the archive, or its address where it is none of it
    page: int | None = None  # slide, from 1
    crop: Crop = (0.0, 0.0, 0.0, 0.0)
    quarter_turns: int = 0  # clockwise
    mirrored: tuple[bool, bool] = (False, False)  # left and right, top and bottom exchanged; before it is turned
    label: str | None = None
    caption: str | None = None
    hidden: bool = False  # not shown to a reader
    furniture: bool = False  # of the header, the footer or the master slide
    external: bool = False  # lies outside of the document


@dataclass(frozen=True)
class Document:
    """The pictures of a document, and how many charts it holds on each slide (None: no slides)."""

    pictures: list[Picture]
    line_art: Counter


def word_document(archive: zipfile.ZipFile) -> Document:
    """The pictures of a .docx, in reading order; those of headers and footers are furniture.

    Raises:
        InputError: it is damaged.
    """
    main = _main_part(archive)
    root, relations = read_xml(archive, main), _relations(archive, main)
    flow: list[Picture | str] = []
    for paragraph in root.iter(f"{W}p"):
        if any(inner is not paragraph for inner in paragraph.iter(f"{W}p")):
            flow += _own_pictures(paragraph, relations)  # its text boxes are paragraphs of their own
        else:
            flow += _pictures(paragraph, relations, None)
        flow.append("".join(text.text or "" for text in paragraph.iter(f"{W}t")))
    pictures = _with_captions(flow)
    for name in sorted(archive.namelist()):
        folder, file = posixpath.split(name)
        if folder == posixpath.dirname(main) and file.startswith(("header", "footer")) and file.endswith(".xml"):
            found = _pictures(read_xml(archive, name), _relations(archive, name), None)
            pictures += [replace(picture, furniture=True) for picture in found]
    return Document(pictures, Counter({None: charts_in(root)}))


def presentation(archive: zipfile.ZipFile) -> Document:
    """The pictures of a .pptx, slide by slide; those of masters and layouts are furniture.

    Raises:
        InputError: it is damaged.
    """
    main = _main_part(archive)
    root, relations = read_xml(archive, main), _relations(archive, main)
    pictures, line_art = [], Counter()
    slides = [relations.get(slide.get(f"{R}id"), ("", False))[0] for slide in root.iter(f"{P}sldId")]
    for number, name in enumerate(slides, 1):
        slide = read_xml(archive, name)
        texts = ["".join(t.text or "" for t in p.iter(f"{A}t")) for p in slide.iter(f"{A}p")]
        captions = [caption for text in texts if (caption := caption_in(text)) is not None]
        label, words = captions[0] if len(captions) == 1 else (None, None)
        hidden = slide.get("show") in ("0", "false")
        for picture in _pictures(slide, _relations(archive, name), number):
            pictures.append(replace(picture, label=label, caption=words, hidden=picture.hidden or hidden))
        line_art[number] += charts_in(slide)
    for name in sorted(archive.namelist()):
        if name.endswith(".xml") and name.split("/")[-2:-1] in (["slideMasters"], ["slideLayouts"]):
            found = _pictures(read_xml(archive, name), _relations(archive, name), None)
            pictures += [replace(picture, furniture=True) for picture in found]
    return Document(pictures, line_art)


def charts_in(root: Element) -> int:
    """How many charts a part holds, which are drawn of lines."""
    return sum(1 for _ in root.iter(f"{C}chart"))


def _main_part(archive: zipfile.ZipFile) -> str:
    for target, kind in _all_relations(archive, ""):
        if kind.endswith("/officeDocument"):
            return target
    raise InputError("it names no main part")


def _relations(archive: zipfile.ZipFile, part: str) -> dict[str, tuple[str, bool]]:
    """What the ids in a part stand for: a member of the archive or an address, and whether it is an address."""
    folder, file = posixpath.split(part)
    name = posixpath.join(folder, "_rels", f"{file}.rels")
    if name not in archive.NameToInfo:
        return {}
    found = {}
    for relation in read_xml(archive, name).iter(RELATION):
        target, external = relation.get("Target", ""), relation.get("TargetMode") == "External"
        found[relation.get("Id", "")] = (target if external else resolve(folder, target), external)
    return found


def _all_relations(archive: zipfile.ZipFile, folder: str) -> Iterator[tuple[str, str]]:
    for relation in read_xml(archive, posixpath.join(folder, "_rels", ".rels")).iter(RELATION):
        yield resolve(folder, relation.get("Target", "")), relation.get("Type", "")


def resolve(folder: str, target: str) -> str:
    """The name of a member, from a reference in a part of this folder."""
    target = unquote(target)
    return posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")


def _own_pictures(paragraph: Element, relations: dict) -> list[Picture]:
    """The pictures of a paragraph that do not stand in a paragraph within it."""
    inner = {id(element) for p in paragraph.iter(f"{W}p") if p is not paragraph for element in p.iter()}
    return _pictures(paragraph, relations, None, inner)


def _pictures(root: Element, relations: dict, page: int | None, left_out: set[int] = frozenset()) -> list[Picture]:
    """The pictures below an element. What a program writes twice for old readers (mc:Fallback) counts once."""
    found: list[Picture] = []
    pending: list[tuple[Element, bool, Element | None, Element | None]] = [(root, False, None, None)]
    while pending:
        element, hidden, shape, fill = pending.pop()
        name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
        if name == "Fallback" or id(element) in left_out:
            continue
        if name in SHAPES:
            shape = element
        if name in (*SHAPES, "grpSp", "wgp"):
            hidden = hidden or _is_hidden(element)
        if name == "blipFill":
            fill = element
        if name in PICTURES:
            member, external = relations.get(element.get(f"{R}embed") or element.get(f"{R}id") or "", ("", False))
            if not member and element.get(f"{R}link"):
                member, external = relations.get(element.get(f"{R}link"), ("", True))
            if member:
                found.append(_picture(element, member, external, shape, fill, page, hidden))
            if len(found) > MAX_PICTURES:
                raise InputError(f"it holds more than {MAX_PICTURES} pictures")
        pending += [(child, hidden, shape, fill) for child in reversed(element)]
    return found


def _is_hidden(shape: Element) -> bool:
    for element in shape.iter():
        name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
        if name in ("cNvPr", "docPr"):
            return element.get("hidden") in ("1", "true")
    return False


def _picture(
    element: Element,
    member: str,
    external: bool,
    shape: Element | None,
    fill: Element | None,
    page: int | None,
    hidden: bool,
) -> Picture:
    crop, turns, mirrored = (0.0, 0.0, 0.0, 0.0), 0, (False, False)
    if element.tag == f"{V}imagedata":
        crop = tuple(_fraction(element.get(f"crop{side}")) for side in ("left", "top", "right", "bottom"))
    else:
        source = None if fill is None else fill.find(f"{A}srcRect")
        if source is not None:
            crop = tuple(_thousandths(source.get(side)) for side in "ltrb")
        frame = None if shape is None else next(shape.iter(f"{A}xfrm"), None)
        frame = frame if frame is not None or shape is None else next(shape.iter(f"{P}xfrm"), None)
        if frame is not None:
            turns = round(_number(frame.get("rot")) / 5_400_000) % 4  # of 60,000ths of a degree
            mirrored = tuple(frame.get(flip) in ("1", "true") for flip in ("flipH", "flipV"))
    return Picture(member, page, crop, turns, mirrored, hidden=hidden, external=external)


def _number(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if abs(value) < 1e12 else 0.0


def _thousandths(text: str | None) -> float:
    """A share in 1000ths of a percent, or "12%"; what is negative adds a margin and cuts nothing off."""
    share = _number(text[:-1]) / 100 if text and text.endswith("%") else _number(text) / 100_000
    return min(max(share, 0.0), 1.0)


def _fraction(text: str | None) -> float:
    """A share of VML: 0.25, or 16384f of 65,536."""
    share = _number(text[:-1]) / 65_536 if text and text.endswith("f") else _number(text)
    return min(max(share, 0.0), 1.0)


def _with_captions(flow: Sequence[Picture | str]) -> list[Picture]:
    """The pictures of a text, each with its caption."""
    pictures = []
    for place, item in enumerate(flow):
        if isinstance(item, Picture):
            label, words = caption_near(flow, place)
            pictures.append(replace(item, label=label, caption=words))
    return pictures


def caption_near(flow: Sequence[Picture | str], place: int) -> tuple[str | None, str | None]:
    """Label and first words of the caption behind the picture at a place, or else before it; panels share one."""
    after = flow[place + 1 : place + 1 + CAPTION_DISTANCE]
    before = flow[max(place - CAPTION_DISTANCE, 0) : place]
    return _nearest_caption(after) or _nearest_caption(before[::-1], False) or (None, None)


def _nearest_caption(flow: Sequence[Picture | str], past_pictures: bool = True) -> tuple[str, str | None] | None:
    """The first caption in what follows a picture, unless running text, or with it another picture, comes first."""
    for item in flow:
        if isinstance(item, Picture):
            if not past_pictures:
                return None
            continue
        caption = caption_in(item)
        if caption is not None:
            return caption
        if len(item) >= LONG_TEXT:
            return None
    return None
