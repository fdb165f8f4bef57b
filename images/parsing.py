"""Whatever a library or the system says about a file becomes an `InputError` of one line that names the file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import UnidentifiedImageError

from runtime.errors import InputError


@contextlib.contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn every exception that the block raises while it reads `path` into an `InputError`.

    All kinds of exceptions are expected: of files from strangers, parsers compute indices out of range, numbers that
    are not finite, nesting that is too deep, and sizes that no memory holds.
    """
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"cannot read {path}: it is not an image of a known format, or its header is damaged"
        ) from None
    except MemoryError:
        raise InputError(f"cannot read {path}: there is not enough memory for what it claims to hold") from None
    except Exception as fault:
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else " ".join(str(fault).split())
        raise InputError(f"cannot read {path}: {reason or type(fault).__name__}") from None


def unreadable(path: Path, fault: OSError) -> InputError:
    """The error to raise when the system cannot read a file."""
    return InputError(f"cannot read {path}: {fault.strerror or fault}")


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises InputError where the system cannot read it."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise unreadable(path, fault) from None
