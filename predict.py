"""Find copy-move forgeries in images, folders, globs and PDFs, and show the evidence on a page.

    python predict.py figures/ paper.pdf --out found
    python predict.py 'scans/**/*.tif' --out found --evidence-only     # no model, no torch
    torchrun --nproc_per_node=4 predict.py figures/ --out found        # images shared among the ranks

OUT then holds predictions.jsonl (one line per image), masks/NAME.png (16-bit label maps: 0 background, k instance),
submission.csv and report/index.html. A run that was stopped goes on with --resume.

Exit status: 0 nothing found; 3 something found; 4 nothing found, but some files could not be read; 5 something found,
and some files could not be read; 6 nothing found and all files read, but some of what they hold was not examined; 2 bad
usage; 1 a fault of the program; 130 interrupted. Under torchrun, which takes every other status for a failure, a run
that ends well always gives 0.
"""

from config import PredictSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(PredictSettings)  # above the heavy imports: `--help` and mistakes answer at once

import contextlib
import errno
import math
import os
import shutil
import traceback
from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from copymove.scoring import score_threshold
from images.depth import Intensity
from images.inputs import ImageSource, Parts, find_inputs
from images.not_examined import HARMLESS
from report.entries import ERROR, NOT_EXAMINED, unique_name, write_entry
from report.lines import (
    Key,
    Line,
    error_line,
    key_of,
    label_map_png,
    not_examined_line,
    result_line,
    write_submission,
)
from report.run import Tally, print_summary, write_run_page
from runtime.command_line import changed_settings, to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, exclusive_lock, read_json, write_json
from runtime.ranks import Ranks, read_ranks
from runtime.records import RecordStore
from runtime.workers import Lost, run_jobs

if TYPE_CHECKING:
    from detector import Detection

RUN_ONLY = {"paths", "out", "resume", "num_workers", "image_timeout"}  # settings that do not change what is found
Detect = Callable[[np.ndarray], "Detection"]  # image (H, W, 3) uint8 RGB -> what was found
Load = Callable[[PredictSettings], Detect]


def load_detector(settings: PredictSettings) -> Detect:
    """The detector that the settings ask for."""
    from detector import Detector  # here, since only the worker processes need it: it may bring torch

    return Detector.load(
        settings.checkpoint, settings.clustering, settings.backbone, settings.matching, settings.evidence_only
    ).detect


def main(settings: PredictSettings, load: Load = load_detector) -> int:
    """Examine all images, write everything, and return the exit status (see the top of this file).

    `load(settings)` gives the function that examines an image; it is called once in each worker process.
    """
    ranks = read_ranks()
    check(settings)
    store = RecordStore(settings.out / "predictions.jsonl", key_of)
    files_may_be_empty = store.older_than_boot
    meet(ranks)
    inputs = find_inputs(settings.paths, settings.out)
    with exclusive_lock(settings.out) if ranks.main else contextlib.nullcontext():
        prepare(settings, store, ranks)
        meet(ranks)  # the first rank has mended the files before the others read them
        progress = Progress.of(store, files_may_be_empty)
        meet(ranks)  # all have read them before any of them writes
        examine_share([ImageSource(path) for path in ranks.share(inputs)], progress, settings, store, ranks, load)
        del progress  # a large set beside what follows
        if ranks.world > 1:
            import distributed  # it brings torch

            distributed.wait_for_slowest()
        return close(settings, store, ranks) if ranks.main else 0


def check(settings: PredictSettings) -> None:
    """Refuse settings that cannot work, before anything is written."""
    model = {"--checkpoint": settings.checkpoint, "--clustering": settings.clustering, "--backbone": settings.backbone}
    given = [flag for flag, value in model.items() if value is not None]
    if settings.evidence_only and given:
        raise InputError(f"--evidence-only uses no model; leave out {', '.join(given)}, or --evidence-only")
    if given and settings.checkpoint is None:
        raise InputError(f"{', '.join(given)} belong to a model; give its --checkpoint too")
    if settings.max_pages < 1:
        raise InputError(f"--max-pages is {settings.max_pages}; it must be 1 or more")
    if settings.num_workers is not None and settings.num_workers < 0:
        raise InputError(f"--num-workers is {settings.num_workers}; it must be 0 (in this process) or more")
    for path in (settings.checkpoint, settings.clustering):
        if path is not None and str(path) != "embedded" and not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
    score_threshold(settings.matching.target_fpr)  # refuses a rate that has no threshold


def meet(ranks: Ranks) -> None:
    """Wait until all ranks of the job are here."""
    if ranks.world > 1:
        import distributed  # it brings torch

        distributed.start()
        distributed.barrier()


def prepare(settings: PredictSettings, store: RecordStore, ranks: Ranks) -> None:
    """Make the output folder, or check that the run in it can go on. Raises InputError where it cannot."""
    saved = settings.out / "settings.json"
    if settings.resume or (ranks.restarts > 0 and saved.exists()):  # torchrun starts a failed job again
        if not saved.exists():
            raise InputError(f"--resume: there is no run in {settings.out} ({saved.name} is missing); start without it")
        if changed := changed_settings(read_json(saved), to_dict(settings), RUN_ONLY):
            raise InputError(f"--resume with other settings: {'; '.join(changed)}; give the same, or another --out")
        if ranks.main:
            store.mend()
        return
    if not store.empty:
        raise InputError(
            f"{settings.out} holds the predictions of another run; go on with --resume or give another --out"
        )
    if ranks.main:
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(saved, to_dict(settings))


@dataclass
class Progress:
    """Which images have their lines, and what the lines say."""

    done: set[Key] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, store: RecordStore, files_may_be_empty: bool) -> "Progress":
        """That of a run that goes on. An image is done if it has a line, and its files hold something."""
        progress = cls()
        for line in store:
            if not files_may_be_empty or has_files(store.path.parent, line):
                progress.done.add(key_of(line))
                progress.tally.add(line)
        return progress


def has_files(out: Path, line: Line) -> bool:
    """Whether the files that belong to a line are there and hold something."""
    if line["verdict"] in (ERROR, NOT_EXAMINED):
        return True
    folder = out / "report" / "images" / line["name"]
    files = [*(folder.iterdir() if folder.is_dir() else [folder]), *([out / line["mask"]] if "mask" in line else [])]
    return all(path.is_file() and path.stat().st_size for path in files)


def examine_share(
    sources: list[ImageSource],
    progress: Progress,
    settings: PredictSettings,
    store: RecordStore,
    ranks: Ranks,
    load: Load,
) -> None:
    """Examine this rank's files, leaving out what is done, and append a line for each image."""
    queue = deque(source for source in sources if source.key not in progress.done)
    bar = tqdm(
        total=len(sources), initial=len(sources) - len(queue), unit="image", disable=not ranks.main, smoothing=0.1
    )
    with bar, store.appending(ranks.rank) as append:
        for result in examine_all(queue, settings, load, ranks):
            lines, finished = [result], 1
            if isinstance(result, Parts):  # the images that a file holds come next
                images = [image for image in result.images if image.key not in progress.done]
                queue.extendleft(reversed(images))
                bar.total += len(result.images) - 1
                finished = len(result.images) - len(images)
                lines = left_out(result, progress.done)
            for line in lines:
                append(line)
                progress.tally.add(line)
            tally = progress.tally
            bar.set_postfix(findings=tally.findings, errors=tally.verdicts[ERROR], refresh=False)
            bar.update(finished)


def left_out(parts: Parts, done: Container[Key]) -> list[Line]:
    """A line for each kind of thing that a file holds and that was not examined, unless it is `done`."""
    lines: dict[Key, Line] = {}
    for item in parts.not_examined:
        line = not_examined_line(item.path, item.place, item.what, item.reason, item.count)
        same = lines.setdefault(key_of(line), line)
        same["count"] += 0 if same is line else item.count
    return [line for key, line in lines.items() if key not in done]


def examine_all(
    queue: deque[ImageSource], settings: PredictSettings, load: Load, ranks: Ranks
) -> Iterator[Line | Parts]:
    """The line of each image of the queue, or what a file holds; see `run_jobs`.

    An image whose process died or took too long gets a line with the reason.
    """
    processes = settings.num_workers
    if processes is None:
        processes = max(1, (os.cpu_count() or 1) // ranks.local_world)
    start = partial(start_examining, settings, load, ranks.local_rank)
    for source, result in run_jobs(queue, start, processes, settings.image_timeout or math.inf):
        if isinstance(result, Lost):
            reason = f"given up after {settings.image_timeout:g} s (--image-timeout)" if result.late else result.reason
            result = refused(source, reason)
        yield result


def start_examining(settings: PredictSettings, load: Load, gpu: int) -> Callable[[ImageSource], Line | Parts]:
    """In a worker process: load the detector, then examine what is given."""
    if settings.checkpoint is not None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(gpu % torch.cuda.device_count())
    return partial(examine, settings, load(settings))


def examine(settings: PredictSettings, detect: Detect, source: ImageSource) -> Line | Parts:
    """The line of an image, once its mask and its part of the report are on disk; what a file of images holds.

    An image that cannot be read gives a line with the reason. So does one that the program fails on: it costs this
    image and not the run, and its traceback goes to stderr.
    """
    try:
        if source.holds_images:
            parts = source.parts(settings.max_pages)
            if parts.not_examined or [part.key for part in parts.images] != [source.key]:
                return parts
            source = parts.images[0]  # a file that could hold several images holds this one
        image, intensity = source.read_with_intensity(settings.max_megapixels)
        detection = detect(image)
    except (InputError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # a full disk is no fault of the image
        return refused(source, str(fault))
    except Exception as fault:
        return failed(source, fault)
    try:
        return write_findings(settings.out, source, image, intensity, detection)
    except OSError:
        raise  # of the output folder: no other image would fare better
    except Exception as fault:
        return failed(source, fault)


def failed(source: ImageSource, fault: Exception) -> Line:
    """Line of an image that the program failed on: memory ran out, or a fault, whose traceback goes to stderr."""
    if isinstance(fault, MemoryError):
        return refused(source, "there was not enough memory to examine it")
    traceback.print_exception(fault)
    return refused(source, f"fault of the program: {type(fault).__name__}: {fault}")


def refused(source: ImageSource, reason: str) -> Line:
    """Line of an image that could not be examined."""
    return error_line(source.path, name_of(source), source.place, reason)


def name_of(source: ImageSource) -> str:
    """The unique name of an image's files."""
    return unique_name(source.path, source.page, source.figure, source.part)


def write_findings(
    out: Path, source: ImageSource, image: np.ndarray, intensity: Intensity | None, detection: "Detection"
) -> Line:
    """Write the mask and the part of the report, and return the line."""
    name = name_of(source)
    line = result_line(source.path, name, source.place, detection, None if intensity is None else intensity.to_dict())
    if "mask" in line:
        data = label_map_png(detection.masks)
        atomic_write(out / line["mask"], lambda temporary: temporary.write_bytes(data), lasting=False)
    write_entry(out / "report", name, source.path, image, detection, **source.place)
    return line


def close(settings: PredictSettings, store: RecordStore, ranks: Ranks) -> int:
    """Write what needs the lines of all images, and return the exit status."""
    store.merge()
    for folder in ("", "masks/", "report/", "report/images/"):
        for left in settings.out.glob(f"{folder}.*.tmp"):  # of a run that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    atomic_write(settings.out / "submission.csv", partial(write_submission, lines=store))
    page = write_run_page(settings.out, store, to_dict(settings), RUN_ONLY, settings.paths)
    status = print_summary(store, page, store.path, HARMLESS)
    return 0 if ranks.world > 1 else status


if __name__ == "__main__":
    run(main, SETTINGS)
