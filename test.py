"""Score a checkpoint on pictures whose truth is known, and write a submission.

    python test.py --data DIR --checkpoint runs/a/best.pt --clustering runs/a/tuned.json --out runs/a/test
    torchrun --nproc_per_node=gpu test.py ...        the pictures are shared among the ranks

OUT gets metrics.json (the printed table), records.jsonl (one line per picture, from which the table can be computed
again) and submission.csv. Pictures without truth (test_images/) are in submission.csv only.
"""

import csv
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
import distributed
from config import TestSettings

if TYPE_CHECKING:
    from dataset import Picture
    from metrics import Record


@dataclass(frozen=True)
class Result:
    """What became of one picture."""

    case_id: str
    annotation: str  # of the submission
    record: "Record | None"  # None where the truth is unknown


def main(settings: TestSettings) -> int:
    """Score; returns the exit status."""
    ranks, device = distributed.start()
    results, skipped = score_share(settings, ranks)
    results = sorted(distributed.gather(results), key=lambda result: result.case_id)
    skipped = distributed.gather(skipped)
    if ranks.main:
        for line in skipped:
            print(f"left out: {line}", file=sys.stderr)
        write_results(settings.out, results, f"{ranks.world} process(es) on {device.type}")
    distributed.finish()
    return 0


def score_share(settings: TestSettings, ranks: distributed.Ranks) -> tuple[list[Result], list[str]]:
    """This rank's results, and a line for each picture that could not be read."""
    from tqdm import tqdm

    from dataset import find_pictures, read_all, select
    from detector import Detector
    from metrics import encode_annotation, score_picture

    detector = Detector.load(settings.checkpoint, settings.clustering, settings.backbone)
    pictures = find_pictures(settings.data.data)
    if settings.split != "all":
        pictures = select(pictures, detector.splits, settings.split)
    names = case_ids(pictures)
    results, skipped = [], []
    bar = tqdm(ranks.share(pictures), desc="test", unit="picture", disable=not ranks.main)
    for picture, image, masks in read_all(bar, settings.data, skipped):
        found, name = detector.detect(image), names[picture.image]
        record = None
        if picture.forged is not None:
            record = score_picture(name, found.masks, masks, found.score, found.seconds)
        results.append(Result(name, encode_annotation(found.masks), record))
    return results, skipped


def case_ids(pictures: "list[Picture]") -> dict[Path, str]:
    """A name for each picture: its id, with the folder before it where an authentic and a forged one share the id."""
    count = Counter(picture.id for picture in pictures)
    return {p.image: p.id if count[p.id] == 1 else f"{p.image.parent.name}/{p.id}" for p in pictures}


def write_results(out: Path, results: list[Result], hardware: str) -> None:
    """Write the three files and print the table."""
    from metrics import format_table, record_to_dict, summarize

    def write_records(path: Path) -> None:
        path.write_text("".join(json.dumps(record_to_dict(record)) + "\n" for record in records))

    def write_submission(path: Path) -> None:
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["case_id", "annotation"])
            rows.writerows([result.case_id, result.annotation] for result in results)

    records = [result.record for result in results if result.record]
    seconds = sum(record.seconds for record in records)
    summary: dict[str, Any] = {"figures": summarize(records), "hardware": hardware}
    if records:
        summary["pictures_per_second"] = len(records) / seconds
    config.write_whole(out / "records.jsonl", write_records)
    config.write_whole(out / "submission.csv", write_submission)
    config.write_json(out / "metrics.json", summary)
    if records:
        print(format_table(summary["figures"]))
        print(f"{summary['pictures_per_second']:.2f} pictures per second in each process; {hardware}")
    print(f"{len(results)} pictures; records.jsonl, metrics.json and submission.csv are in {out}")


if __name__ == "__main__":
    config.run(main, TestSettings)
