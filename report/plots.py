"""Plots of a scored run, and the style that all plots share."""

import base64
import contextlib
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from report.colours import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#55606e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "svg.hashsalt": "report",  # the same plot gives the same file
}
SIZE_EDGES = (0, 16, 32, 64, 128, 256, math.inf)  # bins of the side of a copy, pixels


@dataclass(frozen=True)
class ScoredImage:
    """What the plots need to know of one image whose truth is known."""

    score: float  # 0 where nothing was found
    copies: Sequence[tuple[float, float]]  # per true instance: side of one copy in pixels, F1; empty: authentic


@contextlib.contextmanager
def draw_figure(width: float, height: float, columns: int = 1) -> "Iterator[tuple[Figure, list[Axes]]]":
    """A figure of `width` x `height` inches in the common style, with `columns` axes beside each other."""
    # Imported here since prediction, which draws no plots, would take half a second longer to start.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, columns, squeeze=False)[0])


def plot_scores(scored: Sequence[ScoredImage]) -> list[dict[str, str]]:
    """The plots of a scored run, each with `title`, `caption` and `source` (an SVG as a data URI).

    Plots that the images cannot fill, for example without a forged image, are left out.
    """
    plots = []
    copies = [copy for image in scored for copy in image.copies]
    if copies:
        plots.append(_plot("F1 by size of the copies", "Mean F1 of the true instances; a missed one counts as 0.",
                           lambda axes: _draw_sizes(axes, copies)))  # fmt: skip
    forged = np.array([image.score for image in scored if image.copies])
    authentic = np.array([image.score for image in scored if not image.copies])
    plots.append(_plot("Scores of authentic and forged images", "The score is 0 where nothing was found.",
                       lambda axes: _draw_histogram(axes, authentic, forged)))  # fmt: skip
    if len(forged) and len(authentic):
        plots.append(_plot("ROC curve", "Forged images found against false alarms; one point per score threshold.",
                           lambda axes: _draw_roc(axes, authentic, forged)))  # fmt: skip
    return plots


def roc_points(authentic: np.ndarray, forged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate (x) and recall (y) of images, for every score threshold from high to low.

    The curve begins at (0, 0). An image with score 0 has no finding and passes no threshold, so the curve ends
    where every finding counts, in general before (1, 1).

    Args:
        authentic, forged: scores of the images, 0 to 1.
    """
    thresholds = np.unique(np.concatenate([authentic, forged]))[::-1]
    thresholds = thresholds[thresholds > 0]
    x = np.array([0.0] + [float((authentic >= t).mean()) for t in thresholds])
    y = np.array([0.0] + [float((forged >= t).mean()) for t in thresholds])
    return x, y


def _plot(title: str, caption: str, draw: "Callable[[Axes], None]") -> dict[str, str]:
    with draw_figure(5.6, 3.6) as (figure, (axes,)):
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"title": title, "caption": caption, "source": source}


def _draw_sizes(axes: "Axes", copies: Sequence[tuple[float, float]]) -> None:
    side, f1 = np.array(copies).T
    bins = np.digitize(side, SIZE_EDGES[1:-1])
    for i in range(len(SIZE_EDGES) - 1):
        values = f1[bins == i]
        if len(values):
            axes.bar(i, values.mean(), color=COLOURS[6], width=0.7)
            axes.text(i, values.mean() + 0.02, f"{values.mean():.2f}\nn = {len(values)}", ha="center", fontsize=9)
    labels = [f"{low}–{high}" for low, high in itertools.pairwise(SIZE_EDGES[:-1])]
    axes.set_xticks(range(len(labels) + 1), [*labels, f"over {SIZE_EDGES[-2]}"])
    axes.set(xlabel="side of a copy in pixels", xlim=(-0.5, len(labels) + 0.5))
    axes.set(ylabel="F1", ylim=(0, 1.2), yticks=np.linspace(0, 1, 6))


def _draw_histogram(axes: "Axes", authentic: np.ndarray, forged: np.ndarray) -> None:
    edges = np.linspace(0, 1, 21)
    groups = [("authentic", authentic, COLOURS[1], ""), ("forged", forged, COLOURS[4], "//")]
    groups = [group for group in groups if len(group[1])]
    for i, (name, values, colour, hatch) in enumerate(groups):
        counts = np.histogram(np.clip(values, 0, 1), edges)[0]
        width = 0.05 / len(groups)
        axes.bar(edges[:-1] + (i + 0.5) * width, counts, width * 0.9, color=colour, hatch=hatch, edgecolor="white",
                 label=f"{name} ({len(values)})")  # fmt: skip
    axes.set(xlabel="score", ylabel="images", xlim=(0, 1))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)


def _draw_roc(axes: "Axes", authentic: np.ndarray, forged: np.ndarray) -> None:
    x, y = roc_points(authentic, forged)
    axes.plot(x, y, drawstyle="steps-post", color=COLOURS[6], linewidth=2, marker="o", markersize=3)
    axes.set(xlabel="share of authentic images with a false alarm", ylabel="share of forged images found",
             xlim=(-0.02, max(0.1, float(x.max()) * 1.1)), ylim=(0, 1.02))  # fmt: skip
