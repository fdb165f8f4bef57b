"""The evidence page: one HTML file with a gallery of the images and the evidence of every finding."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from report.colours import COLOURS
from report.entries import COPY_FILE_KEYS, DIFFERENCE_GAIN, FILE_KEYS, Entry, entry_files
from report.plots import ScoredImage, plot_scores
from runtime.files import atomic_write

EMBED_BYTES = 20_000_000  # a page up to this size holds its images itself
MISSED_F1 = 0.1  # a true instance with a lower F1 counts as missed, a found one as false
TEMPLATES = Path(__file__).resolve().parent / "templates"
# One script on the page; the later files use what the earlier ones define.
SCRIPTS = ("common.js", "verdicts.js", "gallery.js", "viewer.js", "finding.js", "main.js")


def write_page(
    folder: Path,
    entries: Callable[[], Iterable[Entry]],
    *,
    title: str,
    run: str,
    details: Mapping[str, str] | None = None,
    table: Sequence[Sequence[str]] = (),
    not_examined: Sequence[Mapping[str, Any]] = (),
    embed_bytes: int = EMBED_BYTES,
) -> Path:
    """Write `folder/index.html` from the entries of `write_entry` and `error_entry`.

    Args:
        folder: the report's folder; the files of the entries lie in `folder/images/NAME/`.
        entries: called twice, once for each pass over the entries, which are never in memory all at once.
        title: heading of the page.
        run: identity of the run; the browser keeps the reviewer's verdicts under it.
        details: settings and versions, shown at the foot of the page.
        table: rows of a table of results, the first one its header.
        not_examined: rows of the list of what was not examined: path, file, what, reason, count, places.
        embed_bytes: largest size in bytes of a page that holds its images; a larger page refers to the files.
    Returns:
        The page's path.
    """
    size, scored = 0, []
    for entry in entries():
        size += _embedded_size(folder, entry)
        if "truth" in entry:
            copies = [(instance["side"], instance["f1"]) for instance in entry["truth"]["instances"]]
            scored.append(ScoredImage(entry["score"], copies))
    embedded = size <= embed_bytes
    script = "\n".join((TEMPLATES / name).read_text() for name in SCRIPTS)
    context = {
        "title": title,
        "entries": (_with_sources(folder, entry, embedded) for entry in entries()),
        "details": dict(details or {}),
        "table": [list(row) for row in table],
        "not_examined": list(not_examined),
        "plots": plot_scores(scored) if scored else [],
        "settings": {
            "run": run,
            "title": title,
            "colours": COLOURS,
            "truth_known": bool(scored),
            "not_examined": sum(row["count"] for row in not_examined),
            "missed_f1": MISSED_F1,
            "difference_gain": DIFFERENCE_GAIN,
        },
        "embedded": embedded,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "script": script,
        # The page's Content-Security-Policy allows the script with this hash, so that no other can run.
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    page = folder / "index.html"
    atomic_write(page, lambda temporary: render("report.html", context, temporary))
    return page


def render(template: str, context: Mapping[str, Any], path: Path) -> None:
    """Fill a template of TEMPLATES and write it piece by piece; text is escaped for HTML, JSON also for scripts."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (TEMPLATES / "report.css").read_text()
    with open(path, "w", encoding="utf-8", errors="replace") as file:  # a path may hold bytes that are not UTF-8
        for piece in environment.get_template(template).generate(style=style, **context):
            file.write(piece)


def _path_of(folder: Path, entry: Entry, file: str) -> Path:
    return folder / "images" / entry["name"] / file


def _embedded_size(folder: Path, entry: Entry) -> int:
    """Bytes that an entry takes on a page which holds its images (base64: 4 bytes for 3, rounded up)."""
    sizes = [_path_of(folder, entry, file).stat().st_size for file in entry_files(entry)]
    return len(json.dumps(entry)) + sum(-(-size // 3) * 4 for size in sizes)


def _with_sources(folder: Path, entry: Entry, embedded: bool) -> Entry:
    """An entry with URLs in place of the names of its image files: data URIs, or paths relative to the page."""

    def source(file: str) -> str:
        if not embedded:
            return f"images/{entry['name']}/{file}"
        encoded = base64.b64encode(_path_of(folder, entry, file).read_bytes()).decode()
        return f"data:image/{file.rsplit('.', 1)[1]};base64,{encoded}"

    instances = [
        instance
        | {"copies": [copy | {key: source(copy[key]) for key in COPY_FILE_KEYS} for copy in instance["copies"]]}
        for instance in entry["instances"]
    ]
    return entry | {key: source(entry[key]) for key in FILE_KEYS if key in entry} | {"instances": instances}
