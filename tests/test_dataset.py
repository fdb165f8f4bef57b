"""Training samples and their order, on small made-up files."""

import numpy as np
import pytest

from config import LoaderSettings, SynthesisSettings
from dataset import ForgeryDataset, StepSampler
from images.folders import find_images
from images.letterbox import PADDING
from runtime.errors import InputError
from tests.made_files import damage, data_settings, noise, plain_folder, save, save_npy

# Samples ----------------------------------------------------------------------------------------------------------


def make_dataset(root, size=112, seed=0, **loader):
    config = data_settings(root)
    return ForgeryDataset(find_images(root), size, config, LoaderSettings(**loader), SynthesisSettings(), seed)


def test_sample_without_augmentation(tmp_path):
    """Image and labels of a small forgery, derived by hand."""
    root = plain_folder(tmp_path, 2, (56, 112))
    samples = make_dataset(root, augment=False)
    assert len(samples) == 4
    sample = samples[1]  # forged 0: a block of 30 px at row 0, column 30
    assert sample["id"] == "0" and sample["image"].dtype == np.uint8 and sample["labels"].dtype == np.int64
    assert (sample["image"][:56] == noise(56, 112)).all() and (sample["image"][56:] == PADDING).all()
    expected = np.zeros((8, 8), int)
    expected[:2, 2:4], expected[4:] = 1, -1  # columns 30 to 59: 12 and 14 px of cells 2 and 3, 4 of cell 4; rows 0, 1
    assert (sample["labels"] == expected).all()
    assert (samples[0]["labels"][:4] == 0).all()


def test_masks_follow_the_geometry(tmp_path):
    """The forged region alone is bright: wherever a cell is labelled, its pixels must be bright, and only there."""
    image = np.full((60, 100, 3), 20, np.uint8)
    image[8:38, 50:90] = 235
    save(tmp_path / "forged" / "x.png", image)
    save_npy(tmp_path / "masks" / "x.npy", (image[None, ..., 0] > 128).astype(np.uint8))
    samples = make_dataset(tmp_path, 224)
    shapes, turned = set(), 0
    for epoch in range(60):
        sample = samples[epoch, 0]
        cells = sample["image"].reshape(16, 14, 16, 14, 3).mean((1, 3, 4))
        labels, padding = sample["labels"], np.abs(cells - np.mean(PADDING)) < 2
        assert (cells[labels == 1] > 85).all() and (cells[labels == 0] < 150).all()
        assert padding[labels == -1].mean() > 0.5  # the others are the edge, less than half full
        assert 0.7 < (labels == 1).sum() / (labels >= 0).sum() / (30 * 40 / 6000) < 1.4
        top, left = np.argwhere(labels >= 0).min(0), np.argwhere(labels >= 0).max(0)
        shapes.add(tuple(left - top + 1))
        turned += len(np.unique((labels >= 0).sum(1))) > 2
        inside = cells[labels >= 0]
        assert inside.max() > 110 and inside.min() < 100
    assert (10, 16) in shapes and (16, 10) in shapes and 5 < turned < 30


def test_flips_and_rotations_are_independent(tmp_path):
    """Albumentations seeds every transform alike when asked by `set_random_seed`: all would be applied or none."""
    image = np.full((112, 112, 3), 20, np.uint8)
    image[:28, :56] = 235
    save(tmp_path / "forged" / "x.png", image)
    save_npy(tmp_path / "masks" / "x.npy", (image[None, ..., 0] > 128).astype(np.uint8))
    samples = make_dataset(tmp_path)
    seen = {samples[epoch, 0]["labels"].tobytes() for epoch in range(150)}
    upright = (image[::14, ::14, 0] > 128).astype(np.int64)
    for turn in range(4):
        for flip in (upright, upright[:, ::-1]):
            assert np.ascontiguousarray(np.rot90(flip, turn)).tobytes() in seen


def test_samples_depend_on_their_key(tmp_path):
    """Seed, epoch and index alone decide about a sample, not the order or the cache."""
    root = plain_folder(tmp_path / "data", 3)
    loader = {"synthesis_probability": 0.5}
    samples, again = make_dataset(root, **loader), make_dataset(root, cache=tmp_path / "cache", **loader)
    first = {(e, i): samples[e, i] for e in range(2) for i in range(6)}
    for (epoch, index), sample in reversed(first.items()):  # another order, and with a cache
        for _ in range(2):
            other = again[epoch, index]
            assert (other["image"] == sample["image"]).all() and (other["labels"] == sample["labels"]).all()
    assert len({sample["image"].tobytes() for sample in first.values()}) == 12
    assert (samples[0]["image"] == samples[0, 0]["image"]).all()
    other_seed = make_dataset(root, seed=1, **loader)
    assert any((other_seed[0, i]["image"] != samples[0, i]["image"]).any() for i in range(6))


def test_share_of_forgeries_on_the_fly(tmp_path):
    """Authentic images become forgeries with the given probability."""
    for number in range(3):
        save(tmp_path / f"{number}.png", noise(100, 140, number))
    for probability, low, high in [(0.0, 0, 0), (0.5, 18, 42), (1.0, 55, 60)]:
        samples = make_dataset(tmp_path, 112, synthesis_probability=probability)
        forged = sum(samples[epoch, index]["labels"].max() > 0 for epoch in range(20) for index in range(3))
        assert low <= forged <= high, (probability, forged)


def test_too_small_images_stay_authentic(tmp_path):
    """An image with no room for two regions is used as it is."""
    save(tmp_path / "a.png", noise(2, 300))
    sample = make_dataset(tmp_path, 112, synthesis_probability=1.0)[0]
    assert sample["labels"].max() == 0 and (sample["labels"] == 0).any()


def test_unreadable_samples_stop_or_are_replaced(tmp_path):
    """With `--skip-unreadable` the next image of the same kind takes the place of a bad one."""
    root = plain_folder(tmp_path, 2)
    damage(root / "forged" / "0.png")
    image_files, loader = find_images(root), LoaderSettings(augment=False)
    with pytest.raises(InputError, match=r"forged/0\.png"):
        ForgeryDataset(image_files, 112, data_settings(root), loader, SynthesisSettings())[1]
    config = data_settings(root, skip_unreadable=True)
    samples = ForgeryDataset(image_files, 112, config, loader, SynthesisSettings())
    replaced = samples[1]
    assert (replaced["image"] == samples[3]["image"]).all() and replaced["id"] == "1"  # the other forged one
    assert len(replaced["skipped"]) == 1 and "forged/0.png" in replaced["skipped"][0]
    assert samples[0]["skipped"] == []
    only = ForgeryDataset([image_files[1]], 112, config, loader, SynthesisSettings())
    with pytest.raises(InputError, match=r"no training image of this kind .* first of 1: .*forged/0\.png"):
        only[0]


def test_bad_dataset_settings(tmp_path):
    """Settings out of range are refused."""
    root = plain_folder(tmp_path, 1)
    with pytest.raises(InputError, match="multiple of 14"):
        make_dataset(root, 100)
    with pytest.raises(InputError, match=r"--synthesis-probability 1\.5"):
        make_dataset(root, synthesis_probability=1.5)
    with pytest.raises(InputError, match="--label-coverage 0"):
        make_dataset(root, label_coverage=0.0)
    with pytest.raises(InputError, match="no images to train on"):
        ForgeryDataset([], 112, data_settings(root), LoaderSettings(), SynthesisSettings())


# Order ------------------------------------------------------------------------------------------------------------


def steps_of(sampler):
    """Batches of (epoch, index) grouped by optimiser step."""
    batches = iter(sampler)
    grouped = [[next(batches) for _ in sampler.step_sizes(step)] for step in range(sampler.start_step, sampler.steps)]
    assert next(batches, None) is None
    return grouped


def indices(step):
    return [index for batch in step for _, index in batch]


def indices_of(steps):
    return [index for step in steps for index in indices(step)]


def test_epochs_differ_in_order_only():
    """An epoch has every image once; another epoch or seed gives another order."""
    sampler = StepSampler(53, batch_size=4, gradient_accumulation_steps=2, seed=3)
    first = steps_of(sampler)
    assert sampler.steps == 7 and len(sampler) == 14  # 6 steps of 8 images and one of 5: batches of 4 and 1
    assert [[len(batch) for batch in step] for step in first] == [[4, 4]] * 6 + [[4, 1]]
    assert sampler.step_sizes(6) == [4, 1]
    assert sorted(indices_of(first)) == list(range(53))
    sampler.set_epoch(1)
    second = steps_of(sampler)
    assert {epoch for step in second for batch in step for epoch, _ in batch} == {1}
    assert sorted(indices_of(second)) == list(range(53))
    assert indices_of(first) != indices_of(second)
    assert indices_of(first) != indices_of(steps_of(StepSampler(53, 4, gradient_accumulation_steps=2, seed=4)))


@pytest.mark.parametrize("length", [48, 53, 50, 5, 1])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_steps_equal_for_any_ranks(length, world):
    """Which images belong to an optimiser step does not depend on the number of ranks."""
    alone = steps_of(StepSampler(length, batch_size=12, gradient_accumulation_steps=2))
    ranks = [StepSampler(length, 12 // world, rank, world, gradient_accumulation_steps=2) for rank in range(world)]
    shared = [steps_of(sampler) for sampler in ranks]
    assert len({len(sampler) for sampler in ranks}) == 1
    for number, step in enumerate(alone):
        parts = [indices(rank[number]) for rank in shared]
        assert len({tuple(map(len, rank[number])) for rank in shared}) == 1
        together = sorted(index for part in parts for index in part)
        if number < len(alone) - 1:
            assert together == sorted(indices(step))
            assert parts == [indices(step)[rank::world] for rank in range(world)]
        else:  # filled up so that all ranks have the same number
            assert set(indices(step)) <= set(together) and len(together) - len(step_images := indices(step)) < world
            assert len(together) == -(-len(step_images) // world) * world


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_sampler_resumes_within_an_epoch(start):
    """From a start step on, the batches are those of the whole epoch."""
    whole = StepSampler(53, 4, gradient_accumulation_steps=2, seed=3, epoch=5)
    resumed = StepSampler(53, 4, gradient_accumulation_steps=2, seed=3, epoch=5, start_step=start)
    assert steps_of(resumed) == steps_of(whole)[start:]
    assert len(resumed) == len(list(resumed))


def test_bad_sampler_settings():
    """Counts under 1, ranks and steps out of range are refused."""
    for arguments in ((0, 4), (5, 0), (5, 4, 2, 2), (5, 4, 0, 1, 0)):
        with pytest.raises(InputError, match="at least 1"):
            StepSampler(*arguments)
    with pytest.raises(InputError, match="start step 3 is not within 0 to 2"):
        StepSampler(5, 4, start_step=3)
