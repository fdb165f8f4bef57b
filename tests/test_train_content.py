"""Training of the network that tells recorded from drawn content."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import synthesis
from benchmarks.train_content import ContentNet, make_batch, read_figures, score, train_content
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


def test_network_names_every_second_pixel():
    """Logits come at half of the input's resolution, for any multiple of 32."""
    assert ContentNet().eval()(torch.zeros(2, 3, 64, 96)).shape == (2, len(PIXEL_KINDS), 32, 48)


def test_crops_keep_kinds_in_place(figures):
    """Where a crop's kinds say ground, its image is mostly white or, inverted or on black, of one colour."""
    images, kinds = make_batch(read_figures(figures), 128, np.random.default_rng(0))
    assert images.shape == (12, 3, 128, 128) and kinds.shape == (12, 64, 64)
    assert images.min() >= 0 and images.max() <= 1 and set(kinds.unique().tolist()) <= set(range(len(PIXEL_KINDS)))
    spread = [images[k, 0, 1::2, 1::2][kinds[k] == 0].std() for k in range(12) if (kinds[k] == 0).sum() > 50]
    assert np.median([float(value) for value in spread]) < 0.1


def test_perfect_answers_score_one(figures):
    """A network that knows the answer has 1 for every kind that occurs."""
    read = read_figures(figures)
    figure = replace(read[0], kinds=np.zeros_like(read[0].kinds))

    def ground(images):
        logits = torch.zeros(1, len(PIXEL_KINDS), images.shape[2] // 2, images.shape[3] // 2)
        logits[:, 0] = 1
        return logits

    assert score(ground, [figure])["ground"] == 1


@pytest.mark.slow
def test_training_writes_a_network(figures, tmp_path, monkeypatch, capsys):
    """A few steps lower the loss and write a file that the search can use at any size."""
    out = tmp_path / "content.onnx"
    train_content(ContentSettings((figures,), out, steps=12, batch_size=2, crop=64))
    assert "step 12: loss" in capsys.readouterr().out
    monkeypatch.setattr(content, "NETWORK", out)
    content.load_network.cache_clear()
    try:
        kinds = content.pixel_kinds(np.zeros((75, 130, 3), np.uint8))
        assert kinds.shape == (75, 130) and kinds.dtype == np.uint8
    finally:
        content.load_network.cache_clear()


@pytest.mark.parametrize(("change", "message"), [({"steps": 0}, "--steps"), ({"crop": 50}, "multiple of 32")])
def test_settings_out_of_range(figures, tmp_path, change, message):
    """They are named with what is allowed."""
    with pytest.raises(InputError, match=message):
        train_content(replace(ContentSettings((figures,), tmp_path / "x"), **change))


def test_other_folders_are_refused(tmp_path):
    """A folder without figures/ and kinds/ is named, with the command that makes one."""
    with pytest.raises(InputError, match="synthesis.py --figures"):
        read_figures(tmp_path)
