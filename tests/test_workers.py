"""Worker processes: what each job gives, what a process that dies or hangs costs, and that none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from runtime.workers import Flag, Lost, call_in_process, map_in_processes, run_jobs
from tests.scripts import ROOT


def double(number):
    return 2 * number


def do(job):
    """A job is a word that says what its process should do."""
    match job.split():
        case ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["end"]:
            os._exit(3)
        case ["hang"]:
            time.sleep(60)
        case ["fail"]:
            raise ZeroDivisionError("as asked")
        case ["fail", "reading"]:
            raise EOFError("as asked")
        case ["wait", path]:
            while not Path(path).exists():
                time.sleep(0.01)
    return f"{job}, {os.getpid()}"


def start_doing():
    return do


def start_failing():
    raise FileNotFoundError("no such model")


def start_slowly():
    time.sleep(1.0)
    return do


def results_of(*jobs, num_workers=2, start=start_doing, **more):
    return dict(run_jobs(deque(jobs), start, num_workers, **more))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_jobs_may_be_added(num_workers):
    """What the caller adds between two results is done too, by as many processes as were asked for."""
    jobs, results = deque(["a"]), {}
    for job, result in run_jobs(jobs, start_doing, num_workers):
        results[job] = result
        if job == "a":
            jobs.extend(["b", "c"])
    pids = {int(result.split(", ")[1]) for result in results.values()}
    assert list(results) == ["a", "b", "c"] and len(pids) == 1
    assert (pids == {os.getpid()}) == (num_workers == 0)


def test_results_come_when_ready(tmp_path):
    """A job that takes long does not hold up the others."""
    order = []
    for job, _ in run_jobs(deque([f"wait {tmp_path / 'file'}", "a", "b"]), start_doing, 2):
        order.append(job[:1])
        if job == "b":
            (tmp_path / "file").touch()
    assert order == ["a", "b", "w"]


@pytest.mark.slow
def test_lost_processes_cost_their_job():
    """A process that is killed, that ends or that hangs costs the one job that it had."""
    results = results_of("a", "die", "b", "end", "c", "hang", "d", timeout=2.0)
    lost = {job: result for job, result in results.items() if isinstance(result, Lost)}
    assert lost.keys() == {"die", "end", "hang"} and results.keys() - lost.keys() == {"a", "b", "c", "d"}
    assert "memory ran out" in lost["die"].reason and not lost["die"].late
    assert "ended with status 3" in lost["end"].reason
    assert lost["hang"] == Lost("no result after 2 s", late=True)


def test_starting_costs_no_time():
    """The limit of time is for the jobs: loading a model may take longer."""
    assert results_of("a", num_workers=1, start=start_slowly, timeout=0.5)["a"].startswith("a, ")


@pytest.mark.slow
def test_kill_between_jobs_costs_nothing(tmp_path):
    """Processes that wait at one queue hold its lock in turn; were one killed there, the others would wait for ever."""
    jobs, results = deque([f"wait {tmp_path / 'file'}", "a"]), {}
    for job, result in run_jobs(jobs, start_doing, 2):
        results[job] = result
        if job == "a":  # its process waits, the other one is busy
            pid = int(result.split(", ")[1])
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.01)
            jobs.extend(["b", "c"])
            (tmp_path / "file").touch()
    assert len(results) == 4
    assert not any(isinstance(result, Lost) for result in results.values())


@pytest.mark.parametrize(
    ("start", "job", "fault"),
    [
        (start_failing, "a", FileNotFoundError),
        (start_doing, "fail", ZeroDivisionError),
        (start_doing, "fail reading", EOFError),
    ],
)
def test_exceptions_end_the_run(start, job, fault):
    """What is raised over there is raised here, with the traceback from there as its cause, and all processes end."""
    with pytest.raises(fault) as raised:
        results_of(job, f"wait {ROOT / 'never'}", start=start)
    assert "test_workers.py" in str(raised.value.__cause__)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_mapped_results_keep_their_order(num_workers):
    """Results come in the order of the jobs, in this process or in others."""
    assert list(map_in_processes(double, range(5), num_workers)) == [0, 2, 4, 6, 8]
    assert list(map_in_processes(double, [], num_workers)) == []


@pytest.mark.slow
def test_mapping_ends_with_killed_process():
    """A result that is missing would be missing from a table: the run ends."""
    with pytest.raises(BrokenExecutor, match="memory ran out"):
        list(map_in_processes(do, ["a", "die", "b"], 2))
    with pytest.raises(BrokenExecutor, match="status 3"):
        call_in_process(os._exit, 3)


def test_call_has_its_own_process():
    """A single call in a fresh process, where libraries use one thread."""
    assert call_in_process(os.getpid) != os.getpid()
    assert call_in_process(os.getenv, "OPENCV_FOR_THREADS_NUM") == "1"


KILLED = """
from collections import deque
from runtime.workers import run_jobs
from tests.test_workers import start_doing
for job, result in run_jobs(deque(["a", "wait never", "wait never"]), start_doing, 2):
    print(result, flush=True)
"""


@pytest.mark.slow
def test_workers_end_with_their_parent():
    """A parent that is killed cannot end its workers; they would go on writing beside the next run."""
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline().split(", ")[1])
        time.sleep(0.5)  # now it has the next job
        parent.kill()
        parent.wait()
        end = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()


def ask_for_ever(flag):
    while not flag.is_set():
        pass


@pytest.mark.slow
def test_flag_survives_killed_readers():
    """Readers that are killed may hold the lock of multiprocessing's own event, whose set() then waits for ever."""
    context = multiprocessing.get_context("fork")
    flag = Flag()
    for _ in range(50):
        reader = context.Process(target=ask_for_ever, args=(flag,))
        reader.start()
        time.sleep(0.01)
        reader.kill()
        reader.join()
    flag.set()
    assert flag.is_set()
