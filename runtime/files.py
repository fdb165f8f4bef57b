"""Files that appear whole or not at all, locks on folders, JSON."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtime.errors import InputError


def atomic_write(path: Path, write: Callable[[Path], Any], lasting: bool = True) -> None:
    """Make a file appear whole or not at all: `write` fills a temporary name, which is then renamed to `path`.

    `lasting`: the content is on the disk before the name is, so that a power cut leaves no empty file; it takes some
    10 ms. Without, it is for what can be told to be damaged and made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if lasting:
            flush_to_disk(temporary)
        os.replace(temporary, path)
        if lasting:
            flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno != errno.EINVAL:  # some network file systems know no such thing for a folder
            raise
    finally:
        os.close(handle)


_held: set[int] = set()  # open folders in which this process runs


def _leave() -> None:
    """A forked process (torch's loaders) has no share in the locks: it may outlive the run by some seconds."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave)


@contextlib.contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Let no other run work in the folder `out`, which is made where it is missing, before the block has ended.

    The lock is the kernel's, on the folder itself: it leaves no file, and ends with the process, however that ends.

    Raises:
        InputError: another run is at work there, or `out` is no folder.
    """
    import fcntl

    made = not out.exists()
    if not made and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is at work in {out}; wait for its end, or give another --out") from None
        except OSError as fault:
            if fault.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            print(f"{out} cannot be locked there ({fault.strerror}): start no other run in it", file=sys.stderr)
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()  # where the run was refused; a folder that holds something stays


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """Read JSON; what is not JSON is an `InputError`."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise InputError(f"{path} is not a JSON file ({fault})") from None
