import contextlib
import io
import json
import os
import re
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config import ModelSettings
from images.masks import read_masks
from images.pdfium import figures_of, pixels_of
from images.read import read_image
from runtime.command_line import to_dict
from runtime.errors import InputError

SECONDS = 10.0  # longest time for one file


MEMORY = 2 << 30  # most bytes in memory while one file is read


SHAPE = (40, 56)  # rows and columns of the original images and masks


TEXTS = ("0", "1", "-1", "2", "255", "4096", "65536", "99999999", "2147483647", "4294967296", "1e300", "nan", "{}")


NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63, 2**64 - 1)


def originals(kind: str, folder: Path) -> list[bytes]:
    """Valid files of a kind, as different as its readers tell apart. `folder` is for a checkpoint's small backbone."""
    return {"png": _pngs, "jpeg": _jpegs, "tiff": _tiffs, "npy": _npys, "pdf": _pdfs}[kind]() if kind != "checkpoint" \
        else _checkpoints(folder)  # fmt: skip


def _noise(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, channels), dtype=np.uint8).squeeze()


def _saved(image: Any, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _pngs() -> list[bytes]:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    colour = Image.fromarray(_noise())
    deep = Image.fromarray(_noise(1).astype(np.uint16) * 16)
    return [
        _saved(colour, "PNG"),
        _saved(colour, "PNG", exif=exif),
        _saved(colour.convert("L"), "PNG"),
        _saved(colour.convert("1"), "PNG"),
        _saved(colour.quantize(16), "PNG", transparency=3),
        _saved(Image.fromarray(_noise(4)), "PNG"),
        _saved(deep, "PNG"),
    ]


def _jpegs() -> list[bytes]:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 8
    colour = Image.fromarray(_noise())
    return [
        _saved(colour, "JPEG"),
        _saved(colour, "JPEG", progressive=True, quality=60),
        _saved(colour, "JPEG", exif=exif, subsampling=0),
        _saved(colour.convert("L"), "JPEG", restart_marker_rows=1),
        _saved(colour.convert("CMYK"), "JPEG"),
    ]


def _tiffs() -> list[bytes]:
    import tifffile
    from PIL import Image

    colour = Image.fromarray(_noise())
    files = [
        _saved(colour, "TIFF", compression=compression)
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    files.append(_saved(colour.convert("1"), "TIFF", compression="group4"))
    for array, options in (
        (_noise(1).astype(np.uint16) * 16, {}),
        (_noise().astype(np.float32) / 255, {"photometric": "rgb"}),
        (_noise(), {"photometric": "rgb", "tile": (32, 32)}),
        (_noise(), {"photometric": "rgb", "bigtiff": True}),
        (_noise(), {"photometric": "rgb", "byteorder": ">", "rowsperstrip": 7}),
        (_noise(), {"photometric": "rgb", "extratags": [(274, "H", 1, 5, True)]}),
        (_noise(4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, **options)
        files.append(buffer.getvalue())
    return files


def _npys() -> list[bytes]:
    files = []
    for shape, dtype, version in (
        ((2, *SHAPE), np.uint8, (1, 0)),
        (SHAPE, bool, (1, 0)),
        ((1, *SHAPE), np.float64, (2, 0)),
        (SHAPE, ">i2", (3, 0)),
    ):
        buffer = io.BytesIO()
        mask = np.zeros(shape, dtype)
        mask[..., 5:20, 8:30] = 1
        np.lib.format.write_array(buffer, np.asfortranarray(mask) if version == (2, 0) else mask, version)
        files.append(buffer.getvalue())
    return files


def _pdfs() -> list[bytes]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from PIL import Image

    image_file = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    pages = [Image.fromarray(image_file), Image.fromarray(image_file[..., 0])]
    figure = Figure((3, 2))
    for k in (1, 2):
        figure.add_subplot(1, 2, k).imshow(image_file)
    with matplotlib.rc_context({"pdf.compression": 0}):
        drawn = _saved_figure(figure)
    return [_saved(pages[0], "PDF", save_all=True, append_images=pages[1:]), drawn, _placed_pdf(image_file)]


def _saved_figure(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf")
    return buffer.getvalue()


def _placed_pdf(image_file: np.ndarray) -> bytes:
    """Two images of a PDF side by side, as PDFium writes them."""
    import pypdfium2
    from PIL import Image

    document = pypdfium2.PdfDocument.new()
    page = document.new_page(400, 500)
    for x in (40, 130):
        image = pypdfium2.PdfImage.new(document)
        image.set_bitmap(pypdfium2.PdfBitmap.from_pil(Image.fromarray(image_file)))
        image.set_matrix(pypdfium2.PdfMatrix().scale(90, 80).translate(x, 300))
        page.insert_obj(image)
    page.gen_content()
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def _checkpoints(folder: Path) -> list[bytes]:
    """A head on a frozen backbone, and one whose backbone was trained too; the backbone is left in `folder`."""
    import torch

    from backbones import random_backbone
    from checkpoints import CHECKPOINT_FORMAT, model_state
    from model import ForgeryModel

    small = random_backbone(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    small.save_pretrained(folder)
    files = []
    for unfrozen in (0, 1):
        settings = ModelSettings(
            backbone=str(folder), image_size=28, head_widths=(8,), embedding_size=4, unfreeze_blocks=unfrozen
        )
        content = {
            "format": CHECKPOINT_FORMAT,
            "model": model_state(ForgeryModel(settings, small)),
            "clustering": {"min_samples": 5},
            "splits": {"a": "train", "b": "val"},
            "identity": {"settings": to_dict(settings)},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files.append(buffer.getvalue())
    return files


def mutate(kind: str, files: list[bytes], rng: np.random.Generator) -> bytes:
    """One of the files, changed in one to four places; seven in ten PNGs and checkpoints behind their checksums."""
    data = files[rng.integers(len(files))]
    if kind in INSIDE and rng.random() < 0.7:
        return INSIDE[kind](data, rng)
    return _changed(data, files, rng)


def _changed(data: bytes, files: list[bytes], rng: np.random.Generator) -> bytes:
    for _ in range(1 + rng.integers(4)):
        if data:
            data = CHANGES[rng.integers(len(CHANGES))](bytearray(data), rng, files)
    return bytes(data)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """A place in the file; every second one in the first 512 bytes, where most formats have their headers."""
    return int(rng.integers(min(len(data), 512) if rng.random() < 0.5 else len(data)))


def _flip(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    for _ in range(1 + rng.integers(8)):
        data[_place(data, rng)] ^= 1 << rng.integers(8)
    return data


def _number(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    width = (1, 2, 4, 8)[rng.integers(4)]
    value = NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * width)
    at = _place(data, rng)
    data[at : at + width] = value.to_bytes(width, ("little", "big")[rng.integers(2)])
    return data


def _text_number(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    """Another number in the place of one that is written in digits."""
    found = [match.span() for match in re.finditer(rb"\d+", data)]
    if not found:
        return _number(data, rng, files)
    start, end = found[rng.integers(len(found))]
    data[start:end] = TEXTS[rng.integers(len(TEXTS))].encode()
    return data


def _cut(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    return data[: _place(data, rng)]


def _remove(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    at = _place(data, rng)
    del data[at : at + 1 + rng.integers(64)]
    return data


def _repeat(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    at, there = _place(data, rng), _place(data, rng)
    data[there:there] = data[at : at + 1 + rng.integers(200)] * int(1 + rng.integers(20))
    return data


def _scramble(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    at, size = _place(data, rng), int(1 + rng.integers(40))
    data[at : at + size] = rng.bytes(size)
    return data


def _splice(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    other = files[rng.integers(len(files))]
    at = _place(data, rng)
    data[at:] = other[int(rng.integers(len(other))) :]
    return data


def _blank(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> bytearray:
    at, size = _place(data, rng), int(1 + rng.integers(300))
    data[at : at + size] = bytes([(0, 255)[rng.integers(2)]]) * size
    return data


CHANGES = (_flip, _number, _number, _text_number, _cut, _remove, _repeat, _scramble, _splice, _blank)


def _png_inside(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG with one chunk changed (pixels: as they are before compression), its lengths and checksums right."""
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = rng.integers(len(chunks))
    parts = [data[:8]]
    for number, (name, content) in enumerate(chunks):
        if number == chosen and name == b"IDAT":
            content = zlib.compress(_changed(zlib.decompress(content), [content], rng))
        elif number == chosen:
            content = _changed(content, [content or b"0"], rng)
        parts += [struct.pack(">I", len(content)), name, content, struct.pack(">I", zlib.crc32(name + content))]
    return b"".join(parts)


def _checkpoint_inside(data: bytes, rng: np.random.Generator) -> bytes:
    """A checkpoint whose archive is intact as such, with its pickle (or, more seldom, another member) changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in members if name.endswith("data.pkl")]
    chosen = names[0] if rng.random() < 0.8 else list(members)[rng.integers(len(members))]
    members[chosen] = _changed(members[chosen], [members[chosen]], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


INSIDE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "png": _png_inside,
    "checkpoint": _checkpoint_inside,
}


def read(kind: str, path: Path, folder: Path) -> str:
    """Read a file as the scripts do: "read", or the line that a user would get. Any other exception is a fault."""
    try:
        READERS[kind](path, folder)
    except (InputError, FileNotFoundError) as refusal:
        if "\n" in str(refusal):
            raise AssertionError(f"a message of several lines: {refusal!r}") from None
        return str(refusal)
    return "read"


def _read_image(path: Path, folder: Path) -> None:

    with contextlib.suppress(InputError):  # any image may also be a mask
        _check_masks(read_masks(path, SHAPE))
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size, pixels.shape


def _check_masks(masks: np.ndarray) -> None:
    assert masks.dtype == bool and masks.shape[1:] == SHAPE, masks.shape


def _read_mask(path: Path, folder: Path) -> None:

    _check_masks(read_masks(path, SHAPE))


def _read_pdf(path: Path, folder: Path) -> None:

    # In this process, which is guarded already.
    for figure in figures_of(path)[:3]:
        pixels = pixels_of(path, figure.page, figure.figure, 200.0)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size, pixels.shape


def _read_checkpoint(path: Path, folder: Path) -> None:
    from detector import Detector

    Detector.load(path, backbone=str(folder))


READERS: dict[str, Callable[[Path, Path], None]] = {
    "png": _read_image,
    "jpeg": _read_image,
    "tiff": _read_image,
    "npy": _read_mask,
    "pdf": _read_pdf,
    "checkpoint": _read_checkpoint,
}


SUFFIXES = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", "npy": ".npy", "pdf": ".pdf", "checkpoint": ".pt"}


_events: list[str] = []  # what Python's audit hook saw while a file was read


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.remove", "os.rename",
              "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.", "socket.connect",
              "socket.bind", "urllib.", "ftplib.", "smtplib.", "pickle.find_class", "code.__new__")  # fmt: skip


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and arguments[2] is not None and arguments[2] & _WRITING and arguments[0] != os.devnull:
        _events.append(f"open {arguments[0]!r} for writing")
    elif event.startswith(_FORBIDDEN):
        _events.append(f"{event} {arguments!r:.200}")


def start(kind: str, folder: Path, sample: Path) -> None:
    """First thing in the guarded process: load what the readers need, then the limit and the watch.

    Args:
        sample: a valid file of the kind, read once so that every library is loaded before the limit is set.
    """
    import cv2

    cv2.setNumThreads(1)
    if kind == "checkpoint":
        import torch

        torch.set_num_threads(1)
    read(kind, sample, folder)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_watch)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders tell there of every file, without naming it


def examine(kind: str, path: Path, folder: Path) -> tuple[str, float]:
    """Outcome of one file, in the guarded process ("read", "refused: ..." or "broken: ...") and the process's peak
    memory in bytes."""
    _events.clear()
    try:
        said = read(kind, path, folder)
        outcome = said if said == "read" else f"refused: {said}"
    except Exception as fault:
        import traceback

        at = traceback.extract_tb(fault.__traceback__)
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in at[:-5:-1])
        outcome = f"broken: {type(fault).__name__}: {fault} ({where})"
    if _events:
        outcome = f"broken: {'; '.join(_events[:3])}"
    return outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def campaign(kind: str, count: int, seed: int, out: Path) -> Counter:
    """Read `count` mutated files of a kind: how many were read, refused and broken, and the slowest and largest.

    What broke a reader is kept in `out/broken/`, with the reason beside it. `out/watched/` is the working, home and
    temporary folder of the process: a file that appears there counts as broken.
    """
    import multiprocessing
    from concurrent.futures import TimeoutError as TooSlow

    from pebble import ProcessExpired, ProcessPool
    from tqdm import tqdm

    folder, watched, broken = out / "backbone", out / "watched", out / "broken"
    for path in (folder, watched, broken):
        path.mkdir(parents=True, exist_ok=True)
    files = originals(kind, folder)
    sample, path = out / f"sample{SUFFIXES[kind]}", out / f"mutated{SUFFIXES[kind]}"
    sample.write_bytes(files[0])
    counts: Counter = Counter()
    rng = np.random.default_rng([seed, *kind.encode()])
    pool_of = partial(ProcessPool, 1, initializer=start, initargs=(kind, folder, sample),
                      context=multiprocessing.get_context("spawn"))  # fmt: skip
    pool, environment = pool_of(), os.environ.copy()
    try:
        os.environ |= {"HOME": str(watched), "TMPDIR": str(watched), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pool.schedule(examine, args=(kind, sample, folder)).result()  # it starts here
        before = set(watched.rglob("*"))
        for number in tqdm(range(count), desc=kind, unit="file", disable=not sys.stderr.isatty()):
            path.write_bytes(mutate(kind, files, rng))
            begun = time.perf_counter()
            try:
                outcome, peak = pool.schedule(examine, args=(kind, path, folder), timeout=SECONDS).result()
            except TooSlow:
                outcome, peak = f"broken: longer than {SECONDS:g} s", 0.0
            except ProcessExpired as death:
                outcome, peak = f"broken: the process died with status {death.exitcode}", 0.0
            if peak > MEMORY:
                outcome = f"broken: {peak / 2**30:.1f} GiB of memory"
            counts["slowest ms"] = max(counts["slowest ms"], round(1000 * (time.perf_counter() - begun)))
            counts["peak MiB"] = max(counts["peak MiB"], round(peak / 2**20))
            word = outcome.partition(":")[0]
            counts[word] += 1
            if word == "broken":
                _keep(broken / f"{kind}-{seed}-{number}{SUFFIXES[kind]}", path, outcome)
    finally:
        os.environ.clear()
        os.environ.update(environment)
        pool.stop()
        pool.join()
    written = set(watched.rglob("*")) - before
    for stray in sorted(written):
        counts["broken"] += 1
        print(f"written by a reader: {stray}")
    return counts


def _keep(place: Path, path: Path, outcome: str) -> None:
    place.write_bytes(path.read_bytes())
    place.with_suffix(".txt").write_text(outcome + "\n")


def reasons(out: Path) -> Iterator[tuple[str, int, str]]:
    """What broke, how often, and a file that shows it, the most frequent first; numbers in the reasons are left out."""
    texts = {file: file.read_text().strip() for file in sorted((out / "broken").glob("*.txt"))}
    plain = {file: re.sub(r"\d+|/\S+", "#", text) for file, text in texts.items()}
    for reason, count in Counter(plain.values()).most_common():
        example = next(file for file in texts if plain[file] == reason)
        yield texts[example], count, example.stem


def summary(kind: str, counts: Counter) -> str:
    """A campaign in one line."""
    return json.dumps({"kind": kind, **dict(sorted(counts.items()))})
