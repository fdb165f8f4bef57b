"""The network that redraws outlines: what it sees, what it is taught by, and what it draws."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch
from test_matching import SETTINGS, affine_map, astronaut, camera, f1, paste
from test_synthesis import PLAIN, textured

import alignment
import matching
import outline
import synthesis
import train_outline
from config import InputError, OutlineSettings, SynthesizeSettings


def draw(canvas: alignment.Canvas, affine: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Mask (H, W) bool of what is drawn."""
    return matching._cut(*outline.draw(canvas, affine, region)).full(canvas.shape)


def window_of(seed: int, weight: float = 1.0) -> train_outline.Window:
    """A window in which a square of both partners agrees and nothing else does."""
    rng = np.random.default_rng(seed)
    grey = rng.normal(100, 20, (2, train_outline.SIDE, train_outline.SIDE))
    true = np.zeros((train_outline.SIDE, train_outline.SIDE), bool)
    y, x = rng.integers(10, 50, 2)
    true[y : y + 36, x : x + 30] = True
    grey[1][true] = grey[0][true]
    region = np.roll(true, 4, axis=0)
    masks = np.stack([region, np.ones_like(true), np.ones_like(true), true])
    return train_outline.Window(grey.astype(np.float16), np.packbits(masks), 2.0, weight, f1(region, true))


def test_structures_do_not_depend_on_the_partners_brightness_and_contrast():
    grey = np.repeat(np.random.default_rng(0).normal(100, 20, (1, 40, 48)).astype(np.float32), 2, axis=0)
    masks = np.ones((3, 40, 48), bool)
    seen = outline.structures(grey, masks, 2.0)
    assert (seen.shape, seen.dtype) == ((10, 40, 48), np.float32)
    assert np.abs(seen[8:]).max() < 1e-3  # identical partners leave no difference
    grey[1] = 0.6 * grey[1] + 30
    assert np.allclose(outline.structures(grey, masks, 2.0), seen, atol=2e-3)


def test_the_fine_structure_is_the_one_that_the_evidence_compares():
    canvas = alignment.prepare(textured(64, 72))
    seen = outline.structures(np.stack([canvas.grey, canvas.grey]), np.ones((3, 64, 72), bool), canvas.noise)
    inside = np.s_[12:-12, 12:-12]  # borders are continued in other ways
    assert np.allclose(seen[0][inside], canvas.fine[0][inside], atol=0.02)
    assert np.allclose(seen[1][inside], canvas.grain[inside], atol=0.02)


def test_cut_pair_shows_the_copy_on_its_source_also_beyond_the_picture():
    affine = affine_map((60, 50), (180, 140), degrees=90)
    image, _ = paste(textured(220, 260), affine, (60, 50), 24)
    canvas = alignment.prepare(image)
    region = cv2.circle(np.zeros(canvas.shape, np.uint8), (60, 50), 24, 1, -1) > 0
    other = ~region
    grey, masks = outline.cut_pair(canvas, affine, (-12, 10, 100, 90), region, other)
    assert (grey.shape, grey.dtype, masks.shape, masks.dtype) == ((2, 80, 112), np.float32, (4, 80, 112), bool)
    assert not masks[:, :, :12].any() and not grey[0][:, :12].any()
    assert (masks[0][:, 12:] == region[10:90, :100]).all()
    assert (masks[3][:, 12:] == other[10:90, :100]).all()
    apart = np.abs(grey[0] - grey[1])
    assert apart[masks[0]].max() <= 1.0
    assert apart[masks[1] & ~masks[0]].mean() > 10


def test_the_loss_is_cross_entropy_and_dice_over_the_valid_pixels():
    seen, masks, true, valid, _ = train_outline._batch([window_of(0), window_of(1)])
    valid = valid.clone()
    valid[:, :, :20] = 0
    weights = torch.tensor([1.0, 0.25])
    torch.manual_seed(0)
    network = train_outline.OutlineNet()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        odds = network(seen, masks)[:, 0].float().double().numpy()
    slow = 0.0
    for k in range(2):
        here = valid[k].numpy() > 0
        p, t = 1 / (1 + np.exp(-odds[k][here])), true[k].numpy()[here].astype(float)
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        dice = (2 * (p * t).sum() + 20) / (p.sum() + true[k].numpy().sum() + 20)
        slow += float(weights[k]) * (entropy + 1 - dice) / 2
    assert math.isclose(train_outline.batch_loss(network, seen, masks, true, valid, weights).item(), slow, rel_tol=1e-4)


def test_turns_and_mirrors_keep_masks_on_their_pixels():
    plain = train_outline._batch([window_of(0)])
    for seed in range(6):
        seen, _, true, _, _ = train_outline._batch([window_of(0)], np.random.default_rng(seed))
        assert true.sum() == plain[2].sum()
        assert seen[0, 8][true[0] > 0].abs().mean() < 0.35 < 0.6 < seen[0, 8][true[0] == 0].abs().mean()


def test_teaching_learns_repeats_itself_and_keeps_whole_files(tmp_path, capsys):
    windows = [window_of(k) for k in range(24)]
    found = []
    for name in ("a", "b"):
        settings = OutlineSettings(data=(), out=tmp_path / name, epochs=6, batch_size=4)
        train_outline.teach(windows[:20], windows[20:], settings)
        found.append(settings.out.read_bytes())
    assert found[0] == found[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()[:6]]
    assert losses[5] < 0.8 * losses[0]


def test_the_command_makes_weights_that_can_be_drawn_with(tmp_path, monkeypatch, capsys):
    for seed, name in enumerate(("a", "b", "c", "ca", "d")):  # two groups, of which one is held out
        cv2.imwrite(str(tmp_path / f"{name}.png"), textured(160, 180, seed=seed))
    made = tmp_path / "made"
    synthesis.main(SynthesizeSettings(authentic=tmp_path, out=made, count=12, workers=1, synthesis=PLAIN))
    monkeypatch.setattr(train_outline, "HELD_OUT", 2)
    settings = OutlineSettings(data=(made,), out=tmp_path / "net.onnx", epochs=1, workers=1)
    taught, network_of = [], train_outline.OutlineNet
    monkeypatch.setattr(train_outline, "OutlineNet", lambda: taught.append(network_of()) or taught[-1])
    train_outline.main(settings)
    assert "windows to learn from" in capsys.readouterr().out
    monkeypatch.setattr(outline, "WEIGHTS", settings.out)
    outline.load_network.cache_clear()
    try:
        network = outline.load_network()
        rng = np.random.default_rng(0)
        for size in ((64, 72), (104, 48)):  # other sizes than it was written with
            seen, masks = (rng.normal(size=(1, n, *size)).astype(np.float32) for n in (10, 3))
            network.setInput(seen, "seen")
            network.setInput(masks, "masks")
            with torch.no_grad():
                told = taught[0](torch.from_numpy(seen), torch.from_numpy(masks)).numpy()
            assert np.allclose(network.forward(), told, atol=1e-4)
    finally:
        outline.load_network.cache_clear()
    with pytest.raises(InputError, match="--epochs is 0; it must be over 0"):
        train_outline.main(dataclasses.replace(settings, epochs=0))
    next((made / "forged").glob("*.json")).unlink()
    with pytest.raises(InputError, match="that synthesis"):
        train_outline.main(settings)


def test_windows_hold_what_is_true_of_both_partners(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), textured(200, 220))
    made = tmp_path / "made"
    synthesis.main(SynthesizeSettings(authentic=tmp_path, out=made, count=6, workers=1, synthesis=PLAIN))
    windows = [w for path in sorted((made / "forged").glob("*.png")) for w in train_outline.read_windows(path)[1]]
    assert windows
    for window in windows:
        _, valid, _, true = np.unpackbits(window.masks).reshape(4, train_outline.SIDE, train_outline.SIDE) > 0
        grey = window.grey.astype(float)
        # Saved with noise or as JPEG at most: the partners agree where it is true, and not around.
        assert np.median(np.abs(grey[0] - grey[1])[true & valid]) < 8
        assert np.median(np.abs(grey[0] - grey[1])[~true & valid]) > 20


@pytest.mark.parametrize("picture", [camera, astronaut])
def test_a_poor_outline_is_drawn_anew(picture):
    affine = affine_map((150, 140), (270, 250), degrees=25, scale=1.1)
    image, _ = paste(picture(), affine, (150, 140), 36)
    canvas = alignment.prepare(image)
    true = cv2.circle(np.zeros(canvas.shape, np.uint8), (150, 140), 36, 1, -1) > 0
    poor = cv2.circle(np.zeros(canvas.shape, np.uint8), (148, 143), 29, 1, -1) > 0
    drawn = draw(canvas, affine, poor)
    assert f1(drawn, true) > 0.9 > f1(poor, true) + 0.05


def test_squares_of_a_large_region_fit_together(monkeypatch):
    affine = affine_map((150, 150), (370, 350))
    image, _ = paste(textured(520, 540), affine, (150, 150), 90)
    canvas = alignment.prepare(image)
    region = cv2.circle(np.zeros(canvas.shape, np.uint8), (150, 150), 86, 1, -1) > 0
    cut = draw(canvas, affine, region)
    monkeypatch.setattr(outline, "TILE", 4096)
    assert f1(cut, draw(canvas, affine, region)) > 0.995


def test_an_outline_that_would_double_is_refused(monkeypatch):
    monkeypatch.setattr(outline, "_odds", lambda grey, masks, noise, near: np.full(near.shape, 5.0))
    affine = affine_map((60, 60), (150, 130))
    canvas = alignment.prepare(textured(220, 240))
    for radius, drawn in ((70, True), (20, False)):  # the band adds 0.8 and 3.8 times the area
        centre = (90, 90)
        region = cv2.circle(np.zeros(canvas.shape, np.uint8), centre, radius, 1, -1) > 0
        assert (outline.draw(canvas, affine, region) is not None) == drawn


def test_nothing_is_drawn_where_nothing_agrees():
    canvas = alignment.prepare(textured(200, 220))
    region = cv2.circle(np.zeros(canvas.shape, np.uint8), (60, 60), 25, 1, -1) > 0
    drawn = outline.draw(canvas, affine_map((60, 60), (150, 130)), region)
    assert drawn is None or drawn[0].sum() < 0.7 * region.sum()


def test_findings_come_with_drawn_outlines_unless_time_is_over(monkeypatch):
    image, mask = paste(astronaut(), affine_map((120, 110), (260, 270), degrees=40), (120, 110), 30)
    drawn = matching.find_instances(image, SETTINGS)
    assert f1(drawn.instances[0].mask, mask) > 0.95
    asked = []
    monkeypatch.setattr(outline, "draw", lambda canvas, affine, region: asked.append(region))
    kept = matching.find_instances(image, SETTINGS)
    assert asked
    assert len(kept.instances) == len(drawn.instances)  # None was drawn: the outlines stay as they were
