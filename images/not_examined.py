"""What lies in a file and was not examined, with the reason: nobody may take it for an acquittal."""

from dataclasses import dataclass
from typing import Any

# Reasons are short and fixed, so that they can be counted.
LINE_ART = "line art"
FURNITURE = "page furniture"  # the same small image on many pages: logos, headers, icons
TEXT = "text"  # a table or a page of text that was inserted as an image
LOCKED = "locked"
FIRST_ONLY = "only the first is examined"  # of the frames of an animation
HARMLESS = frozenset({FURNITURE})  # told, but no reason to call a document not wholly examined


def unsupported(format: str, package: str | None = None) -> str:
    """The reason for a format that is not read; `package`: what has to be installed to read it."""
    return f"unsupported: {format}" + (f"; install with: pip install {package}" if package else "")


def over_limit(limit: str) -> str:
    """The reason for what exceeds a limit, named as "200 megapixels (--max-megapixels)"."""
    return f"over the limit of {limit}"


def over_max_pages(first: int, last: int, total: int, unit: str = "page") -> str:
    """The reason for what comes after the `--max-pages` first images of a file; numbers from 1."""
    numbers = f"{unit} {first}" if first == last else f"{unit}s {first} to {last}"
    return f"{numbers} of {total}: over --max-pages"


@dataclass(frozen=True)
class NotExamined:
    """Something that a file holds and that was not examined."""

    path: str  # absolute path of the file
    page: int | None  # of a document, from 1
    what: str  # what it is: "figure", "image", "page", "frame", "file"
    reason: str
    count: int = 1  # how many of them there are
    part: str | None = None  # where it lies within the file, as `ImageSource.part`

    @property
    def place(self) -> dict[str, Any]:
        """Part and page, as far as there are any."""
        place = {"part": self.part, "page": self.page}
        return {name: value for name, value in place.items() if value is not None}
