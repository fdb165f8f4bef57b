"""Composed figures, as papers print them: panels, letters, scale bars, arrows."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from forgery.composition import Box, Composition
from forgery.draws import draw_index

GRIDS = ((1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4))  # rows, columns of composed figures
GRID_WEIGHTS = (1, 1, 2, 3, 3, 3, 3, 2)
MAX_PIXELS = 4e6  # of a figure
MAX_MAGNIFICATION = 1.3  # of a panel against its image; enlarged further it would show nothing but interpolation


@dataclass(frozen=True)
class Panel:
    """One panel of a figure, and the part of an image that it shows."""

    box: Box  # in the figure
    image: int  # index of the image
    origin: Box  # in that image


def compose_figure(
    images: Sequence[np.ndarray], min_side: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Panel]] | None:
    """A figure of equal panels in a grid, about as large as the first image.

    Every panel shows a piece of one of the images. No two pieces share a pixel, so that the figure has no copies.

    Returns:
        Pixels (H, W, 3) uint8 and the panels; None where panels of at least `min_side` pixels do not fit.
    """
    height, width = images[0].shape[:2]
    room = min(height * width * rng.uniform(0.8, 1.6), MAX_PIXELS)
    ratio = float(rng.choice([1.0, 1.0, 4 / 3, 3 / 4]))  # width to height of a panel
    for index in [draw_index(GRID_WEIGHTS, rng), *range(len(GRIDS) - 1, -1, -1)]:
        rows, columns = GRIDS[index]
        pieces = _cut_pieces(images, rows * columns, rng)
        limit = min(min(w / ratio, h) for _, (_, _, w, h) in pieces) * MAX_MAGNIFICATION
        panel_height = int(min(math.sqrt(room / (rows * columns) / ratio), limit))
        panel_width = int(panel_height * ratio)
        if min(panel_height, panel_width) >= min_side:
            break
    else:
        return None
    gap = int(rng.integers(2, max(3, panel_height // 12) + 1))
    ground = 255 if rng.random() < 0.8 else 0
    figure = np.full((rows * (panel_height + gap) + gap, columns * (panel_width + gap) + gap, 3), ground, np.uint8)
    panels = []
    for (row, column), (number, piece) in zip(itertools.product(range(rows), range(columns)), pieces, strict=True):
        x, y = gap + column * (panel_width + gap), gap + row * (panel_height + gap)
        left, top, w, h = origin = _draw_crop(piece, ratio, rng)
        cut = images[number][top : top + h, left : left + w]
        figure[y : y + panel_height, x : x + panel_width] = cv2.resize(
            cut, (panel_width, panel_height), interpolation=cv2.INTER_AREA if w > panel_width else cv2.INTER_CUBIC
        )
        panels.append(Panel((x, y, panel_width, panel_height), number, origin))
    return figure, panels


def _cut_pieces(images: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> list[tuple[int, Box]]:
    """`count` disjoint boxes, each with the index of its image: the largest one is halved until there are enough."""
    pieces = [(i, (0, 0, image.shape[1], image.shape[0])) for i, image in enumerate(images[:count])]
    while len(pieces) < count:
        largest = max(range(len(pieces)), key=lambda i: pieces[i][1][2] * pieces[i][1][3])
        number, (x, y, width, height) = pieces.pop(largest)
        if width >= height:
            half = width // 2
            pieces += [(number, (x, y, half, height)), (number, (x + half, y, width - half, height))]
        else:
            half = height // 2
            pieces += [(number, (x, y, width, half)), (number, (x, y + half, width, height - half))]
    return [pieces[i] for i in rng.permutation(count)]


def _draw_crop(piece: Box, ratio: float, rng: np.random.Generator) -> Box:
    """A box of the given ratio of width to height somewhere in the piece."""
    x, y, width, height = piece
    h = min(height, width / ratio) * rng.uniform(0.8, 1.0)
    w, h = max(1, int(h * ratio)), max(1, int(h))
    return x + int(rng.integers(width - w + 1)), y + int(rng.integers(height - h + 1)), w, h


def annotate_figure(composition: Composition, rng: np.random.Generator) -> None:
    """Draw letters, arrows and scale bars, as in published figures. The regions under them no longer show there.

    A mark that would hide too much of a source or copy is left out.
    """
    lettered, barred = rng.random() < 0.7, rng.random() < 0.5
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if rng.random() < 0.5 else "abcdefghijklmnopqrstuvwxyz"
    for letter, (x, y, width, height) in zip(letters, composition.boxes, strict=False):
        panel = composition.pixels[y : y + height, x : x + width]
        colour, thickness = (255,) * 3 if panel.mean() < 140 else (0,) * 3, max(1, min(width, height) // 80)
        pen = Pen(colour, thickness, unit=max(6, min(width, height) // 10))
        # All draws of a panel come before its first mark: the marks that are left out do not change the others.
        for draw in list(_draw_marks(pen, letter if lettered else None, barred, width, height, rng)):
            marked = panel.copy()
            draw(marked)
            changed = (marked != panel).any(axis=2)
            if composition.may_cover(composition.covered(x, y, changed)):
                panel[changed] = marked[changed]
                composition.hide(x, y, changed)


@dataclass(frozen=True)
class Pen:
    """How marks are drawn into a panel."""

    colour: tuple[int, int, int]
    thickness: int  # of lines, in pixels
    unit: int  # height of a letter in pixels, by which all marks are measured

    def letter(self, panel: np.ndarray, letter: str) -> None:
        """Write a letter into the upper left corner."""
        place = (self.unit // 3, self.unit + self.unit // 3)
        size = self.unit / 22
        cv2.putText(panel, letter, place, cv2.FONT_HERSHEY_SIMPLEX, size, self.colour, self.thickness, cv2.LINE_AA)

    def bar(self, panel: np.ndarray, length: int) -> None:
        """Draw a scale bar into the lower right corner."""
        right, bottom = panel.shape[1] - self.unit // 2, panel.shape[0] - self.unit // 2
        cv2.rectangle(panel, (right - length, bottom - self.thickness), (right, bottom), self.colour, cv2.FILLED)

    def arrow(self, panel: np.ndarray, tip: tuple[float, float], angle: float) -> None:
        """Draw an arrow with its tip at x, y."""
        tail = (tip[0] + 1.5 * self.unit * math.cos(angle), tip[1] + 1.5 * self.unit * math.sin(angle))
        ends = [tuple(int(v) for v in point) for point in (tail, tip)]
        cv2.arrowedLine(panel, *ends, self.colour, self.thickness, cv2.LINE_AA, tipLength=0.4)


def _draw_marks(
    pen: Pen, letter: str | None, barred: bool, width: int, height: int, rng: np.random.Generator
) -> Iterator[Callable[[np.ndarray], None]]:
    """Functions that each draw one mark into a panel of this size."""
    if letter is not None:
        yield partial(pen.letter, letter=letter)
    if barred:
        yield partial(pen.bar, length=int(width * rng.uniform(0.15, 0.3)))
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.2 else 0):
        tip = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height)
        yield partial(pen.arrow, tip=tip, angle=rng.uniform(0, 2 * np.pi))
