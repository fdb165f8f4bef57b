"""Training of the mask refiner: the windows that it learns from, its loss, and the network that is written."""

import contextlib
import dataclasses
import json
import math

import cv2
import numpy as np
import pytest
import torch

import synthesis
from benchmarks import mask_refiner_windows, train_mask_refiner
from benchmarks.mask_refiner_windows import EDGE_WINDOWS, SIDE, Window, read_windows
from benchmarks.train_mask_refiner import MaskRefinerNet, batch_loss, fit, make_batch, score
from config import MaskRefinerSettings, SynthesisSettings, SynthesizeSettings
from runtime.errors import InputError
from tests.scenes import affine_map, f1, textured


def window_of(seed: int, weight: float = 1.0) -> Window:
    """A window in which a square of both partners is equal and nothing else is; the measured region is 4 px off."""
    rng = np.random.default_rng(seed)
    grey = rng.normal(100, 20, (2, SIDE, SIDE))
    true = np.zeros((SIDE, SIDE), bool)
    y, x = rng.integers(10, 50, 2)
    true[y : y + 36, x : x + 30] = True
    grey[1][true] = grey[0][true]
    region = np.roll(true, 4, axis=0)
    masks = np.stack([region, np.ones_like(true), np.ones_like(true), true])
    return Window(grey.astype(np.float16), np.packbits(masks), 2.0, weight, f1(region, true))


def forgery(folder, degrees=0.0, scale=1.0, side=40, visible=1.0):
    """An image in synthesis.py's layout with one square copied, of which only a share on the left is in the mask."""
    affine = affine_map((80, 80), (230, 210), degrees, scale)
    image = textured(300, 320)
    source, target = np.zeros((2, 300, 320), bool)
    source[80 - side // 2 : 80 + side // 2, 80 - side // 2 : 80 + side // 2] = True
    target[:] = cv2.warpAffine(source.astype(np.uint8), affine, (320, 300), flags=cv2.INTER_NEAREST) > 0
    image = np.where(target[..., None], cv2.warpAffine(image, affine, (320, 300), flags=cv2.INTER_CUBIC), image)
    ys, xs = np.nonzero(target)
    target[:, xs.min() + round(visible * (np.ptp(xs) + 1)) :] = False
    for name in ("forged", "masks"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "forged" / "0.png"
    cv2.imwrite(str(path), image)
    np.save(folder / "masks" / "0.npy", (source | target)[None].astype(np.uint8))
    boxes = [
        [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1] for y, x in (np.nonzero(source), (ys, xs))
    ]
    content = {"source": {"box": boxes[0]}, "copies": [{"affine": affine.tolist(), "box": boxes[1]}]}
    path.with_suffix(".json").write_text(json.dumps({"base": "x", "contents": [content]}))
    return path


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.0), (30.0, 1.3), (70.0, 0.7)])
def test_template_is_the_coarser_partner(tmp_path, monkeypatch, degrees, scale):
    """The window shows the true copy, aligned, in the frame of the partner with fewer pixels."""
    monkeypatch.setattr(mask_refiner_windows, "DEGRADED_SHARE", 0.0)
    base, (window,) = read_windows(forgery(tmp_path, degrees, scale))
    region, valid, _, true = window.unpacked_masks()
    assert base == "x"
    assert true.sum() == pytest.approx((40 * min(scale, 1)) ** 2, rel=0.1)  # the source is 40 px wide
    assert window.f1 == pytest.approx(f1(region, true), abs=1e-6)
    difference = np.abs(window.grey[0].astype(float) - window.grey[1])
    assert np.median(difference[true & valid]) < 4
    assert np.median(difference[~true & valid]) > 20


def test_only_the_visible_copy_is_true(tmp_path, monkeypatch):
    """A copy that is half covered is true by half; one that is nearly covered gives no window."""
    monkeypatch.setattr(mask_refiner_windows, "DEGRADED_SHARE", 0.0)
    _, (window,) = read_windows(forgery(tmp_path, visible=0.5))
    region, _, _, true = window.unpacked_masks()
    assert true.sum() == pytest.approx(40 * 20, abs=45)
    assert region.sum() > 1.6 * true.sum()
    assert read_windows(forgery(tmp_path, visible=0.2))[1] == []


def test_large_copies_count_once(tmp_path):
    """Several windows of one copy share its weight."""
    _, windows = read_windows(forgery(tmp_path, side=140))
    assert len(windows) == EDGE_WINDOWS + 1
    assert [window.weight for window in windows] == [1 / len(windows)] * len(windows)


def test_some_forgeries_are_degraded(tmp_path, monkeypatch):
    """The share that is degraded is a setting of the module; 1 changes the pixels of this one."""
    path, found = forgery(tmp_path), []
    for share in (0.0, 1.0):
        monkeypatch.setattr(mask_refiner_windows, "DEGRADED_SHARE", share)
        found.append(read_windows(path)[1][0])
    assert np.abs(found[0].grey[0].astype(float) - found[1].grey[0]).mean() > 0.2


def test_loss_is_cross_entropy_and_dice():
    """Recomputed in float64 over the valid pixels, with weights."""
    features, masks, true, valid, _ = make_batch([window_of(0), window_of(1)])
    valid = valid.clone()
    valid[:, :, :20] = 0
    weights = torch.tensor([1.0, 0.25])
    torch.manual_seed(0)
    network = MaskRefinerNet()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_odds = network(features, masks)[:, 0].float().double().numpy()
    expected = 0.0
    for k in range(2):
        inside = valid[k].numpy() > 0
        p, t = 1 / (1 + np.exp(-log_odds[k][inside])), true[k].numpy()[inside].astype(float)
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        dice = (2 * (p * t).sum() + 20) / (p.sum() + true[k].numpy().sum() + 20)
        expected += float(weights[k]) * (entropy + 1 - dice) / 2
    assert math.isclose(batch_loss(network, features, masks, true, valid, weights).item(), expected, rel_tol=1e-4)


def test_augmentation_keeps_masks_on_pixels():
    """After rotation and mirroring, the true region is still where both partners agree."""
    plain = make_batch([window_of(0)])
    for seed in range(6):
        features, _, true, _, _ = make_batch([window_of(0)], np.random.default_rng(seed))
        assert true.sum() == plain[2].sum()
        assert features[0, 8][true[0] > 0].abs().mean() < 0.35 < 0.6 < features[0, 8][true[0] == 0].abs().mean()


def test_partners_are_exchanged_sometimes(monkeypatch):
    """The first of the two is now the template, now the partner."""
    monkeypatch.setattr(train_mask_refiner, "network_input", lambda grey, masks, noise: np.repeat(grey, 5, axis=0))
    window = window_of(0)
    first = [make_batch([window], np.random.default_rng(seed))[0][0, 0].sum().item() for seed in range(12)]
    sums = window.grey.astype(np.float32).sum(axis=(1, 2))
    assert {int(np.abs(sums - value).argmin()) for value in first} == {0, 1}
    assert all(np.abs(sums - value).min() < 1 for value in first)


def test_score_is_the_weighted_f1():
    """For a network that draws the measured region as it is."""
    windows = [window_of(0, 1.0), window_of(1, 0.25), window_of(2, 0.25)]
    value = score(lambda features, masks: 2 * masks[:, :1] - 1, windows, 2)
    assert value == pytest.approx(np.average([w.f1 for w in windows], weights=[1, 0.25, 0.25]), abs=1e-6)


@pytest.fixture
def float32(monkeypatch):
    """Without bfloat16, which processors without instructions for it compute twenty times as slowly."""
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())


@pytest.mark.slow
def test_training_learns_and_repeats_itself(tmp_path, capsys, float32):
    """The loss falls, the same seed gives the same file, and no temporary file is left behind."""
    windows = [window_of(k) for k in range(10)]
    files = []
    for name in ("a", "b"):
        settings = MaskRefinerSettings(data=(), out=tmp_path / name, epochs=4, batch_size=2, learning_rate=4e-3)
        fit(windows[:8], windows[8:], settings)
        files.append(settings.out.read_bytes())
    assert files[0] == files[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()[:4]]
    assert losses[3] < 0.8 * losses[0]


def test_infinite_loss_ends_the_training(tmp_path, monkeypatch):
    """With a line that names the remedy, and without a file."""
    monkeypatch.setattr(train_mask_refiner, "batch_loss", lambda network, *_: network.out.bias.sum() * math.nan)
    settings = MaskRefinerSettings(data=(), out=tmp_path / "a", epochs=1, batch_size=2)
    with pytest.raises(InputError, match="the loss is not finite in epoch 1; lower --learning-rate"):
        fit([window_of(0)] * 2, [window_of(1)], settings)
    assert not settings.out.exists()


@pytest.fixture
def made(tmp_path):
    """Folder of twelve forgeries of synthesis.py, made of five base images."""
    (tmp_path / "authentic").mkdir()
    for seed, name in enumerate(("a", "b", "c", "ca", "d")):  # two groups, of which one is scored
        cv2.imwrite(str(tmp_path / "authentic" / f"{name}.png"), textured(160, 180, seed=seed))
    plain = SynthesisSettings(
        max_contents=1, max_copies=1, content_kinds=("blob", "ellipse", "rectangle", "polygon"),
        transform_probability=0.0, copy_blendings=("hard",), panel_probability=0.0, degrade_probability=0.0,
    )  # fmt: skip
    folders = {"authentic": tmp_path / "authentic", "out": tmp_path / "made"}
    synthesis.main(SynthesizeSettings(**folders, count=12, num_workers=1, synthesis=plain))
    return tmp_path / "made"


def test_opencv_runs_the_written_network(made, tmp_path, monkeypatch, capsys, float32):
    """OpenCV gives torch's answers, for inputs of other sizes than the one that was exported."""
    monkeypatch.setattr(train_mask_refiner, "VALIDATION_SHARE", 2)
    networks, network_class = [], MaskRefinerNet
    monkeypatch.setattr(train_mask_refiner, "MaskRefinerNet", lambda: networks.append(network_class()) or networks[-1])
    settings = MaskRefinerSettings(data=(made,), out=tmp_path / "net.onnx", epochs=1, num_workers=1)
    train_mask_refiner.train_mask_refiner(settings)
    assert "windows to train on" in capsys.readouterr().out
    written, rng = cv2.dnn.readNetFromONNX(str(settings.out)), np.random.default_rng(0)
    for size in ((64, 72), (104, 48)):
        features, masks = (rng.normal(size=(1, n, *size)).astype(np.float32) for n in (10, 3))
        written.setInput(features, "seen")
        written.setInput(masks, "masks")
        with torch.no_grad():
            expected = networks[0](torch.from_numpy(features), torch.from_numpy(masks)).numpy()
        assert np.allclose(written.forward(), expected, atol=1e-4)


def test_mistakes_are_refused(made, tmp_path):
    """Settings that cannot work, and folders that synthesis.py has not made."""
    settings = MaskRefinerSettings(data=(made,), out=tmp_path / "net.onnx", epochs=1, num_workers=1)
    with pytest.raises(InputError, match="--epochs is 0; it must be over 0"):
        train_mask_refiner.train_mask_refiner(dataclasses.replace(settings, epochs=0))
    next((made / "forged").glob("*.json")).unlink()
    with pytest.raises(InputError, match="that synthesis"):
        train_mask_refiner.train_mask_refiner(settings)
    assert not settings.out.exists()
