"""Records in a file of JSON lines that survives whatever ends the run.

A line is written and flushed for each record as soon as there is one. Each rank of a job appends to a file of its own,
so that no two processes write to the same one; `merge` makes one sorted file of them in the end.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.files import atomic_write

Record = dict[str, Any]
Key = tuple[Any, ...]


class RecordStore:
    """The records of one run: `NAME.jsonl`, and while a job of several ranks runs also `NAME.rank1.jsonl`, ..."""

    def __init__(self, path: Path, key: Callable[[Record], Key]) -> None:
        """`path` is the file of the first rank, and in the end that of all.

        `key(record)` tells records apart and gives their order; a KeyError or TypeError says that it is no record.
        """
        self.path, self.key = path, key

    @property
    def parts(self) -> list[Path]:
        """The files that exist, the first rank's at the front."""
        further = sorted(self.path.parent.glob(f"{self.path.stem}.rank*{self.path.suffix}"))
        return [path for path in (self.path, *further) if path.exists()]

    @property
    def empty(self) -> bool:
        """Whether nothing has been written yet."""
        return not any(path.stat().st_size for path in self.parts)

    @property
    def older_than_boot(self) -> bool:
        """Whether the last line was written before this machine was started.

        Then files that belong to the last records may be empty: whoever writes many small ones does not wait until
        each of them is on the disk.
        """
        started = time.time() - time.monotonic()
        return any(path.stat().st_mtime < started for path in self.parts)

    @contextlib.contextmanager
    def appending(self, rank: int = 0) -> Iterator[Callable[[Record], None]]:
        """A function that appends a record to the file of this rank."""
        own = self.path.with_name(f"{self.path.stem}.rank{rank}{self.path.suffix}") if rank else self.path
        with open(own, "a", encoding="ascii") as file:

            def append(record: Record) -> None:
                file.write(json.dumps(record) + "\n")
                file.flush()

            yield append

    def __iter__(self) -> Iterator[Record]:
        """Records of all files. Raises InputError where a line is damaged."""
        for path in self.parts:
            for _, record, _ in self._read(path):
                yield record

    def mend(self) -> None:
        """Cut off the lines that a killed run left unfinished, so that their records are made again."""
        for path in self.parts:
            drop_torn_line(path)

    def merge(self) -> None:
        """Make one file of all, every key once, sorted by the keys. It appears whole, then the others are removed.

        In memory are only the keys and where their lines start: some 250 MB for a million records.
        """
        parts = self.parts
        places = [(key, number, start) for number, path in enumerate(parts) for key, _, start in self._read(path)]
        if parts == [self.path] and all(a[0] < b[0] for a, b in pairwise(places)):
            return
        places.sort()

        def write(temporary: Path) -> None:
            with contextlib.ExitStack() as stack, open(temporary, "wb") as file:
                files = [stack.enter_context(open(path, "rb")) for path in parts]
                before = None
                for key, number, start in places:
                    if key != before:
                        files[number].seek(start)
                        file.write(files[number].readline())
                    before = key

        atomic_write(self.path, write)
        for path in parts:
            if path != self.path:
                path.unlink()

    def _read(self, path: Path) -> Iterator[tuple[Key, Record, int]]:
        """Records of one file, each with its key and the place where its line starts."""
        start = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line.decode())
                    key = self.key(record)
                except (ValueError, TypeError, KeyError):
                    raise InputError(
                        f"line {number} of {path} is damaged; delete that line, and --resume makes it again"
                    ) from None
                yield key, record, start
                start += len(line)


def in_order(text: str) -> str:
    """A text as part of a key: numbers in it are ordered by their value, "page 2" before "page 10"."""
    return re.sub(r"\d+", lambda digits: digits.group().zfill(12), text)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that has no end."""
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                file.truncate(start + cut + 1)
                return
            end = start
        file.truncate(0)
