"""Jobs of several ranks: they end with torchrun, read nothing of earlier starts, and wait for the slowest."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore, PrefixStore

from distributed import own_store
from runtime.ranks import Ranks, read_ranks
from tests.scripts import ROOT


def test_ranks_of_the_environment(monkeypatch):
    """torchrun's variables say which rank this is; without them it is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert read_ranks() == Ranks() and read_ranks().main
    for name, value in zip(names, "57342", strict=True):
        monkeypatch.setenv(name, value)
    assert read_ranks() == Ranks(rank=5, world=7, local_rank=3, local_world=4, restarts=2)


@pytest.mark.parametrize("late", [(), (0,), (1, 2), (0, 2)])
def test_restarted_job_reads_nothing_old(late):
    """torchrun keeps one store over all starts of a job: addresses of ranks that have ended are in it."""
    store, world = HashStore(), 3
    store.set("start", "killed")  # a start of which only rank 1 got as far as to join
    store.set("joins 1", "killed one")

    def join(number, rank, read):
        time.sleep(0.2 * (rank in late))
        own = own_store(PrefixStore("", store), rank, world)
        own.set(f"address {rank}", f"{number}.{rank}")
        read[rank] = [own.get(f"address {other}").decode() for other in range(world)]

    for number in range(3):
        read = {}
        threads = [threading.Thread(target=join, args=(number, rank, read), daemon=True) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert read == {rank: [f"{number}.{other}" for other in range(world)] for rank in range(world)}


RANK = """
import os, sys, time, distributed
ranks, _ = distributed.start()
folder = sys.argv[1]
if sys.argv[2] == "wait":
    time.sleep(2 * ranks.rank)
    open(f"{folder}/done{ranks.rank}", "w").close()
    distributed.wait_for_slowest()
    if ranks.main:
        print(sorted(os.listdir(folder)), flush=True)
else:
    with open(f"{folder}/pid{ranks.rank}", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
"""


def start_ranks(folder, what):
    (folder / "rank.py").write_text(RANK)
    (folder / "out").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", folder / "rank.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, folder / "out", what], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_first_rank_waits_for_slowest(tmp_path):
    """The first rank goes on when all others have called; they end at once."""
    printed, _ = start_ranks(tmp_path, "wait").communicate(timeout=120)
    assert printed == "['done0', 'done1']\n"


@pytest.mark.slow
def test_ranks_end_with_torchrun(tmp_path):
    """Ranks that lived on would go on writing beside the job that is started next."""
    job, pids = start_ranks(tmp_path, "sleep"), [tmp_path / f"out/pid{rank}" for rank in (0, 1)]
    end = time.monotonic() + 120
    while not all(path.exists() and path.read_text() for path in pids):
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    job.kill()
    job.communicate()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{path.read_text()}").exists() for path in pids):
        assert time.monotonic() < end, "the ranks live on"
        time.sleep(0.1)
