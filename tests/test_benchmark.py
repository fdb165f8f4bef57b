"""benchmark.py: mistakes are answered before anything is measured."""

import subprocess
import sys
from pathlib import Path

from tests.prediction import write_image

ROOT = Path(__file__).resolve().parent.parent


def test_missing_folder_before_any_table(tmp_path):
    """A folder that is missing is refused before the first one is measured."""
    write_image(tmp_path / "in/a.png")
    command = [sys.executable, "benchmark.py", "accuracy", "--data", tmp_path / "in", tmp_path / "missing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "missing" in done.stderr
