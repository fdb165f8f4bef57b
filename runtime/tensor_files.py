"""Files of tensors: written whole or not at all, and read without running the code that a stranger may have put in."""

import errno
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError
from runtime.files import atomic_write


def save_tensors(path: Path, content: Any) -> None:
    """Write tensors and plain values whole or not at all. A full disk raises OSError and leaves the old file."""

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as fault:
            # torch's zip writer reports a failed write (a full disk) as a RuntimeError about file positions.
            cause = fault.__context__ if isinstance(fault.__context__, OSError) else None
            raise OSError(cause.errno if cause else errno.ENOSPC, f"cannot write {path}: {cause or fault}") from fault

    atomic_write(path, write)


def load_tensors(path: Path) -> Any:
    """Read what `save_tensors` or `torch.save` wrote, onto the CPU.

    Raises:
        InputError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # A small compressed file may unpack to more than the memory holds.
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise InputError(f"{path} holds compressed parts, which torch never writes; it is not unpacked")
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than weights and plain values, or is damaged; it is not loaded, for it could run code"
        ) from None
    except Exception as fault:  # a damaged pickle also ends in IndexError, TypeError, AssertionError, struct.error
        raise InputError(
            f"{path} is truncated or not a checkpoint ({str(fault).partition(chr(10))[0] or type(fault).__name__})"
        ) from None
