"""Records in a file of JSON lines: torn and damaged lines, the files of several ranks."""

import json

import pytest

from runtime.errors import InputError
from runtime.records import RecordStore, drop_torn_line


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "lines.jsonl", lambda record: (record["path"], record.get("page", 0)))


def write(store, rank, *paths):
    with store.appending(rank) as append:
        for path in paths:
            append({"path": path})


def paths_in(store):
    return [record["path"] for record in store]


def test_records_are_kept(store):
    """What was appended is read again, in another process too; an empty store has no records."""
    assert store.empty and list(store) == [] and store.parts == []
    write(store, 0, "/é\udcff\n", "/b")
    assert not store.empty and paths_in(store) == ["/é\udcff\n", "/b"]
    assert store.path.read_text().isascii()


def test_torn_line_is_cut_off(tmp_path):
    """A last line without its end goes, also where it is longer than one block; whole lines stay."""
    path = tmp_path / "lines"
    for whole, torn in ((b"", b"x" * 200_000), (b'{"a": 1}\n', b"y" * 70_000), (b"1\n2\n", b"")):
        path.write_bytes(whole + torn)
        drop_torn_line(path)
        assert path.read_bytes() == whole


def test_torn_lines_of_all_ranks(store):
    """Each rank's file may end with a torn line."""
    for rank in (0, 1, 2):
        write(store, rank, f"/{rank}")
    for path in store.parts:
        path.write_bytes(path.read_bytes() + b'{"path": "/ha')
    store.mend()
    assert sorted(paths_in(store)) == ["/0", "/1", "/2"]


@pytest.mark.parametrize("damage", ['{"pa', '["/a"]', '{"other": 1}', "\udcff"])
def test_damaged_line_is_named(store, damage):
    """A line that is no JSON, no record or no text is named with its number."""
    store.path.write_bytes(f'{{"path": "/a"}}\n{damage}\n{{"path": "/b"}}\n'.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"line 2 of .*lines\.jsonl is damaged"):
        list(store)


def test_ranks_become_one_file(store):
    """Every key once, sorted; the files of the other ranks are gone."""
    write(store, 0, "/c", "/a")
    write(store, 1, "/b", "/a")
    write(store, 10, "/d", "/0")
    with store.appending() as append:
        append({"path": "/a", "page": 2})
    store.merge()
    assert store.parts == [store.path]
    assert [json.loads(line) for line in store.path.read_text().splitlines()] == [
        {"path": "/0"}, {"path": "/a"}, {"path": "/a", "page": 2}, {"path": "/b"}, {"path": "/c"}, {"path": "/d"},
    ]  # fmt: skip


def test_sorted_file_stays(store):
    """What is in order already is not written again."""
    write(store, 0, "/a", "/b")
    before = store.path.stat()
    store.merge()
    assert store.path.stat() == before
