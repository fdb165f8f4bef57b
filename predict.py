"""Find copy-move forgeries in images, folders, globs and PDFs, and show the evidence on a page.

    python predict.py figures/ paper.pdf --out found
    python predict.py 'scans/**/*.tif' --out found --evidence-only     # no model, no torch
    torchrun --nproc_per_node=4 predict.py figures/ --out found        # images shared among the ranks

OUT then holds predictions.jsonl (one line per image), masks/NAME.png (16-bit label maps: 0 background, k instance),
submission.csv and report/index.html. A run that was stopped goes on with --resume.

Exit status: 0 nothing found; 3 something found; 4 nothing found, but some files could not be read; 5 something found,
and some files could not be read; 2 bad usage; 1 a fault of the program; 130 interrupted. Under torchrun, which takes
every other status for a failure, a run that ends well always gives 0.
"""

from config import PredictSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(PredictSettings)  # above the heavy imports: `--help` and mistakes answer at once

import contextlib
import errno
import glob
import hashlib
import heapq
import json
import math
import os
import platform
import re
import secrets
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from images.folders import IMAGE_SUFFIXES
from images.read import read_image
from metrics import AUTHENTIC, encode_mask, write_annotations
from report.entries import Entry, error_entry, read_entry, unique_name, write_entry
from report.page import write_page
from report.sentences import describe_copy
from report.shapes import bounding_box
from runtime.command_line import to_dict
from runtime.errors import InputError, one_line
from runtime.files import atomic_write, exclusive_lock, read_json, write_json
from runtime.ranks import Ranks, read_ranks
from runtime.workers import follow_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from detector import Detection

FOUND, NOTHING, UNREADABLE = "found", "nothing found", "unreadable"
SUFFIXES = IMAGE_SUFFIXES | {".pdf"}
RUN_ONLY = ("paths", "out", "resume", "num_workers", "image_timeout")  # settings that do not change what is found
Line = dict[str, Any]
Key = tuple[str, int, int]  # path, page, figure
Detect = Callable[[np.ndarray], "Detection"]  # image (H, W, 3) uint8 RGB -> what was found
Load = Callable[[PredictSettings], Detect]


@dataclass(frozen=True)
class Job:
    """One image: a file, or a figure of a PDF; a PDF without a figure stands for finding its figures."""

    path: str  # absolute
    page: int | None = None  # of a PDF, from 1
    figure: int | None = None  # on its page, from 1
    box: tuple[float, float, float, float] | None = None  # on the page, points

    @property
    def key(self) -> Key:
        """What tells images apart, and their order."""
        return self.path, self.page or 0, self.figure or 0

    @property
    def place(self) -> dict[str, Any]:
        """Page, figure and box, as far as known."""
        place = {"page": self.page, "figure": self.figure, "box": self.box}
        return {name: value for name, value in place.items() if value is not None}

    @property
    def name(self) -> str:
        """Name of this image's files."""
        return unique_name(self.path, self.page, self.figure)


# Input ------------------------------------------------------------------------------------------------------------


def find_inputs(paths: Sequence[Path], out: Path) -> list[str]:
    """Absolute paths of all images and PDFs, sorted, each once.

    Args:
        paths: files (taken whatever their name), folders (searched recursively, links to folders not followed), or
            patterns with `*`, `?`, `[...]` and `**`.
        out: folder whose content is never an input.
    Raises:
        FileNotFoundError: a path does not exist or a pattern matches nothing.
        InputError: there is no image at all.
    """
    if not paths:
        raise InputError("no PATH was given; give images, folders, globs or PDFs")
    found: set[str] = set()
    for path in paths:
        given = [str(path)] if os.path.lexists(path) else _matches(path)
        if not given:
            raise FileNotFoundError(f"{path} does not exist and matches nothing; give images, folders, globs or PDFs")
        for item in given:
            if os.path.isdir(item):
                found.update(_walk(item))
            else:
                found.add(os.path.abspath(item))
    inside = os.path.join(os.path.abspath(out), "")
    found = {path for path in found if not path.startswith(inside)}
    if not found:
        raise InputError(
            f"no image under {', '.join(map(str, paths))}; looked for files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found)


def _matches(pattern: Path) -> list[str]:
    """What a glob matches; links to folders are not followed, so that a loop of them ends."""
    if not glob.has_magic(str(pattern)):
        return []
    root = Path(pattern.anchor) if pattern.anchor else Path()
    return [str(match) for match in root.glob(str(pattern.relative_to(pattern.anchor)))]


def _walk(folder: str) -> Iterator[str]:
    def unlisted(fault: OSError) -> None:
        raise fault  # os.walk would pass over the folder in silence

    for parent, _, files in os.walk(folder, onerror=unlisted):
        for file in files:
            path = os.path.join(parent, file)
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".") and os.path.isfile(path):
                yield os.path.abspath(path)


# One image ------------------------------------------------------------------------------------------------------


def load_detector(settings: PredictSettings) -> Detect:
    """The detector that the settings ask for."""
    from detector import Detector

    return Detector.load(
        settings.checkpoint, settings.clustering, settings.backbone, settings.matching, settings.evidence_only
    ).detect


class Worker:
    """Examines images one after the other, in a process of its own or in this one."""

    def __init__(self, settings: PredictSettings, load: Load) -> None:
        """`load(settings)` gives the function that takes an image (H, W, 3) uint8 RGB to its Detection."""
        self.settings = settings
        self.detect = load(settings)

    def examine(self, job: Job) -> Line | list[Job]:
        """The line of an image, after its mask and its part of the report are on disk; a PDF's figures as jobs.

        An image that cannot be read gives a line with the reason. So does one that the program fails on: it costs
        this image and not the run, and its traceback goes to stderr.
        """
        try:
            if job.page is None and job.path.lower().endswith(".pdf"):
                return self._figures(job)
            image = self._read(job)
            detection = self.detect(image)
        except (InputError, OSError) as fault:
            if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # a full disk is no fault of the image
            return unreadable(job, str(fault))
        except Exception as fault:
            return failed(job, fault)
        try:
            return self._write(job, image, detection)
        except OSError:
            raise  # of the output folder: no image would fare better
        except Exception as fault:
            return failed(job, fault)

    def _figures(self, job: Job) -> Line | list[Job]:
        from images.pdf import LEAST_SIDE, find_figures

        figures = find_figures(Path(job.path))
        if not figures:
            return unreadable(job, f"the PDF holds no image of at least {LEAST_SIDE} x {LEAST_SIDE} pixels")
        return [Job(job.path, f.page, f.figure, f.box) for f in figures]

    def _read(self, job: Job) -> np.ndarray:
        if not os.path.isfile(job.path):  # reading from a pipe or a device may never end
            raise InputError(f"cannot read {job.path}: it is gone, or not a regular file")
        if job.page is None:
            return read_image(Path(job.path), self.settings.max_megapixels)
        from images.pdf import read_figure

        return read_figure(Path(job.path), job.page, job.figure, self.settings.max_megapixels)

    def _write(self, job: Job, image: np.ndarray, detection: "Detection") -> Line:
        out = self.settings.out
        line = describe(job, detection)
        if "mask" in line:
            data = _label_png(detection.masks)
            atomic_write(out / line["mask"], lambda temporary: temporary.write_bytes(data), lasting=False)
        write_entry(out / "report", job.name, job.path, image, detection, **job.place)
        return line


def unreadable(job: Job, error: str) -> Line:
    """Line of an image that could not be examined."""
    return {"path": job.path, **job.place, "name": job.name, "verdict": UNREADABLE, "score": 0.0, "error": error,
            "instances": []}  # fmt: skip


def failed(job: Job, fault: Exception) -> Line:
    """Line of an image that the program failed on: memory that ran out, or a fault with its traceback on stderr."""
    if isinstance(fault, MemoryError):
        return unreadable(job, "there was not enough memory to examine it")
    import traceback

    traceback.print_exception(fault)
    return unreadable(job, f"fault of the program: {type(fault).__name__}: {fault}")


def describe(job: Job, detection: "Detection") -> Line:
    """Line of predictions.jsonl for an image that was examined."""
    line: Line = {"path": job.path, **job.place, "name": job.name}
    line |= {"width": detection.shape[1], "height": detection.shape[0]}
    line |= {"verdict": FOUND if detection.instances else NOTHING, "score": round(float(detection.score), 6)}
    line |= {"seconds": round(detection.seconds, 3), "complete": detection.complete}
    if detection.reason:
        line["reason"] = detection.reason
    if detection.instances:
        line["mask"] = f"masks/{job.name}.png"
    line["instances"] = [
        {
            "score": round(float(instance.score), 6),
            "area": int(instance.mask.sum()),
            "boxes": part_boxes(instance.mask),
            "runs": encode_mask(instance.mask),
            "evidence": [
                {
                    "kind": copy.kind,
                    "affine": copy.affine.tolist(),
                    "rotation": copy.rotation,
                    "scale": copy.scale,
                    "mirrored": copy.mirrored,
                    "inliers": int(copy.inliers),
                    "correlation": float(copy.correlation),
                    "score": float(copy.score),
                    "source": bounding_box(copy.source),
                    "target": bounding_box(copy.target),
                    "sentence": describe_copy(copy),
                }
                for copy in instance.copies
            ],
        }
        for instance in detection.instances
    ]
    return line


def part_boxes(mask: np.ndarray) -> list[list[int]]:
    """Boxes [x, y, width, height] of the 8-connected parts of a mask (H, W) bool, the largest part first."""
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = sorted(stats[1:].tolist(), key=lambda row: -row[cv2.CC_STAT_AREA])
    return [row[:4] for row in parts]


def _label_png(masks: np.ndarray) -> bytes:
    """16-bit PNG of masks (N, H, W) bool: 0 background, k instance; where two overlap the better one stands."""
    import cv2

    labels = np.zeros(masks.shape[1:], np.uint16)
    for k in range(len(masks), 0, -1):
        labels[masks[k - 1]] = k
    done, coded = cv2.imencode(".png", labels)
    if not done:
        raise OSError(f"could not code a label map of {labels.shape[1]} x {labels.shape[0]} pixels as PNG")
    return coded.tobytes()


# Many images ----------------------------------------------------------------------------------------------------


class WorkerProcess:
    """One worker process and what it has to do.

    Each has a pipe of its own: a queue that several share has a lock, and who is killed while holding it takes all
    others along.
    """

    def __init__(self, settings: PredictSettings, load: Load) -> None:
        import multiprocessing

        # Fresh processes: a fork of one that runs threads (torch, OpenCV) may hang.
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_work, args=(end, settings, load, read_ranks()), daemon=True)
        self.process.start()
        end.close()
        self.job: Job | None = None
        self.seconds = settings.image_timeout or math.inf  # for one image
        self.deadline = math.inf

    def give(self, job: Job) -> None:
        """Let it examine an image. A process that has died shows that at `take`."""
        self.job = job
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def take(self) -> Line | list[Job] | None:
        """What it found; None when it only begins; a line with the reason when it is dead. What ends the run is
        raised."""
        try:
            result = self.pipe.recv()
        except (EOFError, OSError):
            return unreadable(self.job, self._obituary())
        if isinstance(result, Exception):
            raise result
        if result is None:
            self.deadline = time.monotonic() + self.seconds
            return None
        self.job, self.deadline = None, math.inf
        return result

    def give_up(self) -> Line:
        """End it, since it takes too long."""
        self.stop()
        return unreadable(self.job, f"given up after {self.seconds:g} s (--image-timeout)")

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _obituary(self) -> str:
        self.process.join()
        self.pipe.close()
        if self.process.exitcode == -signal.SIGKILL:
            return "the process that examined it was killed, probably because memory ran out"
        return f"its process ended with status {self.process.exitcode}"


def _work(pipe: "Connection", settings: PredictSettings, load: Load, ranks: Ranks) -> None:
    """What a worker process does: examine what comes through the pipe until nobody is at its other end."""
    follow_parent()
    try:
        _use_one_core(settings, ranks)
        worker = Worker(settings, load)
        while True:
            job = pipe.recv()
            pipe.send(None)  # loading a model does not count as time for the image
            pipe.send(worker.examine(job))
    except (EOFError, BrokenPipeError):
        return
    except Exception as fault:  # a checkpoint that does not load, a full disk: the whole run ends
        pipe.send(fault)


def _use_one_core(settings: PredictSettings, ranks: Ranks) -> None:
    """One thread each, since the images are what runs in parallel."""
    import cv2

    cv2.setNumThreads(1)
    if settings.checkpoint is not None:
        import torch

        torch.set_num_threads(1)
        if torch.cuda.is_available():
            torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())


def examine_all(
    queue: deque[Job], settings: PredictSettings, load: Load, num_workers: int
) -> Iterator[tuple[Job, Line | list[Job]]]:
    """Examine the jobs in `workers` processes; results come in the order in which they are ready.

    `queue` is taken from as processes get free, so the caller may add to it between results. A process that dies or
    takes longer than `image_timeout` costs the image it had, which gets a line with the reason; another process
    takes its place. With 0 workers everything happens in this process.
    """
    if num_workers == 0:
        worker = Worker(settings, load)
        while queue:
            job = queue.popleft()
            yield job, worker.examine(job)
        return
    from multiprocessing.connection import wait

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read by the libraries when a worker starts
    team: list[WorkerProcess] = []
    try:
        while queue or any(member.job for member in team):
            while queue and (free := _free(team, settings, load, num_workers)):
                free.give(queue.popleft())
            busy = {member.pipe: member for member in team if member.job}
            first = min(member.deadline for member in busy.values())
            ready = wait(busy, None if first == math.inf else max(0.0, first - time.monotonic()))
            late = [member.pipe for member in busy.values() if member.deadline <= time.monotonic()]
            for member in [busy[pipe] for pipe in ready or late]:
                job, result = member.job, member.take() if ready else member.give_up()
                if result is None:
                    continue
                if member.job is not None:
                    team.remove(member)  # it is dead
                yield job, result
    finally:
        for member in team:
            member.stop()


def _free(team: list[WorkerProcess], settings: PredictSettings, load: Load, most: int) -> WorkerProcess | None:
    """A process with nothing to do, a new one while there are fewer than `most`; None when all are busy."""
    for member in [member for member in team if member.job is None]:
        if member.process.is_alive():
            return member
        team.remove(member)
    if len(team) == most:
        return None
    team.append(WorkerProcess(settings, load))
    return team[-1]


# The output folder ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[Line]:
    """Lines of a predictions file, none when there is no such file. Raises InputError where one is not JSON."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text.decode())
                line["path"], line["verdict"]
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"line {number} of {path} is damaged; delete that line and --resume does its image again"
                ) from None
            yield line


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed run left unfinished, so that its image is done again."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                file.truncate(start + cut + 1)
                return
            end = start
        file.truncate(0)


def key_of(line: Line) -> Key:
    """`Job.key` of a line."""
    return line["path"], line.get("page", 0), line.get("figure", 0)


def going_on(settings: PredictSettings, ranks: Ranks) -> bool:
    """Whether there is a run to go on with: asked for, or one that torchrun has started again."""
    return settings.resume or (ranks.restarts > 0 and (settings.out / "settings.json").exists())


def prepare(settings: PredictSettings, ranks: Ranks) -> None:
    """Make the output folder, or check that a run can go on in it. Raises InputError where it cannot."""
    saved = settings.out / "settings.json"
    if going_on(settings, ranks):
        if not saved.exists():
            raise InputError(f"--resume: there is no run in {settings.out} ({saved.name} is missing); start without it")
        before, now = read_json(saved), to_dict(settings)
        changed = sorted(k for k in now if k not in RUN_ONLY and before.get(k) != now[k])
        if changed:
            flags = ", ".join("--" + name.replace("_", "-") for name in changed)
            raise InputError(f"--resume with other settings than before: {flags}; give the same, or another --out")
        if ranks.main:
            for path in _parts(settings.out):
                drop_torn_line(path)
        return
    if any(path.exists() and path.stat().st_size for path in _parts(settings.out)):
        raise InputError(
            f"{settings.out} holds the predictions of another run; go on with --resume or give another --out"
        )
    if ranks.main:
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(saved, to_dict(settings))


def _parts(out: Path) -> list[Path]:
    """The predictions and what ranks other than the first have written so far."""
    return [out / "predictions.jsonl", *sorted(out.glob("predictions.rank*.jsonl"))]


def _own_part(out: Path, ranks: Ranks) -> Path:
    return out / ("predictions.jsonl" if ranks.main else f"predictions.rank{ranks.rank}.jsonl")


def merge(out: Path) -> Path:
    """All parts as one predictions.jsonl, every image once, sorted by path, page and figure; it appears whole.

    The parts are nearly in this order, in which they were written: memory holds only the places of what comes late.
    """
    final, parts = out / "predictions.jsonl", [path for path in _parts(out) if path.exists()]
    late: list[tuple[Key, int, int]] = []  # key, number of the part, start in the part
    for number, path in enumerate(parts):
        last = ("", 0, 0)
        for key, start, _ in _keyed_lines(path):
            if key <= last:
                late.append((key, number, start))
            last = max(key, last)
    if parts == [final] and not late:
        return final

    def in_order(number: int, path: Path) -> Iterator[tuple[Key, bytes]]:
        starts = {start for _, n, start in late if n == number}
        return ((key, text) for key, start, text in _keyed_lines(path) if start not in starts)

    def rest(files: list[BinaryIO]) -> Iterator[tuple[Key, bytes]]:
        for key, number, start in sorted(late):
            files[number].seek(start)
            yield key, files[number].readline()

    def write(temporary: Path) -> None:
        with contextlib.ExitStack() as stack, open(temporary, "wb") as file:
            files = [stack.enter_context(open(path, "rb")) for path in parts]
            streams = [in_order(number, path) for number, path in enumerate(parts)]
            before = None
            for key, text in heapq.merge(*streams, rest(files), key=itemgetter(0)):
                if key != before:
                    file.write(text)
                before = key

    atomic_write(final, write)
    for path in parts:
        if path != final:
            path.unlink()
    return final


def _keyed_lines(path: Path) -> Iterator[tuple[Key, int, bytes]]:
    """Key, place and text of each line, of lines as we write them without parsing all of it."""
    start = 0
    with open(path, "rb") as file:
        for text in file:
            if found := _KEY.match(text):
                yield (json.loads(found[1].decode()), int(found[2] or 0), int(found[3] or 0)), start, text
            else:
                yield key_of(json.loads(text)), start, text
            start += len(text)


_KEY = re.compile(rb'\{"path": ("(?:[^"\\]|\\.)*")(?:, "page": (\d+), "figure": (\d+))?, "(?!page|figure)')


def write_submission(out: Path) -> None:
    """Write submission.csv.

    case_id is the file's name without its ending (with page and figure of a PDF), or the image's unique name where
    two would be the same or a spreadsheet would take it for a formula. An image that could not be read counts as
    authentic.
    """

    def case(line: Line) -> str:
        place = f"-p{line['page']}-f{line['figure']}" if "figure" in line else ""
        return os.path.splitext(os.path.basename(line["path"]))[0] + place  # a Path of each would take a minute

    counts = Counter(case(line) for line in read_lines(out / "predictions.jsonl"))

    def rows() -> Iterator[tuple[str, str, str]]:
        for line in read_lines(out / "predictions.jsonl"):
            runs = ";".join(json.dumps(instance["runs"]) for instance in line["instances"])
            yield case(line) if counts[case(line)] == 1 else line["name"], line["name"], runs or AUTHENTIC

    atomic_write(out / "submission.csv", lambda temporary: write_annotations(temporary, rows()))


def write_report(settings: PredictSettings, command: str) -> Path:
    """The evidence page of all images in predictions.jsonl."""
    folder = settings.out / "report"

    def entries() -> Iterator[Entry]:
        for line in read_lines(settings.out / "predictions.jsonl"):
            if line["verdict"] == UNREADABLE:
                place = {name: line.get(name) for name in ("page", "figure", "box")}
                yield error_entry(line["name"], line["path"], line["error"], **place)
            else:
                yield read_entry(folder, line["name"])

    shown = to_dict(settings)
    identity = {name: value for name, value in shown.items() if name not in RUN_ONLY} | {
        "out": str(settings.out.resolve())
    }
    names = ["/".join(Path(os.path.abspath(path)).parts[-2:]) for path in settings.paths]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return write_page(
        folder,
        entries,
        title=f"Images of {', '.join(names[:3])}{more}",
        run=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12],
        details={"Command": command, "Settings": json.dumps(shown), "Python": platform.python_version()},
    )


# The script -------------------------------------------------------------------------------------------------------


def read_done(out: Path, doubtful: bool = False) -> tuple[set[Key], Counter]:
    """Keys of the images that are done; how many there are of each verdict, and of findings.

    An image that has a line is done; where `doubtful`, only if the files that belong to it hold something.
    """
    done, verdicts = set(), Counter()
    for path in _parts(out):
        for line in read_lines(path):
            if doubtful and not _has_files(out, line):
                continue
            done.add(key_of(line))
            verdicts[line["verdict"]] += 1
            verdicts["findings"] += len(line["instances"])
    return done, verdicts


def _has_files(out: Path, line: Line) -> bool:
    if line["verdict"] == UNREADABLE:
        return True
    folder = out / "report" / "images" / line["name"]
    files = [*(folder.iterdir() if folder.is_dir() else [folder]), *([out / line["mask"]] if "mask" in line else [])]
    return all(path.is_file() and path.stat().st_size for path in files)


def may_have_lost_files(out: Path) -> bool:
    """Whether the machine was started after the last line was written. Then files written just before, for which
    nobody waits at the disk (they are many), may be empty."""
    started = time.time() - time.monotonic()
    return any(path.exists() and path.stat().st_mtime < started for path in _parts(out))


def examine_share(
    mine: Sequence[str],
    done: set[Key],
    verdicts: Counter,
    settings: PredictSettings,
    ranks: Ranks,
    load: Load,
) -> None:
    """Examine this rank's inputs, leaving out what is done, and append a line for each image."""
    from tqdm import tqdm

    queue = deque(Job(path) for path in mine if (path, 0, 0) not in done)
    num_workers = (
        settings.num_workers if settings.num_workers is not None else max(1, (os.cpu_count() or 1) // _local_ranks())
    )
    bar = tqdm(total=len(mine), initial=len(mine) - len(queue), unit="image", disable=not ranks.main, smoothing=0.1)
    with bar, open(_own_part(settings.out, ranks), "a", encoding="ascii") as file:
        bar.set_postfix(findings=verdicts["findings"], unreadable=verdicts[UNREADABLE])
        for _, result in examine_all(queue, settings, load, num_workers):
            if isinstance(result, list):  # a PDF's figures come next
                figures = [figure for figure in result if figure.key not in done]
                queue.extendleft(reversed(figures))
                bar.total += len(result) - 1
                bar.update(len(result) - len(figures))
                continue
            file.write(json.dumps(result) + "\n")
            file.flush()
            verdicts[result["verdict"]] += 1
            verdicts["findings"] += len(result["instances"])
            bar.set_postfix(findings=verdicts["findings"], unreadable=verdicts[UNREADABLE], refresh=False)
            bar.update()


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def main(settings: PredictSettings, load: Load = load_detector) -> int:
    """Examine all images, write everything, and return the exit status (see the top of this file)."""
    ranks = read_ranks()
    check(settings)
    doubtful = may_have_lost_files(settings.out)
    token = agree(ranks)
    inputs = find_inputs(settings.paths, settings.out)
    with exclusive_lock(settings.out) if ranks.main else contextlib.nullcontext():
        prepare(settings, ranks)
        agree(ranks)  # the first rank has mended the files before the others read them
        done, verdicts = read_done(settings.out, doubtful)
        agree(ranks)  # all have read them before any writes
        examine_share(ranks.share(inputs), done, verdicts, settings, ranks, load)
        del done  # a large set beside what follows
        wait_for_all(settings.out, ranks, token)
        return close(settings, ranks) if ranks.main else 0


def close(settings: PredictSettings, ranks: Ranks) -> int:
    """What is left to do once all images have their lines; the exit status."""
    merge(settings.out)
    for folder in ("", "masks/", "report/", "report/images/"):
        for left in settings.out.glob(f"{folder}.*.tmp"):  # of a run that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_submission(settings.out)
    page = write_report(settings, " ".join(["predict.py", *sys.argv[1:]]))
    status = summarize(settings.out, page)
    return 0 if ranks.world > 1 else status


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
    from copymove.scoring import score_threshold

    score_threshold(settings.matching.target_fpr)  # else every image would count as unreadable


def agree(ranks: Ranks) -> str:
    """A word that all ranks of this job share and no job before it had; waits until all ranks are here."""
    if ranks.world == 1:
        return ""
    import torch

    from distributed import gather, start

    if not torch.distributed.is_initialized():
        start()
    return gather([secrets.token_hex(8)])[0]


def wait_for_all(out: Path, ranks: Ranks, token: str) -> None:
    """Let the first rank wait until the others have written their last line.

    Through files, since ranks may finish hours apart, longer than a collective operation waits.
    """
    if ranks.world == 1:
        return
    if not ranks.main:
        atomic_write(_finished(out, ranks.rank), lambda temporary: temporary.write_text(token))
        return
    others = {_finished(out, rank) for rank in range(1, ranks.world)}
    while not all(path.exists() and path.read_text() == token for path in others):
        time.sleep(0.2)
    for path in others:
        path.unlink()


def _finished(out: Path, rank: int) -> Path:
    return out / f"predictions.rank{rank}.finished"


def summarize(out: Path, page: Path) -> int:
    """Print what was found and where it is; return the exit status."""
    verdicts, findings, errors = Counter(), 0, []
    for line in read_lines(out / "predictions.jsonl"):
        verdicts[line["verdict"]] += 1
        findings += len(line["instances"])
        if line["verdict"] == UNREADABLE and len(errors) < 5:
            errors.append(f"not read: {line['path']}: {line['error']}")
    print(
        f"{sum(verdicts.values())} images: {verdicts[FOUND]} with findings ({findings} in all), "
        f"{verdicts[NOTHING]} with nothing found, {verdicts[UNREADABLE]} not readable"
    )
    for error in errors:
        print(one_line(error))
    if verdicts[UNREADABLE] > len(errors):
        print(f"... and {verdicts[UNREADABLE] - len(errors)} more, see {out / 'predictions.jsonl'}")
    print(f"evidence: {page}")
    return (5 if verdicts[UNREADABLE] else 3) if verdicts[FOUND] else (4 if verdicts[UNREADABLE] else 0)


if __name__ == "__main__":
    run(main, SETTINGS)
