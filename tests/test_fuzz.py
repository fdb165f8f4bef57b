"""Mutated files are read or refused, and the guarded process notices what a reader must not do."""

import subprocess
import sys

import pytest

from benchmarks.fuzz import SUFFIXES, campaign, reasons, summary
from benchmarks.guarded_reading import READERS, read
from benchmarks.processes import ROOT
from benchmarks.valid_files import valid_files


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "checkpoint" else ()) for kind in READERS]
)
def test_mutated_files_break_nothing(kind, tmp_path):
    """Each mutated file is read or refused in one line; enough of them are refused to show that they were mutated."""
    counts = campaign(kind, 60, 11, tmp_path)
    print(summary(kind, counts))
    assert counts["broken"] == 0, list(reasons(tmp_path))
    assert counts["read"] + counts["refused"] == 60 and counts["refused"] > 5


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "checkpoint"])
def test_valid_files_are_read(kind, tmp_path):
    """What is mutated can be read. Checkpoints need a backbone beside them; tests of checkpoints read such files."""
    for number, data in enumerate(valid_files(kind, tmp_path)):
        path = tmp_path / f"{number}{SUFFIXES[kind]}"
        path.write_bytes(data)
        assert read(kind, path, tmp_path) == "read"


GUARD = """
import os, socket, subprocess, sys
from pathlib import Path
from benchmarks import guarded_reading
from runtime.errors import InputError

def reader(path, folder):
    match path.name:
        case "writes": (folder / "stray").write_text("x")
        case "starts": subprocess.run(["true"])
        case "removes": os.unlink(folder / "stray")
        case "connects": socket.socket().connect_ex(("127.0.0.1", 9))
        case "fails": [][0]
        case "grows": bytearray(3 << 30)
        case "babbles": raise InputError("two\\nlines")
        case "refuses": raise InputError("no")

guarded_reading.READERS["npy"] = reader
folder = Path(sys.argv[1])
read_guarded = guarded_reading.guarded_reader("npy", folder, folder / "sample")
for name in sys.argv[2:]:
    print(read_guarded(folder / name)[0])
"""


def test_guard_notices_forbidden_deeds(tmp_path):
    """Files written or removed, programs started, connections, memory, exceptions, messages of several lines."""
    expected = {
        "good": "read",
        "refuses": "refused: no",
        "writes": "stray",
        "starts": "subprocess.Popen",
        "removes": "os.remove",
        "connects": "socket.connect",
        "fails": "IndexError",
        "grows": "MemoryError",
        "babbles": "several lines",
    }
    done = subprocess.run([sys.executable, "-c", GUARD, tmp_path, *expected], cwd=ROOT, capture_output=True, text=True)
    outcomes = dict(zip(expected, done.stdout.splitlines(), strict=True))
    assert outcomes.pop("good") == "read" and outcomes.pop("refuses") == "refused: no"
    for name, outcome in outcomes.items():
        assert outcome.startswith("broken: ") and expected[name] in outcome, outcome


def test_reasons_count_similar_files(tmp_path):
    """Reasons that differ in numbers and paths only are one; the most frequent comes first, with an example."""
    (tmp_path / "broken").mkdir()
    for stem, reason in (("a", "broken: KeyError: 7"), ("b", "broken: IndexError: 3"), ("c", "broken: KeyError: 12")):
        (tmp_path / "broken" / f"{stem}.txt").write_text(reason + "\n")
    assert list(reasons(tmp_path)) == [("broken: KeyError: 7", 2, "a"), ("broken: IndexError: 3", 1, "b")]
