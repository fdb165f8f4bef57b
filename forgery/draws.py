"""How much is copied: number of contents, number of copies, area. Drawn at random after a real data set."""

import math
from collections.abc import Sequence

import numpy as np

from config import SynthesisSettings

# Forged images of Recod.ai/LUC: the share of the image inside masks at the 5th, 25th, 50th, 75th and 95th percentile
# is 0.0026, 0.0075, 0.027, 0.081 and 0.185. The targets below differ a little, because contents that are too large to
# find a place are made smaller, and those under the smallest side larger.
SHARE_PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SHARES = (0.0010, 0.0026, 0.0060, 0.025, 0.092, 0.20, 0.33)
CONTENT_PROBABILITIES = (0.679, 0.255, 0.063, 0.003)  # of one, two, three, four contents in an image; the data set's
COPY_PROBABILITIES = (0.72, 0.16, 0.07, 0.05)  # of one, two, ... copies of a content; ours, the data set has no number


def draw_areas(settings: SynthesisSettings, image_area: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) float64: the area of each content in pixels, its source and copies together."""
    count = 1 + draw_index(CONTENT_PROBABILITIES[: settings.max_contents], rng)
    share = math.exp(np.interp(rng.random(), SHARE_PROBABILITIES, np.log(SHARES)))
    parts = rng.uniform(0.5, 1.5, count)
    return share * image_area * parts / parts.sum()


def draw_copy_count(settings: SynthesisSettings, rng: np.random.Generator) -> int:
    """Number of copies of one content, at least 1."""
    return 1 + draw_index(COPY_PROBABILITIES[: settings.max_copies], rng)


def draw_index(weights: Sequence[float], rng: np.random.Generator) -> int:
    """An index, drawn with a probability proportional to its weight."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
