"""Copy-move forgeries with exact instance masks, made out of authentic images.

    python synthesis.py --authentic DIR --out DIR --count 2000 --seed 0
    python synthesis.py --authentic DIR --out DIR --content-kinds object --min-copy-pixels 20 --max-copy-pixels 60
    python synthesis.py --authentic DIR --out DIR --figures --count 500

The second command copies single cells of 20 to 60 pixels only; all limits and kinds are options below. The third makes
whole figures as papers have them (photographs, charts, blots, gels, schematics, text), in which nothing is copied:
OUT/figures/<id>.png, OUT/kinds/<id>.png (what each pixel is, a number of config.PIXEL_KINDS) and
OUT/figures/<id>.json (the panels).
Writes OUT/authentic/<id>.png, OUT/forged/<id>.png, OUT/masks/<id>.npy (uint8 0/1, K x H x W) and, beside every image,
<id>.json: what was copied where, with affine matrices, and `base`, the group of authentic images that it was made
from. Images with the same `base` may share pixels: they belong into the same split. OUT/synthesis.json keeps the
settings. A run that was stopped goes on with --resume and ends with the same files.
"""

from config import SynthesizeSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(SynthesizeSettings)  # above the heavy imports: `--help` and mistakes answer at once

import functools
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
from tqdm import tqdm

from forgery.drawings import chart
from forgery.forge import Forgery, forge
from forgery.whole_figures import make_figure
from images.folders import find_images
from images.read import read_image
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json
from runtime.workers import map_in_processes

FREE_ON_RESUME = ("authentic", "out", "num_workers", "resume")  # settings that do not change what is made
TRIES = 12  # authentic images tried for one forgery before the run stops, or that one figure is made of
CHARTS = 64  # charts that figures are made of, each in other colours and sizes every time


@dataclass(frozen=True)
class _Job:
    """One image to write."""

    settings: SynthesizeSettings
    number: int
    groups: list[list[Path]]  # tried in this order; the first path of each is the image that is forged
    bases: list[str]  # `base` of each group

    @property
    def forged(self) -> bool:
        return self.number < self.settings.count

    @property
    def files(self) -> list[Path]:
        """Paths of the record, the image and, of a forgery, the masks; of a figure, what each pixel is."""
        if self.settings.figures:
            name = f"{self.number:06d}"
            folders = ((self.settings.out / folder) for folder in ("figures", "figures", "kinds"))
            return [f / (name + ending) for f, ending in zip(folders, (".json", ".png", ".png"), strict=True)]
        folder, name = self.settings.out / ("forged" if self.forged else "authentic"), f"{self.number:06d}"
        masks = [self.settings.out / "masks" / f"{name}.npy"] if self.forged else []
        return [folder / f"{name}.json", folder / f"{name}.png", *masks]

    @property
    def done(self) -> bool:
        """Whether all files are there and not empty, as a power cut may leave them."""
        return all(path.exists() and path.stat().st_size for path in self.files)


def _group(paths: Sequence[Path], size: int) -> list[list[Path]]:
    """Groups of at most `size` images from one folder, in the order of their names.

    Images whose names follow each other are often frames of one series. In one group they stay in one split.
    """
    groups = []
    for _, members in itertools.groupby(sorted(paths, key=lambda p: (p.parent, p.name)), key=lambda p: p.parent):
        members = list(members)
        groups += [members[i : i + size] for i in range(0, len(members), size)]
    return groups


def main(settings: SynthesizeSettings) -> None:
    """Write `count` forgeries and the authentic images beside them."""
    if settings.count < 1 or settings.num_workers < 1 or settings.group_size < 1:
        raise InputError("--count, --num-workers and --group-size must be at least 1")
    paths = [image_file.image for image_file in find_images(settings.authentic) if image_file.forged is False]
    if not paths:
        raise InputError(f"{settings.authentic} holds no authentic images; give the folder that does")
    _prepare(settings, paths)
    jobs = _jobs(settings, paths)
    missing = [job for job in jobs if not job.done]
    left_out: set[str] = set()
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="image", desc="synthesis") as bar:
        write = _write_figure if settings.figures else _write
        for reasons in map_in_processes(write, missing, settings.num_workers, bar=False):
            left_out.update(reasons)
            bar.update()
    made = f"{settings.count} forged and {len(jobs) - settings.count} authentic images"
    print(f"{f'{len(jobs)} figures' if settings.figures else made} in {settings.out}")
    for reason in sorted(left_out):
        print(f"left out: {reason}")


def _prepare(settings: SynthesizeSettings, paths: Sequence[Path]) -> None:
    """Make the folder, or check with --resume that settings and images are those of the run in it."""
    own = {name: value for name, value in to_dict(settings).items() if name not in FREE_ON_RESUME}
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
    for unfinished in settings.out.glob("*/.*.tmp"):  # of a process that was killed
        unfinished.unlink()


def _jobs(settings: SynthesizeSettings, paths: Sequence[Path]) -> list[_Job]:
    """One job for each image to write. They use all authentic images equally often, in an order drawn by the seed."""
    choices = []
    for members in _group(paths, settings.group_size):
        base = "__".join(members[0].relative_to(settings.authentic).with_suffix("").parts)
        choices += [(base, [path, *(other for other in members if other != path)]) for path in members]
    order = np.random.default_rng(settings.seed).permutation(len(choices))
    authentic = settings.count if settings.authentic_count is None else settings.authentic_count
    authentic = 0 if settings.figures else authentic  # a figure holds no copies
    jobs = []
    for number in range(settings.count + authentic):
        tried = [choices[order[(number + i) % len(order)]] for i in range(min(TRIES, len(order)))]
        jobs.append(_Job(settings, number, [members for _, members in tried], [base for base, _ in tried]))
    return jobs


def _write(job: _Job) -> list[str]:
    """Make one image and write its files; returns a line for each authentic image that was left out."""
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
        except ValueError as fault:  # the image is too small
            left_out.append(f"{paths[0]}: {fault}")
            continue
        if forgery.record["forged"] == job.forged:
            _save(forgery, job, {"base": base, "images": names})
            return left_out
    raise InputError(
        f"image number {job.number} cannot be made of any of {len(job.groups)} images that were tried, among them "
        f"{job.groups[0][0]}; give larger or more structured images, or allow more --content-kinds. "
        f"{'; '.join(left_out[:3])}"
    )


def _write_figure(job: _Job) -> list[str]:
    """Make one whole figure out of some of the authentic images and write its files; as `_write`."""
    settings, left_out = job.settings, []
    photographs = []
    for paths in job.groups:
        try:
            photographs.append(_photograph(paths[0]))
        except InputError as fault:
            if not settings.skip_unreadable:
                raise InputError(f"{fault}. Remove it, or give --skip-unreadable") from None
            left_out.append(str(fault))
    if not photographs:
        raise InputError(f"no image for figure number {job.number} can be read; {'; '.join(left_out[:3])}")
    figure = make_figure(photographs, np.random.default_rng([settings.seed, job.number]), _charts(settings.seed))
    record, image, kinds = job.files
    panels = [{"kind": panel.kind, "box": panel.box} for panel in figure.panels]
    text = json.dumps({"panels": panels, "scale": figure.scale}, indent=2) + "\n"
    atomic_write(record, lambda path: path.write_text(text), lasting=False)
    for target, pixels in ((image, figure.image[..., ::-1]), (kinds, figure.kinds)):
        data = cv2.imencode(".png", pixels)[1]
        atomic_write(target, lambda path, data=data: path.write_bytes(data), lasting=False)
    return left_out


@functools.lru_cache(maxsize=64)
def _photograph(path: Path) -> np.ndarray:
    """An authentic image (H, W, 3) uint8, kept for the next figures."""
    return read_image(path)


@functools.cache
def _charts(seed: int) -> list[np.ndarray]:
    """The charts of a process's figures: drawing one takes longer than all the rest of a figure, so they are shared."""
    rng = np.random.default_rng([seed, CHARTS])
    return [chart(int(rng.integers(180, 620)), int(rng.integers(150, 460)), rng) for _ in range(CHARTS)]


def _read(paths: Sequence[Path], skip_unreadable: bool, left_out: list[str]) -> dict[Path, np.ndarray]:
    """Images by their paths; a line about each that cannot be read goes into `left_out`."""
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
    # These are many small files. To wait for the disk would take longer than to make them, and --resume makes those
    # again that a power cut left empty.
    atomic_write(record, lambda path: path.write_text(text), lasting=False)
    atomic_write(image, lambda path: path.write_bytes(data), lasting=False)
    for path in masks:
        atomic_write(path, lambda path: _save_array(path, forgery.masks), lasting=False)


def _save_array(path: Path, masks: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to a bare path
        np.save(file, masks.astype(np.uint8))


if __name__ == "__main__":
    run(main, SETTINGS)
