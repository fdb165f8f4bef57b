"""Training end to end on a tiny data set: resume, ranks, accumulation, signals, what is refused."""

import json
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import train
from backbones import load_backbone
from config import DataSettings, LoaderSettings
from model import ForgeryModel
from runtime.command_line import RENAMED, to_dict
from runtime.errors import InputError
from runtime.ranks import Ranks
from tests.conftest import small_training
from tests.scripts import launch, launch_ranks
from training_run import check_same_run


def weights(run):
    """Content of a run's last checkpoint."""
    return torch.load(run / "last.pt", weights_only=True)


def log(run):
    """Lines of a run's log, without times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(a, b, tolerance=0.0):
    """Same state, weights and log in two run folders, to the bit unless a tolerance is given."""
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


@pytest.fixture(scope="module")
def whole(data, backbone, tmp_path_factory):
    """Folder of a run that never stopped, with the settings of the fixture `settings`."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(small_training(data, backbone, out)) == 0
    return out


def test_resume_equals_never_stopped(whole, settings, monkeypatch, capsys):
    """Stopped in its first step, in the last one of an epoch and in the first of the next, and resumed each time."""
    lines = log(whole)
    assert [line["kind"] for line in lines].count("epoch") == 2
    steps = [line["total_steps"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) % 2 == 0
    for at in (1, len(steps) // 2, len(steps) // 2 + 1):
        with monkeypatch.context() as patch:
            stop_at(patch, at)
            assert train.main(replace(settings, resume=at > 1)) == 128 + signal.SIGTERM
        assert "go on with --resume" in capsys.readouterr().err
        assert weights(settings.out)["progress"]["total_steps"] == at
    # Lines that a killed run wrote after its last checkpoint are dropped, an unfinished one too.
    with (settings.out / "log.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "step", "epoch": 1, "total_steps": 99}) + '\n{"kind": "st')
    assert train.main(replace(settings, resume=True)) == 0
    assert_same_run(whole, settings.out)


def with_old_names(values):
    """Settings as they were saved before the renaming."""
    old = {new: name for name, new in RENAMED.items()}
    if not isinstance(values, dict):
        return "method" if values == "mlp" else values
    return {old.get(name, name): with_old_names(value) for name, value in values.items()}


def test_old_checkpoint_resumes(whole, settings, monkeypatch):
    """A checkpoint with the names from before the renaming goes on as if it had the new ones."""
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        train.main(settings)
    content = weights(settings.out)
    identity = content["identity"]
    content["identity"] = {
        "settings": with_old_names(identity["settings"]),
        "step_pictures": identity["step_images"],
        "training": identity["training"],
        "validation": identity["validation"],
    }
    content["model"]["settings"] = with_old_names(content["model"]["settings"])
    assert {"accumulation", "clip_norm", "keep_features"} <= set(content["identity"]["settings"])
    assert content["model"]["settings"]["preset"] == "method"
    torch.save(content, settings.out / "last.pt")
    assert train.main(replace(settings, resume=True)) == 0
    assert_same_run(whole, settings.out)


def test_two_loader_workers_equal_none(whole, settings):
    """Which process reads an image does not change what is learned."""
    train.main(replace(settings, loader=replace(settings.loader, num_workers=2)))
    assert_same_run(whole, settings.out)


def test_accumulation_equals_larger_batches(whole, settings):
    """Two batches of two images and one of four are the same optimiser step."""
    train.main(replace(settings, batch_size=4, gradient_accumulation_steps=1))
    assert_same_run(whole, settings.out, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mlp", "patch-correlation"])
def test_cached_features_learn_the_same(settings, tmp_path, monkeypatch, preset):
    """The frozen backbone embeds every image once in two epochs, and training goes the same way."""
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
    """Command line of these settings."""
    model, loader = settings.model, settings.loader
    values = {
        "data": settings.data.data,
        "out": settings.out,
        "epochs": settings.epochs,
        "batch-size": settings.batch_size,
        "gradient-accumulation-steps": settings.gradient_accumulation_steps,
        "num-workers": loader.num_workers,
        "synthesis-probability": loader.synthesis_probability,
        "backbone": model.backbone,
        "image-size": model.image_size,
        "head-widths": model.head_widths[0],
        "embedding-size": model.embedding_size,
    }
    return [part for name, value in values.items() for part in (f"--{name}", value)]


@pytest.mark.slow
def test_two_ranks_equal_one(settings, tmp_path):
    """Two processes with batches of two make the steps that one makes with batches of four."""
    train.main(replace(settings, batch_size=4))
    ranks = replace(settings, out=tmp_path / "ranks")
    done = launch_ranks("train.py", *arguments(ranks))
    assert done.returncode == 0, done.stderr
    assert_same_run(settings.out, ranks.out, tolerance=1e-5)
    epochs = [line for line in log(ranks.out) if line["kind"] == "epoch"]
    assert all(line["images"] == 2 for line in epochs)


def test_best_is_the_best_epoch(whole):
    """best.pt holds the figures of the epoch with the highest oF1, and the splits."""
    epochs = [line for line in log(whole) if line["kind"] == "epoch"]
    best = torch.load(whole / "best.pt", weights_only=True)
    assert best["validation"]["of1"] == max(line["of1"] for line in epochs)
    assert weights(whole)["progress"]["best_of1"] == best["validation"]["of1"]
    assert json.loads((whole / "splits.json").read_text()) == best["splits"]


@pytest.mark.slow
def test_patience_ends_the_run(settings, monkeypatch):
    """With a patience of 2 the run ends two epochs after the first of its best ones."""
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.7])
    monkeypatch.setattr(train, "validate", lambda run: {"of1": next(scores)})
    train.main(replace(settings, epochs=10, patience=2))
    progress = weights(settings.out)["progress"]
    assert progress["epoch"] == 4 and progress["best_epoch"] == 1 and progress["finished"]


def test_learning_rate_follows_a_cosine(settings):
    """Over all steps of the run, from the highest rate to the lowest."""
    train.main(replace(settings, learning_rate=1e-3, min_learning_rate=1e-5))
    rates = [line["learning_rate"] for line in log(settings.out) if line["kind"] == "step"]
    total = len(rates)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[total // 2] == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-6)
    assert rates == sorted(rates, reverse=True) and rates[-1] > 1e-5


def test_unfrozen_blocks_wait_for_their_epoch(settings, monkeypatch):
    """The last block and the final norm keep their weights in epoch 0 and learn in epoch 1; others never change."""
    model = replace(settings.model, unfreeze_blocks=1)
    states, end_epoch = [], train.end_epoch

    def recorded(run, figures):
        states.append({name: value.clone() for name, value in run.model.backbone.state_dict().items()})
        end_epoch(run, figures)

    monkeypatch.setattr(train, "end_epoch", recorded)
    train.main(replace(settings, model=model, unfreeze_epoch=1, backbone_learning_rate=1e-2))
    start = load_backbone(settings.model.backbone).state_dict()
    changed = [{name for name in start if not torch.equal(start[name], state[name])} for state in states]
    assert changed[0] == set()
    assert changed[1] and all(name.startswith(("encoder.layer.2.", "layernorm.")) for name in changed[1])


@pytest.mark.slow
def test_learns_conspicuous_content(settings, tmp_path):
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


def test_mixed_precision_learns_nearly_the_same(whole, settings):
    """In bfloat16 every step's loss differs, by less than 2 %."""
    train.main(replace(settings, model=replace(settings.model, amp="bf16")))
    for one, other in zip(log(whole), log(settings.out), strict=True):
        if one["kind"] == "step":
            assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
            assert other["loss"] != one["loss"]


def test_infinite_loss_stops_the_run(settings):
    """The message has the step, every term and what to do."""
    with pytest.raises(InputError, match=r"not finite in epoch 0, step \d+: loss nan, supcon nan.*--learning-rate"):
        train.main(replace(settings, learning_rate=1e30, max_grad_norm=1e30))


def test_refusals(settings):
    """Settings out of range, missing weights, a folder that holds another run or none to go on with."""
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
    with pytest.raises(InputError, match=r"--learning-rate was 0\.001, is 0\.01"):
        train.main(replace(settings, epochs=1, learning_rate=0.01, resume=True))
    with pytest.raises(InputError, match="same number of processes"):
        same = {"settings": to_dict(settings)}
        check_same_run(same | {"step_images": 8}, same | {"step_images": 4}, settings, settings.out / "last.pt")


@pytest.mark.parametrize("script", ["train.py", "pretrain.py", "tuning.py", "test.py", "synthesis.py"])
def test_mistakes_are_one_line(script):
    """An unknown flag ends a script with status 2 and one line."""
    done = launch(script, "--no-such-flag", "1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no-such-flag" in done.stderr and done.stderr.startswith(f"{script}: error")


def test_every_image_belongs_to_one_rank():
    """For any number of ranks, their shares together are all items, each once."""
    items = list(range(10))
    for world in (1, 2, 3, 7):
        shares = [Ranks(rank, world).share(items) for rank in range(world)]
        assert sorted(item for share in shares for item in share) == items
