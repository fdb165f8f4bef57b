"""Find copy-move forgeries in images, folders, globs and PDFs, and show the evidence on a page.

    python predict.py figures/ paper.pdf --out found
    python predict.py 'scans/**/*.tif' --out found --evidence-only     # no model, no torch
    torchrun --nproc_per_node=4 predict.py figures/ --out found        # images shared among the ranks

OUT then holds predictions.jsonl (one line per image), masks/NAME.png (16-bit label maps: 0 background, k instance),
submission.csv and report/index.html. A run that was stopped goes on with --resume.

Exit status: 0 nothing found; 3 something found; 4 nothing found, but some files could not be examined; 5 something
found, and some files could not be examined; 2 bad usage; 1 a fault of the program; 130 interrupted. Under torchrun,
which takes every other status for a failure, a run that ends well always gives 0.
"""

from config import PredictSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(PredictSettings)  # above the heavy imports: `--help` and mistakes answer at once

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from copymove.scoring import score_threshold
from images.inputs import ImageSource, find_inputs
from report.entries import CLEAN, ERROR, FOUND, Entry, error_entry, read_entry, unique_name, write_entry
from report.lines import Line, error_line, key_of, label_map_png, result_line, write_submission
from report.page import write_page
from runtime.command_line import changed_settings, to_dict
from runtime.errors import InputError, one_line
from runtime.files import atomic_write, exclusive_lock, read_json, write_json
from runtime.ranks import Ranks, read_ranks
from runtime.records import RecordStore
from runtime.workers import Lost, run_jobs

if TYPE_CHECKING:
    from detector import Detection

RUN_ONLY = {"paths", "out", "resume", "num_workers", "image_timeout"}  # settings that do not change what is found
SHOWN_ERRORS = 5  # most images that could not be examined and are named in the summary
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

    done: set[tuple[str, int, int]] = field(default_factory=set)
    counts: Counter = field(default_factory=Counter)  # images of each verdict, and "findings" in all

    @classmethod
    def of(cls, store: RecordStore, files_may_be_empty: bool) -> "Progress":
        """That of a run that goes on. An image is done if it has a line, and its files hold something."""
        progress = cls()
        for line in store:
            if not files_may_be_empty or has_files(store.path.parent, line):
                progress.done.add(key_of(line))
                progress.count(line)
        return progress

    def count(self, line: Line) -> None:
        """Add the verdict of an image."""
        self.counts[line["verdict"]] += 1
        self.counts["findings"] += len(line["instances"])


def has_files(out: Path, line: Line) -> bool:
    """Whether the files that belong to a line are there and hold something."""
    if line["verdict"] == ERROR:
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
            if isinstance(result, list):  # the figures of a PDF come next
                figures = [figure for figure in result if figure.key not in progress.done]
                queue.extendleft(reversed(figures))
                bar.total += len(result) - 1
                bar.update(len(result) - len(figures))
                continue
            append(result)
            progress.count(result)
            bar.set_postfix(findings=progress.counts["findings"], errors=progress.counts[ERROR], refresh=False)
            bar.update()


def examine_all(
    queue: deque[ImageSource], settings: PredictSettings, load: Load, ranks: Ranks
) -> Iterator[Line | list[ImageSource]]:
    """The line of each image of the queue, or the images that a file holds; see `run_jobs`.

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


def start_examining(
    settings: PredictSettings, load: Load, gpu: int
) -> Callable[[ImageSource], Line | list[ImageSource]]:
    """In a worker process: load the detector, then examine what is given."""
    if settings.checkpoint is not None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(gpu % torch.cuda.device_count())
    return partial(examine, settings, load(settings))


def examine(settings: PredictSettings, detect: Detect, source: ImageSource) -> Line | list[ImageSource]:
    """The line of an image, once its mask and its part of the report are on disk; the images of a file that holds some.

    An image that cannot be read gives a line with the reason. So does one that the program fails on: it costs this
    image and not the run, and its traceback goes to stderr.
    """
    try:
        if source.holds_images:
            return source.parts()
        image = source.read(settings.max_megapixels)
        detection = detect(image)
    except (InputError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # a full disk is no fault of the image
        return refused(source, str(fault))
    except Exception as fault:
        return failed(source, fault)
    try:
        return write_findings(settings.out, source, image, detection)
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
    return error_line(source.path, unique_name(source.path, source.page, source.figure), source.place, reason)


def write_findings(out: Path, source: ImageSource, image: np.ndarray, detection: "Detection") -> Line:
    """Write the mask and the part of the report, and return the line."""
    name = unique_name(source.path, source.page, source.figure)
    line = result_line(source.path, name, source.place, detection)
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
    page = write_report(settings, store)
    status = summarize(store, page)
    return 0 if ranks.world > 1 else status


def write_report(settings: PredictSettings, store: RecordStore) -> Path:
    """Write the page with the evidence of all images, and return its path."""
    folder = settings.out / "report"

    def entries() -> Iterator[Entry]:
        for line in store:
            if line["verdict"] == ERROR:
                place = {name: line.get(name) for name in ("page", "figure", "box")}
                yield error_entry(line["name"], line["path"], line["error"], **place)
            else:
                yield read_entry(folder, line["name"])

    shown = to_dict(settings)
    same_run = {name: value for name, value in shown.items() if name not in RUN_ONLY} | {
        "out": str(settings.out.resolve())
    }
    names = ["/".join(Path(os.path.abspath(path)).parts[-2:]) for path in settings.paths]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return write_page(
        folder,
        entries,
        title=f"Images of {', '.join(names[:3])}{more}",
        run=hashlib.sha256(json.dumps(same_run, sort_keys=True).encode()).hexdigest()[:12],
        details={
            "Command": " ".join(["predict.py", *sys.argv[1:]]),
            "Settings": json.dumps(shown),
            "Python": platform.python_version(),
        },
    )


def summarize(store: RecordStore, page: Path) -> int:
    """Print what was found and where it is; return the exit status."""
    progress, errors = Progress(), []
    for line in store:
        progress.count(line)
        if line["verdict"] == ERROR and len(errors) < SHOWN_ERRORS:
            errors.append(f"error: {line['path']}: {line['error']}")
    found, clean, unread = (progress.counts[verdict] for verdict in (FOUND, CLEAN, ERROR))
    print(
        f"{found + clean + unread} images: {found} with findings ({progress.counts['findings']} in all), "
        f"{clean} clean, {unread} not examined"
    )
    errors += [f"... and {unread - len(errors)} more, see {store.path}"] if unread > len(errors) else []
    for error in errors:
        print(one_line(error))
    print(f"evidence: {page}")
    return (5 if unread else 3) if found else (4 if unread else 0)


if __name__ == "__main__":
    run(main, SETTINGS)
