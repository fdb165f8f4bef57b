"""Whole figures: what each pixel is, the same figure for the same seed, blots with bands where they are said to be."""

import json

import cv2
import numpy as np
import pytest

import synthesis
from config import PIXEL_KINDS, SynthesizeSettings
from forgery.blots import make_blot, make_gel
from forgery.drawings import DRAWINGS
from forgery.whole_figures import BLOT, DRAWING, GEL, GROUND, PHOTO, TEXT, make_figure

CHART = np.full((60, 80, 3), (255, 0, 0), np.uint8)


def grain(seed, height=200, width=260):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


PHOTOGRAPHS = [grain(0), grain(1)]


def figure(seed, **more):
    return make_figure(PHOTOGRAPHS, np.random.default_rng(seed), [CHART], **more)


def test_same_generator_same_figure():
    """Image and kinds depend on the arguments alone."""
    first, second = figure(3), figure(3)
    assert (first.image == second.image).all() and (first.kinds == second.kinds).all()
    assert first.image.dtype == np.uint8 and first.kinds.shape == first.image.shape[:2]


def test_every_kind_occurs():
    """Twenty figures hold every kind, and ground between the panels."""
    shares = np.mean(
        [np.bincount(figure(seed).kinds.ravel(), minlength=len(PIXEL_KINDS)) > 0 for seed in range(20)], axis=0
    )
    assert (shares > 0).all()
    assert shares[GROUND] == 1 and shares[PHOTO] > 0.3 and shares[DRAWING] > 0.3


def test_panels_hold_their_kind():
    """As composed, most of a panel's pixels are of its kind; what lies over a photograph is drawing or text."""
    for seed in range(8):
        made = figure(seed, printed=False)
        for panel in made.panels:
            x, y, width, height = panel.box
            inside = made.kinds[y : y + height, x : x + width]
            kind = PIXEL_KINDS.index(panel.kind)
            assert set(np.unique(inside)) <= {kind, PHOTO, DRAWING, TEXT}, panel
            assert kind == DRAWING or (inside == kind).mean() > 0.5, panel


def test_charts_are_the_given_ones():
    """With charts given none is drawn anew: their even colour, in some order of channels, fills the chart panels."""
    made = figure(5, printed=False)
    charts = [p for p in made.panels if p.kind == "drawing"]
    colours = {tuple(sorted(made.image[p.box[1] + p.box[3] // 2, p.box[0] + p.box[2] // 2].tolist())) for p in charts}
    assert (0, 0, 255) in colours or not charts


@pytest.mark.parametrize(("make", "shape"), [(make_blot, (80, 400)), (make_gel, (240, 320))])
def test_bands_lie_in_their_lanes(make, shape):
    """Along a lane's middle the strongest band differs from the ground beside it; lanes are apart and in order."""
    rng, stronger = np.random.default_rng(0), []
    for _ in range(12):
        blot = make(shape, 6, rng)
        assert blot.image.shape == (*shape, 3) and len(blot.lanes) == len(blot.bands) == 6
        assert all(a[1] < b[0] for a, b in zip(blot.lanes, blot.lanes[1:], strict=False))
        grey = blot.image[..., 0].astype(float)
        lane, (y, strength) = max(
            ((lane, band) for lane, bands in enumerate(blot.bands) for band in bands), key=lambda entry: entry[1][1]
        )
        left, right = blot.lanes[lane]
        middle = grey[:, left + (right - left) // 4 : right - (right - left) // 4].mean(axis=1)
        if strength > 0.8:
            stronger.append(abs(middle[int(y)] - np.median(middle)) > 3 * np.abs(np.diff(middle)).mean())
    assert np.mean(stronger) > 0.6


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_drawn(name):
    """Every drawing is an image with something on it, of about the asked size."""
    image = DRAWINGS[name](200, 150, np.random.default_rng(1))
    assert image.dtype == np.uint8 and image.ndim == 3 and abs(image.shape[0] - 150) <= 2
    assert image.std() > 3


def test_script_writes_figures(tmp_path, monkeypatch):
    """`synthesis.py --figures` writes image, kinds and panels of every figure."""
    monkeypatch.setattr(synthesis, "CHARTS", 2)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), PHOTOGRAPHS[0])
    settings = SynthesizeSettings(tmp_path / "in", tmp_path / "out", count=2, num_workers=1, figures=True)
    synthesis.main(settings)
    image = cv2.imread(str(tmp_path / "out/figures/000000.png"))
    kinds = cv2.imread(str(tmp_path / "out/kinds/000000.png"), cv2.IMREAD_UNCHANGED)
    record = json.loads((tmp_path / "out/figures/000000.json").read_text())
    assert image.shape[:2] == kinds.shape and kinds.max() < len(PIXEL_KINDS)
    assert {panel["kind"] for panel in record["panels"]} <= set(PIXEL_KINDS)
    assert BLOT != GEL and len(list((tmp_path / "out").glob("*/*.png"))) == 4
