"""Which process of a job this one is. torchrun says it in the environment, so no library is needed to know it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the job."""

    rank: int = 0  # of this process, 0 to world - 1
    world: int = 1  # processes in the job
    local_rank: int = 0  # of this process on its machine: its GPU
    restarts: int = 0  # times that torchrun has started the job again
    local_world: int = 1  # processes of the job on this machine, which share its cores

    @property
    def main(self) -> bool:
        """Whether this process writes the files and shows the bars."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's items: every item belongs to exactly one rank, for any number of ranks."""
        return items[self.rank :: self.world]


def read_ranks() -> Ranks:
    """Ranks from the environment variables that torchrun sets; one process without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "LOCAL_WORLD_SIZE")
    return Ranks(*(int(os.environ.get(name, alone)) for name, alone in zip(names, (0, 1, 0, 0, 1), strict=True)))
