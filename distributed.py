"""Ranks, seeds and gathering: the same script runs plain, under torchrun, on CPUs and on GPUs.

torch is imported by the functions that need it, so that a script without a model can still share its work.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the job."""

    rank: int = 0  # of this process, 0 to world - 1
    world: int = 1  # processes in the job
    local_rank: int = 0  # of this process on its machine: its GPU
    restarts: int = 0  # times torchrun has started the job again

    @property
    def main(self) -> bool:
        """Whether this process writes the files and shows the bars."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's items: every item belongs to exactly one rank, for any number of ranks."""
        return items[self.rank :: self.world]


def read_ranks() -> Ranks:
    """Ranks from the environment that torchrun sets; one process without it."""
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(*(int(os.environ.get(name, default)) for name, default in zip(variables, (0, 1, 0, 0), strict=True)))


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


def _end_with_launcher() -> None:
    """A rank ends when torchrun was killed: it would go on writing beside the job that is started next."""
    launcher = os.getppid()

    def follow() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def start() -> tuple[Ranks, "torch.device"]:
    """Join the job: NCCL with one GPU per process, gloo on CPUs; nothing to join in a single process.

    Returns:
        The ranks and the device of this process.
    """
    import torch

    ranks = read_ranks()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", ranks.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if ranks.world > 1:
        _end_with_launcher()
        # A rank may wait for as long as another validates or writes.
        torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    return ranks, device


def finish() -> None:
    """Leave the job."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch alike on all ranks, so that they start from the same weights."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def sum_over_ranks(values: "torch.Tensor") -> "torch.Tensor":
    """Sum of a tensor over all ranks, the same on each of them."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def gather(items: Sequence[Any]) -> list[Any]:
    """All ranks' items (plain Python objects), rank by rank, on every rank."""
    import torch

    if not torch.distributed.is_initialized():
        return list(items)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def barrier() -> None:
    """Wait until every rank is here."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
