"""Batches of the loader: the same for any number of processes, which leave nothing behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import LoaderSettings, SynthesisSettings
from dataset import StepSampler, make_loader
from images.folders import find_images
from runtime.errors import InputError
from runtime.workers import Flag
from tests.made_files import damage, data_settings, plain_folder

ROOT = Path(__file__).parent.parent


def loader_of(root, num_workers, batch_size=1, skip_unreadable=False, **loader):
    """A loader of a folder's images, at 112 px."""
    data = data_settings(root, skip_unreadable=skip_unreadable)
    settings = LoaderSettings(num_workers=num_workers, **loader)
    return make_loader(find_images(root), 112, data, settings, SynthesisSettings(), batch_size=batch_size)


def load(root, num_workers, epochs=(0, 1), start=0):
    """Batches of some epochs as one list."""
    loader = loader_of(root, num_workers, batch_size=3, synthesis_probability=0.5)
    batches = []
    try:
        for epoch in epochs:
            loader.sampler.set_epoch(epoch, start)
            assert len(loader) == len(loader.sampler)
            batches += list(loader)
    finally:
        loader.close()
    return batches


def equal(first, second):
    return len(first) == len(second) and all(
        (a["image"] == b["image"]).all() and (a["labels"] == b["labels"]).all() and a["ids"] == b["ids"]
        for a, b in zip(first, second, strict=True)
    )


def test_epoch_left_early(tmp_path):
    """No batch of an epoch that was left early appears in the next one."""
    root = plain_folder(tmp_path, 4)
    loader = loader_of(root, num_workers=2)
    try:
        loader.sampler.set_epoch(0)
        next(iter(loader))
        loader.sampler.set_epoch(3)
        after = list(loader)
    finally:
        loader.close()
    order = [batch[0][1] for batch in StepSampler(8, 1, epoch=3)]
    assert [batch["ids"][0] for batch in after] == [loader.dataset.image_files[index].id for index in order]


def test_negative_workers_are_refused(tmp_path):
    """The error says what 0 means."""
    with pytest.raises(InputError, match="--num-workers -1 is negative; 0 reads in the main process"):
        loader_of(plain_folder(tmp_path, 1), num_workers=-1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores, on purpose
def test_batches_equal_for_any_workers(tmp_path):
    """Any number of loader processes gives the same batches, also after a resume.

    Nothing is drawn from torch's global generator.
    """
    root = plain_folder(tmp_path, 5)
    expected = load(root, 0)
    assert len(expected) == 8  # ten images: 3, 3, 3, 1, twice
    for batch, size in zip(expected, [3, 3, 3, 1] * 2, strict=True):
        assert batch["image"].shape == (size, 112, 112, 3) and batch["image"].dtype == torch.uint8
        assert batch["labels"].shape == (size, 8, 8) and batch["labels"].dtype == torch.int64
        assert isinstance(batch["num_labels"], int) and batch["num_labels"] == batch["labels"].max().item() + 1
        assert len(batch["ids"]) == size and "skipped" not in batch
    assert not equal(expected[:4], expected[4:])
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for num_workers in (2, 3):
        assert equal(load(root, num_workers), expected)
    assert (torch.get_rng_state() == state).all()
    assert equal(load(root, 2, epochs=[1], start=2), expected[6:])


def test_bad_images_in_loader_processes(tmp_path, capsys):
    """An image that a loader process cannot read is an error of one line, or is skipped and named once."""
    root = plain_folder(tmp_path, 3)
    damage(root / "forged" / "1.png")
    for num_workers in (0, 2):
        with pytest.raises(InputError, match=r"forged/1\.png") as caught:
            load(root, num_workers)
        assert "\n" not in str(caught.value) and type(caught.value) is InputError
    loader = loader_of(root, num_workers=2, batch_size=2, skip_unreadable=True)
    assert sum(len(batch["ids"]) for _ in range(2) for batch in loader) == 12
    loader.close()
    assert len(loader.skipped) == 1
    assert capsys.readouterr().err.count("forged/1.png") == 1


def test_loader_processes_ignore_signals(tmp_path):
    """Ctrl-C and SIGTERM, which reach the whole job, leave it to the main process to end its loaders."""
    loader = loader_of(plain_folder(tmp_path, 4), num_workers=1)
    batches = iter(loader)
    next(batches)
    (child,) = multiprocessing.active_children()
    for kind in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, kind)
    assert len(list(batches)) == 7
    loader.close()
    child.join(10)
    assert child.exitcode == 0


@pytest.mark.slow
def test_program_ends_with_open_loader(tmp_path):
    """A program that does not close its loader ends all the same."""
    root = plain_folder(tmp_path, 2)
    program = f"from tests.test_loader import *; next(iter(loader_of(Path({str(root)!r}), 1))); print('read')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


def test_loaders_event_has_no_lock(tmp_path):
    """A loader process that is killed while it looks whether the loader ends must not block the others."""
    loader = loader_of(plain_folder(tmp_path, 2), num_workers=1)
    next(iter(loader))
    iterator = loader._batches._iterator  # torch's own, which Loader.close drops
    (worker,), ends = iterator._workers, iterator._workers_done_event
    loader.close()
    assert isinstance(ends, Flag) and ends.is_set() and not worker.is_alive()
