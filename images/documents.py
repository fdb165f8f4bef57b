"""Archives, Office documents and HTML files: what they hold, asked from a guarded process (members.py)."""

from pathlib import Path
from typing import Any

import numpy as np

from images.depth import Intensity
from images.guarded import Limits, ask

OFFICE_SUFFIXES = frozenset((".docx", ".docm", ".pptx", ".pptm", ".ppsx", ".odt", ".odp"))
HTML_SUFFIXES = frozenset((".html", ".htm", ".xhtml"))
DOCUMENT_SUFFIXES = OFFICE_SUFFIXES | HTML_SUFFIXES | {".zip"}
LIMITS = Limits(step_seconds=20)
READER = "images.members"
STEP = "a file in it"


def document_contents(path: Path, max_pages: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images of a document, each as the fields of an `ImageSource` without its path; and what is not examined, each as
    the fields of a `NotExamined` without its path.

    Raises:
        InputError: the file is damaged or locked, or takes more time or memory than is allowed.
    """
    found = ask(READER, path, ["contents", max_pages], LIMITS, STEP)
    return found["images"], found["omissions"]


def document_pixels(path: Path, way: dict[str, Any], max_megapixels: float) -> tuple[np.ndarray, Intensity | None]:
    """Pixels (H, W, 3) uint8 RGB of an image of a document; `way` as in its fields.

    And how its values became 8 bit, where they had more.

    Raises:
        InputError: it cannot be read, is larger than `max_megapixels`, or as `document_contents` does.
    """
    image = ask(READER, path, ["pixels", way, max_megapixels], LIMITS, STEP)
    intensity = ask(READER, path, ["intensity", way], LIMITS, STEP)
    return image, None if intensity is None else Intensity(**intensity)
