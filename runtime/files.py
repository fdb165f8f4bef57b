"""Files that appear whole or not at all, locks that end with their process, JSON."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtime.errors import InputError


def atomic_write(path: Path, write: Callable[[Path], Any], lasting: bool = True) -> None:
    """Make a file appear whole or not at all: `write` fills a file of another name, which is then renamed to `path`.

    Args:
        write: gets the path of the temporary file, in the same folder.
        lasting: wait until the content is on the disk before the name is, some 10 ms, so that a power cut leaves no
            empty file. Without it a file may be empty after a power cut: only for what is noticed and made again.
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
        if fault.errno != errno.EINVAL:  # some network file systems cannot do it for a folder
            raise
    finally:
        os.close(handle)


_held: set[int] = set()  # handles of the files and folders that this process has locked


def _close_inherited_locks() -> None:
    """In a forked process: give up its share in the locks.

    torch's loader processes outlive a killed training by some seconds. With their share in its lock, the training could
    not be resumed until then.
    """
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited_locks)


@functools.cache  # once for each path: a cache locks its folder for every image that it stores
def _report_unlocked(path: Path, reason: str) -> None:
    print(f"{path} cannot be locked there ({reason}): start no other run in it", file=sys.stderr)


@contextlib.contextmanager
def kernel_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the kernel's lock on a file (which is made where it is missing) or a folder: one process at a time.

    A lock file of our own would survive `kill -9`, and what it locks would stay locked. The kernel's lock ends with
    the process, however that ends.

    Args:
        wait: wait until the other process is done.
    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as fault:
            if fault.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            _report_unlocked(path, fault.strerror)
        yield
    finally:
        if handle in _held:  # not in a forked process
            _held.remove(handle)
            os.close(handle)


@contextlib.contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Let no other run work in the folder `out`, which is made where it is missing, before the block has ended.

    Two runs in one folder would write into the same files, and each would remove the other's temporary ones as those
    of a run that was killed.

    Raises:
        InputError: another run is at work there, or `out` is no folder.
    """
    made = not out.exists()
    if not made and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(kernel_lock(out, wait=False))
            except BlockingIOError:
                raise InputError(f"another run is at work in {out}; wait for its end, or give another --out") from None
            yield
    finally:
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
