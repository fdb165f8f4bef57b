"""Pictures of OpenDocument files (.odt, .odp): where they stand, how they are cropped, and their captions."""

import io
import re
import zipfile
from collections import Counter
from dataclasses import replace
from xml.etree.ElementTree import Element

from PIL import Image

from images.archives import MAX_XML, read_xml, unpack
from images.header import FORMATS
from images.office import MAX_PICTURES, Crop, Document, Picture, caption_near, resolve
from images.pdf_captions import caption_in
from runtime.errors import InputError

DRAW = "{urn:oasis:names:tc:opendocument:xmlns:drawing:1.0}"
FO = "{urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0}"
OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
PRESENTATION = "{urn:oasis:names:tc:opendocument:xmlns:presentation:1.0}"
STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
XLINK = "{http://www.w3.org/1999/xlink}"
INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72, "pc": 1 / 6, "px": 1 / 96}
DPI = 96.0  # of an image that does not say


def open_document(archive: zipfile.ZipFile) -> Document:
    """The pictures of an .odt or .odp, in reading order; those of headers, footers and masters are furniture.

    Raises:
        InputError: it is damaged.
    """
    root = read_xml(archive, "content.xml")
    styles = {style.get(f"{STYLE}name"): style for style in root.iter(f"{STYLE}style")}
    body = root.find(f"{OFFICE}body")
    if body is None:
        raise InputError("it has no body")
    slides = list(body.iter(f"{DRAW}page"))
    pictures, line_art = [], Counter()
    for page, part in [(number, slide) for number, slide in enumerate(slides, 1)] or [(None, body)]:
        hidden = page is not None and _is_hidden_slide(part, styles)
        pictures += [replace(p, hidden=p.hidden or hidden) for p in _pictures(archive, part, styles, page)]
        line_art[page] += sum(1 for _ in part.iter(f"{DRAW}object"))
    if "styles.xml" in archive.NameToInfo:
        master = read_xml(archive, "styles.xml").find(f"{OFFICE}master-styles")
        if master is not None:
            found = _pictures(archive, master, styles, None)
            pictures += [replace(picture, furniture=True, label=None, caption=None) for picture in found]
    return Document(pictures, line_art)


def is_locked(archive: zipfile.ZipFile) -> bool:
    """Whether a document is encrypted: its manifest tells how."""
    return b"encryption-data" in unpack(archive, "META-INF/manifest.xml", MAX_XML)


def _is_hidden_slide(slide: Element, styles: dict[str | None, Element]) -> bool:
    style = styles.get(slide.get(f"{DRAW}style-name"))
    properties = None if style is None else style.find(f"{STYLE}drawing-page-properties")
    return properties is not None and properties.get(f"{PRESENTATION}visibility") == "hidden"


def _pictures(archive: zipfile.ZipFile, root: Element, styles: dict, page: int | None) -> list[Picture]:
    """The pictures below an element, each with the caption nearest to it."""
    flow: list[Picture | str] = []
    for element in root.iter():
        if element.tag == f"{DRAW}frame":
            # The first image that can be read counts: the others are replacements of it. An object is line art.
            images = [image.get(f"{XLINK}href", "") for image in element.findall(f"{DRAW}image")]
            if element.find(f"{DRAW}object") is None and (target := next(filter(None, images), None)):
                external = ":" in target or target.startswith("../")
                member = target if external else resolve("", target)
                crop = (
                    (0.0, 0.0, 0.0, 0.0)
                    if external
                    else _crop(archive, member, styles.get(element.get(f"{DRAW}style-name")))
                )
                flow.append(Picture(member, page, crop, external=external))
        elif element.tag in (f"{TEXT}p", f"{TEXT}h"):
            flow.append("".join(element.itertext()))
        if len(flow) > 100 * MAX_PICTURES:
            raise InputError("it is too long")
    found = []
    for place, item in enumerate(flow):
        if isinstance(item, Picture):
            # A caption that LibreOffice makes is the paragraph around the frame, which comes before it.
            around = flow[place - 1] if place and isinstance(flow[place - 1], str) else ""
            label, words = caption_in(around) or caption_near(flow, place)
            found.append(replace(item, label=label, caption=words))
    return found


def _crop(archive: zipfile.ZipFile, member: str, style: Element | None) -> Crop:
    """What a style cuts off; it is given as lengths at the image's own resolution."""
    properties = None if style is None else style.find(f"{STYLE}graphic-properties")
    clip = None if properties is None else properties.get(f"{FO}clip")
    lengths = re.findall(r"(-?\d+(?:\.\d+)?)(in|cm|mm|pt|pc|px)?", clip or "")
    if len(lengths) != 4:
        return (0.0, 0.0, 0.0, 0.0)
    top, right, bottom, left = (float(number) * INCHES[unit or "cm"] for number, unit in lengths)
    try:
        with Image.open(io.BytesIO(unpack(archive, member)), formats=FORMATS) as image:
            width, height = image.size
            dpi = image.info.get("dpi", (DPI, DPI))
            x, y = (float(value) if 10 < float(value) < 10_000 else DPI for value in dpi)
    except (InputError, OSError, ValueError, SyntaxError, TypeError):
        return (0.0, 0.0, 0.0, 0.0)  # it is refused when it is read
    shares = left * x / width, top * y / height, right * x / width, bottom * y / height
    return tuple(min(max(share, 0.0), 1.0) for share in shares)
