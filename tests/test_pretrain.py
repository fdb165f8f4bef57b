"""Pretraining: a run that is stopped and goes on, what a killed one leaves, and what is refused."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pretrain
from backbones import load_backbone, random_backbone, set_local_start
from config import DataSettings, PretrainSettings
from runtime.errors import InputError


@pytest.fixture
def settings(data, tmp_path):
    return PretrainSettings(
        DataSettings(data), tmp_path / "run", steps=4, batch_size=1, view_size=56, warmup_steps=2, ramp_steps=2
    )


@pytest.mark.slow
def test_resume_equals_never_stopped(settings, tmp_path, monkeypatch):
    """The backbone of a run that was stopped and resumed equals that of one that never was, bit for bit; both load."""
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
    with pytest.raises(InputError, match="other settings: --seed"):
        pretrain.main(replace(part, resume=True, seed=3))
    assert pretrain.main(replace(part, resume=True)) == 0
    whole, resumed = (load_backbone(str(run.out / "backbone")).state_dict() for run in (settings, part))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = random_backbone(0)
    set_local_start(start)
    assert not torch.equal(
        whole["encoder.layer.5.mlp.fc1.weight"], start.state_dict()["encoder.layer.5.mlp.fc1.weight"]
    )
    assert (settings.out / "curves.png").stat().st_size > 1000


@pytest.fixture
def tiny():
    return random_backbone(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28)


def test_half_written_backbone_is_dropped(tiny, tmp_path, monkeypatch):
    """A disk that fills up leaves the last backbone whole and no temporary folder."""
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


def test_incomplete_backbone_is_refused(tiny, tmp_path, monkeypatch):
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


def test_unfinished_files_are_removed(settings):
    """Temporary files and folders of a run that was killed go when the next one starts."""
    (settings.out / ".backbone.x.tmp").mkdir(parents=True)
    (settings.out / ".backbone.x.tmp/model.safetensors").write_text("half")
    (settings.out / ".last.pt.7.tmp").write_text("half")
    pretrain.main(replace(settings, steps=1))
    assert not list(settings.out.glob(".*"))


def test_refusals(settings, tmp_path):
    """Settings out of their range, and a folder without a run to go on with."""
    with pytest.raises(InputError, match="not a multiple of the patch"):
        pretrain.main(replace(settings, view_size=57))
    with pytest.raises(InputError, match="--view-size 14"):
        pretrain.main(replace(settings, view_size=14))
    with pytest.raises(InputError, match="--steps is 0"):
        pretrain.main(replace(settings, steps=0))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        pretrain.main(replace(settings, resume=True))
    assert not settings.out.exists()
