"""Plots of scored runs."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    pass
from report.entries import COLOURS


def truth_plots(scores: Sequence[tuple[float, float, Sequence[tuple[float, float]]]]) -> list[dict[str, str]]:
    """The plots of a scored run, as SVG data URIs with a title and a caption.

    Args:
        scores: per image its score, its oF1, and (side of a copy in pixels, F1) of each true instance; an image
            without true instances is authentic.
    """
    import matplotlib

    matplotlib.use("Agg")
    plots = []
    sides = [pair for _, _, instances in scores for pair in instances]
    if sides:
        plots.append(_plot("F1 by size of copy", "Mean F1 of the true instances; a missed one counts 0.",
                           lambda axes: _plot_sizes(axes, sides)))  # fmt: skip
    forged = np.array([score for score, _, instances in scores if instances])
    authentic = np.array([score for score, _, instances in scores if not instances])
    plots.append(_plot("Scores of authentic and forged images", "0 is an image in which nothing was found.",
                       lambda axes: _plot_scores(axes, authentic, forged)))  # fmt: skip
    if len(forged) and len(authentic):
        plots.append(_plot("False alarms against found", "Each step is one value of the score threshold.",
                           lambda axes: _plot_operating(axes, authentic, forged)))  # fmt: skip
    return plots


SIZE_EDGES = (0, 16, 32, 64, 128, 256, math.inf)  # pixels


def _plot_sizes(axes: Any, sides: Sequence[tuple[float, float]]) -> None:
    side, f1 = np.array(sides).T
    bins = np.digitize(side, SIZE_EDGES[1:-1])
    for i in range(len(SIZE_EDGES) - 1):
        values = f1[bins == i]
        if len(values):
            axes.bar(i, values.mean(), color=COLOURS[6], width=0.7)
            axes.text(i, values.mean() + 0.02, f"{values.mean():.2f}\nn = {len(values)}", ha="center", fontsize=9)
    labels = [f"{low}–{high}" for low, high in itertools.pairwise(SIZE_EDGES[:-1])]
    axes.set_xticks(range(len(labels) + 1), [*labels, f"over {SIZE_EDGES[-2]}"])
    axes.set(xlabel="side of a copy in pixels", ylabel="F1", ylim=(0, 1.2), yticks=np.linspace(0, 1, 6))


def _plot_scores(axes: Any, authentic: np.ndarray, forged: np.ndarray) -> None:
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


def operating_points(authentic: np.ndarray, forged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of authentic (x) and forged (y) images with score >= t, for every threshold t from high to low.

    Begins at (0, 0). A score of 0 is "nothing found" and never passes, so the curve ends where all findings count.
    """
    thresholds = np.unique(np.concatenate([authentic, forged]))[::-1]
    thresholds = thresholds[thresholds > 0]
    x = np.array([0.0] + [float((authentic >= t).mean()) for t in thresholds])
    y = np.array([0.0] + [float((forged >= t).mean()) for t in thresholds])
    return x, y


def _plot_operating(axes: Any, authentic: np.ndarray, forged: np.ndarray) -> None:
    x, y = operating_points(authentic, forged)
    axes.plot(x, y, drawstyle="steps-post", color=COLOURS[6], linewidth=2, marker="o", markersize=3)
    axes.set(xlabel="share of authentic images with a false alarm", ylabel="share of forged images found",
             xlim=(-0.02, max(0.1, float(x.max()) * 1.1)), ylim=(0, 1.02))  # fmt: skip


def _plot(title: str, caption: str, draw: Callable[[Any], None]) -> dict[str, str]:
    import base64
    import io

    import matplotlib.pyplot as plt

    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"title": title, "caption": caption, "source": source}


PLOT_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#55606e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "svg.hashsalt": "report",  # the same plot is the same file
}
