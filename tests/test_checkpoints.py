"""Checkpoints: what is saved comes back, the model that ships, and damaged or hostile files."""

import errno
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import backbones
import checkpoints
from checkpoints import load_checkpoint, load_model, model_state, save_checkpoint, ship
from config import ClusteringSettings, ModelSettings
from model import ForgeryModel, to_pixels
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import write_json


def settings(backbone, **other):
    return ModelSettings(backbone=backbone, image_size=56, head_widths=(24, 16), embedding_size=8, **other)


def pixels(n=2, size=56):
    return to_pixels(torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8))


def correlating(backbone, preset, **other):
    return ModelSettings(backbone, 112, preset, 3, 2, 8, (24, 16), 8, **other)


def checkpoint(backbone, path, **change):
    model = ForgeryModel(settings(backbone))
    state = model_state(model) | change
    save_checkpoint(path, {"model": state})
    return state


@pytest.mark.parametrize("blocks", [0, 2])
def test_checkpoint_round_trip(backbone, tmp_path, blocks):
    """A model that was changed a little embeds the same after saving and loading, trained backbone or not."""
    model = ForgeryModel(settings(backbone, unfreeze_blocks=blocks)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * p.requires_grad)
    path = tmp_path / "best.pt"
    save_checkpoint(path, {"model": model_state(model)})
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]  # nothing temporary stays
    again, _ = load_model(path)
    x = pixels()
    assert torch.equal(model(x), again(x))


@pytest.mark.parametrize("preset", ["self-correlation", "patch-correlation"])
def test_presets_survive_a_checkpoint(backbone, tmp_path, preset):
    """The presets with correlation come back with their head and settings."""
    model = ForgeryModel(correlating(backbone, preset)).eval()
    save_checkpoint(tmp_path / "best.pt", {"model": model_state(model)})
    again, _ = load_model(tmp_path / "best.pt")
    x, valid = pixels(size=112), torch.ones(2, 8, 8, dtype=torch.bool)
    assert again.settings.preset == preset and torch.equal(model(x, valid), again(x))


def test_shipped_model_is_the_checkpoint(backbone, tmp_path, monkeypatch):
    """`ship` writes head and settings in half precision; `embedded` loads them with the tuned cascade."""
    monkeypatch.setattr(backbones, "EMBEDDED_BACKBONE", Path(backbone))
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "detector")
    with pytest.raises(FileNotFoundError, match="no model ships"):
        load_model(Path("embedded"))
    model = ForgeryModel(correlating(backbone, "patch-correlation")).eval()
    save_checkpoint(tmp_path / "best.pt", {"model": model_state(model)})
    tuned = to_dict(ClusteringSettings(candidate_distance=0.3))
    write_json(tmp_path / "tuned.json", {"clustering": tuned})
    ship(tmp_path / "best.pt", tmp_path / "tuned.json", "a note")
    again, content = load_model(Path("embedded"))
    assert content["clustering"] == tuned and content["splits"] == {} and again.settings.backbone == "embedded"
    x = pixels(size=112)
    assert torch.allclose(model(x), again(x), atol=2e-2) and not torch.equal(model(x), again(x))
    unfrozen = ForgeryModel(correlating(backbone, "patch-correlation", unfreeze_blocks=1))
    save_checkpoint(tmp_path / "other.pt", {"model": model_state(unfrozen)})
    with pytest.raises(InputError, match="does not belong to the embedded backbone"):
        ship(tmp_path / "other.pt", tmp_path / "tuned.json", "a note")


def test_shipped_weights_load():
    """weights/detector.json and .safetensors fit the settings, the backbone and each other."""
    model, content = load_model(Path("embedded"))
    assert model.settings.backbone == "embedded" and set(content["clustering"]) == set(to_dict(ClusteringSettings()))
    assert model(pixels(1, 462)).shape == (1, 33, 33, model.settings.embedding_size)


def test_old_preset_name_is_understood(backbone, tmp_path):
    """Checkpoints from before the renaming of the settings call the MLP head `method`."""
    state = checkpoint(backbone, tmp_path / "new.pt")
    checkpoint(backbone, tmp_path / "old.pt", settings=state["settings"] | {"preset": "method"})
    assert load_model(tmp_path / "old.pt")[0].settings == load_model(tmp_path / "new.pt")[0].settings


def test_bad_checkpoints_are_one_line(backbone, tmp_path):
    """Missing, truncated, foreign or mismatched files: each is an error that says which."""
    path = tmp_path / "c.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_model(path)
    state = checkpoint(backbone, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="truncated"):
        load_model(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_model(path)
    other = dict(state["settings"], embedding_size=9)
    checkpoint(backbone, path, settings=other)
    with pytest.raises(InputError, match="another head"):
        load_model(path)
    checkpoint(backbone, path, backbone_fingerprint="0")
    with pytest.raises(InputError, match="trained on a backbone whose weights differ"):
        load_model(path)


def test_hostile_checkpoints_are_one_line(backbone, tmp_path):
    """Compressed parts, a damaged pickle and absurd sizes are refused before memory is taken for them."""
    path, packed = tmp_path / "c.pt", tmp_path / "packed.pt"
    state = checkpoint(backbone, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name))
    with pytest.raises(InputError, match="compressed parts"):  # 4 MB may unpack to 4 GB
        load_model(packed)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w") as other:
        for name in whole.namelist():
            other.writestr(
                name, b"\x80\x02s." if name.endswith("data.pkl") else whole.read(name)
            )  # pops an empty stack
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        load_model(packed)
    checkpoint(backbone, path, settings=dict(state["settings"], head_widths=[10**9]))
    with pytest.raises(InputError, match="another head"):
        load_model(path)
    checkpoint(backbone, path, settings=None)
    with pytest.raises(InputError, match="does not describe a model"):
        load_model(path)


class Bomb:
    def __reduce__(self):
        return (open, ("bomb", "w"))


def test_code_in_pickles_never_runs(tmp_path, monkeypatch):
    """A checkpoint that holds a call is refused, in both formats of torch.save."""
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Bomb()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"format": 1, "model": Bomb()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(InputError, match="could run code"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "bomb").exists()


def test_full_disk_keeps_last_checkpoint(backbone, tmp_path, monkeypatch):
    """A failed write leaves the old file as it was and no temporary one."""
    path = tmp_path / "last.pt"
    checkpoint(backbone, path)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {})
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["last.pt"]
