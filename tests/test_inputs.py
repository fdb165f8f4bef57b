"""What predict.py takes as its inputs: files, folders, patterns; what it leaves out, and what it refuses."""

import os
from pathlib import Path

import pytest

from images.inputs import ImageSource, find_inputs
from runtime.errors import InputError
from tests.prediction import write_image


def test_folders_and_patterns(tmp_path):
    """Hidden files, other kinds, folders, pipes, loops of links and the output folder are left out."""
    a = write_image(tmp_path / "in/a.png")
    b = write_image(tmp_path / "in/sub/B.PNG")
    write_image(tmp_path / "in/.hidden.png")
    write_image(tmp_path / "in/out/masks/m.png")
    literal = write_image(tmp_path / "in/c[1].png")
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "in/folder.png").mkdir()
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe.png")
    out = tmp_path / "in/out"
    assert find_inputs([tmp_path / "in", a], out) == sorted(map(str, (a, b, literal)))
    assert find_inputs([tmp_path / "in/**/*.PNG"], out) == [str(b)]
    assert find_inputs([literal], out) == [str(literal)]


@pytest.mark.parametrize(
    ("paths", "message"), [([], "no PATH"), (["missing.png"], "does not exist"), (["empty"], "no image under empty")]
)
def test_nothing_to_read(tmp_path, monkeypatch, paths, message):
    """No path, a path that does not exist and a folder without images are mistakes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, FileNotFoundError), match=message):
        find_inputs([Path(path) for path in paths], tmp_path / "out")


def test_unlisted_folder_is_named(tmp_path, monkeypatch):
    """A folder that cannot be listed is not silently left out."""
    write_image(tmp_path / "in/closed/b.png")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        find_inputs([tmp_path / "in"], tmp_path / "out")


def test_named_pipe_does_not_block(tmp_path):
    """A pipe that is given by its name is refused: reading from it may never end."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="not a regular file"):
        ImageSource(str(tmp_path / "pipe.png")).read(200.0)
