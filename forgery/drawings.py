"""What figures hold that is drawn and not recorded: charts, schematics, formulas, tables, screenshots, text.

Every function gives an image (H, W, 3) uint8 RGB of about the asked size. Charts are drawn by matplotlib, the rest by
Pillow and OpenCV. Nothing here is a photograph, so a search for copies has nothing to do in any of it.
"""

import string
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = [
    "control",
    "treated",
    "mean",
    "cells",
    "time",
    "dose",
    "relative",
    "expression",
    "level",
    "protein",
    "sample",
    "group",
    "value",
    "density",
    "growth",
    "rate",
    "response",
    "total",
    "signal",
    "index",
    "ratio",
    "of",
    "the",
    "in",
    "with",
    "after",
    "mRNA",
    "siRNA",
    "vehicle",
    "wild",
    "type",
    "mutant",
    "days",
    "hours",
    "weight",
]
COLOURS = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (70, 130, 180),
    (0, 0, 0),
    (90, 90, 90),
    (240, 200, 60),
    (180, 60, 120),
    (120, 180, 230),
    (20, 90, 60),
)
FACES = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "STIXGeneral.ttf")


@cache
def font(size: int, face: int = 0) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib carries; `size` in pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FACES[face % len(FACES)]), size)


def phrase(rng: np.random.Generator, words: int) -> str:
    """Some words of the kind that stands on axes."""
    chosen = " ".join(rng.choice(WORDS, words))
    return chosen.capitalize() if rng.random() < 0.6 else chosen


def write(
    image: np.ndarray, text: str, corner: tuple[float, float], size: int, colour: tuple[int, int, int], face: int = 0
) -> None:
    """Draw text into an image (H, W, 3) uint8, in place; `corner` is its upper left one in pixels."""
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text(corner, text, fill=colour, font=font(size, face))
    image[:] = np.asarray(canvas)


def colour_of(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour that charts and schematics use, now and then any."""
    if rng.random() < 0.3:
        return tuple(int(v) for v in rng.integers(0, 256, 3))
    return COLOURS[rng.integers(len(COLOURS))]


# Charts -----------------------------------------------------------------------------------------------------------


def bars(axes, rng: np.random.Generator) -> None:  # noqa: ANN001 (matplotlib is imported where it is used)
    """Bars with hatching and error bars, grouped or stacked."""
    groups, series = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    stacked, width = rng.random() < 0.25, 0.8 / series
    hatches = ["", "", "//", "xx", "..", "\\\\", "--", "++", "oo"]
    below = np.zeros(groups)
    for k in range(series):
        heights = rng.uniform(0.1, 1.0, groups)
        place = np.arange(groups) + (0 if stacked else (k - (series - 1) / 2) * width)
        face = "white" if rng.random() < 0.2 else np.array(colour_of(rng)) / 255
        axes.bar(
            place,
            heights,
            0.7 if stacked else width,
            bottom=below if stacked else None,
            color=face,
            edgecolor="black",
            linewidth=rng.uniform(0, 1.2),
            hatch=rng.choice(hatches),
            yerr=heights * 0.1 if rng.random() < 0.6 else None,
            capsize=3,
        )
        below = below + heights if stacked else below


def lines(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """Curves with markers and error bars."""
    x = np.linspace(0, 10, int(rng.integers(4, 60)))
    for _ in range(int(rng.integers(1, 7))):
        y = (
            np.cumsum(rng.normal(0.1, 0.4, len(x)))
            if rng.random() < 0.5
            else rng.uniform(0.5, 2) / (1 + np.exp(-(x - rng.uniform(2, 8))))
        )
        style = {
            "marker": rng.choice(["", "o", "s", "^", "D", "x"]),
            "linestyle": rng.choice(["-", "--", ":", "-."]),
            "ms": 4,
        }
        axes.errorbar(
            x,
            y,
            yerr=0.1 if rng.random() < 0.3 else None,
            color=np.array(colour_of(rng)) / 255,
            capsize=2,
            lw=rng.uniform(0.6, 2),
            **style,
        )


def spectrum(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """Peaks over a noisy line, as spectra and diffraction patterns have them."""
    x = np.linspace(0, 1, 700)
    for k in range(int(rng.integers(1, 5))):
        y = sum(
            rng.uniform(0.1, 1) * np.exp(-(((x - c) / rng.uniform(0.002, 0.03)) ** 2)) for c in rng.uniform(0, 1, 12)
        )
        axes.plot(x, y + rng.normal(0, 0.02, len(x)) + 1.2 * k, lw=0.7, color=np.array(colour_of(rng)) / 255)


def scatter(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """Clouds of points: scatter and flow plots."""
    for _ in range(int(rng.integers(1, 4))):
        count = int(rng.choice([20, 200, 3000]))
        cloud = rng.normal(rng.uniform(-2, 2, 2), rng.uniform(0.3, 1.5, 2), (count, 2))
        axes.scatter(
            *cloud.T,
            s=rng.choice([1, 6, 20]),
            color=np.array(colour_of(rng)) / 255,
            marker=rng.choice(["o", ".", "^", "+"]),
            alpha=0.7,
        )
    if rng.random() < 0.4:
        axes.axhline(0, color="k", lw=0.8)
        axes.axvline(0, color="k", lw=0.8)


def histogram(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """Histograms, filled or as steps, one over the other."""
    for _ in range(int(rng.integers(1, 4))):
        axes.hist(
            rng.normal(rng.uniform(-2, 2), rng.uniform(0.4, 1.2), 800),
            bins=int(rng.integers(10, 70)),
            alpha=0.6,
            color=np.array(colour_of(rng)) / 255,
            histtype=rng.choice(["bar", "stepfilled", "step"]),
        )


def boxes(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """Box or violin plots with their points."""
    samples = [rng.normal(rng.uniform(0, 3), rng.uniform(0.3, 1), 40) for _ in range(int(rng.integers(2, 8)))]
    axes.violinplot(samples) if rng.random() < 0.4 else axes.boxplot(samples, patch_artist=bool(rng.random() < 0.5))
    if rng.random() < 0.4:
        for k, sample in enumerate(samples, 1):
            axes.plot(k + rng.normal(0, 0.06, len(sample)), sample, ".", ms=3, color="k")


def heat_map(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """Heat maps of cells in even colours, and smooth maps with contours."""
    name = rng.choice(["viridis", "RdBu", "hot", "Reds", "jet", "Greys", "coolwarm"])
    if rng.random() < 0.6:
        values = rng.normal(0, 1, (int(rng.integers(3, 40)), int(rng.integers(3, 30))))
        axes.pcolormesh(values, cmap=name, edgecolors="white" if rng.random() < 0.3 else "none", linewidth=0.4)
    else:
        field = cv2.GaussianBlur(rng.normal(0, 1, (60, 60)), (0, 0), 6)
        axes.contourf(field, levels=int(rng.integers(5, 25)), cmap=name)


def pie(axes, rng: np.random.Generator) -> None:  # noqa: ANN001
    """A pie or a ring."""
    shares = rng.uniform(0.2, 1, int(rng.integers(2, 9)))
    axes.pie(
        shares,
        colors=[np.array(colour_of(rng)) / 255 for _ in shares],
        wedgeprops={"width": rng.choice([1.0, 0.4]), "edgecolor": "w"},
        labels=[phrase(rng, 1) for _ in shares] if rng.random() < 0.5 else None,
        textprops={"fontsize": 7},
    )


CHARTS: tuple[Callable, ...] = (bars, bars, lines, lines, spectrum, scatter, histogram, boxes, heat_map, pie)


def chart(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A chart of any common kind with axes, ticks, labels and a legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi = float(rng.uniform(70, 130))
    figure = Figure(figsize=(max(width, 120) / dpi, max(height, 100) / dpi), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.17, 0.17, 0.78, 0.72))
    draw = CHARTS[rng.integers(len(CHARTS))]
    draw(axes, rng)
    size = float(rng.uniform(5, 11))
    if draw is not pie:
        axes.set_xlabel(phrase(rng, int(rng.integers(1, 4))), fontsize=size)
        axes.set_ylabel(phrase(rng, int(rng.integers(1, 4))), fontsize=size)
        axes.tick_params(labelsize=size * 0.85)
        if rng.random() < 0.5:
            axes.spines[["top", "right"]].set_visible(False)
        if rng.random() < 0.25:
            axes.grid(alpha=0.5)
        if rng.random() < 0.15:
            axes.set_facecolor(str(rng.choice(["#eaeaf2", "#f5f5dc", "#d9d9d9"])))
    if rng.random() < 0.4:
        axes.set_title(phrase(rng, 2), fontsize=size * 1.1)
    if rng.random() < 0.3:
        axes.plot([], [], "s", label=phrase(rng, 1))
        axes.plot([], [], "o", label=phrase(rng, 1))
        axes.legend(fontsize=size * 0.8)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


# Schematics, tables, text -----------------------------------------------------------------------------------------


def gradient(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A smooth change from one colour to another (H, W, 3) uint8, straight or from the middle outwards."""
    height, width = shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    share = np.hypot(x, y) / 1.5 if rng.random() < 0.4 else (x * rng.normal() + y * rng.normal() + 2) / 4
    share = np.clip(share, 0, 1)[..., None]
    return (np.array(colour_of(rng)) * (1 - share) + 255 * share * rng.uniform(0.6, 1)).clip(0, 255).astype(np.uint8)


def icon(image: np.ndarray, centre: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """A cell, a molecule, a flask, a mouse: what schematics repeat, drawn in place."""
    x, y = centre
    colour, edge = colour_of(rng), (0, 0, 0) if rng.random() < 0.6 else colour_of(rng)
    kind = rng.integers(5)
    if kind == 0:
        cv2.ellipse(
            image,
            centre,
            (radius, round(radius * rng.uniform(0.5, 1))),
            int(rng.integers(180)),
            0,
            360,
            colour,
            -1,
            cv2.LINE_AA,
        )
        cv2.circle(image, (x + radius // 5, y), max(radius // 3, 1), edge, -1, cv2.LINE_AA)
    elif kind == 1:  # a hexagon as in molecules
        corners = np.array(
            [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in np.arange(6) * np.pi / 3], np.int32
        )
        cv2.polylines(image, [corners], True, edge, 1 + radius // 15, cv2.LINE_AA)
        cv2.line(image, tuple(map(int, corners[0])), (x + 2 * radius, y), edge, 1 + radius // 15, cv2.LINE_AA)
    elif kind == 2:  # a ball that shines
        for step in range(radius, 0, -max(radius // 8, 1)):
            share = 1 - step / radius
            tone = tuple(int(c + (255 - c) * share) for c in colour)
            cv2.circle(image, (x - (radius - step) // 3, y - (radius - step) // 3), step, tone, -1, cv2.LINE_AA)
    elif kind == 3:
        corners = np.array([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], np.int32)
        cv2.fillPoly(image, [corners], colour, cv2.LINE_AA)
        cv2.polylines(image, [corners], True, edge, 1, cv2.LINE_AA)
    else:
        cv2.rectangle(image, (x - radius, y - radius // 2), (x + radius, y + radius // 2), colour, -1)
        cv2.rectangle(image, (x - radius, y - radius // 2), (x + radius, y + radius // 2), edge, 1)


def schematic(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes with words, arrows, icons, gradients."""
    image = gradient((height, width), rng) if rng.random() < 0.25 else np.full((height, width, 3), 255, np.uint8)
    unit = max(min(width, height) // int(rng.integers(6, 14)), 8)
    for _ in range(int(rng.integers(3, 16))):
        x, y = (
            int(rng.integers(unit, max(width - unit, unit + 1))),
            int(rng.integers(unit, max(height - unit, unit + 1))),
        )
        draw = rng.random()
        if draw < 0.45:
            radius = int(rng.integers(unit // 3, unit))
            seed = int(rng.integers(2**31))
            for k in range(int(rng.choice([1, 1, 3, 6]))):  # the same icon several times
                icon(image, (x + k * radius * 2, y), radius, np.random.default_rng(seed))
        elif draw < 0.7:
            right, bottom = (
                min(x + int(rng.integers(unit, 5 * unit)), width - 2),
                min(y + int(rng.integers(unit, 3 * unit)), height - 2),
            )
            if right - x > 6 and bottom - y > 6:
                if rng.random() < 0.5:
                    image[y:bottom, x:right] = gradient((bottom - y, right - x), rng)
                cv2.rectangle(image, (x, y), (right, bottom), colour_of(rng), int(rng.integers(1, 3)))
                write(
                    image,
                    phrase(rng, 2),
                    (x + 4, (y + bottom) / 2 - unit / 4),
                    max(unit // 2, 8),
                    (0, 0, 0),
                    int(rng.integers(5)),
                )
        else:
            tip = (
                int(np.clip(x + rng.normal(0, 3 * unit), 0, width - 1)),
                int(np.clip(y + rng.normal(0, 2 * unit), 0, height - 1)),
            )
            cv2.arrowedLine(image, (x, y), tip, colour_of(rng), int(rng.integers(1, 5)), cv2.LINE_AA, tipLength=0.2)
    return image


def table(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Rows and columns of numbers and words."""
    image = np.full((height, width, 3), 255, np.uint8)
    size = int(rng.integers(9, 18))
    columns, rows = max(width // int(rng.integers(60, 140)), 2), max(height // (size + 8), 2)
    canvas = Image.fromarray(image)
    pen, face = ImageDraw.Draw(canvas), int(rng.integers(5))
    for r in range(rows):
        y = r * height / rows
        if rng.random() < 0.3:
            pen.line((0, y, width, y), fill=(0, 0, 0))
        for c in range(columns):
            text = phrase(rng, 1) if c == 0 or r == 0 else f"{rng.normal(5, 4):.{rng.integers(0, 3)}f}"
            pen.text((c * width / columns + 4, y + 3), text, fill=(0, 0, 0), font=font(size, face))
    return np.array(canvas)


def formula(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A molecule or a formula in large type."""
    image = np.full((height, width, 3), 255, np.uint8)
    if rng.random() < 0.6:
        radius = max(min(width, height) // int(rng.integers(7, 14)), 6)
        for _ in range(int(rng.integers(2, 7))):
            centre = (
                int(rng.integers(radius, max(width - radius, radius + 1))),
                int(rng.integers(radius, max(height - radius, radius + 1))),
            )
            corners = [
                (int(centre[0] + radius * np.cos(a)), int(centre[1] + radius * np.sin(a)))
                for a in np.arange(6) * np.pi / 3
            ]
            cv2.polylines(image, [np.array(corners, np.int32)], True, (0, 0, 0), max(radius // 12, 1), cv2.LINE_AA)
            inner = [((x * 3 + centre[0]) // 4, (y * 3 + centre[1]) // 4) for x, y in corners]
            for k in (0, 2, 4):
                cv2.line(image, inner[k], inner[(k + 1) % 6], (0, 0, 0), max(radius // 12, 1), cv2.LINE_AA)
            write(
                image, str(rng.choice(["OH", "NH2", "O", "N", "CH3", "R"])), corners[0], max(radius // 2, 8), (0, 0, 0)
            )
    else:
        for k in range(int(rng.integers(1, 5))):
            text = "".join(rng.choice(list("abcxyzαβγΣ∫=+-()/²0123456789 "), int(rng.integers(8, 26))))
            write(image, text, (8, k * height / 5 + 4), max(height // 9, 9), (0, 0, 0), 1)
    return image


def text_block(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Lines of text, as captions, sequences and lists have them."""
    canvas = Image.new("RGB", (width, height), "white")
    pen, size, face = ImageDraw.Draw(canvas), int(rng.integers(9, 22)), int(rng.integers(5))
    bases = rng.random() < 0.2
    for y in range(2, height - size, int(size * 1.3)):
        text = (
            "".join(rng.choice(list("ACGT-"), max(width // size, 4)))
            if bases
            else phrase(rng, max(width // (size * 4), 1))
        )
        pen.text((4, y), text, fill=(0, 0, 0), font=font(size, 3 if bases else face))
    return np.array(canvas)


def screenshot(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A window with a bar, buttons, lists and even areas."""
    image = np.full((height, width, 3), int(rng.integers(200, 256)), np.uint8)
    cv2.rectangle(image, (0, 0), (width, max(height // 12, 12)), colour_of(rng), -1)
    for _ in range(int(rng.integers(4, 14))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = int(rng.integers(20, max(width // 2, 21))), int(rng.integers(10, max(height // 4, 11)))
        cv2.rectangle(image, (x, y), (x + w, y + h), colour_of(rng) if rng.random() < 0.4 else (255, 255, 255), -1)
        cv2.rectangle(image, (x, y), (x + w, y + h), (120, 120, 120), 1)
        write(image, phrase(rng, 2), (x + 3, y + 2), int(rng.integers(9, 16)), (0, 0, 0))
    return image


DRAWINGS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "chart": chart,
    "schematic": schematic,
    "table": table,
    "formula": formula,
    "text": text_block,
    "screenshot": screenshot,
}
LETTERS = string.ascii_uppercase
