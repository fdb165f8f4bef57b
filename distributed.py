"""Ranks, seeds and gathering: the same script runs plain, under torchrun, on CPUs and on GPUs.

torch is imported by the functions that need it, so that a script without a model can still share its work.
"""

import os
import random
import threading
import time
import uuid
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
        limit = timedelta(minutes=30)
        store, rank, world = next(torch.distributed.rendezvous("env://", timeout=limit))
        store = own_store(store, rank, world)
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo", timeout=limit, store=store, rank=rank, world_size=world
        )
    return ranks, device


def own_store(store: "torch.distributed.Store", rank: int, world: int) -> "torch.distributed.Store":
    """The part of torchrun's store that belongs to this start of the job.

    torchrun keeps one store over all restarts, with the addresses of ranks that have ended; a rank that reads such an
    address fails or waits for ever. Nor does it number the starts: its count of restarts differs between machines. So
    rank 0 names the start, each other rank gives its own name for it, and the start is on once rank 0 lists them all.

    Args:
        store: That of all starts.
        rank: This process, 0 to world - 1.
        world: Processes in the job.
    """
    from torch.distributed import PrefixStore

    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
        names = [own, *(_name_of(store, other, own) for other in range(1, world))]
        store.set("complete", " ".join(names))
        return PrefixStore(own, store)
    while True:
        start = store.get("start").decode()  # perhaps of an earlier start: then nobody lists this rank's name
        store.set(f"joins {rank}", f"{start} {own}")
        names = store.get("complete").decode().split() if store.check(["complete"]) else []
        if names[:1] == [start] and own in names:
            return PrefixStore(start, store)
        time.sleep(0.02)


def _name_of(store: "torch.distributed.Store", rank: int, start: str) -> str:
    """Wait until another rank has joined this start: its name."""
    while True:
        joined, _, name = store.get(f"joins {rank}").decode().partition(" ")
        if joined == start:
            return name
        time.sleep(0.02)


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
