"""Curves of a training and its page."""

import itertools
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from report.entries import COLOURS
from report.page import render
from report.plots import PLOT_STYLE
from runtime.files import atomic_write

# What the curves of a run are called in its log, by panel.
CURVES: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "supcon", "separation", "uniformity"),
    "validation oF1": ("of1", "of1_forged"),
    "learning rate": ("learning_rate", "backbone_learning_rate"),
}


def plot_training(
    log: Sequence[dict[str, Any]],
    path: Path,
    x: str = "total_steps",
    curves: dict[str, Sequence[str]] | None = None,
) -> Path:
    """Draw the curves of a run as a PNG, one panel beside the other, whole or not at all.

    Args:
        log: rows of the run's log; a row holds `x` and any of the curves' values, missing or None where not measured.
        path: file to write.
        x: what runs along the horizontal axis: `total_steps`, `epoch`, `trial`, ...
        curves: panel title -> names of its values; `CURVES` when not given. Panels without values are left out.
    Raises:
        ValueError: no row holds `x` and a value.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = _panels(log, x, curves or CURVES)
    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.8 * len(panels), 3.4), layout="constrained", squeeze=False
        )
        for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
            for (name, points), (colour, dash) in zip(lines.items(), itertools.cycle(LINES)):
                marker = "o" if len(points) < 60 else ""
                label = name.replace("_", " ")
                axis.plot(*zip(*points, strict=True), dash, color=colour, marker=marker, markersize=3, label=label)
            axis.set(xlabel=x.replace("_", " "), title=title, yscale="log" if "rate" in title else "linear")
            axis.legend(frameon=False)
        atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
        plt.close(figure)
    return path


LINES = ((COLOURS[6], "-"), (COLOURS[4], "--"), (COLOURS[2], ":"), (COLOURS[0], "-."))


def _panels(
    log: Sequence[dict[str, Any]], x: str, curves: dict[str, Sequence[str]]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Panel -> curve -> points (x, y), without what the log does not hold."""
    panels = {}
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


def write_run_page(
    path: Path,
    *,
    title: str,
    figures: Sequence[tuple[str, Path]] = (),
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = (),
    notes: Sequence[str] = (),
    details: dict[str, str] | None = None,
) -> Path:
    """Write the page of a training or tuning run, one self-contained HTML file.

    Args:
        path: the page, for example OUT/index.html.
        title: its heading.
        figures: (caption, PNG file) in order; the images are embedded.
        tables: (caption, rows), the first row being the heading.
        notes: paragraphs under the heading.
        details: settings and versions, shown at the foot.
    """
    import base64

    images = [
        {"title": caption, "source": "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()}
        for caption, file in figures
    ]
    context = {"title": title, "notes": list(notes), "figures": images, "details": details or {},
               "tables": [(caption, [list(map(str, row)) for row in rows]) for caption, rows in tables],
               "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}  # fmt: skip
    atomic_write(path, lambda temporary: render("run.html", context, temporary))
    return path
