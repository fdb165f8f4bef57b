"""Members of zip archives, which Office documents are, too: found and unpacked within limits."""

import contextlib
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from images.guarded import FOLDER
from images.not_examined import LOCKED, over_limit
from runtime.errors import InputError

MAX_MEMBERS = 20_000
MAX_MEMBER = 1 << 30  # bytes of one unpacked member
MAX_RATIO = 200  # unpacked bytes for each packed one; images and XML seldom reach 50
FREE = 16 << 20  # unpacked bytes that any member may have
MAX_XML = 64 << 20  # bytes of a part of an Office document
MAX_DEPTH = 3  # archives and documents within each other
BLOCK = 1 << 20


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; what fails while it is open is told in one line.

    Raises:
        InputError: it is damaged, holds too many members, or a member exceeds a limit.
    """
    try:
        with _opened(path) as archive:
            if len(archive.infolist()) > MAX_MEMBERS:
                raise InputError(f"{path} holds more than {MAX_MEMBERS} files; unpack it and give the folder")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as fault:
        if isinstance(fault, InputError):
            raise
        raise InputError(
            f"cannot read {path}: it is damaged, or no zip archive: {' '.join(str(fault).split())}"
        ) from None


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as fault:
        raise zipfile.BadZipFile(str(fault)) from None


def refusal(member: zipfile.ZipInfo) -> str | None:
    """Why a member is not unpacked, by what the archive says of it; None where it is."""
    if member.flag_bits & 1:
        return LOCKED
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    if member.file_size > MAX_MEMBER:
        return over_limit(f"{MAX_MEMBER >> 30} GiB for an unpacked file")
    if member.file_size > max(FREE, MAX_RATIO * member.compress_size):
        return over_limit(f"{MAX_RATIO} unpacked bytes for a packed one")
    return None


def unpack(archive: zipfile.ZipFile, name: str, most: int = MAX_MEMBER) -> bytes:
    """The content of a member, which may not be larger than the archive says.

    Raises:
        InputError: there is no such member, or it exceeds a limit.
    """
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise InputError(f"the archive holds no {name}") from None
    if (reason := refusal(member)) is not None:
        raise InputError(f"{name} is not unpacked: {reason}")
    if member.file_size > most:
        raise InputError(f"{name} has {member.file_size} bytes; at most {most} are read")
    try:
        with archive.open(member) as file:
            return file.read(member.file_size + 1)[: member.file_size]
    except OSError as fault:  # an offset before the file
        raise InputError(f"{name} is damaged: {fault}") from None


@contextmanager
def as_file(content: bytes, suffix: str | None = None) -> Iterator[Path]:
    """A file with this content: in memory, or on the disk with an ending where that is given."""
    if suffix is not None:
        place = os.environ.get(FOLDER, os.path.join(tempfile.gettempdir(), f"reader-{os.getpid()}"))
        os.makedirs(place, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="member-", dir=place) as folder:
            path = Path(folder, f"file{suffix}")
            path.write_bytes(content)
            yield path
        with contextlib.suppress(OSError):  # another file is there
            os.rmdir(place)
        return
    descriptor = os.memfd_create("member")
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left[:BLOCK]) :]
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def read_xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """A part of an Office document.

    Raises:
        InputError: it is missing, damaged, or declares entities, which such parts never need and bombs are made of.
    """
    content = unpack(archive, name, MAX_XML)
    if b"<!ENTITY" in content or b"<!DOCTYPE" in content[:4096]:
        raise InputError(f"{name} declares entities")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as fault:
        raise InputError(f"{name} is damaged: {fault}") from None
