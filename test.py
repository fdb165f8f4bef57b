"""Score detection on images whose truth is known, and write a submission.

    python test.py --data DIR --checkpoint runs/a/best.pt --clustering runs/a/tuned.json --out runs/a/test
    python test.py --data DIR --split all --out runs/evidence      without a checkpoint: the matching alone
    torchrun --nproc_per_node=gpu test.py ...                      the images are shared among the ranks

Three modes are scored: the embedding alone, the matching alone, and both joined; --modes chooses among them. OUT gets
metrics.json (the table), records.jsonl (one line per image and mode, from which the table can be computed again),
submission.csv, and report/index.html, a page that shows every image with its findings and its truth. Submission and
page are those of the last mode. Images without truth (test_images/) have no record.
"""

from config import TestSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(TestSettings)  # above the heavy imports: `--help` and mistakes answer at once

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import DetectionMode
from detector import Detector
from distributed import finish, gather, start
from images.folders import ImageFile, find_images
from images.pairs import read_pairs
from images.splits import select_split
from metrics import (
    FIGURES,
    Record,
    encode_annotation,
    format_table,
    record_to_dict,
    score_image,
    summarize,
    write_annotations,
)
from report.entries import read_entry, unique_name, write_entry
from report.page import write_page
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, write_json
from runtime.ranks import Ranks


@dataclass(frozen=True)
class Result:
    """What was found in one image."""

    case_id: str
    annotation: str  # of the submission
    records: dict[DetectionMode, Record]  # empty where the truth is unknown
    page_name: str  # its folder in the report


def main(settings: TestSettings) -> int:
    """Score; returns the exit status."""
    ranks, device = start()
    results, skipped = score_share(settings, ranks)
    results = sorted(gather(results), key=lambda result: result.case_id)
    skipped = gather(skipped)
    if ranks.main:
        for line in skipped:
            print(f"left out: {line}", file=sys.stderr)
        summary = write_results(settings.out, results, f"{ranks.world} process(es) on {device.type}")
        write_report(settings, results, summary)
        print(
            f"\n{len(results)} images; {settings.out} has metrics.json, records.jsonl, submission.csv "
            "and report/index.html"
        )
    finish()
    return 0


def score_share(settings: TestSettings, ranks: Ranks) -> tuple[list[Result], list[str]]:
    """This rank's results, and a line for each image that could not be read."""
    detector, modes = load_detector(settings)
    image_files = find_images(settings.data.data)
    if settings.split != "all":
        image_files = select_split(image_files, detector.splits, settings.split)
    case_id_of = case_ids(image_files)
    results, skipped = [], []
    bar = tqdm(ranks.share(image_files), desc="test", unit="image", disable=not ranks.main)
    for image_file, image, masks in read_pairs(bar, settings.data, skipped):
        case_id, page_name = case_id_of[image_file.image], unique_name(image_file.image)
        detections, records, truth = detector.detect_in_modes(image, modes), {}, {}
        if image_file.forged is not None:
            records = {
                mode: score_image(case_id, found.masks, masks, found.score, found.seconds)
                for mode, found in detections.items()
            }
            truth = {"truth": masks, "record": records[modes[-1]]}
        shown = detections[modes[-1]]
        write_entry(settings.out / "report", page_name, image_file.image, image, shown, **truth)
        results.append(Result(case_id, encode_annotation(shown.masks), records, page_name))
    return results, skipped


def load_detector(settings: TestSettings) -> tuple[Detector, Sequence[DetectionMode]]:
    """The detector, and the modes that are scored: those of the settings, or `matching` where there is no model."""
    if not settings.modes:
        raise InputError("--modes is empty; allowed: embedding matching both")
    detector = Detector.load(settings.checkpoint, settings.clustering, settings.backbone, settings.matching)
    if settings.checkpoint is not None:
        return detector, settings.modes
    if settings.split != "all":
        raise InputError("without --checkpoint there is no split; give --split all to score every image")
    return detector, ("matching",)


def case_ids(image_files: Sequence[ImageFile]) -> dict[Path, str]:
    """A name for each image: its id, with the folder before it where an authentic and a forged one share the id."""
    count = Counter(image_file.id for image_file in image_files)
    return {p.image: p.id if count[p.id] == 1 else f"{p.image.parent.name}/{p.id}" for p in image_files}


def write_results(out: Path, results: Sequence[Result], hardware: str) -> dict[str, Any]:
    """Write records.jsonl, submission.csv and metrics.json; print the table and return it.

    Returns:
        The content of metrics.json: `hardware`, and in `modes` for each mode its `figures` and `images_per_second`.
    """
    modes = {mode: [r.records[mode] for r in results if r.records] for r in results for mode in r.records}

    def write_records(path: Path) -> None:
        lines = [{"mode": mode} | record_to_dict(record) for mode, records in modes.items() for record in records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    rows = [(result.case_id, result.page_name, result.annotation) for result in results]
    summary: dict[str, Any] = {"hardware": hardware, "modes": {}}
    for mode, records in modes.items():
        rate = len(records) / sum(record.seconds for record in records)
        figures = summarize(records)
        summary["modes"][mode] = {"figures": figures, "images_per_second": rate}
        print(f"\n{mode}: {rate:.2f} images per second in each process; {hardware}")
        print(format_table(figures))
    atomic_write(out / "records.jsonl", write_records)
    atomic_write(out / "submission.csv", lambda path: write_annotations(path, rows))
    write_json(out / "metrics.json", summary)
    return summary


def write_report(settings: TestSettings, results: Sequence[Result], summary: dict[str, Any]) -> None:
    """Write the page that shows each image in the last mode with its truth, worst first."""
    folder, modes = settings.out / "report", summary["modes"]
    names = [name for name in FIGURES if any(name in mode["figures"] for mode in modes.values())]
    rows = [[FIGURES[name][0], *(figure_text(mode["figures"].get(name)) for mode in modes.values())] for name in names]
    write_page(
        folder,
        lambda: (read_entry(folder, result.page_name) for result in results),
        title=f"Test on {settings.data.data.name}",
        run=hashlib.sha256(str(settings.out.resolve()).encode()).hexdigest()[:12],
        details={"Settings": json.dumps(to_dict(settings)), "Hardware": summary["hardware"]},
        table=[["", *modes], *rows] if modes else [],
    )


def figure_text(figure: dict[str, float] | None) -> str:
    """A figure with its 95 % interval; empty where it was not measured."""
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" if figure else ""


if __name__ == "__main__":
    run(main, SETTINGS)
