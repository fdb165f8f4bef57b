"""Composed figures: panels, letters, scale bars, arrows."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

from forgery.contents import MIN_VISIBLE, Composition
from forgery.degrade import draw_index

GRIDS = ((1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4))  # rows, columns of composed figures


GRID_WEIGHTS = (1, 1, 2, 3, 3, 3, 3, 2)


def compose_figure(
    images: Sequence[np.ndarray], min_side: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[dict[str, Any]]] | None:
    """A figure of equal panels in a grid, about as large as the first image.

    Every panel is a piece of one of the images; pieces never share a pixel, so that the figure has no copies.
    Returns pixels, the panels' boxes and where each came from; None if panels of `min_side` pixels do not fit.
    """
    height, width = images[0].shape[:2]
    room = min(height * width * rng.uniform(0.8, 1.6), 4e6)
    ratio = float(rng.choice([1.0, 1.0, 4 / 3, 3 / 4]))  # width to height of a panel
    for index in [draw_index(GRID_WEIGHTS, rng), *range(len(GRIDS) - 1, -1, -1)]:
        rows, columns = GRIDS[index]
        pieces = _pieces(images, rows * columns, rng)
        # No more than 1.3 times finer than the images are: empty magnification is no figure.
        limit = min(min(w / ratio, h) for _, (_, _, w, h) in pieces) * 1.3
        cell_height = int(min(math.sqrt(room / (rows * columns) / ratio), limit))
        cell_width = int(cell_height * ratio)
        if min(cell_height, cell_width) >= min_side:
            break
    else:
        return None
    gap = int(rng.integers(2, max(3, cell_height // 12) + 1))
    canvas = np.full(
        (rows * (cell_height + gap) + gap, columns * (cell_width + gap) + gap, 3),
        255 if rng.random() < 0.8 else 0,
        np.uint8,
    )
    boxes, origins = [], []
    for (row, column), (number, piece) in zip(itertools.product(range(rows), range(columns)), pieces, strict=True):
        x, y = gap + column * (cell_width + gap), gap + row * (cell_height + gap)
        origin = _crop(piece, ratio, rng)
        left, top, w, h = origin
        cut = images[number][top : top + h, left : left + w]
        shrinks = w > cell_width
        canvas[y : y + cell_height, x : x + cell_width] = cv2.resize(
            cut, (cell_width, cell_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        boxes.append((x, y, cell_width, cell_height))
        origins.append({"box": list(boxes[-1]), "image": number, "origin": list(origin)})
    return canvas, boxes, origins


def _pieces(
    images: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """`count` disjoint boxes over the images: always the largest one is halved."""
    pieces = [(i, (0, 0, image.shape[1], image.shape[0])) for i, image in enumerate(images[:count])]
    while len(pieces) < count:
        at = max(range(len(pieces)), key=lambda i: pieces[i][1][2] * pieces[i][1][3])
        number, (x, y, width, height) = pieces.pop(at)
        if width >= height:
            half = width // 2
            pieces += [(number, (x, y, half, height)), (number, (x + half, y, width - half, height))]
        else:
            half = height // 2
            pieces += [(number, (x, y, width, half)), (number, (x, y + half, width, height - half))]
    return [pieces[i] for i in rng.permutation(count)]


def _crop(piece: tuple[int, int, int, int], ratio: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of the given width to height somewhere in the piece."""
    x, y, width, height = piece
    h = min(height, width / ratio) * rng.uniform(0.8, 1.0)
    w, h = max(1, int(h * ratio)), max(1, int(h))
    return x + int(rng.integers(width - w + 1)), y + int(rng.integers(height - h + 1)), w, h


def annotate_figure(composition: Composition, rng: np.random.Generator) -> None:
    """Letters, arrows and scale bars, as in published figures. What they cover is no longer visible.

    A mark that would hide too much of a source or copy is left out.
    """
    lettered, barred = rng.random() < 0.7, rng.random() < 0.5
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if rng.random() < 0.5 else "abcdefghijklmnopqrstuvwxyz"
    for letter, (x, y, width, height) in zip(letters, composition.boxes, strict=False):
        panel = composition.pixels[y : y + height, x : x + width]
        style = ((255,) * 3 if panel.mean() < 140 else (0,) * 3, max(1, min(width, height) // 80))  # colour, thickness
        unit = max(6, min(width, height) // 10)  # height of a letter in pixels
        marks = []
        if lettered:
            marks.append(partial(_draw_letter, letter=letter, unit=unit, style=style))
        if barred:
            marks.append(partial(_draw_bar, length=int(width * rng.uniform(0.15, 0.3)), unit=unit, style=style))
        for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.2 else 0):
            tip = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height)
            marks.append(partial(_draw_arrow, tip=tip, angle=rng.uniform(0, 2 * np.pi), unit=unit, style=style))
        for draw in marks:
            marked = panel.copy()
            draw(marked)
            changed = (marked != panel).any(axis=2)
            left = np.array(composition.visible) - composition.covered(x, y, changed)
            if (left >= MIN_VISIBLE * np.array(composition.sizes)).all():
                panel[changed] = marked[changed]
                composition.owner[y : y + height, x : x + width][changed] = 0
                composition.visible = left.tolist()


_Style = tuple[tuple[int, int, int], int]


def _draw_letter(panel: np.ndarray, letter: str, unit: int, style: _Style) -> None:
    at = (unit // 3, unit + unit // 3)
    cv2.putText(panel, letter, at, cv2.FONT_HERSHEY_SIMPLEX, unit / 22, style[0], style[1], cv2.LINE_AA)


def _draw_bar(panel: np.ndarray, length: int, unit: int, style: _Style) -> None:
    right, bottom = panel.shape[1] - unit // 2, panel.shape[0] - unit // 2
    cv2.rectangle(panel, (right - length, bottom - style[1]), (right, bottom), style[0], cv2.FILLED)


def _draw_arrow(panel: np.ndarray, tip: tuple[float, float], angle: float, unit: int, style: _Style) -> None:
    tail = (tip[0] + 1.5 * unit * math.cos(angle), tip[1] + 1.5 * unit * math.sin(angle))
    ends = [tuple(int(v) for v in point) for point in (tail, tip)]
    cv2.arrowedLine(panel, *ends, style[0], style[1], cv2.LINE_AA, tipLength=0.4)
