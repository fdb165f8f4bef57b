"""The curves of a training or tuning run and the page that shows them."""

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from report.colours import COLOURS
from report.page import render
from report.plots import draw_figure
from runtime.files import atomic_write

# Title of a panel -> names in the run's log of the values that it shows.
CURVES: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "supcon", "separation", "uniformity"),
    "validation oF1": ("of1", "of1_forged"),
    "learning rate": ("learning_rate", "backbone_learning_rate"),
}
LINES = ((COLOURS[6], "-"), (COLOURS[4], "--"), (COLOURS[2], ":"), (COLOURS[0], "-."))  # colour, dashes

Log = Sequence[Mapping[str, Any]]
Panels = dict[str, dict[str, list[tuple[float, float]]]]  # title -> name of a value -> points (x, y)


def plot_training(
    log: Log, path: Path, x: str = "total_steps", curves: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Draw the curves of a run as a PNG, its panels beside each other; the file appears whole or not at all.

    Args:
        log: rows of the run's log; a row holds `x` and any of the curves' values, missing or None where not measured.
        path: file to write.
        x: name in the log of the horizontal axis: `total_steps`, `epoch`, `trial`, ...
        curves: title of a panel -> names of its values; `CURVES` when not given. Panels without values are left out.
    Raises:
        ValueError: no row holds `x` and a value.
    """
    panels = select_curves(log, x, curves or CURVES)
    with draw_figure(4.8 * len(panels), 3.4, len(panels)) as (figure, axes):
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for (name, points), (colour, dashes) in zip(lines.items(), itertools.cycle(LINES)):
                marker = "o" if len(points) < 60 else ""
                label = name.replace("_", " ")
                axis.plot(*zip(*points, strict=True), dashes, color=colour, marker=marker, markersize=3, label=label)
            axis.set(xlabel=x.replace("_", " "), title=title, yscale="log" if "rate" in title else "linear")
            axis.legend(frameon=False)
        atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    return path


def select_curves(log: Log, x: str, curves: Mapping[str, Sequence[str]]) -> Panels:
    """The points of all curves for which the log holds values, by panel. Raises ValueError where there is none."""
    panels: Panels = {}
    for title, names in curves.items():
        lines = {
            name: [(row[x], row[name]) for row in log if row.get(name) is not None and row.get(x) is not None]
            for name in names
        }
        if any(lines.values()):
            panels[title] = {name: points for name, points in lines.items() if points}
    if not panels:
        known = ", ".join(name for names in curves.values() for name in names)
        raise ValueError(f"no row of the log holds {x!r} and any of {known}")
    return panels


def write_training_page(out: Path, log: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Write curves.png and index.html of a training so far into its run folder.

    Args:
        log: all lines of the run's log. settings: as plain JSON types.
    """
    curves = plot_training(log, out / "curves.png")
    epochs = [line for line in log if line["kind"] == "epoch"]
    names = [name for name in epochs[-1] if name not in ("kind", "total_steps")]
    rows = [[f"{line[n]:.4f}" if isinstance(line.get(n), float) else line.get(n, "") for n in names] for line in epochs]
    return write_run_page(
        out / "index.html",
        title=f"Training {out.name}",
        figures=[("Loss and its terms, validation oF1, learning rate, over optimiser steps", curves)],
        tables=[("Validation", [names, *rows])],
        details={"Settings": json.dumps(settings)},
    )


def write_run_page(
    path: Path,
    *,
    title: str,
    figures: Sequence[tuple[str, Path]] = (),
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = (),
    notes: Sequence[str] = (),
    details: Mapping[str, str] | None = None,
) -> Path:
    """Write the page of a training or tuning run, one self-contained HTML file.

    Args:
        path: the page, for example OUT/index.html.
        title: its heading.
        figures: (caption, PNG file) in the order in which they are shown; the page holds the images themselves.
        tables: (caption, rows), the first row being the table's header.
        notes: paragraphs under the heading.
        details: settings and versions, shown at the foot of the page.
    """
    images = [
        {"title": caption, "source": "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()}
        for caption, file in figures
    ]
    context = {"title": title, "notes": list(notes), "figures": images, "details": dict(details or {}),
               "tables": [(caption, [list(map(str, row)) for row in rows]) for caption, rows in tables],
               "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}  # fmt: skip
    atomic_write(path, lambda temporary: render("run.html", context, temporary))
    return path
