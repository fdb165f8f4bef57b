"""Mutated files: valid ones changed at random, as fuzzers do, also behind the checksums of their format."""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

Change = Callable[[bytearray, np.random.Generator, Sequence[bytes]], bytearray]

# Numbers at which readers fail: around powers of two, and what parsers accept as a number.
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63, 2**64 - 1)
TEXTS = ("0", "1", "-1", "2", "255", "4096", "65536", "99999999", "2147483647", "4294967296", "1e300", "nan", "{}")
INSIDE_SHARE = 0.7  # share of PNGs and checkpoints that are changed behind their checksums
HEADER = 512  # bytes in which most formats have their header; every second change lies there


def mutate(kind: str, files: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One of the files of a format, changed in one to four places."""
    data = files[rng.integers(len(files))]
    if kind in INSIDE and rng.random() < INSIDE_SHARE:
        return INSIDE[kind](data, rng)
    return _change(data, files, rng)


def _change(data: bytes, files: Sequence[bytes], rng: np.random.Generator) -> bytes:
    for _ in range(1 + rng.integers(4)):
        if data:
            data = CHANGES[rng.integers(len(CHANGES))](bytearray(data), rng, files)
    return bytes(data)


def _position(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(min(len(data), HEADER) if rng.random() < 0.5 else len(data)))


def _flip_bits(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    for _ in range(1 + rng.integers(8)):
        data[_position(data, rng)] ^= 1 << rng.integers(8)
    return data


def _replace_number(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    width = (1, 2, 4, 8)[rng.integers(4)]
    value = NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * width)
    at = _position(data, rng)
    data[at : at + width] = value.to_bytes(width, ("little", "big")[rng.integers(2)])
    return data


def _replace_digits(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    """Another number in place of one that is written in digits."""
    found = [match.span() for match in re.finditer(rb"\d+", data)]
    if not found:
        return _replace_number(data, rng, files)
    start, end = found[rng.integers(len(found))]
    data[start:end] = TEXTS[rng.integers(len(TEXTS))].encode()
    return data


def _cut_off(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    return data[: _position(data, rng)]


def _remove(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    at = _position(data, rng)
    del data[at : at + 1 + rng.integers(64)]
    return data


def _repeat(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    at, to = _position(data, rng), _position(data, rng)
    data[to:to] = data[at : at + 1 + rng.integers(200)] * int(1 + rng.integers(20))
    return data


def _scramble(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    at, size = _position(data, rng), int(1 + rng.integers(40))
    data[at : at + size] = rng.bytes(size)
    return data


def _splice(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    """The end of another file."""
    other = files[rng.integers(len(files))]
    at = _position(data, rng)
    data[at:] = other[int(rng.integers(len(other))) :]
    return data


def _blank(data: bytearray, rng: np.random.Generator, files: Sequence[bytes]) -> bytearray:
    at, size = _position(data, rng), int(1 + rng.integers(300))
    data[at : at + size] = bytes([(0, 255)[rng.integers(2)]]) * size
    return data


# Numbers twice: they are what sizes and offsets are made of.
CHANGES: tuple[Change, ...] = (
    _flip_bits, _replace_number, _replace_number, _replace_digits, _cut_off, _remove, _repeat, _scramble, _splice,
    _blank,
)  # fmt: skip


def _change_png(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG with one chunk changed (pixels: before they are compressed) and with correct lengths and checksums."""
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = rng.integers(len(chunks))
    parts = [data[:8]]
    for number, (name, content) in enumerate(chunks):
        if number == chosen and name == b"IDAT":
            content = zlib.compress(_change(zlib.decompress(content), [content], rng))
        elif number == chosen:
            content = _change(content, [content or b"0"], rng)
        parts += [struct.pack(">I", len(content)), name, content, struct.pack(">I", zlib.crc32(name + content))]
    return b"".join(parts)


def _change_checkpoint(data: bytes, rng: np.random.Generator) -> bytes:
    """A checkpoint whose pickle, or less often another member of its archive, is changed; the archive is valid."""
    return _change_archive(data, rng, lambda name: name.endswith("data.pkl"))


def _change_document(data: bytes, rng: np.random.Generator) -> bytes:
    """An Office document or archive one of whose members, most often one of XML, is changed; the archive is valid."""
    return _change_archive(data, rng, lambda name: name.endswith((".xml", ".rels", ".docx")))


def _change_archive(data: bytes, rng: np.random.Generator, is_favourite: Callable[[str], bool]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in members if is_favourite(name)] if rng.random() < 0.8 else list(members)
    chosen = names[rng.integers(len(names))]
    members[chosen] = _change(members[chosen], [members[chosen]], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


INSIDE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "png": _change_png,
    "checkpoint": _change_checkpoint,
    **dict.fromkeys(("docx", "pptx", "odt", "zip"), _change_document),
}
