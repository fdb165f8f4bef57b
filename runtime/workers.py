"""Worker processes: jobs side by side, which end with the process that started them."""

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def map_in_processes(function: Callable[[Any], Any], jobs: Sequence[Any], num_workers: int) -> Iterable[Any]:
    """Results in order, over processes, with a bar."""
    from tqdm import tqdm

    if num_workers <= 1 or len(jobs) < 2:
        yield from tqdm(map(function, jobs), total=len(jobs), leave=False, disable=not sys.stderr.isatty())
        return
    with ProcessPoolExecutor(min(num_workers, len(jobs)), initializer=follow_parent) as pool:
        yield from tqdm(pool.map(function, jobs), total=len(jobs), leave=False, disable=not sys.stderr.isatty())


def follow_parent() -> None:
    """Called in a worker process: leave Ctrl-C to the process that started it, and end when that one has ended, even
    by `kill -9`."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    def follow() -> None:
        wait([parent_process().sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()
