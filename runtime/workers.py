"""Worker processes: jobs go in, results come out. Nothing here knows what the jobs are.

    run_jobs            results in the order in which they are ready; a process that dies or hangs costs its job alone
    map_in_processes    results in the order of the jobs; a process that dies ends the run
    call_in_process     one call in a fresh process
    end_with_parent     for every process that must not outlive the one that started it
    Flag                an event between processes that survives the death of whoever looks at it

All processes are started afresh ("spawn"): a fork of a process that runs threads (torch, OpenCV) may hang. Jobs and
results are pickled, so what native code makes of a stranger's file should not come this way: see images/pdf.py.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")
Start = Callable[[], Callable[[Job], Result]]  # called once in each process; gives the function that does the jobs

# One thread for each process, since the processes share the cores. Libraries read these when they are imported.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


@dataclass(frozen=True)
class Lost:
    """What a job gives when its process ended, or was ended, before there was a result."""

    reason: str  # in words for the user
    late: bool = False  # whether it was ended because it took too long


class WorkerError(Exception):
    """The cause of an exception that a worker process raised: its text is the traceback over there."""


def run_jobs(
    jobs: deque[Job], start: Start, num_workers: int, timeout: float = math.inf
) -> Iterator[tuple[Job, Result | Lost]]:
    """Do jobs in worker processes; each job comes back with its result as soon as that is ready.

    `jobs` is taken from as processes become free, so the caller may add to it between two results. A process that dies
    or takes too long costs the job that it had, and another process takes its place.

    Args:
        jobs: anything that can be pickled.
        start: called once in each process, before its first job; must be picklable, as its result need not be.
        num_workers: most processes at once; 0 does everything in this process, without a limit of time.
        timeout: most seconds for one job; the time that `start` takes does not count.
    Raises:
        Whatever `start` or a job raises: it ends the run, and all processes with it.
    """
    if num_workers == 0:
        work = start()
        while jobs:
            job = jobs.popleft()
            yield job, work(job)
        return
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    team: list[_Worker] = []
    try:
        while jobs or any(worker.busy for worker in team):
            while jobs and (free := _free_worker(team, start, num_workers, timeout)):
                free.give(jobs.popleft())
            for worker in _ready(team):
                match worker.take():
                    case "done":
                        yield worker.job, worker.result
                    case "again":
                        jobs.appendleft(worker.job)
    finally:
        for worker in team:
            worker.stop()


def _free_worker(team: list["_Worker"], start: Start, most: int, timeout: float) -> "_Worker | None":
    """A worker with nothing to do, a new one while there are fewer than `most`, or None when all are busy."""
    team[:] = [worker for worker in team if worker.busy or worker.process.is_alive()]
    for worker in team:
        if not worker.busy:
            return worker
    if len(team) == most:
        return None
    team.append(_Worker(start, timeout))
    return team[-1]


def _ready(team: list["_Worker"]) -> list["_Worker"]:
    """Wait until workers have something to say, or have had too much time, and return those."""
    busy = {worker.pipe: worker for worker in team if worker.busy}
    first = min(worker.deadline for worker in busy.values())
    speaking = wait(busy, None if first == math.inf else max(0.0, first - time.monotonic()))
    return [worker for pipe, worker in busy.items() if pipe in speaking or worker.deadline <= time.monotonic()]


class _Worker:
    """One worker process and the job that it has.

    Each has a pipe of its own. Processes that share a queue share its lock, and one that is killed while it holds the
    lock leaves all the others waiting for ever.
    """

    def __init__(self, start: Start, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_work, args=(end, start, os.getpid()), daemon=True)
        self.process.start()
        end.close()
        self.timeout, self.deadline = timeout, math.inf
        self.job, self.result = None, None
        self.busy = False  # it has a job
        self.begun = False  # it has begun with it
        self.proven = False  # it has done a job before

    def give(self, job: Job) -> None:
        """Let it do a job. A process that has died meanwhile shows that at `take`."""
        self.job, self.busy, self.begun = job, True, False
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def take(self) -> str:
        """What it says: "begun"; "done", then `result` is set; or "again", when it had died before it got the job."""
        try:
            kind, value = self.pipe.recv() if self.pipe.poll() else ("late", None)
        except (EOFError, OSError):
            kind, value = "dead", None
        match kind:
            case "begun":
                self.begun, self.deadline = True, time.monotonic() + self.timeout
                return "begun"
            case "fault":
                fault, text = value
                raise fault from WorkerError(f"in a worker process:\n{text}")
            case "late":
                self.stop()
                value = Lost(f"no result after {self.timeout:g} s", late=True)
            case "dead":
                value = Lost(self._obituary())
        self.result, self.busy, self.deadline = value, False, math.inf
        if kind == "dead" and self.proven and not self.begun:  # one that dies at its start would do so for ever
            return "again"
        self.proven = True
        return "done"

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _obituary(self) -> str:
        self.process.join()
        if self.process.exitcode == -signal.SIGKILL:
            return "the process that worked on it was killed, probably because memory ran out"
        return f"the process that worked on it ended with status {self.process.exitcode}"


def _work(pipe: Connection, start: Start, parent: int) -> None:
    """What a worker process does: jobs from the pipe, until nobody is at its other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    end_with_parent(parent)
    try:
        work = start()
        while (job := _next_job(pipe)) is not None:
            pipe.send(("begun", None))
            pipe.send(("result", work(*job)))
    except Exception as fault:
        with contextlib.suppress(BrokenPipeError):  # nobody is at the other end any more
            pipe.send(("fault", (fault, traceback.format_exc())))


def _next_job(pipe: Connection) -> tuple[Job] | None:
    """The next job, or None when nobody is at the other end any more."""
    try:
        return (pipe.recv(),)
    except EOFError:
        return None


def map_in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int, bar: bool = True
) -> Iterator[Result]:
    """Results of all jobs in the order of the jobs, with a bar on a terminal; in this process for a single worker.

    Raises:
        BrokenExecutor: a process was killed.
    """
    processes = min(num_workers, len(jobs)) if num_workers > 1 and len(jobs) > 1 else 0
    numbered = run_jobs(deque(enumerate(jobs)), partial(_numbered, function), processes)
    early: dict[int, Result] = {}
    hidden = None if bar else True  # None: a bar on a terminal only
    with contextlib.closing(numbered), tqdm(total=len(jobs), leave=False, disable=hidden) as shown:
        for place in range(len(jobs)):
            while place not in early:
                (number, _), result = next(numbered)
                if isinstance(result, Lost):
                    raise BrokenExecutor(result.reason)
                early[number] = result
                shown.update()
            yield early.pop(place)


def _numbered(function: Callable[[Job], Result]) -> Callable[[tuple[int, Job]], Result]:
    return lambda numbered: function(numbered[1])


def call_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Result of one call in a fresh process, whose memory and imports are its own.

    Raises:
        BrokenExecutor: the process was killed.
    """
    ((_, result),) = run_jobs(deque([arguments]), partial(_spread, function), 1)
    if isinstance(result, Lost):
        raise BrokenExecutor(result.reason)
    return result


def _spread(function: Callable[..., Result]) -> Callable[[tuple[Any, ...]], Result]:
    return lambda arguments: function(*arguments)


def end_with_parent(parent: int) -> None:
    """End this process once the one that started it, of this process id, has ended, even by `kill -9`.

    A parent that is killed cannot end its children. They would go on writing into a folder that the next run has
    already taken over, or keep a GPU's memory.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Flag:
    """An event between processes that has no lock, with what torch's loader calls of `multiprocessing.Event`.

    To read that event a process takes its lock, and torch's loader processes read it before each batch. One that is
    killed while it holds the lock leaves the training waiting for ever.
    """

    def __init__(self) -> None:
        self._value = multiprocessing.RawValue("b", 0)

    def set(self) -> None:
        """Set the event."""
        self._value.value = 1

    def is_set(self) -> bool:
        """Whether the event is set."""
        return self._value.value == 1
