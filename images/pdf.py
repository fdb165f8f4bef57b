import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pypdfium2
from runtime.errors import InputError

LEAST_SIDE = 64  # smaller images (icons, logos, rules) are left out, pixels


GAP = 6.0  # images nearer than this are one figure, points


MOST_DPI = 600.0  # finest resolution at which a figure of several images is drawn


POINTS_PER_INCH = 72.0


PAGE_SECONDS = 8  # most processor time for one page


ALL_SECONDS = 300  # most processor time for all pages


MEMORY = 2 << 30  # most memory, bytes


MOST_FIGURES = 5000  # in one file


_STEPS = 16  # positions are taken from PDFium in sixteenths of a point


ROOT = Path(__file__).resolve().parent.parent
# Run by path, not by `-m`: a folder `images` where the user happens to be must not come first.
_GUARDED = "import sys; sys.path.insert(0, sys.argv.pop(1)); from images.pdf import answer; answer(sys.argv[1:])"

_guarded = False  # whether this process is the guarded one, whose processor time is granted page by page

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Figure:
    """One figure of a PDF."""

    page: int  # from 1
    figure: int  # on its page, from 1, from top to bottom
    box: Box  # left, top, right, bottom in points from the upper left corner of the page as it is shown


@dataclass(frozen=True)
class _Placed:
    image: "pypdfium2.PdfImage"
    box: Box
    width: int  # the image's own pixels
    height: int


def find_figures(path: Path) -> list[Figure]:
    """Figures of all pages, in reading order.

    Raises:
        InputError: the file is damaged or locked, or takes more time, memory or figures than is allowed.
    """
    return [Figure(page, figure, tuple(box)) for page, figure, box in _ask("figures", path)[0]]


def read_figure(path: Path, page: int, figure: int, max_megapixels: float = 200.0) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of one figure of `find_figures`.

    Raises:
        InputError: there is no such figure, it is larger than `max_megapixels`, or as `find_figures` does.
    """
    return _ask("pixels", path, page, figure, max_megapixels)[1]


def _ask(kind: str, path: Path, *where: Any) -> tuple[Any, np.ndarray | None]:
    """Ask this file as a program, in a process of its own: the JSON of its answer, and the pixels where it has some.

    Raises:
        InputError: there is no answer.
    """
    command = [sys.executable, "-c", _GUARDED, str(ROOT), kind, str(path), *map(str, where)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        head, pixels = process.stdout.readline(), None
        if kind == "pixels" and head:
            pixels = np.empty(json.loads(head), np.uint8)
            process.stdout.readinto(memoryview(pixels).cast("B"))
        said = process.stderr.read().decode("utf-8", "surrogateescape").strip().split("\n")[-1]
    status = process.returncode
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(
            f"cannot read {path}: a page takes longer than {PAGE_SECONDS} s, or all more than {ALL_SECONDS} s"
        )
    if status < 0:
        raise InputError(f"cannot read {path}: PDFium failed, perhaps for more than {MEMORY >> 30} GiB of memory")
    if status:
        raise InputError(said)
    return json.loads(head), pixels


def figures_of(path: Path) -> list[Figure]:
    """As `find_figures`, but in this process."""
    found: list[Figure] = []
    with _document(path) as document:
        for number in range(1, len(document) + 1):
            _grant_time()
            boxes = [_union([placed.box for placed in group]) for group in _groups(document[number - 1])]
            found += [Figure(number, k, box) for k, box in enumerate(boxes, 1)]
            if len(found) > MOST_FIGURES:
                raise InputError(f"{path} holds more than {MOST_FIGURES} figures; split it into smaller files")
    return found


def pixels_of(path: Path, page: int, figure: int, max_megapixels: float) -> np.ndarray:
    """As `read_figure`, but in this process."""
    with _document(path) as document:
        _grant_time()
        groups = _groups(document[page - 1]) if 1 <= page <= len(document) else []
        if not 1 <= figure <= len(groups):
            raise InputError(f"{path} has no figure {figure} on page {page}; was it changed during the run?")
        group = groups[figure - 1]
        if len(group) == 1:
            return _own_pixels(path, group[0], max_megapixels)
        return _drawn(document[page - 1], group, max_megapixels)


def _grant_time() -> None:
    """Processor time for one more page, where this process is the guarded one."""
    if _guarded:
        soft = min(int(time.process_time()) + PAGE_SECONDS + 1, ALL_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, ALL_SECONDS))


@contextmanager
def _document(path: Path) -> Iterator["pypdfium2.PdfDocument"]:
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as document:
            yield document
    except pypdfium2.PdfiumError as fault:
        raise InputError(f"cannot read {path}: {fault}; a locked PDF must be saved without its password") from None


def _groups(page: "pypdfium2.PdfPage") -> list[list[_Placed]]:
    """Images of a page that belong together, from top to bottom."""
    groups: list[list[_Placed]] = []
    for placed in _images(page):
        near = [group for group in groups if any(_near(placed.box, other.box) for other in group)]
        groups = [group for group in groups if group not in near] + [[placed, *(p for group in near for p in group)]]
    large = [group for group in groups if _is_large(group)]
    return sorted(large, key=lambda group: (_union([p.box for p in group])[1], _union([p.box for p in group])[0]))


def _images(page: "pypdfium2.PdfPage") -> Iterator[_Placed]:
    import pypdfium2.raw as raw

    for image in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]):
        width, height = image.get_px_size()
        box = _shown_box(page, image)
        if min(width, height) > 1 and box[2] > box[0] and box[3] > box[1]:
            yield _Placed(image, box, width, height)


def _is_large(group: list[_Placed]) -> bool:
    """Whether a figure is at least `LEAST_SIDE` pixels wide and high at its own resolution."""
    left, top, right, bottom = _union([placed.box for placed in group])
    scale = _finest(group)
    return min((right - left) * scale, (bottom - top) * scale) >= LEAST_SIDE


def _finest(group: list[_Placed]) -> float:
    """Most pixels per point among the images."""
    return max(
        max(placed.width, placed.height) / max(placed.box[2] - placed.box[0], placed.box[3] - placed.box[1])
        for placed in group
    )


def _shown_box(page: "pypdfium2.PdfPage", image: "pypdfium2.PdfImage") -> Box:
    """Where an image stands on the page as it is shown (turned and cropped), the part outside of it left out."""
    import ctypes

    import pypdfium2.raw as raw

    left, bottom, right, top = image.get_bounds()
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
    form = image.container
    while form is not None:  # an image within a form is placed in the form's coordinates
        corners = [form.get_matrix().on_point(x, y) for x, y in corners]
        form = form.container
    width, height = page.get_size()
    shown = []
    for x, y in corners:
        across, down = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(
            page, 0, 0, round(width * _STEPS), round(height * _STEPS), 0, x, y, across, down
        )  # fmt: skip
        shown.append((across.value / _STEPS, down.value / _STEPS))
    xs, ys = zip(*shown, strict=True)
    return max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), width), min(max(ys), height)


def _own_pixels(path: Path, placed: _Placed, max_megapixels: float) -> np.ndarray:
    _check_size(f"an image in {path}", placed.width, placed.height, max_megapixels)
    return _to_rgb(placed.image.get_bitmap(render=False))


def _drawn(page: "pypdfium2.PdfPage", group: list[_Placed], max_megapixels: float) -> np.ndarray:
    left, top, right, bottom = _union([placed.box for placed in group])
    area = (right - left) * (bottom - top)
    scale = min(_finest(group), MOST_DPI / POINTS_PER_INCH, (max_megapixels * 1e6 / area) ** 0.5)
    width, height = page.get_size()
    return _to_rgb(page.render(scale=scale, crop=(left, height - bottom, width - right, top)))


def _check_size(what: str, width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise InputError(
            f"{what} has {width} x {height} pixels, more than {max_megapixels:g} megapixels; raise --max-megapixels"
        )


def _to_rgb(bitmap: "pypdfium2.PdfBitmap") -> np.ndarray:
    pixels = bitmap.to_numpy()
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])  # BGR, BGRx, BGRA


def _union(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _near(a: Box, b: Box) -> bool:
    return a[0] - GAP < b[2] and b[0] - GAP < a[2] and a[1] - GAP < b[3] and b[1] - GAP < a[3]


def _answer(question: list[str]) -> None:
    """Answer one question of `_ask` on stdout: a line of JSON, and after it the pixels."""
    kind, path, *where = question
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _grant_time()
    if kind == "figures":
        print(json.dumps([astuple(figure) for figure in figures_of(Path(path))]))
        return
    pixels = pixels_of(Path(path), int(where[0]), int(where[1]), float(where[2]))
    print(json.dumps(pixels.shape), flush=True)
    sys.stdout.buffer.write(np.ascontiguousarray(pixels).data)


def answer(question: list[str]) -> None:
    """What the guarded process runs: the answer on stdout, or why there is none on stderr and a status that is not 0."""
    global _guarded
    _guarded = True
    try:
        _answer(question)
    except MemoryError:
        sys.exit(f"cannot read {question[1]}: it needs more than {MEMORY >> 30} GiB of memory")
    except InputError as refusal:
        sys.stderr.buffer.write(os.fsencode(str(refusal)))  # the path may hold bytes that are not UTF-8
        sys.exit(1)
    except Exception as fault:  # numbers that are none, sizes of zero: whatever PDFium hands on of a damaged file
        sys.exit(f"cannot read {question[1]}: {type(fault).__name__}: {' '.join(str(fault).split())}")
