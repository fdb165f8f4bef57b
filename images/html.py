"""Pictures of an HTML file: those beside it and those within it (data: addresses)."""

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from images.office import Picture, caption_near
from runtime.errors import InputError

MAX_HTML = 256 << 20  # bytes
MAX_PICTURES = 5000
BLOCKS = {"p", "div", "figure", "figcaption", "td", "th", "tr", "li", "h1", "h2", "h3", "h4", "h5", "h6", "br", "body",
          "section", "article", "table", "caption", "center"}  # fmt: skip
UNSEEN = {"script", "style", "head", "template", "title"}
LINKED = re.compile(r"url\(\s*['\"]?(data:image/[^'\")]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Linked:
    """A picture that an HTML file names."""

    address: str
    label: str | None = None
    caption: str | None = None


@dataclass
class Page(HTMLParser):
    """Collects texts and pictures in reading order."""

    flow: list[Picture | str] = field(default_factory=list)
    drawings: int = 0  # svg elements

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a picture, or the end of a text."""
        values = {name: value or "" for name, value in attrs}
        if tag in UNSEEN:
            self.unseen += 1
        if tag in BLOCKS:
            self.end_text()
        if tag == "svg":
            self.drawings += 1
        addresses = []
        if tag in ("img", "embed", "input"):
            addresses.append(values.get("src", "") or _largest(values.get("srcset", "")))
        elif tag == "image":  # of svg
            addresses.append(values.get("href", "") or values.get("xlink:href", ""))
        elif tag == "object" and values.get("type", "").startswith("image/"):
            addresses.append(values.get("data", ""))
        addresses += LINKED.findall(values.get("style", ""))
        for address in filter(None, (address.strip() for address in addresses)):
            self.end_text()
            self.flow.append(Picture(address))
            if sum(isinstance(item, Picture) for item in self.flow[-MAX_PICTURES - 1 :]) > MAX_PICTURES:
                raise InputError(f"it names more than {MAX_PICTURES} pictures")

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a text."""
        if tag in UNSEEN:
            self.unseen = max(self.unseen - 1, 0)
        if tag in BLOCKS:
            self.end_text()

    def handle_data(self, data: str) -> None:
        """Collect text."""
        if not self.unseen:
            self.text.append(data)

    def end_text(self) -> None:
        """A paragraph has ended."""
        text = " ".join("".join(self.text).split())
        self.text = []
        if text:
            self.flow.append(text)


def _largest(srcset: str) -> str:
    """The last address of a list of sizes, which is most often the largest."""
    items = [item.split()[0] for item in srcset.split(",") if item.split()]
    return items[-1] if items else ""


def html_pictures(path: Path) -> tuple[list[Linked], int]:
    """The pictures that an HTML file names, each address once, with their captions; and how many drawings it holds.

    Raises:
        InputError: it is too large, or names too many pictures.
    """
    if path.stat().st_size > MAX_HTML:
        raise InputError(f"it has more than {MAX_HTML >> 20} MiB")
    page = Page()
    page.feed(path.read_bytes().decode("utf-8", "replace"))
    page.close()
    page.end_text()
    found: dict[str, Linked] = {}
    for place, item in enumerate(page.flow):
        if isinstance(item, Picture) and item.member not in found:
            label, words = caption_near(page.flow, place)
            found[item.member] = Linked(item.member, label, words)
    return list(found.values()), page.drawings


def data_of(address: str) -> bytes:
    """The content of a data: address. Raises InputError where it is damaged."""
    head, comma, content = address.partition(",")
    if not comma:
        raise InputError("a data: address without data")
    if not head.rstrip().lower().endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(re.sub(r"\s", "", unquote(content)), validate=False)
    except (binascii.Error, ValueError) as fault:
        raise InputError(f"a data: address is damaged: {fault}") from None


def local_file(folder: Path, address: str) -> Path | None:
    """The file below a folder that a relative address stands for; None for any other address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.scheme or parts.netloc or not parts.path or "\0" in unquote(parts.path):
        return None
    file = os.path.normpath(os.path.join(folder, unquote(parts.path)))
    return Path(file) if Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)) else None
