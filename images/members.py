"""What archives, Office documents and HTML files hold: found and read in a guarded process.

Each image comes with the way to it, a dictionary that becomes JSON: `{"frame": 1}` for an image file, `{"figure": ...}`
for one of a PDF, and `{"member": name, "way": ...}` for what lies in an archive, perhaps cropped and turned;
`{"file": name, "way": ...}` and `{"data": number, "way": ...}` for pictures of an HTML file.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from images.archives import MAX_DEPTH, as_file, open_archive, refusal, unpack
from images.depth import Intensity
from images.documents import DOCUMENT_SUFFIXES, HTML_SUFFIXES, OFFICE_SUFFIXES
from images.frames import READ_SUFFIXES, UNSUPPORTED, frames_of
from images.html import Linked, data_of, html_pictures, local_file
from images.not_examined import FURNITURE, LINE_ART, LOCKED, over_limit, unsupported
from images.office import Document, Picture, presentation, word_document
from images.open_document import is_locked, open_document
from images.pdf import LEAST_SIDE, figure_from
from images.pdfium import contents_of, pixels_of
from images.read import read_image_size, read_with_intensity
from images.tiff import SIGNATURES
from runtime.errors import InputError

READERS = {"doc": word_document, "ppt": presentation, "pps": presentation, "odt": open_document, "odp": open_document}
# Beside the images that are not read: files that may hold images, too.
UNREAD = UNSUPPORTED | {".wdp": "JPEG XR", ".pict": "PICT", ".doc": "Word 97", ".ppt": "PowerPoint 97", ".rtf": "RTF",
                        ".rar": "RAR", ".7z": "7z", ".tar": "tar", ".gz": "gzip", ".tgz": "tar", ".xlsx": "Excel",
                        ".xls": "Excel"}  # fmt: skip
# What is read from memory by its content; other readers want a file with its ending.
IN_MEMORY = DOCUMENT_SUFFIXES | {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"}
HIDDEN_SHARE = 0.03  # of an image that a document crops away, from which the whole image is examined, too
REPEATS = 3  # slides with the same picture in the same crop, from which it is furniture

GrantTime = Callable[[], None]


@dataclass
class Found:
    """What a file holds, as JSON values."""

    images: list[dict[str, Any]] = field(default_factory=list)  # the fields of an ImageSource, and `way`
    omissions: list[dict[str, Any]] = field(default_factory=list)  # the fields of a NotExamined without its path

    def leave_out(
        self, what: str, reason: str, count: int = 1, page: int | None = None, part: str | None = None
    ) -> None:
        """Tell what is not examined."""
        self.omissions.append({"what": what, "reason": reason, "count": count, "page": page, "part": part})

    def add_all(self, other: "Found", part: str, way: Callable[[dict], dict]) -> None:
        """Take over what a member holds."""
        for image in other.images:
            parts = [part, image["part"]] if image.get("part") else [part]
            self.images.append(image | {"part": ": ".join(parts), "way": way(image["way"])})
        for omission in other.omissions:
            parts = [part, omission["part"]] if omission.get("part") else [part]
            self.omissions.append(omission | {"part": ": ".join(parts)})


_mappings: dict[str, Intensity | None] = {}  # in the process: of the images that were read, by their way as JSON


def answer(path: Path, question: list[Any], grant_time: GrantTime) -> Any:
    """Answer a question of inputs.py in a guarded process."""
    try:
        if question[0] == "contents":
            return asdict(contents(path, path.name, question[1], grant_time))
        if question[0] == "intensity":
            mapping = _mappings[json.dumps(question[1])]
            return None if mapping is None else mapping.to_dict()
        _, way, max_megapixels = question
        image, _mappings[json.dumps(way)] = pixels(path, way, max_megapixels, grant_time)
        return image
    except InputError as fault:
        raise InputError(str(fault) if str(path) in str(fault) else f"cannot read {path}: {fault}") from None


def contents(path: Path, name: str, max_pages: int, grant_time: GrantTime, depth: int = 0) -> Found:
    """What a file holds; `name` tells its format.

    Raises:
        InputError: the file is damaged, or exceeds a limit.
    """
    grant_time()
    suffix, found = os.path.splitext(name)[1].lower(), Found()
    if suffix == ".pdf":
        pdf = contents_of(path, grant_time)
        names = ("page", "figure", "box", "label", "caption", "hidden")
        for figure in map(asdict, pdf.figures):
            found.images.append({key: figure[key] for key in names} | {"part": None, "way": {"figure": figure}})
        for omission in pdf.omissions:
            found.leave_out(omission.what, omission.reason, omission.count, omission.page)
    elif suffix in OFFICE_SUFFIXES or suffix == ".zip":
        if depth >= MAX_DEPTH:
            raise InputError(f"{name} is not unpacked: {over_limit(f'{MAX_DEPTH} archives within each other')}")
        with open(path, "rb") as file:
            locked = file.read(4) == b"\xd0\xcf\x11\xe0" and suffix != ".zip"  # Office puts it into an older container
        if locked:
            found.leave_out("file", LOCKED)
            return found
        with open_archive(path) as archive:
            if suffix == ".zip":
                _add_members(found, archive, max_pages, grant_time, depth)
            elif "META-INF/manifest.xml" in archive.NameToInfo and is_locked(archive):
                found.leave_out("file", LOCKED)
            else:
                _add_pictures(found, archive, READERS[suffix[1:4]](archive))
    elif suffix in HTML_SUFFIXES:
        _add_html(found, path, depth)
    else:
        frames, left_out = frames_of(path, max_pages)
        for frame in frames:
            found.images.append({"part": frame.part, "caption": frame.caption, "way": {"frame": frame.number}})
        for item in left_out:
            found.leave_out(item.what, item.reason, item.count)
    return found


def _add_members(found: Found, archive: Any, max_pages: int, grant_time: GrantTime, depth: int) -> None:
    """What the files in a zip archive hold."""
    for member in sorted(archive.infolist(), key=lambda member: member.filename):
        name, suffix = member.filename, os.path.splitext(member.filename)[1].lower()
        hidden_name = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
        if member.is_dir() or hidden_name:
            continue
        if suffix in UNREAD or suffix == ".svg":
            found.leave_out("file", LINE_ART if suffix == ".svg" else unsupported(UNREAD[suffix]), part=name)
        elif suffix in DOCUMENT_SUFFIXES | READ_SUFFIXES | {".pdf"}:
            if (reason := refusal(member)) is not None:
                found.leave_out("file", reason, part=name)
                continue
            try:
                with _member(archive, name) as file:
                    inside = contents(file, name, max_pages, grant_time, depth + 1)
            except InputError as fault:
                found.leave_out("file", f"could not be read: {_plain(fault, name)}", part=name)
                continue
            found.add_all(inside, name, lambda way, name=name: {"member": name, "way": way})


def _plain(fault: InputError, name: str) -> str:
    """The words of an error about a file in memory, with the name of that file."""
    return re.sub(r"(?:/proc/self/fd/\d+|\S*/member-[^/\s]*/file\.\w+)", lambda _: name, " ".join(str(fault).split()))


def _add_pictures(found: Found, archive: Any, document: Document) -> None:
    """The pictures of an Office document."""
    shown: Counter = Counter()
    slides = Counter((p.member, p.crop) for p in document.pictures if p.page is not None and not p.furniture)
    furniture: Counter = Counter()
    for picture in document.pictures:
        repeated = picture.page is not None and slides[picture.member, picture.crop] >= REPEATS
        if picture.furniture or (repeated and _is_small(archive, picture.member)):
            furniture[picture.member] += 1
            continue
        shown[picture.page] += 1
        _add_picture(found, archive, picture, shown[picture.page])
    for member, count in furniture.items():
        found.leave_out("picture", FURNITURE, count, part=member)
    for page, count in document.line_art.items():
        if count:
            found.leave_out("chart", LINE_ART, count, page)
    used = {picture.member for picture in document.pictures}
    for name in sorted(archive.namelist()):
        if _is_picture(name) and name not in used and "humbnail" not in name:
            shown[None] += 1
            _add_picture(found, archive, Picture(name, hidden=True), shown[None])


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in READ_SUFFIXES and ("/media/" in name or name.startswith("Pictures/"))


def _is_small(archive: Any, member: str) -> bool:
    """Whether a picture that many slides show is no figure: up to 0.25 megapixels."""
    try:
        with _member(archive, member) as file:
            height, width = read_image_size(file, 1e6)
    except InputError:
        return False
    return height * width <= 250_000


def _add_picture(found: Found, archive: Any, picture: Picture, number: int) -> None:
    """A picture of an Office document, and the whole of it where it is cropped."""
    suffix = os.path.splitext(picture.member)[1].lower()
    if picture.external or picture.member not in archive.NameToInfo:
        found.leave_out("picture", "lies outside of the document", page=picture.page, part=picture.member)
        return
    if suffix not in READ_SUFFIXES:
        reason = (
            LINE_ART if suffix == ".svg" else unsupported(UNREAD.get(suffix, suffix.lstrip(".").upper() or "no ending"))
        )
        found.leave_out("picture", reason, page=picture.page, part=picture.member)
        return
    try:
        with _member(archive, picture.member) as file:
            height, width = read_image_size(file, 1e6)
        left, top, right, bottom = picture.crop
        if min(height * (1 - top - bottom), width * (1 - left - right)) < LEAST_SIDE:
            reason = f"smaller than {LEAST_SIDE} x {LEAST_SIDE} pixels"
            found.leave_out("picture", reason, page=picture.page, part=picture.member)
            return
    except InputError:
        pass  # it is told when it is read
    names = {"page": picture.page, "label": picture.label, "caption": picture.caption, "part": picture.member}
    way = {"member": picture.member, "way": {"frame": 1}, "crop": picture.crop}
    way |= {"turns": picture.quarter_turns, "mirrored": picture.mirrored}
    found.images.append(names | {"figure": number, "hidden": picture.hidden, "way": way})
    if (1 - picture.crop[0] - picture.crop[2]) * (1 - picture.crop[1] - picture.crop[3]) < 1 - HIDDEN_SHARE:
        whole = names | {"part": f"{picture.member}, uncropped"}
        found.images.append(whole | {"figure": number, "hidden": True, "way": way | {"crop": (0, 0, 0, 0)}})


def _add_html(found: Found, path: Path, depth: int) -> None:
    """The pictures of an HTML file; in an archive those beside it are members, too, and count there."""
    pictures, drawings = html_pictures(path)
    if drawings:
        found.leave_out("drawing", LINE_ART, drawings)
    for number, picture in enumerate(pictures, 1):
        address = picture.address
        embedded = address[:5].lower() == "data:"
        file = None if embedded else local_file(path.parent, address)
        part = f"picture {number}, within the file" if embedded else address
        if depth and not embedded:
            continue
        if not embedded and (file is None or not os.path.isfile(file)):
            found.leave_out("picture", "lies outside of the folder" if file is None else "is missing", part=part)
        elif "svg" in address[:20].lower() or address.lower().endswith(".svg"):
            found.leave_out("picture", LINE_ART, part=part)
        else:
            _add_linked(found, path, picture, {"data": number} if embedded else {"file": address}, part, number)


def _add_linked(found: Found, path: Path, picture: Linked, way: dict[str, Any], part: str, number: int) -> None:
    try:
        with _step(path, way) as file:
            height, width = read_image_size(file, 1e6)
        if min(height, width) < LEAST_SIDE:
            found.leave_out("picture", f"smaller than {LEAST_SIDE} x {LEAST_SIDE} pixels", part=part)
            return
    except InputError:
        pass  # it is told when it is read
    names = {"part": part, "figure": number, "label": picture.label, "caption": picture.caption}
    found.images.append(names | {"way": way | {"way": {"frame": 1}}})


def pixels(
    path: Path, way: dict[str, Any], max_megapixels: float, grant_time: GrantTime
) -> tuple[np.ndarray, Intensity | None]:
    """Pixels (H, W, 3) uint8 RGB of an image that `contents` found, and how its values became 8 bit, if they had more.

    Raises:
        InputError: it cannot be read, or is larger than `max_megapixels`.
    """
    if "figure" in way:
        return pixels_of(path, figure_from(way["figure"]), max_megapixels, grant_time), None
    if "frame" in way:
        return read_with_intensity(path, max_megapixels, way["frame"])
    name = way.get("member") or way.get("file") or f"picture {way.get('data')}"
    try:
        with _step(path, way) as file:
            image, intensity = pixels(file, way["way"], max_megapixels, grant_time)
    except InputError as fault:
        raise InputError(_plain(fault, name)) from None
    return _as_shown(image, way), intensity


def _as_shown(image: np.ndarray, way: dict[str, Any]) -> np.ndarray:
    """An image, cropped, mirrored and turned as a document shows it."""
    height, width = image.shape[:2]
    left, top, right, bottom = way.get("crop", (0, 0, 0, 0))
    rows = slice(round(top * height), max(round((1 - bottom) * height), round(top * height) + 1))
    columns = slice(round(left * width), max(round((1 - right) * width), round(left * width) + 1))
    image = image[rows, columns]
    sideways, upside_down = way.get("mirrored", (False, False))
    image = image[:: -1 if upside_down else 1, :: -1 if sideways else 1]
    return np.ascontiguousarray(np.rot90(image, -way.get("turns", 0)))


@contextmanager
def _step(path: Path, way: dict[str, Any]) -> Iterator[Path]:
    """The file to which the first step of a way leads."""
    if "member" in way:
        with open_archive(path) as archive:
            content = unpack(archive, way["member"])
    elif "data" in way:
        content = data_of(html_pictures(path)[0][way["data"] - 1].address)
    else:
        file = local_file(path.parent, way["file"])
        if file is None or not os.path.isfile(file):
            raise InputError(f"{way['file']} is gone")
        yield file
        return
    with as_file(content, kept_suffix(way.get("member", "picture.png"), content)) as file:
        yield file


def _member(archive: Any, name: str) -> AbstractContextManager[Path]:
    """A member as a file."""
    content = unpack(archive, name)
    return as_file(content, kept_suffix(name, content))


def kept_suffix(name: str, content: bytes) -> str | None:
    """The ending that a file must have on the disk to be read; None for what is read from memory."""
    suffix = os.path.splitext(name)[1].lower()
    if content[:4] in SIGNATURES:  # a TIFF, whatever it is called
        return ".tif"
    return None if suffix in IN_MEMORY else suffix
