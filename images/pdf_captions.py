"""Lines of text on a page of a PDF, and the captions among them."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pypdfium2
import pypdfium2.raw as raw

from images.pdf import Box
from images.pdf_page import PlacedObject, union

WORDS = 12  # of a caption that are kept
MAX_CHARACTERS = 4000  # of one text object
BODY_LENGTH = 25  # characters from which a line may be one of running text

_SUPPLEMENT = (
    r"supplement(?:ary|al)?|suppl\.?|supporting|extended[ ]data|additional|online|erg(?:ä|ae)nz(?:ende|ungs)\w*|"
    r"zusatz|补充|補充|附"
)
_KIND = (
    r"fig(?:ures?|s|\.)?|schemes?|sch[eé]mas?|charts?|plates?|graphs?|tables?|tableau|tab\.|tabellen?|"
    r"abb(?:ildung(?:en)?|\.)?|image|图|圖|図|表"
)
_NUMBER = r"(?-i:[A-Z]{0,2}[ -]?\d+(?:[.\-–]\d+)*(?:[.\-–][A-Z]\d*)?|[IVXL]+(?![a-z]))"
LABEL = re.compile(rf"[^\w(（\[]{{0,2}}((?:(?:{_SUPPLEMENT})[ ]?)?(?:{_KIND}))\s?((?:{_NUMBER}))", re.IGNORECASE)
TABLE = re.compile(r"tab|表", re.IGNORECASE)
# What stands behind the number of a caption: nothing, a stop, a panel's letter, or the beginning of a sentence. In
# running text ("Figure 3 shows", "Fig. 2), the") a small word or another sign follows.
BEHIND = re.compile(
    r"$|\s*[.:|–—．：。]|\s*-\s|[A-Za-z]?\s+\(?[A-Za-z]\)?(?:[\s,.:)–-]|$)|\s+[^\W\d_a-zß-ÿ]|[\u2e80-\uffef]|\s*[\"“„«(\[]"
)


@dataclass(frozen=True)
class Line:
    """A line of text."""

    box: Box
    text: str

    @property
    def height(self) -> float:
        """Of its letters, in points."""
        return self.box[3] - self.box[1]


@dataclass(frozen=True)
class Caption:
    """The caption of a figure or table."""

    label: str  # as "Figure 3"
    words: str  # the first words behind the label
    box: Box  # around all of its lines
    is_table: bool


def read_lines(page: pypdfium2.PdfPage, objects: Sequence[PlacedObject]) -> list[Line]:
    """The lines of a page, from its text objects in the order in which they are drawn."""
    lines: list[Line] = []
    textpage = page.get_textpage()
    buffer = ctypes.create_string_buffer(2 * MAX_CHARACTERS)
    try:
        for placed in objects:
            if placed.type != raw.FPDF_PAGEOBJ_TEXT:
                continue
            size = raw.FPDFTextObj_GetText(
                placed.handle, textpage, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), len(buffer)
            )  # bytes, with a zero at the end; nothing is written where they do not fit
            text = buffer.raw[: max(size - 2, 0) if size <= len(buffer) else 0].decode("utf-16-le", "replace")
            text = " ".join(text.replace("\x02", "-").replace("\ufffe", "-").split(" "))
            if text.strip() and placed.box[3] > placed.box[1]:
                _add(lines, Line(placed.box, text))
    finally:
        textpage.close()
    return [Line(line.box, " ".join(line.text.split())) for line in lines]


def _add(lines: list[Line], piece: Line) -> None:
    """Add a piece of text to the last line where it continues it, or as a line of its own."""
    if lines:
        last = lines[-1]
        height = max(last.height, piece.height)
        shared = min(last.box[3], piece.box[3]) - max(last.box[1], piece.box[1])
        gap = piece.box[0] - last.box[2]
        if shared > 0.5 * min(last.height, piece.height) and -0.3 * height < gap < 1.5 * height:
            space = " " if gap > 0.12 * height else ""
            lines[-1] = Line(union([last.box, piece.box]), last.text + space + piece.text)
            return
    lines.append(piece)


def captions_of(lines: Sequence[Line]) -> list[Caption]:
    """The captions of a page, each with its lines."""
    found = []
    for line in lines:
        match = LABEL.match(line.text)
        if match is None or not BEHIND.match(line.text[match.end() :]) or _continues(line, lines):
            continue
        block = _block(line, lines)
        rest = line.text[match.end() :]
        words = " ".join([rest, *(other.text for other in block if other is not line)]).lstrip(" .:|–—-．：。)")
        short = words.split()[:WORDS]
        # A script without spaces has no words to count.
        found.append(Caption(_tidy(*match.groups()), " ".join(short)[:120], union([b.box for b in block]),
                             bool(TABLE.match(match[1]) or TABLE.search(match[1]))))  # fmt: skip
    return found


def _continues(line: Line, lines: Sequence[Line]) -> bool:
    """Whether a line goes on with the sentence of the line above it."""
    for other in lines:
        near = 0 <= line.box[1] - other.box[1] < 1.6 * line.height and abs(line.box[0] - other.box[0]) < line.height
        above = near and other.box[3] <= line.box[1] + 0.5 * line.height
        if above and len(other.text) >= BODY_LENGTH and not other.text.endswith((".", "!", "?", ":", "。")):
            return True
    return False


def _tidy(kind: str, number: str) -> str:
    kind = " ".join(kind.split())
    if kind.isupper() and kind.isascii():
        kind = kind.capitalize()
    return f"{kind[0].upper()}{kind[1:]} {number.replace(' ', '')}"


def _block(first: Line, lines: Sequence[Line]) -> list[Line]:
    """The lines of the paragraph that begins with a line, from top to bottom."""
    block, bottom, height = [first], first.box[3], first.height
    left, right = first.box[0], first.box[2]
    for line in sorted(lines, key=lambda line: line.box[1]):
        if line is first or line.box[3] < first.box[1] + 0.2 * height:
            continue
        if line.box[1] > bottom + 1.2 * height:
            break
        apart = line.box[0] > right + height or line.box[2] < left - height
        if apart or not 0.6 * height < line.height < 1.7 * height or line.box[0] < left - 40 * height:
            continue
        if LABEL.match(line.text) and line.box[1] > first.box[3]:
            break
        block.append(line)
        bottom, left, right = max(bottom, line.box[3]), min(left, line.box[0]), max(right, line.box[2])
    return block


def running_text(lines: Sequence[Line], captions: Sequence[Caption]) -> list[Line]:
    """Lines of paragraphs, without those of captions: long ones, with others like them above and below."""
    long = [line for line in lines if len(line.text) >= BODY_LENGTH and not any(_inside(line, c.box) for c in captions)]
    long.sort(key=lambda line: (round(line.box[0] / 8), line.box[1]))
    runs: list[list[Line]] = []
    for line in long:
        last = runs[-1][-1] if runs else None
        follows = last is not None and abs(line.box[0] - last.box[0]) < 16 and line.box[1] - last.box[3] < line.height
        if follows and line.box[1] > last.box[1]:
            runs[-1].append(line)
        else:
            runs.append([line])
    return [line for run in runs if len(run) >= 3 for line in run]


def _inside(line: Line, box: Box) -> bool:
    x, y = (line.box[0] + line.box[2]) / 2, (line.box[1] + line.box[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def caption_in(text: str) -> tuple[str, str | None] | None:
    """Label and first words of a paragraph that is a caption, or None."""
    found = captions_of([Line((0.0, 0.0, 1.0, 1.0), " ".join(text.split()))])
    return (found[0].label, found[0].words or None) if found else None
