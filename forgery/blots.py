"""Simulated western blots and gels: bands with curved fronts, smears, speckle, uneven ground, exposure.

A strip is made lane by lane, so that the truth of a copied lane is known: every lane has its edges and its bands.
Values are densities, 0 (ground) and up; `expose` turns them into grey levels as a film or a camera would.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Blot:
    """A blot strip or a gel.

    image: (H, W, 3) uint8 RGB. lanes: (left, right) of every lane in pixels. bands: for every lane the (centre y,
    strength) of its bands. ladder: index of the lane that holds a ladder, or None.
    """

    image: np.ndarray
    lanes: tuple[tuple[int, int], ...]
    bands: tuple[tuple[tuple[float, float], ...], ...]
    ladder: int | None = None


def add_band(
    density: np.ndarray,
    centre: tuple[float, float],
    size: tuple[float, float],
    strength: float,
    rng: np.random.Generator,
) -> None:
    """Add one band to a density (H, W) float32, in place.

    Args:
        centre: (x, y) in pixels. size: half width and half height in pixels. strength: density at its middle.
        rng: draws how much the front is curved, how sharp it is, and the unevenness along it.
    """
    x0, x1 = (int(np.clip(centre[0] + side * 2.2 * size[0], 0, density.shape[1])) for side in (-1, 1))
    y0, y1 = (int(np.clip(centre[1] + side * (5 * size[1] + 3), 0, density.shape[0])) for side in (-1, 1))
    smile, slope = rng.normal(0, 0.25), rng.normal(0, 0.1)
    sharp, front, tail = rng.uniform(2.0, 6.0), rng.uniform(1.0, 2.2), rng.uniform(0.8, 1.6)
    if x1 <= x0 or y1 <= y0:
        return
    x = (np.arange(x0, x1, dtype=np.float32)[None] - centre[0]) / size[0]
    wobble = cv2.GaussianBlur(rng.normal(0, 1, (1, x1 - x0)).astype(np.float32), (0, 0), max(size[0] / 4, 1)) * 0.8
    y = (np.arange(y0, y1, dtype=np.float32)[:, None] - centre[1]) / size[1] - smile * x**2 - slope * x - wobble
    across = 1 / (1 + np.exp(np.clip(sharp * 2 * (np.abs(x) - 1), -30, 30)))
    along = np.exp(-np.minimum(np.abs(y) ** np.where(y > 0, 2 * front, 2 * tail), 30))
    density[y0:y1, x0:x1] += strength * along * across


def uneven_ground(shape: tuple[int, int], rng: np.random.Generator, strength: float) -> np.ndarray:
    """Density (H, W) float32 of what lies between the bands: slopes, clouds, streaks and specks."""
    height, width = shape
    rows, columns = (
        np.linspace(-1, 1, height, dtype=np.float32)[:, None],
        np.linspace(-1, 1, width, dtype=np.float32)[None],
    )
    ground = rng.normal(0, 0.5) * rows + rng.normal(0, 0.5) * columns
    for cells, weight in ((4, 2.0), (12, 1.0)):  # clouds of two sizes, drawn coarsely and enlarged
        grid = rng.normal(0, 1, (min(cells, height), max(cells * width // max(height, 1), 2))).astype(np.float32)
        cloud = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        ground = ground + weight * rng.uniform(0, 0.6) * cloud
    streak = cv2.GaussianBlur(rng.normal(0, 1, (1, width)).astype(np.float32), (0, 0), 1.5)
    ground = ground + rng.uniform(0, 0.6) * streak / (streak.std() + 1e-6)
    ground = (strength * (ground - ground.min()) / (np.ptp(ground) + 1e-6)).astype(np.float32)
    for _ in range(rng.poisson(height * width / 9000)):
        radius = float(rng.uniform(0.6, 2.2))
        spot = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(ground, spot, round(radius), float(ground[spot[1], spot[0]] + rng.uniform(0.05, 0.5)), -1)
    return ground


def expose(density: np.ndarray, rng: np.random.Generator, dark_bands: bool) -> np.ndarray:
    """Grey levels (H, W) uint8 of a density: blur of the optics, exposure, grain of the camera."""
    density = cv2.GaussianBlur(density, (0, 0), float(rng.uniform(0.4, 1.4)))
    light = np.exp(-float(rng.uniform(1.2, 3.5)) * density)
    high, low = float(rng.uniform(170, 252)), float(rng.uniform(0, 60))
    grey = low + (high - low) * light if dark_bands else high - (high - low) * light
    grain = rng.normal(0, 1, density.shape).astype(np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), float(rng.uniform(0.3, 1.2)))
    grey = grey + float(rng.uniform(0.4, 4.0)) * grain / (grain.std() + 1e-6)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def lane_edges(width: int, count: int, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """Left and right edge in pixels of `count` lanes of about equal width."""
    margin = float(rng.uniform(0.0, 0.04)) * width
    step = (width - 2 * margin) / count
    gap = float(rng.uniform(0.03, 0.15)) * step
    return tuple((round(margin + k * step + gap), round(margin + (k + 1) * step - gap)) for k in range(count))


def make_blot(shape: tuple[int, int], lanes: int, rng: np.random.Generator) -> Blot:
    """A strip of a western blot (H, W) of one row of bands, now and then two."""
    height, width = shape
    edges = lane_edges(width, lanes, rng)
    density = uneven_ground(shape, rng, float(rng.uniform(0.02, 0.3)))
    rows = [(float(rng.uniform(0.35, 0.65)), 1.0)]
    if rng.random() < 0.3:
        rows.append(
            (rows[0][0] + float(rng.choice([-1, 1])) * float(rng.uniform(0.15, 0.3)), float(rng.uniform(0.2, 0.9)))
        )
    bands = []
    for left, right in edges:
        strength = 0.0 if rng.random() < 0.12 else float(rng.uniform(0.15, 1.3))
        drawn = []
        for share, weight in rows:
            centre = ((left + right) / 2 + rng.normal(0, 1), share * height + rng.normal(0, 0.02 * height))
            size = (0.5 * (right - left) * rng.uniform(0.75, 1.05), height * rng.uniform(0.06, 0.16))
            add_band(density, centre, size, strength * weight, rng)
            drawn.append((float(centre[1]), strength * weight))
        if rng.random() < 0.2:  # a smear that trails the band
            add_band(
                density, ((left + right) / 2, height / 2), (0.4 * (right - left), height * 0.6), 0.15 * strength, rng
            )
        bands.append(tuple(drawn))
    grey = expose(density, rng, dark_bands=rng.random() < 0.9)
    return Blot(np.repeat(grey[..., None], 3, axis=2), edges, tuple(bands))


def make_gel(shape: tuple[int, int], lanes: int, rng: np.random.Generator) -> Blot:
    """An agarose or polyacrylamide gel (H, W) with wells, a ladder in one lane, and bands of shared heights."""
    height, width = shape
    edges = lane_edges(width, lanes, rng)
    density = uneven_ground(shape, rng, float(rng.uniform(0.05, 0.35)))
    shared = rng.uniform(0.2, 0.92, int(rng.integers(1, 7)))  # heights at which many lanes have a band
    ladder = int(rng.choice([0, lanes - 1])) if lanes > 2 and rng.random() < 0.75 else None
    thin = height * float(rng.uniform(0.006, 0.02))
    bands = []
    for k, (left, right) in enumerate(edges):
        heights = (
            np.sort(np.geomspace(0.15, 0.95, int(rng.integers(6, 14))))
            if k == ladder
            else shared[rng.random(len(shared)) < 0.75]
        )
        drawn = []
        for share in heights:
            centre = ((left + right) / 2, share * height + rng.normal(0, 0.004 * height))
            strength = float(rng.uniform(0.15, 1.2))
            size = (0.48 * (right - left), max(thin * rng.uniform(0.7, 1.8), 1.2))
            add_band(density, centre, size, strength, rng)
            drawn.append((float(centre[1]), strength))
        if rng.random() < 0.35:
            add_band(density, ((left + right) / 2, height / 2), (0.45 * (right - left), height / 2), 0.2, rng)
        well = np.zeros(shape, np.float32)
        cv2.rectangle(well, (left, round(0.03 * height)), (right, round(0.05 * height)), 0.35, -1)
        density += well * float(rng.random() < 0.6)
        bands.append(tuple(drawn))
    grey = expose(density, rng, dark_bands=rng.random() < 0.3)
    image = np.repeat(grey[..., None], 3, axis=2)
    if rng.random() < 0.15:  # ethidium bromide is orange under UV light
        image = (image * np.array([1.0, 0.55, 0.3])).astype(np.uint8)
    return Blot(image, edges, tuple(bands), ladder)
