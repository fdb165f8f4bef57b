"""synthesis.py: a folder of forgeries that is a data set, the same for any number of processes and after a stop."""

import json
import os
import signal
import time

import cv2
import numpy as np
import pytest

from benchmarks.processes import ScriptProcess, descendants, is_running, wait_until, worker_processes
from config import SynthesizeSettings
from images.folders import find_images
from runtime.errors import InputError
from synthesis import main
from tests.scenes import textured


@pytest.fixture
def folder(tmp_path):
    for series in ("a", "b"):
        (tmp_path / "in" / series).mkdir(parents=True)
        for number in range(3):
            image = textured(90, 110, seed=number + 10 * (series == "b"))
            cv2.imwrite(str(tmp_path / "in" / series / f"{number}.png"), image[..., ::-1])
    return tmp_path / "in"


def run(folder, out, **more):
    main(SynthesizeSettings(**({"authentic": folder, "out": out, "count": 6, "num_workers": 1} | more)))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_files_equal_for_any_workers(folder, tmp_path):
    """One process and two write the same files; another seed gives others."""
    one, two = run(folder, tmp_path / "one"), run(folder, tmp_path / "two", num_workers=2)
    assert one == two
    other = run(folder, tmp_path / "other", seed=1)
    assert other.keys() == one.keys() and other != one


def test_folder_is_a_data_set(folder, tmp_path):
    """Images, masks and records can be read back; groups of images become bases."""
    files = run(folder, tmp_path / "out", group_size=2, authentic_count=4)
    assert len(files) == 6 * 3 + 4 * 2 + 1
    images = find_images(tmp_path / "out")
    assert sum(scene.forged for scene in images) == 6 and len(images) == 10
    # Groups of two within a folder: 0 and 1 together, 2 alone.
    members = {"a__0": {"a/0.png", "a/1.png"}, "a__2": {"a/2.png"}, "b__0": {"b/0.png", "b/1.png"}, "b__2": {"b/2.png"}}
    seen = set()
    for scene in images:
        record = json.loads(scene.image.with_suffix(".json").read_text())
        assert set(record["images"]) <= members[record["base"]] and record["base"] == scene.base
        assert record["forged"] is scene.forged
        seen |= set(record["images"])
        image = cv2.imread(str(scene.image))
        if scene.forged:
            masks = np.load(scene.mask, allow_pickle=False)
            assert masks.dtype == np.uint8 and masks.shape == (len(record["contents"]), *image.shape[:2])
            assert masks.max() == 1 and masks.any(axis=(1, 2)).all()
    assert len(seen) == 6  # every authentic image is used


def test_mistakes_on_the_command_line(folder, tmp_path):
    """Nothing is written when the command is refused."""
    with pytest.raises(InputError, match="no folder"):
        run(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="count"):
        run(folder, tmp_path / "out", count=0)
    with pytest.raises(InputError, match="not empty"):
        run(folder, folder)
    assert not (tmp_path / "out").exists()
    cv2.imwrite(str(tmp_path / "empty" / "black.png"), np.zeros((80, 80, 3), np.uint8))
    with pytest.raises(InputError, match=r"black\.png"):
        run(tmp_path / "empty", tmp_path / "out")


@pytest.mark.slow
def test_killed_run_can_be_resumed(folder, tmp_path):
    """A killed run leaves no process, and with --resume ends with the same files."""
    whole, out = run(folder, tmp_path / "whole", count=250), tmp_path / "out"

    def start(*more):
        return ScriptProcess(
            "synthesis.py", "--authentic", folder, "--out", out, "--count", 250, "--num-workers", 2, *more
        )  # fmt: skip

    def made():
        return len(list(out.glob("*/*.png")))

    process = start()
    assert wait_until(lambda: made() > 5, process)
    others = descendants(process.pid)
    process.kill()  # the main process alone
    process.finish()
    end = time.monotonic() + 10
    while any(map(is_running, others)):
        assert time.monotonic() < end, "its workers live on"
        time.sleep(0.05)
    assert 5 < (before := made()) < 500
    process = start("--resume")
    assert wait_until(lambda: made() > before + 5, process)
    os.kill(worker_processes(process.pid)[0], signal.SIGKILL)
    status, said = process.finish()
    assert status == 2 and "Traceback" not in said
    assert "was killed, probably because memory ran out" in said.splitlines()[-1] and "--resume" in said
    sorted(out.glob("forged/*.png"))[0].write_bytes(b"")  # as a power cut may leave one
    (out / "forged/.000000.png.7.tmp").write_bytes(b"half")
    assert start("--resume").finish()[0] == 0
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


def test_resume_needs_the_same_run(folder, tmp_path):
    """A run goes on with the same settings and images only; the folder may have moved."""
    with pytest.raises(InputError, match="no run in"):
        run(folder, tmp_path / "out", resume=True)
    run(folder, tmp_path / "out")
    for change in ({"seed": 1}, {"count": 7}):
        with pytest.raises(InputError, match="other settings or images"):
            run(folder, tmp_path / "out", resume=True, **change)
    moved = folder.rename(tmp_path / "moved")
    run(moved, tmp_path / "out", resume=True, num_workers=2)
    (moved / "a" / "0.png").unlink()
    with pytest.raises(InputError, match="other settings or images"):
        run(moved, tmp_path / "out", resume=True)


def test_unreadable_images(folder, tmp_path, capsys):
    """An image that cannot be read stops the run, or is left out and named once."""
    (folder / "a" / "1.png").write_bytes(b"not an image")
    for num_workers in (1, 2):
        with pytest.raises(InputError, match=r"1\.png.*--skip-unreadable"):
            run(folder, tmp_path / f"stopped{num_workers}", num_workers=num_workers)
    files = run(folder, tmp_path / "out", skip_unreadable=True)
    assert sum(name.startswith("forged/") for name in files) == 12
    assert capsys.readouterr().out.count("1.png") == 1
    assert not any(b"a/1.png" in data for name, data in files.items() if name.endswith(".json"))
