"""What a run of predict.py says in the end: the page of all images, the lines on the screen and the exit status."""

import hashlib
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report.entries import CLEAN, ERROR, FOUND, NOT_EXAMINED, PLACE_KEYS, Entry, error_entry, read_entry
from report.lines import Line
from report.page import write_page
from runtime.errors import one_line

DRAWN = "drawing or text only (--content all searches it)"  # why an image was not searched
SHOWN = 5  # most errors, and most reasons why something was not examined, that are named on the screen
SHOWN_PLACES = 8  # most places that the page names for one reason in one file


def is_only_drawn(line: Line) -> bool:
    """Whether an image was not searched because all of it is drawn, and nothing else proposed a finding in it."""
    return line["verdict"] == CLEAN and line.get("searched", 1.0) == 0


@dataclass
class Tally:
    """How many images had which verdict, and how many things were not examined for which reason."""

    harmless: Collection[str] = ()  # reasons that leave a document wholly examined
    verdicts: Counter = field(default_factory=Counter)  # images
    findings: int = 0
    reasons: Counter = field(default_factory=Counter)  # what was not examined

    def add(self, line: Line) -> None:
        """Count a line."""
        if line["verdict"] == NOT_EXAMINED:
            self.reasons[line["reason"]] += line["count"]
            return
        if is_only_drawn(line):
            self.reasons[DRAWN] += 1
            return
        self.verdicts[line["verdict"]] += 1
        self.findings += len(line["instances"])

    @property
    def left_out(self) -> int:
        """How many things were not examined though they might show something."""
        return sum(count for reason, count in self.reasons.items() if reason not in self.harmless)

    @property
    def status(self) -> int:
        """The exit status, see predict.py."""
        if self.verdicts[FOUND]:
            return 5 if self.verdicts[ERROR] else 3
        return 4 if self.verdicts[ERROR] else 6 if self.left_out else 0

    def sentence(self) -> str:
        """All of it in one line for the screen."""
        found, clean, unread = (self.verdicts[verdict] for verdict in (FOUND, CLEAN, ERROR))
        text = (
            f"{found + clean + unread} images: {found} with findings ({self.findings} in all), {clean} clean, "
            f"{unread} that could not be read"
        )
        if not self.reasons:
            return text
        named = [f"{count} {reason}" for reason, count in self.reasons.most_common(SHOWN)]
        named += [f"{len(self.reasons) - SHOWN} further reasons"] if len(self.reasons) > SHOWN else []
        return f"{text}; not examined: {', '.join(named)}"


def print_summary(lines: Iterable[Line], page: Path, predictions: Path, harmless: Collection[str]) -> int:
    """Print where the evidence is, what could not be read, and last what was found; return the exit status."""
    tally, errors = Tally(harmless), []
    for line in lines:
        tally.add(line)
        if line["verdict"] == ERROR and len(errors) < SHOWN:
            errors.append(f"error: {line['path']}: {line['error']}")
    unread = tally.verdicts[ERROR]
    errors += [f"... and {unread - len(errors)} more, see {predictions}"] if unread > len(errors) else []
    for error in errors:
        print(one_line(error))
    print(f"evidence: {page}")
    print(one_line(tally.sentence()))
    return tally.status


def not_examined_rows(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Rows of the page's list of what was not examined: path, what, reason, count, places in the file as one text."""
    groups: dict[tuple[str, str, str], tuple[Counter, list[str]]] = {}
    for line in lines:
        drawn = is_only_drawn(line)
        if drawn or line["verdict"] == NOT_EXAMINED:
            what, reason = ("image", DRAWN) if drawn else (line["what"], line["reason"])
            counts, places = groups.setdefault((line["path"], what, reason), (Counter(), []))
            counts["all"] += line.get("count", 1)
            place = [line["part"]] if "part" in line else []
            place += [f"page {line['page']}"] if "page" in line else []
            places += [" ".join(place)] if place else []
    rows = []
    for (path, what, reason), (counts, places) in groups.items():
        more = f" and {len(places) - SHOWN_PLACES} more" if len(places) > SHOWN_PLACES else ""
        rows.append(
            {"path": path, "file": os.path.basename(path), "what": what, "reason": reason, "count": counts["all"]}
            | {"places": ", ".join(places[:SHOWN_PLACES]) + more}
        )
    return rows


def write_run_page(
    out: Path, lines: Iterable[Line], settings: Mapping[str, Any], run_only: Collection[str], paths: Sequence[Path]
) -> Path:
    """Write `out/report/index.html` with the evidence of all images, and return its path.

    Args:
        lines: of all images, in order; they are gone through three times.
        settings: all settings of the run; those named in `run_only` do not change what is found.
        paths: what the user gave.
    """
    folder = out / "report"

    def entries() -> Iterator[Entry]:
        for line in lines:
            if line["verdict"] == ERROR:
                place = {name: line[name] for name in PLACE_KEYS if name in line}
                yield error_entry(line["name"], line["path"], line["error"], **place)
            elif line["verdict"] != NOT_EXAMINED:
                yield read_entry(folder, line["name"])

    same_run = {name: value for name, value in settings.items() if name not in run_only} | {"out": str(out.resolve())}
    names = ["/".join(Path(os.path.abspath(path)).parts[-2:]) for path in paths]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return write_page(
        folder,
        entries,
        title=f"Images of {', '.join(names[:3])}{more}",
        run=hashlib.sha256(json.dumps(same_run, sort_keys=True).encode()).hexdigest()[:12],
        details={
            "Command": " ".join(["predict.py", *sys.argv[1:]]),
            "Settings": json.dumps(settings),
            "Python": platform.python_version(),
        },
        not_examined=not_examined_rows(lines),
    )
