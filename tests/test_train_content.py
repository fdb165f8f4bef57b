"""Training of the network that tells recorded from drawn content."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import synthesis
from benchmarks.train_content import (
    ContentNet,
    LabelledFigure,
    figure_paths,
    make_batch,
    read_figure,
    score,
    train_content,
)
from config import PIXEL_KINDS, ContentSettings, SynthesizeSettings
from copymove import content
from runtime.errors import InputError


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Folder of twelve figures."""
    root = tmp_path_factory.mktemp("figures")
    (root / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    cv2.imwrite(str(root / "in" / "a.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "CHARTS", 2)
        synthesis.main(SynthesizeSettings(root / "in", root / "out", count=12, num_workers=1, figures=True))
    return root / "out"


def test_network_names_every_cell():
    """Logits come for every cell, for any multiple of 16."""
    found = ContentNet().eval()(torch.zeros(2, content.CHANNELS, 64, 96))
    assert found.shape == (2, len(PIXEL_KINDS), 64, 96)


def test_cells_keep_kinds_in_place(figures):
    """Where the kinds say ground, the cells hardly have grain; where they say photo or gel, they do."""
    read = [read_figure((*pair, 0)) for pair in figure_paths(figures)]
    assert all(figure.cells.shape == (content.CHANNELS, *figure.kinds.shape) for figure in read)
    spread = np.concatenate([figure.cells[6].ravel() for figure in read])
    kinds = np.concatenate([figure.kinds.ravel() for figure in read])
    recorded = np.isin(kinds, content.RECORDED)
    assert np.median(spread[kinds == 0]) <= 2 < np.median(spread[recorded])


def test_crops_keep_cells_and_kinds_together():
    """A crop shows the same part of both, whether it is flipped or not."""
    kinds = np.arange(30 * 40, dtype=np.uint8).reshape(30, 40) % 6
    figure = LabelledFigure(np.repeat(kinds[None] * 40, content.CHANNELS, axis=0), kinds)
    cells, cut = make_batch([figure] * 6, 16, np.random.default_rng(0))
    assert cells.shape == (6, content.CHANNELS, 16, 16) and cut.shape == (6, 16, 16)
    assert (cells[:, 3] * 255 / 40).round().long().equal(cut) and len(cut.unique(dim=0)) > 1


def test_perfect_answers_score_one():
    """A network that knows the answer has 1 for every kind that occurs."""
    figure = LabelledFigure(np.zeros((content.CHANNELS, 30, 40), np.uint8), np.zeros((30, 40), np.uint8))

    def ground(cells):
        logits = torch.zeros(1, len(PIXEL_KINDS), *cells.shape[2:])
        logits[:, 0] = 1
        return logits

    assert score(ground, [figure])["ground"] == 1


@pytest.mark.slow
def test_training_writes_a_network(figures, tmp_path, monkeypatch, capsys):
    """A few steps lower the loss and write a file that the search can use at any size."""
    out = tmp_path / "content.onnx"
    train_content(ContentSettings((figures,), out, steps=12, batch_size=2, crop=32, num_workers=1))
    assert "step 12: loss" in capsys.readouterr().out
    monkeypatch.setattr(content, "NETWORK", out)
    found = content.examine_content(np.zeros((75, 130, 3), np.uint8))
    assert found.probabilities.shape == (len(PIXEL_KINDS), 19, 33) and found.even.shape == (19, 33)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [({"steps": 0}, "--steps"), ({"crop": 50}, "multiple of 16")])
def test_settings_out_of_range(figures, tmp_path, change, message):
    """They are named with what is allowed."""
    with pytest.raises(InputError, match=message):
        train_content(replace(ContentSettings((figures,), tmp_path / "x"), **change))


def test_other_folders_are_refused(tmp_path):
    """A folder without figures/ and kinds/ is named, with the command that makes one."""
    with pytest.raises(InputError, match=r"synthesis\.py --figures"):
        list(figure_paths(tmp_path))
