"""Files appear whole or not at all, and last as long as their writers need."""

import errno
import os
from pathlib import Path

import pytest

from runtime.errors import one_line
from runtime.files import atomic_write, read_json, write_json


def test_failed_write_keeps_the_old(tmp_path):
    """A file whose writer fails stays as it was, and nothing else is left in the folder."""
    path = tmp_path / "a" / "f.txt"
    atomic_write(path, lambda temporary: temporary.write_text("old"))

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        atomic_write(path, fails)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["f.txt"]


@pytest.mark.parametrize("lasting", [True, False])
def test_content_lasts_before_its_name(tmp_path, monkeypatch, lasting):
    """The content is on the disk before the name is, where the file must survive a power cut."""
    calls = []

    def noted(name, function):
        def call(*arguments):
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "sync" else arguments[1]
            calls.append((name, Path(what).name.partition(".x.")[0]))
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(os, "replace", noted("rename", os.replace))
    atomic_write(tmp_path / "x", lambda temporary: temporary.write_text("all"), lasting)
    assert [name for name, _ in calls] == (["sync", "rename", "sync"] if lasting else ["rename"])
    assert (tmp_path / "x").read_text() == "all" and [p.name for p in tmp_path.iterdir()] == ["x"]
    assert not lasting or calls[-1] == ("sync", tmp_path.name)


def test_failing_disk_is_no_secret(tmp_path, monkeypatch):
    """A folder that cannot be synchronised is no fault, a disk that fails is one; the old content stays."""

    def failing(number):
        def fsync(handle):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    write_json(tmp_path / "x", 1)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "x", 2)
    assert read_json(tmp_path / "x") == 1


def test_text_for_a_terminal():
    """What a file's name may hold is shown on one line and without control characters."""
    assert one_line("a\n\tb\x07\udcff é") == r"a b\x07\udcff é"
