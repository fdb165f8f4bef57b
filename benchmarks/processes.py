"""The project's scripts as processes that can be watched and killed (Linux)."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GONE = (FileNotFoundError, ProcessLookupError)  # raised by reading /proc of a process that has just ended


class ScriptProcess(subprocess.Popen):
    """One of the project's scripts in a process group of its own; under torchrun with more than one rank.

    Its output goes to a file: a pipe that nobody reads fills up with progress bars, and the script would wait for ever.
    """

    def __init__(self, *arguments: object, ranks: int = 1, env: dict[str, str] | None = None, **options: Any) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "--max-restarts=3"]
        command = [sys.executable, *(launcher if ranks > 1 else []), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (env or {})
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `finish` closes it
        super().__init__(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=self.output, stderr=subprocess.STDOUT,
            **options,
        )  # fmt: skip

    def finish(self) -> tuple[int, str]:
        """Wait for the end: exit status, and what was printed."""
        status = self.wait()
        with self.output as output:
            output.seek(0)
            return status, output.read()

    def kill_all(self) -> None:
        """End the process and all of its descendants as `kill -9` does, also ranks, which have their own sessions."""
        if self.poll() is None:
            for pid in [*descendants(self.pid), self.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.finish()


def run_script(*arguments: object, **options: Any) -> tuple[int, str]:
    """Run a script to its end: exit status, and what was printed. Options as for `ScriptProcess`."""
    return ScriptProcess(*arguments, **options).finish()


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(*GONE):
            children.setdefault(int(_stat_fields(int(stat.parent.name))[1]), []).append(int(stat.parent.name))
    found, pending = [], [pid]
    while pending:
        started = children.get(pending.pop(), [])
        found += started
        pending += started
    return found


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and whose status nobody has asked for yet does not."""
    try:
        return _stat_fields(pid)[0] not in "ZX"
    except GONE:
        return False


def worker_processes(pid: int) -> list[int]:
    """The descendants of a process that Python's multiprocessing has spawned."""
    found = []
    for member in descendants(pid):
        with suppress(*GONE):
            if b"spawn_main" in Path(f"/proc/{member}/cmdline").read_bytes():
                found.append(member)
    return found


def rank_of(pid: int) -> str:
    """RANK in the environment of a process, as torchrun sets it; empty where it is not set."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (*GONE, PermissionError):
        return ""
    return next((v[5:].decode() for v in variables if v.startswith(b"RANK=")), "")


def resident_memory(pid: int) -> float:
    """Resident memory of a process and its descendants in MiB; a shared page counts once for each of them."""
    pages = 0
    for member in [pid, *descendants(pid)]:
        with suppress(*GONE):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its descendants in seconds, including descendants that have ended."""
    ticks = 0
    for member in [pid, *descendants(pid)]:
        with suppress(*GONE):
            ticks += sum(map(int, _stat_fields(member)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before them may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 300.0) -> bool:
    """Whether the condition came true while the process was running."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def wait_for_growth(path: Path, process: subprocess.Popen) -> bool:
    """Whether a file, which need not exist yet, grew while the process was running."""
    size = path.stat().st_size if path.exists() else 0
    return wait_until(lambda: path.exists() and path.stat().st_size > size, process)
