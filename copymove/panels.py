import numpy as np

# Colours of gutters, and grey levels by which their pixels may differ from that, from JPEG or noise. Dark panels need
# the narrow one, which what rings beside bright ones exceeds.
COLOURS = ((255, 20), (0, 8), (0, 20))


MIN_CLEAN = 0.97  # share of a line from side to side that must be of that colour


MIN_CONTRAST = 1.5  # grey levels by which the median of the lines beside a gutter must differ from its own


BESIDE = 2  # further lines before those: the edge of a gutter may be blurred


MIN_PANEL = 16  # least side of a panel in pixels: lines of text are narrower


MAX_DEPTH = 6  # times that rows and columns are cut in turn: frames in frames must end


def find_gutters(grey: np.ndarray) -> np.ndarray:
    """Gutters and margins (H, W) bool of a figure (H, W), grey values of 0 to 255; none in an image of one panel.

    Cut again and again, from side to side, along straight lines in white or black (XY cut; Nagy and Seth 1984), of
    which the colour is taken that gives more panels.
    """
    best, most = np.zeros(grey.shape, bool), 1
    for colour, tolerance in COLOURS:
        away = np.abs(grey.astype(np.float32) - colour)
        gutters = np.zeros(grey.shape, bool)
        panels = _cut(away, tolerance, gutters, MAX_DEPTH)
        if panels > most:
            best, most = gutters, panels
    return best


def _cut(away: np.ndarray, tolerance: float, gutters: np.ndarray, depth: int) -> int:
    """Mark the gutters of a block (h, w), given as distances from their colour; how many panels it has."""
    if not depth:
        return 1
    for values, marks in ((away, gutters), (away.T, gutters.T)):  # rows, or columns where no row is a gutter
        runs = _runs(values, tolerance)
        if not runs:
            continue
        for first, end in runs:
            marks[first:end] = True
        edges = [0, *(line for run in runs for line in run), len(values)]
        blocks = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= MIN_PANEL]
        return sum(_cut(values[block], tolerance, marks[block], depth - 1) for block in blocks)
    return 1


def _runs(away: np.ndarray, tolerance: float) -> list[tuple[int, int]]:
    """First line and end of every gutter that crosses a block along its rows."""
    runs = []
    for first, end in _stretches((away <= tolerance).mean(axis=1) >= MIN_CLEAN):
        beside = [np.median(away[k]) for k in (first - 1 - BESIDE, end + BESIDE) if 0 <= k < len(away)]
        if beside and min(beside) > np.median(away[first:end]) + MIN_CONTRAST:
            runs.append((first, end))
    return runs


def _stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and end of every run of True."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(steps[::2], steps[1::2], strict=True)]
