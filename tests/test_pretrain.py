"""Pairs of views, the loss over correspondences, the start, and a run that is stopped and goes on."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pretrain
from config import DataSettings, PretrainSettings
from model import load_backbone, random_backbone, to_pixels
from runtime.errors import InputError


def smooth_image(height=300, width=400):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX)


def test_places_of_cells_under_a_shift():
    """One cell to the right, half a cell down: the place lies between two cells, half each."""
    shift = np.array([[1, 0, 14], [0, 1, 7], [0, 0, 1.0]])
    visible = np.ones((70, 70), bool)
    places, shares = pretrain.correspond(shift, np.ones(25, bool), visible)
    found = dict(zip(places[6].tolist(), shares[6].tolist(), strict=True))  # cell (1, 1)
    assert {cell: share for cell, share in found.items() if share} == {7: 0.5, 12: 0.5}
    lost = shares.sum(1).reshape(5, 5) == 0
    assert lost[:, 4].all() and not lost[:, :4].any()  # half a cell beyond the last row is its border, still inside
    visible[:35] = False
    _, shares = pretrain.correspond(shift, np.ones(25, bool), visible)
    assert (shares.sum(1).reshape(5, 5)[:2] == 0).all()
    _, shares = pretrain.correspond(shift, np.arange(25) == 6, np.ones((70, 70), bool))
    assert shares.sum() == pytest.approx(1) and shares[6].sum() == pytest.approx(1)


def test_a_cell_shows_in_both_views_what_its_place_says(monkeypatch):
    monkeypatch.setattr(pretrain, "recolour", lambda view, rng: view)
    views = pretrain.Views([smooth_image(), smooth_image(500, 200)], 112)
    rng, differences = np.random.default_rng(1), []
    middles = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(64, 2) * 14 + 6.5  # x, y
    for k in range(12):
        pair = views.pair(k % 2, rng)
        for a in (0, 1):
            anchors = np.flatnonzero(pair.shares[a].sum(1) == 1)
            for n in anchors:
                x, y = pair.shares[a][n] @ middles[pair.places[a][n]]
                if min(x, y) >= 1 and max(x, y) <= 110:
                    there = cv2.getRectSubPix(pair.images[1 - a], (1, 1), (float(x), float(y)))[0, 0].astype(float)
                    here = cv2.getRectSubPix(pair.images[a], (1, 1), tuple(map(float, middles[n])))[0, 0]
                    differences.append(np.abs(there - here).max())
    assert len(differences) > 150 and np.quantile(differences, 0.8) < 8  # a few middles lie under the blot
    unrelated = np.abs(np.diff(pair.images[0].reshape(-1, 3)[::97].astype(float), axis=0)).max(1)
    assert np.median(unrelated) > 20


def test_difficulty_grows_from_whole_cells_to_anything():
    rng = np.random.default_rng(0)
    for _ in range(20):
        easy = pretrain.random_change(168, rng, 0.0)
        assert (easy[:2, :2] == np.eye(2)).all() and np.allclose(easy[:2, 2] % 14, 0)
    hard = [pretrain.random_change(168, rng, 1.0) for _ in range(200)]
    turned = sum(not np.allclose(matrix[:2, :2], np.eye(2)) for matrix in hard)
    scales = [math.sqrt(abs(np.linalg.det(matrix[:2, :2]))) for matrix in hard]
    assert 60 < turned < 140 and 0.6 <= min(scales) < 0.8 and 1.25 < max(scales) <= 1.6
    assert any(np.linalg.det(matrix[:2, :2]) < 0 for matrix in hard)


def test_loss_equals_the_loop():
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(2, 2, 36, 8, generator=generator), dim=-1)
    places = torch.randint(0, 36, (2, 2, 36, 4), generator=generator)
    shares = torch.rand(2, 2, 36, 4, generator=generator) * (torch.rand(2, 2, 36, 1, generator=generator) < 0.4)
    loss, recall = pretrain.correspondence_loss(z, places, shares, 0.3)
    losses, hits = [], []
    for b, a, n in np.ndindex(2, 2, 36):
        if not shares[b, a, n].sum():
            continue
        across = {m: float(z[b, a, n] @ z[b, 1 - a, m]) / 0.3 for m in range(36)}
        far = [m for m in range(36) if max(abs(m // 6 - n // 6), abs(m % 6 - n % 6)) > 2]
        within = {m: float(z[b, a, n] @ z[b, a, m]) / 0.3 for m in far}
        total = math.log(sum(map(math.exp, [*across.values(), *within.values()])))
        four = zip(places[b, a, n].tolist(), shares[b, a, n].tolist(), strict=True)
        losses.append(sum(share * (total - across[place]) for place, share in four))
        best = max(across, key=across.get)
        hits.append(best in places[b, a, n].tolist() and across[best] >= max(within.values(), default=-9))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert recall.item() == pytest.approx(sum(hits) / len(hits))
    none, _ = pretrain.correspondence_loss(z, places, shares * 0, 0.3)
    assert none.item() == 0


def test_heads_begin_at_their_cell():
    """On a real texture, most of each head's attention in the first block lies on the cell it was set to."""
    backbone = random_backbone(0)
    pretrain.set_local_start(backbone)
    backbone.set_attn_implementation("eager")
    image = smooth_image(462, 462)
    with torch.no_grad():
        embedded = backbone.embeddings(to_pixels(torch.from_numpy(image[None])))
        block = backbone.encoder.layer[0]
        weights = block.attention(block.norm1(embedded))[1][0, :, 1:, 1:].view(3, 33, 33, 33, 33)
    for head, (dx, dy) in enumerate([(0, 0), (1, 0), (-1, 0)]):
        around = [
            weights[head, y, x, y + dy - 1 : y + dy + 2, x + dx - 1 : x + dx + 2].sum() for y, x in [(9, 9), (20, 14)]
        ]
        assert min(around) > 0.5


@pytest.fixture
def settings(data, tmp_path):
    return PretrainSettings(
        DataSettings(data), tmp_path / "run", steps=4, batch_size=1, view_size=56, warmup_steps=2, ramp_steps=2
    )


def test_resume_equals_never_stopped_and_the_backbone_loads(settings, tmp_path, monkeypatch):
    assert pretrain.main(settings) == 0
    part = replace(settings, out=tmp_path / "part")
    step = pretrain.train_step

    def interrupted(*arguments):
        values = step(*arguments)
        if arguments[-1] == 1:
            signal.raise_signal(signal.SIGTERM)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train_step", interrupted)
        assert pretrain.main(part) == 128 + signal.SIGTERM
    with pytest.raises(InputError, match="holds a run already"):
        pretrain.main(part)
    with pytest.raises(InputError, match="other settings: seed"):
        pretrain.main(replace(part, resume=True, seed=3))
    assert pretrain.main(replace(part, resume=True)) == 0
    whole, resumed = (load_backbone(str(run.out / "backbone")).state_dict() for run in (settings, part))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = random_backbone(0)
    pretrain.set_local_start(start)
    assert not torch.equal(
        whole["encoder.layer.5.mlp.fc1.weight"], start.state_dict()["encoder.layer.5.mlp.fc1.weight"]
    )
    assert (settings.out / "curves.png").stat().st_size > 1000


@pytest.fixture
def tiny():
    return random_backbone(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28)


def test_a_backbone_that_is_half_written_does_not_take_the_place_of_the_last(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "backbone"
    folder.parent.mkdir()
    pretrain.save_backbone(tiny, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"config.json", "model.safetensors"}

    def half(where):
        (Path(where) / "model.safetensors").write_bytes(before["model.safetensors"][:1000])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "save_pretrained", half)
        for place in (folder, tmp_path / "run" / "other"):
            with pytest.raises(OSError, match="No space"):
                pretrain.save_backbone(tiny, place)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]
    with torch.no_grad():
        tiny.layernorm.weight.fill_(0.25)
    pretrain.save_backbone(tiny, folder)
    assert load_backbone(str(folder)).layernorm.weight.eq(0.25).all()


def test_a_backbone_without_all_its_files_is_refused(tiny, tmp_path, monkeypatch):
    """As `kill -9` between the two files leaves it."""
    replace_file, calls = os.replace, []

    def second_fails(*names):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace_file(*names)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt):
        pretrain.save_backbone(tiny, tmp_path / "backbone")
    assert [path.name for path in (tmp_path / "backbone").iterdir()] == ["model.safetensors"]
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load_backbone(str(tmp_path / "backbone"))


def test_what_a_killed_pretraining_left_behind_is_removed(settings):
    (settings.out / ".backbone.x.tmp").mkdir(parents=True)
    (settings.out / ".backbone.x.tmp/model.safetensors").write_text("half")
    (settings.out / ".last.pt.7.tmp").write_text("half")
    pretrain.main(replace(settings, steps=1))
    assert not list(settings.out.glob(".*"))


def test_refusals(settings, tmp_path):
    with pytest.raises(InputError, match="not a multiple of the patch"):
        pretrain.main(replace(settings, view_size=57))
    with pytest.raises(InputError, match="--view-size 14"):
        pretrain.main(replace(settings, view_size=14))
    with pytest.raises(InputError, match="--steps is 0"):
        pretrain.main(replace(settings, steps=0))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        pretrain.main(replace(settings, resume=True))
    assert not settings.out.exists()
