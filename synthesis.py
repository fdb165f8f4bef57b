"""Copy-move forgeries with exact instance masks, made out of authentic images.

    python synthesis.py --authentic DIR --out DIR --count 2000 --seed 0
    python synthesis.py --authentic DIR --out DIR --content-kinds object --min-copy-pixels 20 --max-copy-pixels 60

The second makes single cells of 20 to 60 pixels only; all limits and kinds are options below.
Writes OUT/authentic/<id>.png, OUT/forged/<id>.png, OUT/masks/<id>.npy (uint8 0/1, K x H x W) and beside every
image <id>.json: what was copied where, with affine matrices, and `base`, the group of authentic images it
was made from. Images with the same `base` may share pixels and belong into the same split. OUT/synthesis.json keeps
the settings; a run that was stopped goes on with --resume and ends with the same files.
"""

from config import SynthesizeSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(SynthesizeSettings)  # above the heavy imports: `--help` and mistakes answer at once

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from forgery.forge import Forgery, forge
from images.folders import find_images
from images.read import read_image
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json
from runtime.workers import map_in_processes

RUN_ONLY = ("authentic", "out", "num_workers", "resume")  # settings that do not change what is made


TRIES = 12  # authentic images tried for one forgery before the run stops


@dataclass(frozen=True)
class _Job:
    """One image to write."""

    settings: SynthesizeSettings
    number: int
    groups: list[list[Path]]  # tried in this order; the first of each is the image that is forged
    bases: list[str]  # name of each group

    @property
    def forged(self) -> bool:
        return self.number < self.settings.count

    @property
    def files(self) -> list[Path]:
        """Record, image and, of a forgery, masks."""
        folder, name = self.settings.out / ("forged" if self.forged else "authentic"), f"{self.number:06d}"
        masks = [self.settings.out / "masks" / f"{name}.npy"] if self.forged else []
        return [folder / f"{name}.json", folder / f"{name}.png", *masks]

    @property
    def done(self) -> bool:
        """Whether the files are there. A power cut may leave empty ones."""
        return all(path.exists() and path.stat().st_size for path in self.files)


def group(paths: Sequence[Path], size: int) -> list[list[Path]]:
    """Cut the images into groups of at most `size` from one folder, in the order of their names.

    Neighbours in name are often frames of one series: they stay together, and so in one split.
    """
    groups = []
    for _, members in itertools.groupby(sorted(paths, key=lambda p: (p.parent, p.name)), key=lambda p: p.parent):
        members = list(members)
        groups += [members[i : i + size] for i in range(0, len(members), size)]
    return groups


def main(settings: SynthesizeSettings) -> None:
    """Write `count` forgeries and the authentic images beside them."""
    from tqdm import tqdm

    if settings.count < 1 or settings.num_workers < 1 or settings.group_size < 1:
        raise InputError("count, workers and group_size must be at least 1")
    paths = [image.image for image in find_images(settings.authentic) if image.forged is False]
    if not paths:
        raise InputError(f"{settings.authentic} holds no authentic images; give the folder that does")
    _prepare(settings, paths)
    jobs = _jobs(settings, paths)
    left = [job for job in jobs if not job.done]
    left_out: set[str] = set()
    with tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="image", desc="synthesis") as bar:
        for reasons in map_in_processes(_write, left, settings.num_workers, bar=False):
            left_out.update(reasons)
            bar.update()
    print(f"{settings.count} forged and {len(jobs) - settings.count} authentic images in {settings.out}")
    for reason in sorted(left_out):
        print(f"left out: {reason}")


def _prepare(settings: SynthesizeSettings, paths: Sequence[Path]) -> None:
    """Make the folder, or check that the run in it can go on, which needs the same settings and images."""
    own = {name: value for name, value in to_dict(settings).items() if name not in RUN_ONLY}
    names = "\n".join(str(path.relative_to(settings.authentic)) for path in paths)
    now = {"settings": own, "images": hashlib.sha256(os.fsencode(names)).hexdigest()}
    saved = settings.out / "synthesis.json"
    if not settings.resume:
        if settings.out.exists() and any(settings.out.iterdir()):
            raise InputError(f"{settings.out} is not empty; go on with --resume, or give a new folder")
        write_json(saved, now)
        return
    if not saved.exists():
        raise InputError(f"--resume: there is no run in {settings.out} ({saved.name} is missing); start without it")
    if read_json(saved) != now:
        raise InputError(f"--resume with other settings or images than in {saved}; give the same, or another --out")
    for left in settings.out.glob("*/.*.tmp"):  # of a process that was killed
        left.unlink()


def _jobs(settings: SynthesizeSettings, paths: Sequence[Path]) -> list[_Job]:
    """Every authentic image is used as often as every other one, in an order that the seed shuffles."""
    choices = []
    for members in group(paths, settings.group_size):
        base = "__".join(members[0].relative_to(settings.authentic).with_suffix("").parts)
        choices += [(base, [path, *(other for other in members if other != path)]) for path in members]
    order = np.random.default_rng(settings.seed).permutation(len(choices))
    authentic = settings.count if settings.authentic_count is None else settings.authentic_count
    jobs = []
    for number in range(settings.count + authentic):
        tried = [choices[order[(number + i) % len(order)]] for i in range(min(TRIES, len(order)))]
        jobs.append(_Job(settings, number, [members for _, members in tried], [base for base, _ in tried]))
    return jobs


def _write(job: _Job) -> list[str]:
    """Make one image and write its files; returns which authentic images were left out, and why."""
    settings, left_out = job.settings, []
    for attempt, (base, paths) in enumerate(zip(job.bases, job.groups, strict=True)):
        images = _read(paths, settings.skip_unreadable, left_out)
        if paths[0] not in images:
            continue
        rng = np.random.default_rng([settings.seed, job.number, attempt])
        names = [str(path.relative_to(settings.authentic)) for path in images]
        image, *panels = images.values()
        try:
            forgery = forge(image, settings.synthesis, rng, job.forged, panels)
        except InputError:
            raise
        except ValueError as fault:
            left_out.append(f"{paths[0]}: {fault}")
            continue
        if forgery.record["forged"] == job.forged:
            _save(forgery, job, {"base": base, "images": names})
            return left_out
    raise InputError(
        f"no image to make number {job.number} of: {len(job.groups)} were tried, among them {job.groups[0][0]}; "
        f"give larger or more structured images, or allow more content_kinds. {'; '.join(left_out[:3])}"
    )


def _read(paths: Sequence[Path], skip_unreadable: bool, left_out: list[str]) -> dict[Path, np.ndarray]:

    images = {}
    for path in paths:
        try:
            images[path] = read_image(path)
        except InputError as fault:
            if not skip_unreadable:
                raise InputError(f"{fault}. Remove it, or give --skip-unreadable") from None
            left_out.append(str(fault))
    return images


def _save(forgery: Forgery, job: _Job, origin: dict[str, Any]) -> None:
    record, image, *masks = job.files
    _, data = cv2.imencode(".png", forgery.image[..., ::-1])
    text = json.dumps(forgery.record | origin, indent=2) + "\n"
    # Many small files: waiting for the disk would take longer than making them, and --resume makes empty ones again.
    atomic_write(record, lambda path: path.write_text(text), lasting=False)
    atomic_write(image, lambda path: path.write_bytes(data), lasting=False)
    for path in masks:
        atomic_write(path, lambda path: _save_array(path, forgery.masks), lasting=False)


def _save_array(path: Path, masks: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to a bare path
        np.save(file, masks.astype(np.uint8))


if __name__ == "__main__":
    run(main, SETTINGS)
