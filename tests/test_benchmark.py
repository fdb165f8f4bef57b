"""benchmark.py: mistakes are answered before anything is measured."""

from tests.prediction import write_image
from tests.scripts import launch


def test_missing_folder_before_any_table(tmp_path):
    """A folder that is missing is refused before the first one is measured."""
    write_image(tmp_path / "in/a.png")
    done = launch("benchmark.py", "accuracy", "--data", tmp_path / "in", tmp_path / "missing")
    assert done.returncode == 2 and done.stdout == "" and "missing" in done.stderr
