"""Joining the ranks of a job, seeds and gathering: the same script runs plain, under torchrun, on CPUs and on GPUs."""

import os
import random
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch.distributed import PrefixStore, Store

from runtime.ranks import Ranks, read_ranks
from runtime.workers import end_with_parent

WAIT = timedelta(minutes=30)  # a rank may wait for as long as another one validates or writes

_store: Store | None = None  # of this start of the job


def start() -> tuple[Ranks, torch.device]:
    """Join the job: NCCL with one GPU for each process, gloo on CPUs; nothing to join in a single process, or twice.

    Returns:
        The ranks and the device of this process.
    """
    ranks = read_ranks()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", ranks.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if ranks.world > 1 and not torch.distributed.is_initialized():
        global _store
        end_with_parent(os.getppid())  # torchrun ends its ranks itself, unless it is killed
        store, rank, world = next(torch.distributed.rendezvous("env://", timeout=WAIT))
        _store = own_store(store, rank, world)
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo", timeout=WAIT, store=_store, rank=rank, world_size=world
        )
    return ranks, device


def own_store(store: Store, rank: int, world: int) -> Store:
    """The part of torchrun's key-value store that belongs to this start of the job.

    torchrun keeps one store over all restarts, with the addresses of ranks that have ended; a rank that reads such an
    address fails, or waits for ever. Its count of restarts cannot tell the starts apart, since it differs between
    machines. Therefore rank 0 gives this start a name, every other rank joins it under a name of its own, and the start
    is complete once rank 0 has listed them all.

    Args:
        store: that of all starts.
        rank: of this process, 0 to world - 1.
        world: processes in the job.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
        names = [own, *(_name_of(store, other, own) for other in range(1, world))]
        store.set("complete", " ".join(names))
        return PrefixStore(own, store)
    while True:
        start = store.get("start").decode()  # perhaps that of an earlier start: then no list holds this rank's name
        store.set(f"joins {rank}", f"{start} {own}")
        names = store.get("complete").decode().split() if store.check(["complete"]) else []
        if names[:1] == [start] and own in names:
            return PrefixStore(start, store)
        time.sleep(0.02)


def _name_of(store: Store, rank: int, start: str) -> str:
    """Wait until another rank has joined this start, and return its name."""
    while True:
        joined, _, name = store.get(f"joins {rank}").decode().partition(" ")
        if joined == start:
            return name
        time.sleep(0.02)


def finish() -> None:
    """Leave the job."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch alike on all ranks, so that they start from the same weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks, the same on each of them; the tensor itself is changed."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def gather(items: Sequence[Any]) -> list[Any]:
    """All ranks' items (plain Python objects), rank by rank, on every rank."""
    if not torch.distributed.is_initialized():
        return list(items)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def barrier() -> None:
    """Wait until every rank is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def wait_for_slowest() -> None:
    """Let the first rank wait until all others have called this too; they do not wait.

    Ranks that share out work may finish hours apart, longer than a collective operation like `barrier` waits.
    """
    ranks = read_ranks()
    if _store is None:
        return
    if not ranks.main:
        _store.set(f"done {ranks.rank}", "")
        _store.check([f"done {ranks.rank}"])  # it has arrived: this process may end
        return
    while not _store.check([f"done {rank}" for rank in range(1, ranks.world)]):
        time.sleep(0.2)
