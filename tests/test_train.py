"""Training end to end on a tiny data set: resume, ranks, accumulation, signals, what is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from config import DataSettings, LoaderSettings
from model import ForgeryModel
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.ranks import Ranks

ROOT = Path(train.__file__).parent
TIMES = {"seconds"}


def weights(run):
    return torch.load(run / "last.pt", weights_only=True)


def log(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_run(a, b, tolerance=0.0):
    first, second = weights(a), weights(b)
    assert first["progress"] == pytest.approx(second["progress"], abs=tolerance)
    for name, value in first["model"]["head"].items():
        assert torch.allclose(value, second["model"]["head"][name], rtol=0, atol=tolerance), name
    for one, other in zip(log(a), log(b), strict=True):
        assert one == pytest.approx(other, abs=max(tolerance, 1e-12) * 10)


def stop_at(monkeypatch, total_steps):
    """Ask the run to stop while it makes this step."""
    step = train.train_step

    def interrupted(run, batches):
        if run.progress.total_steps + 1 == total_steps:
            run.interrupt.signal = signal.SIGTERM
        return step(run, batches)

    monkeypatch.setattr(train, "train_step", interrupted)


def test_resume_equals_never_stopped(settings, monkeypatch, tmp_path, capsys):
    assert train.main(settings) == 0
    whole = log(settings.out)
    assert [line["kind"] for line in whole].count("epoch") == 2
    steps = [line["total_steps"] for line in whole if line["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) % 2 == 0
    stopped = replace(settings, out=tmp_path / "stopped")
    for at in (1, len(steps) // 2, len(steps) // 2 + 1):  # the first step, the last of an epoch, the first of the next
        with monkeypatch.context() as patch:
            stop_at(patch, at)
            assert train.main(replace(stopped, resume=at > 1)) == 128 + signal.SIGTERM
        assert "go on with --resume" in capsys.readouterr().err
        assert weights(stopped.out)["progress"]["total_steps"] == at
    # Lines that a killed run wrote after its last checkpoint are dropped, a torn one too.
    with (stopped.out / "log.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "step", "epoch": 1, "total_steps": 99}) + '\n{"kind": "st')
    assert train.main(replace(stopped, resume=True)) == 0
    assert_same_run(settings.out, stopped.out)


def test_two_loader_workers_equal_none(settings, tmp_path):
    train.main(settings)
    other = replace(settings, out=tmp_path / "workers", loader=replace(settings.loader, num_workers=2))
    train.main(other)
    assert_same_run(settings.out, other.out)


def test_accumulation_equals_larger_batches(settings, tmp_path):
    train.main(settings)
    other = replace(settings, out=tmp_path / "large", batch_size=4, gradient_accumulation_steps=1)
    train.main(other)
    assert_same_run(settings.out, other.out, tolerance=1e-5)


@pytest.mark.parametrize("preset", ["mlp", "patch-correlation"])
def test_kept_features_learn_the_same(settings, tmp_path, monkeypatch, preset):
    model = replace(settings.model, preset=preset, image_size=112, correlation_width=4)
    plain = replace(settings, loader=LoaderSettings(num_workers=0, augment=False), model=model)
    train.main(plain)
    embedded, tokens = [], ForgeryModel.tokens
    monkeypatch.setattr(
        ForgeryModel, "tokens", lambda model, pixels: embedded.append(len(pixels)) or tokens(model, pixels)
    )
    train.main(replace(plain, out=tmp_path / "kept", cache_features=True))
    assert_same_run(plain.out, tmp_path / "kept", tolerance=1e-5)
    splits = json.loads((plain.out / "splits.json").read_text()).values()
    assert sum(embedded) == 2 * sum(split != "test" for split in splits)  # authentic and forged, once in two epochs
    with pytest.raises(InputError, match="--cache-features needs --no-augment"):
        train.main(replace(settings, out=tmp_path / "no", cache_features=True))


def arguments(settings):
    return [
        *("--data", settings.data.data, "--out", settings.out, "--backbone", settings.model.backbone),
        *(
            "--epochs",
            settings.epochs,
            "--batch-size",
            settings.batch_size,
            "--gradient-accumulation-steps",
            settings.gradient_accumulation_steps,
        ),
        *("--num-workers", 0, "--synthesis-probability", 0.5, "--image-size", 56, "--head-widths", 16),
        *("--embedding-size", 8),
    ]


def launch(*command, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


def test_two_ranks_equal_one(settings, tmp_path):
    train.main(replace(settings, batch_size=4))
    ranks = replace(settings, out=tmp_path / "ranks")
    done = launch("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *arguments(ranks))
    assert done.returncode == 0, done.stderr
    assert_same_run(settings.out, ranks.out, tolerance=1e-5)
    epochs = [line for line in log(ranks.out) if line["kind"] == "epoch"]
    assert all(line["images"] == 2 for line in epochs)


def test_best_is_the_best_epoch(settings):
    train.main(settings)
    epochs = [line for line in log(settings.out) if line["kind"] == "epoch"]
    best = torch.load(settings.out / "best.pt", weights_only=True)
    assert best["validation"]["of1"] == max(line["of1"] for line in epochs)
    assert weights(settings.out)["progress"]["best_of1"] == best["validation"]["of1"]
    assert json.loads((settings.out / "splits.json").read_text()) == best["splits"]


def test_patience_ends_the_run(settings, monkeypatch):
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.7])
    monkeypatch.setattr(train, "validate", lambda run: {"of1": next(scores)})
    train.main(replace(settings, epochs=10, patience=2))
    progress = weights(settings.out)["progress"]
    assert progress["epoch"] == 4 and progress["best_epoch"] == 1 and progress["finished"]


def test_learning_rate_is_a_cosine_per_step(settings):
    train.main(replace(settings, learning_rate=1e-3, min_learning_rate=1e-5))
    rates = [line["learning_rate"] for line in log(settings.out) if line["kind"] == "step"]
    total = len(rates)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[total // 2] == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-6)
    assert rates == sorted(rates, reverse=True) and rates[-1] > 1e-5


def test_unfrozen_blocks_wait_for_their_epoch_and_then_learn(settings):
    unfrozen = replace(
        settings, model=replace(settings.model, unfreeze_blocks=1), unfreeze_epoch=1, backbone_learning_rate=1e-2
    )
    states = []
    original = train.end_epoch
    train.end_epoch = lambda run, figures: (
        states.append({k: v.clone() for k, v in run.model.backbone.state_dict().items()}),
        original(run, figures),
    )
    try:
        train.main(unfrozen)
    finally:
        train.end_epoch = original
    from model import load_backbone

    start = load_backbone(settings.model.backbone).state_dict()
    changed = [{k for k in start if not torch.equal(start[k], state[k])} for state in states]
    assert changed[0] == set()
    assert changed[1] and all(k.startswith(("encoder.layer.2.", "layernorm.")) for k in changed[1])


def test_learns_a_content_that_its_look_tells(settings, tmp_path):
    """Red squares on grey grain, found and masked to the pixel in images that took no part in the training."""
    rng = np.random.default_rng(0)
    for folder in ("authentic", "forged", "masks"):
        (tmp_path / "red" / folder).mkdir(parents=True)
    for i in range(10):
        grain = cv2.GaussianBlur(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8), (0, 0), 2)
        cv2.imwrite(str(tmp_path / "red" / "authentic" / f"{i}.png"), grain)
        mask = np.zeros((1, 112, 112), np.uint8)
        for y, x in ((0, 14 * int(rng.integers(0, 5))), (70, 14 * int(rng.integers(0, 5)))):
            grain[y : y + 42, x : x + 42] = np.array([40, 40, 220]) + rng.normal(0, 10, (42, 42, 3))
            mask[0, y : y + 42, x : x + 42] = 1
        cv2.imwrite(str(tmp_path / "red" / "forged" / f"{i}.png"), grain)
        np.save(tmp_path / "red" / "masks" / f"{i}.npy", mask)
    train.main(
        replace(
            settings,
            data=DataSettings(tmp_path / "red"),
            epochs=5,
            learning_rate=3e-3,
            loader=LoaderSettings(num_workers=0, augment=False),
            model=replace(settings.model, image_size=112, head_widths=(64,), embedding_size=32),
        )
    )
    assert max(line["of1"] for line in log(settings.out) if line["kind"] == "epoch") > 0.95


def test_mixed_precision_learns_nearly_the_same(settings, tmp_path):
    train.main(settings)
    mixed = replace(settings, out=tmp_path / "mixed", model=replace(settings.model, amp="bf16"))
    train.main(mixed)
    for one, other in zip(log(settings.out), log(mixed.out), strict=True):
        if one["kind"] == "step":
            assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
            assert other["loss"] != one["loss"]


def test_a_loss_that_is_not_finite_stops_with_the_terms(settings):
    with pytest.raises(InputError, match=r"not finite in epoch 0, step \d+: loss nan, supcon nan.*--learning-rate"):
        train.main(replace(settings, learning_rate=1e30, max_grad_norm=1e30))


def test_refusals(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="leave --resume out"):
        train.main(replace(settings, resume=True))
    with pytest.raises(InputError, match="not a multiple of the patch"):
        train.main(replace(settings, model=replace(settings.model, image_size=60)))
    with pytest.raises(InputError, match="three ways"):
        train.main(replace(settings, model=replace(settings.model, backbone="missing.pth")))
    with pytest.raises(InputError, match="--epochs is 0"):
        train.main(replace(settings, epochs=0))
    assert not settings.out.exists()
    train.main(replace(settings, epochs=1))
    with pytest.raises(InputError, match="holds a run already"):
        train.main(settings)
    with pytest.raises(InputError, match=r"learning_rate was 0\.001, is 0\.01"):
        train.main(replace(settings, epochs=1, learning_rate=0.01, resume=True))
    with pytest.raises(InputError, match="same number of processes"):
        same = {"settings": to_dict(settings)}
        train._check_same_run(same | {"step_images": 8}, same | {"step_images": 4}, settings.out / "last.pt")


@pytest.mark.parametrize("script", ["train.py", "pretrain.py", "tuning.py", "test.py", "synthesis.py"])
def test_scripts_turn_mistakes_into_one_line(script):
    done = launch(script, "--no-such-flag", "1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no-such-flag" in done.stderr and done.stderr.startswith(f"{script}: error")


@pytest.mark.parametrize("script", ["train.py", "pretrain.py", "tuning.py", "test.py", "synthesis.py"])
def test_help_imports_nothing_heavy(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'optuna', 'numba', 'skimage'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = launch("-c", code)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_every_image_belongs_to_one_rank():
    items = list(range(10))
    for world in (1, 2, 3, 7):
        shares = [Ranks(rank, world).share(items) for rank in range(world)]
        assert sorted(item for share in shares for item in share) == items
