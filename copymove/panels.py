"""Panels of a composed figure: the gutters between them, found by cutting along straight lines in white or black."""

import numpy as np
from scipy import ndimage

# Grey level of gutters, and by how much their pixels may differ from it, from JPEG or noise. Black gutters between dark
# panels need the smaller tolerance; the ringing beside bright panels exceeds it, so black has a larger one too.
GUTTER_GREYS = ((255, 20), (0, 8), (0, 20))
MIN_CLEAN = 0.97  # share of a line from side to side that must have the gutter's grey level
MIN_CONTRAST = 1.5  # grey levels by which the median of the lines beside a gutter must differ from its own
BLURRED_LINES = 2  # beside a gutter, before the lines that it is compared with
MIN_PANEL = 16  # least side of a panel in pixels: lines of text are narrower
MAX_DEPTH = 6  # times that rows and columns are cut in turn: frames in frames must end


def find_gutters(grey: np.ndarray) -> np.ndarray:
    """Gutters and margins (H, W) bool of a figure (H, W) of grey values, 0 to 255; none in an image of one panel.

    The figure is cut again and again along straight lines from side to side (recursive XY cut; Nagy and Seth 1984),
    with each of GUTTER_GREYS; the one that gives the most panels is taken.
    """
    best, most_panels = np.zeros(grey.shape, bool), 1
    for colour, tolerance in GUTTER_GREYS:
        distance = np.abs(grey.astype(np.float32) - colour)
        gutters = np.zeros(grey.shape, bool)
        panels = _cut(distance, tolerance, gutters, MAX_DEPTH)
        if panels > most_panels:
            best, most_panels = gutters, panels
    return best


def _cut(distance: np.ndarray, tolerance: float, gutters: np.ndarray, depth: int) -> int:
    """Mark the gutters (h, w) bool of a block, given by its distance (h, w) from their grey; how many panels it has."""
    if not depth:
        return 1
    for values, marks in ((distance, gutters), (distance.T, gutters.T)):  # rows, or columns where no row is a gutter
        runs = _gutter_runs(values, tolerance)
        if not runs:
            continue
        for first, end in runs:
            marks[first:end] = True
        edges = [0, *(line for run in runs for line in run), len(values)]
        blocks = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= MIN_PANEL]
        return sum(_cut(values[block], tolerance, marks[block], depth - 1) for block in blocks)
    return 1


def _gutter_runs(distance: np.ndarray, tolerance: float) -> list[tuple[int, int]]:
    """First line and end (the line after the last) of every gutter that crosses a block along its rows."""
    runs = []
    clean, _ = ndimage.label((distance <= tolerance).mean(axis=1) >= MIN_CLEAN)
    for (lines,) in ndimage.find_objects(clean):
        first, end = lines.start, lines.stop
        beside = [k for k in (first - 1 - BLURRED_LINES, end + BLURRED_LINES) if 0 <= k < len(distance)]
        least = min((np.median(distance[k]) for k in beside), default=-np.inf)
        if least > np.median(distance[first:end]) + MIN_CONTRAST:
            runs.append((first, end))
    return runs
