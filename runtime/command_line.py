"""Settings dataclasses as a command line and as JSON; exit statuses of the scripts."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Collection
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from runtime.errors import InputError, one_line
from runtime.ranks import read_ranks

T = TypeVar("T")


def parse(cls: type[T], argv: list[str] | None = None, description: str | None = None) -> T:
    """Settings of class `cls` from the command line. An unknown name or a bad value is an `InputError`."""
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                cls,
                args=argv,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # tyro draws a box of several lines; a user's mistake is one line here.
        lines = [line.strip("╭╮╰╯│─ ") for line in captured.getvalue().splitlines()]
        raise InputError(" ".join(line for line in lines[1:] if line)) from None


def parse_or_exit(cls: type[T]) -> T:
    """Settings of a script from its command line; `--help` and mistakes end the process here.

    A script calls this above its imports of numpy, cv2 and torch, which take seconds, so that both answer at once:

        if __name__ == "__main__":
            SETTINGS = parse_or_exit(TrainSettings)
    """
    parsed: list[T] = []
    doc = sys.modules["__main__"].__doc__ or ""
    status = _status_of(lambda: parsed.append(parse(cls, description=_keep_tables(doc))))
    if not parsed:
        sys.exit(status)
    return parsed[0]


def run(main: Callable[[T], int | None], settings: T) -> typing.NoReturn:
    """Call a script's `main` and end the process with the exit status that it returns (None: 0).

    A user's mistake (`InputError`, a missing file) and what the machine lacks (a full disk, a process that was killed
    because memory ran out) is one line on stderr and status 2. Any other exception is a fault of the program and keeps
    its traceback.
    """
    status = _status_of(lambda: main(settings))
    if read_ranks().world > 1:
        # gloo's threads may still hold tensors. Released while the interpreter ends, they abort the rank (pytorch
        # #179291): so it ends without cleaning up.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _status_of(call: Callable[[], int | None]) -> int:
    name = Path(sys.argv[0]).name
    try:
        return call() or 0
    except BrokenPipeError:  # whoever read our output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FileExistsError, NotADirectoryError) as mistake:
        text = f"no folder can be at {mistake.filename or mistake}: there, or above it, is a file; give another path"
    except (InputError, FileNotFoundError, PermissionError) as mistake:
        text = str(mistake)
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        text = f"{fault.strerror}; free some space, then start again, with --resume where the script has it"
    except RuntimeError as fault:
        # torch reports a killed loader process by a plain RuntimeError, wherever the main process happens to be.
        if not isinstance(fault, BrokenExecutor) and not str(fault).startswith("DataLoader worker (pid"):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again, where nobody catches it
        text = (
            "a process that worked for this one was killed, probably because memory ran out; start again with fewer "
            "--num-workers, and with --resume where the script has it"
        )
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    print(f"{name}: error: {one_line(text)}", file=sys.stderr)
    return 2


def _keep_tables(doc: str) -> str:
    """A script's docstring, changed so that tyro, which fills paragraphs, keeps tables of commands line by line."""
    paragraphs = []
    for paragraph in doc.strip().split("\n\n"):
        table = any(line.startswith("    ") or "  " in line for line in paragraph.splitlines())
        joined = re.sub(r"\n {8,}", " ", paragraph) if table else paragraph  # the second line of a command
        paragraphs.append(joined.replace("\n", "\n\n") if table else joined)
    return "\n\n".join(paragraphs)


def to_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON types (paths as text)."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


# Settings that had another name when a checkpoint or a settings.json may have been written.
RENAMED = {
    "accumulation": "gradient_accumulation_steps",
    "balance": "class_balanced",
    "clip_norm": "max_grad_norm",
    "keep_features": "cache_features",
    "match_ratio": "ratio_test",
    "max_false_alarms": "target_fpr",
    "max_verified": "max_candidates",
    "picture_seconds": "image_timeout",
    "seconds_per_image": "search_budget",
    "validation_pictures": "validation_images",
    "ways": "modes",
    "workers": "num_workers",
}
RENAMED_VALUES = {("preset", "method"): "mlp"}


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Inverse of `to_dict`; an unknown name is an `InputError`, a missing one takes its default.

    Names that a setting had in an earlier version are understood.
    """
    hints = typing.get_type_hints(cls)
    values = {name if name in hints else RENAMED.get(name, name): value for name, value in values.items()}
    values = {
        name: RENAMED_VALUES.get((name, value), value) if isinstance(value, str) else value
        for name, value in values.items()
    }
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"unknown settings {', '.join(unknown)} for {cls.__name__}; known: {', '.join(hints)}")
    return cls(**{name: _convert(hints[name], value, name) for name, value in values.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, name)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return tuple(_convert(arguments[0], item, name) for item in value)  # every tuple here is `tuple[T, ...]`
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} is {value!r}; it must be of type {hint.__name__}")
    return value


def changed_settings(before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """What differs between the saved settings of a run and those that it should go on with: `--name was 1, is 2`.

    Args:
        before, now: as `to_dict` gives them.
        free: names of settings that may differ.
    """
    before, now = _flatten(before), _flatten(now)
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    return [
        f"--{name.replace('_', '-')} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if name not in free
    ]


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of all groups by their names alone, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value) if isinstance(value, dict) else {name: value}
    return flat
