"""Readers of files from strangers, each in a process of its own with limits on time and memory.

The process reads one file and stays for further questions about it, since its start takes longer than most answers.
It ends when another file is asked for, when an answer fails, and with the process that asks.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
# The project's folder comes first on the path: with `-m`, a folder `images` in the user's working directory would.
PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from images.guarded import serve; serve(*sys.argv[1:])"

FOLDER = "READER_FOLDER"  # environment: where the process may put files; made and removed by it
# `answer(path, question, grant_time)` of a reader's module: JSON values, or pixels (H, W, 3) uint8.
Answer = Callable[[Path, list[Any], Callable[[], None]], Any]


@dataclass(frozen=True)
class Limits:
    """What a process that reads a file may use."""

    step_seconds: int = 12  # processor time for one step, such as a page
    total_seconds: int = 300  # processor time for all steps
    memory: int = 2 << 30  # bytes


class _Process:
    """A process that answers questions about one file."""

    def __init__(self, key: tuple, module: str, path: Path, limits: Limits) -> None:
        self.key = key
        command = [sys.executable, "-c", PROGRAM, str(ROOT), module, json.dumps(asdict(limits)), str(path)]
        self.folder = os.path.join(tempfile.gettempdir(), f"reader-{uuid.uuid4().hex}")
        # Each thread of OpenBLAS would reserve some of the memory.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", FOLDER: self.folder}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environment)

    def ask(self, question: list[Any]) -> Any | None:
        """The answer, or None if the process died."""
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(question).encode() + b"\n")
            self.popen.stdin.flush()
        head = self.popen.stdout.readline()
        if not head.endswith(b"\n"):
            return None
        answer = json.loads(head)
        if answer["shape"] is None:
            return answer
        pixels = np.empty(answer["shape"], np.uint8)
        size = self.popen.stdout.readinto(memoryview(pixels).cast("B"))
        return {"error": None, "value": pixels} if size == pixels.size else None

    def end(self) -> int:
        """End the process, and return its status."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        status = self.popen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)  # what a killed process left there
        return status


_lock = threading.Lock()
_kept: list[_Process] = []  # at most one


def ask(module: str, path: Path, question: list[Any], limits: Limits, step: str = "a page") -> Any:
    """The answer of a module's `answer` to a question about a file.

    Args:
        step: what `limits.step_seconds` are for, in words.
    Raises:
        InputError: the answer is a refusal, or there is none: a limit was reached, or a library crashed.
    """
    try:
        status = os.stat(path)
    except OSError as fault:
        raise InputError(f"cannot read {path}: {fault.strerror}") from None
    key = (module, str(path), status.st_mtime_ns, status.st_size, limits, sys.executable, os.getpid())
    with _lock:
        if _kept and _kept[0].key != key:
            _kept.pop().end()
        if not _kept:
            _kept.append(_Process(key, module, path, limits))
        try:
            answer = _kept[0].ask(question)
        except BaseException:  # interrupted: the rest of the answer would be taken for the next one
            process = _kept.pop()
            process.popen.kill()
            process.end()
            raise
        if answer is not None and answer["error"] is None:
            return answer["value"]
        ended = _kept.pop().end()
    if answer is not None:
        raise InputError(answer["error"])
    if ended in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(
            f"cannot read {path}: {step} takes longer than {limits.step_seconds} s, or all of it more than "
            f"{limits.total_seconds} s"
        )
    raise InputError(
        f"cannot read {path}: its reader failed, perhaps for more than {limits.memory >> 30} GiB of memory"
    )


def serve(module: str, limits: str, path: str) -> None:
    """In the process: answer questions until there are no more. The first refusal is the last answer."""
    from importlib import import_module  # what it imports is loaded before the limits hold

    answer: Answer = import_module(module).answer
    allowed, out = Limits(**json.loads(limits)), sys.stdout.buffer

    def grant_time() -> None:
        """Allow the processor time of one more step."""
        soft = min(int(time.process_time()) + allowed.step_seconds + 1, allowed.total_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, allowed.total_seconds))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (allowed.memory, allowed.memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the process that asks decides
    for line in sys.stdin.buffer:
        grant_time()
        value = error = None
        try:
            value = answer(Path(path), json.loads(line), grant_time)
        except MemoryError:
            error = f"cannot read {path}: it needs more than {allowed.memory >> 30} GiB of memory"
        except InputError as refusal:
            error = str(refusal)
        except Exception as fault:  # what a library passes on of a damaged file may be anything, such as a size of zero
            error = f"cannot read {path}: {type(fault).__name__}: {' '.join(str(fault).split())}"
        pixels = isinstance(value, np.ndarray)
        head = {"error": error, "shape": list(value.shape) if pixels else None}
        out.write(json.dumps(head | {"value": None if pixels else value}).encode() + b"\n")
        if pixels:
            out.write(np.ascontiguousarray(value).data)
        out.flush()
        if error:
            return
