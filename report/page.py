import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from report.entries import COLOURS, DIFFERENCE_GAIN, Entry
from report.plots import truth_plots
from runtime.files import atomic_write

EMBED_BYTES = 20_000_000  # the page is one file up to this size


MISSED_F1 = 0.1  # a true instance matched worse than this counts as missed, a found one as false


TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_page(
    folder: Path,
    entries: Callable[[], Iterable[Entry]],
    *,
    title: str,
    run: str,
    details: dict[str, str] | None = None,
    table: Sequence[Sequence[str]] = (),
    embed_bytes: int = EMBED_BYTES,
) -> Path:
    """Write `folder/index.html` out of the entries of `illustrate` and `unreadable`.

    Args:
        folder: the report's folder; entries' images lie under `folder/images/NAME/`.
        entries: called for each pass over the entries, which are never all in memory.
        title: heading of the page.
        run: identity of the run: the reviewer's verdicts are kept in the browser under it.
        details: lines of "how this was made" (settings, versions), shown at the foot.
        table: rows of a table of results, the first one its heading; shown where truth is known.
        embed_bytes: largest size of the page with its images inside; beyond it they stay beside the page.
    Returns:
        The page's path.
    """
    size, known, scores = 0, 0, []
    for entry in entries():
        known += "truth" in entry
        size += len(json.dumps(entry)) + sum(
            -(-_image(folder, entry, f).stat().st_size // 3) * 4 for f in _files(entry)
        )
        if "truth" in entry:
            truth = entry["truth"]
            scores.append((entry["score"], truth["object_f1"], [(t["side"], t["f1"]) for t in truth["instances"]]))
    embedded = size <= embed_bytes
    context = {
        "title": title,
        "run": run,
        "entries": (_with_sources(folder, entry, embedded) for entry in entries()),
        "details": details or {},
        "table": [list(row) for row in table],
        "plots": truth_plots(scores) if scores else [],
        "settings": {
            "run": run,
            "title": title,
            "colours": COLOURS,
            "known": known > 0,
            "missed": MISSED_F1,
            "gain": DIFFERENCE_GAIN,
        },
        "embedded": embedded,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    page = folder / "index.html"
    atomic_write(page, lambda temporary: render("report.html", context, temporary))
    return page


def _files(entry: Entry) -> Iterator[str]:
    """Names of the image files of an entry."""
    for key in ("thumb", "image", "grid", "anomaly"):
        if key in entry:
            yield entry[key]
    for instance in entry["instances"]:
        for copy in instance["copies"]:
            yield from (copy["source"], copy["copy"], copy["difference"])


def _image(folder: Path, entry: Entry, file: str) -> Path:
    return folder / "images" / entry["name"] / file


def _with_sources(folder: Path, entry: Entry, embedded: bool) -> Entry:
    """An entry whose image files became what goes into `src`: data URIs, or paths relative to the page."""
    import base64

    def source(file: str) -> str:
        if not embedded:
            return f"images/{entry['name']}/{file}"
        kind = file.rsplit(".", 1)[1]
        return f"data:image/{kind};base64," + base64.b64encode(_image(folder, entry, file).read_bytes()).decode()

    entry = entry | {key: source(entry[key]) for key in ("thumb", "image", "grid", "anomaly") if key in entry}
    for instance in entry["instances"]:
        for copy in instance["copies"]:
            copy |= {key: source(copy[key]) for key in ("source", "copy", "difference")}
    return entry


def render(template: str, context: dict[str, Any], path: Path) -> None:
    """Stream a template to a file. Text is escaped for HTML, JSON also for script elements."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script, style = (TEMPLATES / "report.js").read_text(), (TEMPLATES / "report.css").read_text()
    context = context | {"script": script, "style": style, "script_hash": _csp_hash(script)}
    with open(path, "w", encoding="utf-8", errors="replace") as file:  # a path may hold bytes that are not UTF-8
        for piece in environment.get_template(template).generate(context):
            file.write(piece)


def _csp_hash(text: str) -> str:
    """Content-Security-Policy source of an inline script: nothing else on the page may run."""
    import base64

    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
