"""Files from strangers: mutated ones are read or refused; `python benchmark.py faults` tries many more."""

import subprocess
import sys

import pytest

from benchmarks.fuzz import READERS, SUFFIXES, campaign, originals, read, reasons, summary
from tests.scripts import ROOT


@pytest.mark.parametrize("kind", READERS)
def test_mutated_files_break_nothing(kind, tmp_path):
    counts = campaign(kind, 60, 11, tmp_path)
    print(summary(kind, counts))
    assert counts["broken"] == 0, list(reasons(tmp_path))
    assert counts["read"] + counts["refused"] == 60 and counts["refused"] > 5


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "checkpoint"])
def test_valid_files_are_read(kind, tmp_path):
    for number, data in enumerate(originals(kind, tmp_path)):
        path = tmp_path / f"{number}{SUFFIXES[kind]}"
        path.write_bytes(data)
        assert read(kind, path, tmp_path) == "read"


GUARD = """
import os, socket, subprocess, sys
from pathlib import Path
from benchmarks import fuzz

def reader(path, folder):
    match path.name:
        case "writes": (folder / "stray").write_text("x")
        case "starts": subprocess.run(["true"])
        case "removes": os.unlink(folder / "stray")
        case "connects": socket.socket().connect_ex(("127.0.0.1", 9))
        case "fails": [][0]
        case "grows": bytearray(3 << 30)
        case "babbles": raise fuzz.InputError("two\\nlines")
        case "refuses": raise fuzz.InputError("no")

fuzz.READERS["npy"] = reader
folder = Path(sys.argv[1])
fuzz.start("npy", folder, folder / "sample")
for name in sys.argv[2:]:
    print(fuzz.examine("npy", folder / name, folder)[0])
"""


def test_guard_notices_forbidden_deeds(tmp_path):
    names = ["good", "refuses", "writes", "starts", "removes", "connects", "fails", "grows", "babbles"]
    done = subprocess.run([sys.executable, "-c", GUARD, tmp_path, *names], cwd=ROOT, capture_output=True, text=True)
    said = dict(zip(names, done.stdout.splitlines(), strict=True))
    assert said["good"] == "read" and said["refuses"] == "refused: no"
    for name, words in {
        "writes": "stray", "starts": "subprocess.Popen", "removes": "os.remove", "connects": "socket.connect",
        "fails": "IndexError", "grows": "MemoryError", "babbles": "several lines",
    }.items():  # fmt: skip
        assert said[name].startswith("broken: ") and words in said[name], said[name]
