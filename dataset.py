"""Training samples, their order, and the loader that makes batches of them.

What happens to a sample, in this order:

    find_images, read_letterboxed    the image and its masks as they lie in the S x S input (this is cached)
    forge, augmentation              a forgery made on the fly; both changed in shape and colour
    letterbox, grid_labels           image (S, S, 3) uint8, labels (G, G): 0 background, 1..K instance, -1 padding
    make_loader                      batches of one rank, in an order that depends on the seed and the epoch alone
"""

import atexit
import copy
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

import cv2
import numpy as np
import torch

from config import DataSettings, LoaderSettings, SynthesisSettings
from forgery.forge import forge
from images.cache import ImageCache, read_letterboxed
from images.folders import ImageFile
from images.grid import grid_labels, valid_cells
from images.letterbox import PADDING, Letterbox, LetterboxedImage, letterbox, letterbox_layers
from runtime.errors import InputError
from runtime.workers import Flag

# Samples ----------------------------------------------------------------------------------------------------------


def augmentation() -> Any:
    """Albumentations pipeline for `image` and `masks`: the coverage of each instance and, last, what is image.

    The frame of a rotated image grows, so that no copy is cut off while its source stays labelled.
    """
    # On import the package asks the internet for a newer version, unless it is told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    linear = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_LINEAR}
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomRotate90(p=0.5),
            A.Affine(rotate=(-45, 45), fit_output=True, fill=PADDING, fill_mask=0, p=0.25, **linear),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.5),
            A.ToGray(p=0.1),
            A.OneOf([A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2)), A.MotionBlur(blur_limit=(3, 5))], p=0.15),
            A.OneOf([A.GaussNoise(std_range=(0.005, 0.04)), A.ISONoise()], p=0.2),
            A.ImageCompression(quality_range=(50, 95), p=0.3),
        ]
    )


class ForgeryDataset:
    """Training samples by index. The same (seed, epoch, index) gives the same sample in any process.

    `dataset[index]` or `dataset[epoch, index]` is a dict: `image` (S, S, 3) uint8 RGB, `labels` (G, G) int64 (0
    background, 1..K instance, -1 padding), `id` (text) and `skipped`, a list of lines about images that could not be
    read.

    An image that cannot be read raises InputError. With `--skip-unreadable` the next readable image of its kind
    (authentic or forged) takes its place, always the same one, and `skipped` says so.
    """

    def __init__(
        self,
        image_files: Sequence[ImageFile],
        size: int,
        data: DataSettings,
        loader: LoaderSettings,
        synthesis: SynthesisSettings,
        seed: int = 0,
    ) -> None:
        """`image_files`: with known truth, for instance of `select_split`; `size`: S in pixels, a multiple of 14.

        Raises:
            InputError: there are no images, `size` is not a multiple of 14, or a probability is outside 0 to 1.
        """
        if not image_files:
            raise InputError("there are no images to train on; check the folder and the split fractions")
        if not 0 <= loader.synthesis_probability <= 1:
            raise InputError(f"--synthesis-probability {loader.synthesis_probability} is not within 0 to 1")
        if not 0 < loader.label_coverage <= 1:
            raise InputError(f"--label-coverage {loader.label_coverage} is not over 0 and at most 1")
        Letterbox.fit((1, 1), size)  # refuses a size that is not a multiple of 14
        self.image_files, self.size, self.seed = list(image_files), size, seed
        self.data, self.loader, self.synthesis = data, loader, synthesis
        self.cache = ImageCache(loader.cache, loader.cache_gb, size) if loader.cache else None
        self.augmentation = augmentation() if loader.augment else None
        self.authentic = np.array([index for index, image_file in enumerate(self.image_files) if not image_file.forged])

    def __len__(self) -> int:
        return len(self.image_files)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        skipped: list[str] = []
        image_file, content = self.read(index, skipped)
        rng = np.random.default_rng([self.seed, epoch, index])
        image, coverage = content.image, content.coverage
        if not image_file.forged and self.loader.synthesis_probability > 0:
            image, coverage = self._forge(image, index, rng)
        inside = np.full((1, *image.shape[:2]), 255, np.uint8)  # what is image; augmentation adds a margin that is not
        if self.augmentation is not None:
            image, coverage, inside = self._augment(image, coverage, inside, rng)
        image, box = letterbox(image, self.size)
        coverage, inside = letterbox_layers(coverage, box), letterbox_layers(inside, box)
        labels = grid_labels(coverage, valid_cells(inside[0]), self.loader.label_coverage)
        return {"image": image, "labels": labels, "id": image_file.id, "skipped": skipped}

    def read(self, index: int, skipped: list[str]) -> tuple[ImageFile, LetterboxedImage]:
        """The image of an index, or the one that takes its place; lines about unreadable ones go into `skipped`.

        Raises:
            InputError: the image cannot be read and may not be skipped, or no image of its kind can be read.
        """
        for image_file in [*self.image_files[index:], *self.image_files[:index]]:
            if image_file.forged != self.image_files[index].forged:
                continue
            try:
                return image_file, read_letterboxed(image_file, self.size, self.data, self.cache)
            except InputError as fault:
                if not self.data.skip_unreadable:
                    raise
                skipped.append(str(fault))
        raise InputError(f"no training image of this kind can be read; the first of {len(skipped)}: {skipped[0]}")

    def _forge(self, image: np.ndarray, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image and coverage of a forgery, with `synthesis_probability`; else the same treatment without copies, so
        that nothing but copies distinguishes the two."""
        forged = bool(rng.random() < self.loader.synthesis_probability)
        others = rng.choice(self.authentic, size=min(4, len(self.authentic)), replace=False)
        panels = _PanelSources(self, others[others != index])
        try:
            forgery = forge(image, self.synthesis, rng, forged, panels)
        except InputError:
            raise
        except ValueError:  # the image is too small for two regions: it stays authentic
            return image, np.zeros((0, *image.shape[:2]), np.uint8)
        return forgery.image, forgery.masks.astype(np.uint8) * 255

    def _augment(
        self, image: np.ndarray, coverage: np.ndarray, inside: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # One generator for all transforms. `set_random_seed` would give each transform the same numbers: an image
        # would then be flipped both ways and rotated, or none of it.
        self.augmentation.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        changed = self.augmentation(image=image, masks=np.concatenate([coverage, inside]))
        image, masks = changed["image"], np.asarray(changed["masks"])
        coverage, inside = masks[:-1], masks[-1:]
        image[inside[0] == 0] = PADDING  # the colours of the margin were changed, too
        return image, coverage, inside


class _PanelSources(Sequence):
    """Other authentic images, each read only when a figure is composed of it."""

    def __init__(self, dataset: ForgeryDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.dataset.read(int(self.indices[position]), [])[1].image


# Order ------------------------------------------------------------------------------------------------------------


class StepSampler:
    """Order of one epoch, for one rank: batches of (epoch, index), which follow from seed, epoch and step alone.

    The images are shuffled by (seed, epoch) and cut into optimiser steps of
    `batch_size * world * gradient_accumulation_steps`. Rank r takes images r, r + world, ... of a step and cuts them
    into batches of `batch_size`: which images belong to a step does not depend on how many ranks share it.

    The last step of an epoch may have fewer images. Where their number is not a multiple of the number of ranks,
    images from the start of the epoch's order are added, so that all ranks have the same batches. The last step may
    also have fewer batches than the others, and a smaller last batch (`step_sizes`).
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        epoch: int = 0,
        start_step: int = 0,
    ) -> None:
        """`length`: number of images. `start_step`: optimiser steps of the epoch that are done already."""
        if min(length, batch_size, world, gradient_accumulation_steps) < 1 or not 0 <= rank < world:
            raise InputError(
                f"{length} images, batch size {batch_size}, {gradient_accumulation_steps} accumulation steps, {world} "
                f"ranks: each must be at least 1, and the rank ({rank}) lower than the number of ranks"
            )
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world
        self.gradient_accumulation_steps, self.seed = gradient_accumulation_steps, seed
        self.set_epoch(epoch, start_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Let the next iteration start at this optimiser step of this epoch."""
        if not 0 <= start_step <= self.steps:
            raise InputError(f"start step {start_step} is not within 0 to {self.steps}, the steps of an epoch")
        self.epoch, self.start_step = epoch, start_step

    @property
    def step_images(self) -> int:
        """Images of a full optimiser step, all ranks together."""
        return self.batch_size * self.world * self.gradient_accumulation_steps

    @property
    def steps(self) -> int:
        """Optimiser steps of a whole epoch."""
        return -(-self.length // self.step_images)

    def step_sizes(self, step: int) -> list[int]:
        """Sizes of this rank's batches in an optimiser step; the same on every rank."""
        images = -(-min(self.step_images, self.length - step * self.step_images) // self.world)
        return [min(self.batch_size, images - start) for start in range(0, images, self.batch_size)]

    def order(self) -> np.ndarray:
        """(length,) int: the epoch's order of images, the same on every rank."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.length)

    def __len__(self) -> int:
        return sum(len(self.step_sizes(step)) for step in range(self.start_step, self.steps))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, epoch = self.order(), self.epoch
        for step in range(self.start_step, self.steps):
            chunk = order[step * self.step_images : (step + 1) * self.step_images]
            filled = np.concatenate([chunk, np.resize(order, -len(chunk) % self.world)])
            mine = filled[self.rank :: self.world]
            for start in range(0, len(mine), self.batch_size):
                yield [(epoch, int(index)) for index in mine[start : start + self.batch_size]]


# Loader -----------------------------------------------------------------------------------------------------------


def collate(samples: list[dict[str, Any] | InputError]) -> dict[str, Any] | InputError:
    """Samples -> batch: `image` (B, S, S, 3) uint8, `labels` (B, G, G) int64, `num_labels` (int, 1 + the largest
    label, computed here so that the loss does not have to wait for the GPU), `ids`, `skipped`.

    The first sample that is an InputError takes the place of the batch.
    """
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    labels = np.stack([sample["labels"] for sample in samples])
    return {
        "image": torch.from_numpy(np.stack([sample["image"] for sample in samples])),
        "labels": torch.from_numpy(labels),
        "num_labels": int(labels.max(initial=0)) + 1,
        "ids": [sample["id"] for sample in samples],
        "skipped": [line for sample in samples for line in sample["skipped"]],
    }


class _ErrorsReturned:
    """The dataset with InputErrors returned, not raised: torch would turn one that a loader process raises into many
    lines of traceback."""

    def __init__(self, dataset: ForgeryDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | InputError:
        try:
            return self.dataset[key]
        except InputError as fault:
            return fault


class Loader:
    """Batches of one rank (see `collate`) in the order of `sampler`; `sampler.set_epoch` says which epoch comes next.

    `skipped` has a line, as a key, for every image that could not be read (with `--skip-unreadable`).
    """

    def __init__(self, dataset: ForgeryDataset, sampler: StepSampler, num_workers: int) -> None:
        self.dataset, self.sampler, self.skipped = dataset, sampler, dict[str, None]()
        self._batches = torch.utils.data.DataLoader(
            _ErrorsReturned(dataset),
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            multiprocessing_context=_loader_context() if num_workers else None,
            generator=torch.Generator(),  # not the global one: a resumed run must draw the same numbers from that
        )
        # The loader processes ignore SIGTERM, by which multiprocessing ends them at exit. This runs before that.
        atexit.register(self.close)

    def close(self) -> None:
        """End the loader processes. Happens by itself when the program ends."""
        iterator, self._batches._iterator = self._batches._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._received():
            if isinstance(batch, InputError):
                raise batch
            for line in batch.pop("skipped"):
                if line not in self.skipped:
                    self.skipped[line] = None
                    print(f"left out: {line}", file=sys.stderr)
            yield batch

    def _received(self) -> Iterator[Any]:
        """Batches of the loader processes. Raises BrokenExecutor if one was killed while it handed over a batch."""
        batches = iter(self._batches)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError) as fault:
                raise BrokenExecutor("a loader process was killed") from fault
            yield batch


def _loader_context() -> multiprocessing.context.BaseContext:
    """The usual way to start processes, with a `Flag` as the event by which torch ends its loader processes."""
    context = copy.copy(multiprocessing.get_context())
    context.Event = Flag
    return context


def _start_worker(_: int) -> None:
    """A loader process uses one thread, because the processes share the cores already."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach every process of the job. The main process saves, then it ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(
    image_files: Sequence[ImageFile],
    size: int,
    data: DataSettings,
    loader: LoaderSettings,
    synthesis: SynthesisSettings,
    *,
    batch_size: int,
    gradient_accumulation_steps: int = 1,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
) -> Loader:
    """Training batches of one rank. `size`: S in pixels; `batch_size`: images per rank and batch.

    Raises:
        InputError: no images, or a setting out of its range.
    """
    if loader.num_workers < 0:
        raise InputError(f"--num-workers {loader.num_workers} is negative; 0 reads in the main process")
    dataset = ForgeryDataset(image_files, size, data, loader, synthesis, seed)
    sampler = StepSampler(len(dataset), batch_size, rank, world, gradient_accumulation_steps, seed)
    return Loader(dataset, sampler, loader.num_workers)
