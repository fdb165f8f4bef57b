"""Backbones from every source, the head, freezing, checkpoints and what is refused."""

import errno
import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import model as m
from config import ClusteringSettings, ModelSettings
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import write_json

TINY = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}


def settings(backbone, **other):
    return ModelSettings(backbone=backbone, image_size=56, head_widths=(24, 16), embedding_size=8, **other)


def pixels(n=2, size=56):
    return m.to_pixels(torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8))


class OfficialViT(nn.Module):
    """The official DINOv2 ViT (facebookresearch/dinov2), written out with its parameter names."""

    def __init__(self, width, depth, tokens):
        super().__init__()
        self.heads = width // 64
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.mask_token = nn.Parameter(torch.randn(1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, tokens + 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 14, 14)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            block.attn, block.mlp, block.ls1, block.ls2 = nn.Module(), nn.Module(), nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            block.ls1.gamma, block.ls2.gamma = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for b in self.blocks:
            n, t, w = x.shape
            qkv = b.attn.qkv(b.norm1(x)).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
            attention = (qkv[0] @ qkv[1].transpose(-2, -1) / (w // self.heads) ** 0.5).softmax(-1) @ qkv[2]
            x = x + b.ls1.gamma * b.attn.proj(attention.transpose(1, 2).reshape(n, t, w))
            x = x + b.ls2.gamma * b.mlp.fc2(F.gelu(b.mlp.fc1(b.norm2(x))))
        return self.norm(x)[:, 1:]


def test_official_file_gives_the_official_tokens(tmp_path):
    torch.manual_seed(0)
    official = OfficialViT(128, 3, 16)
    path = tmp_path / "dinov2_vitx14_pretrain.pth"
    torch.save(official.state_dict(), path)
    loaded = m.load_backbone(str(path))
    x = pixels()
    with torch.no_grad():
        tokens = loaded.eval()(pixel_values=x).last_hidden_state[:, 1:]
        assert torch.allclose(tokens, official(x), atol=1e-4)


def test_official_file_with_an_unknown_or_missing_key_is_refused(tmp_path):
    state = OfficialViT(128, 1, 16).state_dict()
    path = tmp_path / "x.pth"
    for changed in (
        state | {"register_tokens": torch.zeros(1, 4, 128)},
        {k: v for k, v in state.items() if k != "norm.bias"},
    ):
        torch.save(changed, path)
        with pytest.raises(InputError, match="does not fit"):
            m.load_backbone(str(path))


def test_folder_with_a_missing_tensor_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    m.random_backbone(**TINY).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys: layernorm\.weight"):
        m.load_backbone(str(tmp_path))


def test_embeddings_are_unit_vectors_on_the_grid(backbone):
    model = m.ForgeryModel(settings(backbone))
    out = model(pixels())
    assert out.shape == (2, 4, 4, 8) and out.dtype == torch.float32
    assert torch.allclose(out.norm(dim=-1), torch.ones(2, 4, 4), atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(pixels()).dtype == torch.float32


def test_a_cell_is_the_patch_at_its_place():
    """Row-major order of the tokens: with the blocks silenced, only the changed patch's cell changes."""
    model = m.ForgeryModel(settings("unused"), m.random_backbone(**TINY, layerscale_value=0.0))
    a = torch.zeros(1, 56, 56, 3, dtype=torch.uint8)
    b = a.clone()
    b[0, 14:28, 42:56] = 255
    changed = (model(m.to_pixels(a)) - model(m.to_pixels(b))).abs().sum(-1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 3]]


def test_normalisation_is_imagenets():
    white = m.to_pixels(torch.full((1, 14, 14, 3), 255, dtype=torch.uint8))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert torch.allclose(white[0, :, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_gradients_reach_what_is_trained_and_nothing_else(backbone, blocks):
    model = m.ForgeryModel(settings(backbone, unfreeze_blocks=blocks)).train()
    assert not model.backbone.training and model.head.training
    target = torch.randn(2, 4, 4, 8)
    (model(pixels()) * target).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    if blocks:
        kept = [f"backbone.encoder.layer.{i}." for i in range(3 - blocks, 3)] + ["backbone.layernorm."]
        expected |= {name for name, _ in model.named_parameters() if name.startswith(tuple(kept))}
    if blocks == 3:
        expected |= {name for name, _ in model.named_parameters() if name.startswith("backbone.embeddings.")}
        expected.remove("backbone.embeddings.mask_token")
    # A key's bias shifts all of a query's scores alike: the softmax makes its gradient zero up to rounding.
    assert {n for n in with_gradient ^ expected if "k_proj.bias" not in n} == set()
    groups = model.parameter_groups(1e-3, 1e-5)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("preset", ["self-correlation", "patch-correlation"])
@pytest.mark.parametrize("blocks", [0, 3])
def test_presets_with_correlation_train_the_head_or_all(backbone, blocks, preset):
    model = m.ForgeryModel(correlating(backbone, preset, unfreeze_blocks=blocks)).train()
    out = model(pixels(size=112), torch.ones(2, 8, 8, dtype=torch.bool))
    assert out.shape == (2, 8, 8, 8)
    (out * torch.randn(2, 8, 8, 8)).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, _ in model.named_parameters() if name.startswith("head.")} <= reached
    assert any(name.startswith("backbone.") for name in reached) is (blocks > 0)


def correlating(backbone, preset, **other):
    return ModelSettings(backbone, 112, preset, 3, 2, 8, (24, 16), 8, **other)


@pytest.mark.parametrize("preset", ["self-correlation", "patch-correlation"])
def test_presets_survive_a_checkpoint(backbone, tmp_path, preset):
    model = m.ForgeryModel(correlating(backbone, preset)).eval()
    m.save_checkpoint(tmp_path / "best.pt", {"format": m.CHECKPOINT_FORMAT, "model": m.model_state(model)})
    again, _ = m.load_model(tmp_path / "best.pt")
    x, valid = pixels(size=112), torch.ones(2, 8, 8, dtype=torch.bool)
    assert again.settings.preset == preset and torch.equal(model(x, valid), again(x))


def test_grids_without_distant_cells_are_refused(backbone):
    with pytest.raises(InputError, match="--image-size 56 gives 4 x 4 cells, of which 0"):
        m.ForgeryModel(settings(backbone, preset="self-correlation"))


def test_too_many_blocks_and_odd_sizes_are_refused(backbone):
    with pytest.raises(InputError, match="has 3 blocks"):
        m.ForgeryModel(settings(backbone, unfreeze_blocks=4))
    with pytest.raises(InputError, match="460 is not a multiple of the patch 14; try 448 or 462"):
        m.check_image_size(460)


@pytest.mark.parametrize("blocks", [0, 2])
def test_checkpoint_round_trip(backbone, tmp_path, blocks):
    model = m.ForgeryModel(settings(backbone, unfreeze_blocks=blocks)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * p.requires_grad)
    path = tmp_path / "best.pt"
    m.save_checkpoint(path, {"format": m.CHECKPOINT_FORMAT, "model": m.model_state(model)})
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]  # nothing temporary stays
    again, _ = m.load_model(path)
    x = pixels()
    assert torch.equal(model(x), again(x))


def test_the_shipped_model_is_the_checkpoint_in_half_precision(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(m, "EMBEDDED_BACKBONE", Path(backbone))
    monkeypatch.setattr(m, "SHIPPED", tmp_path / "detector")
    with pytest.raises(FileNotFoundError, match="no model ships"):
        m.load_model(Path("embedded"))
    model = m.ForgeryModel(correlating(backbone, "patch-correlation")).eval()
    m.save_checkpoint(tmp_path / "best.pt", {"format": m.CHECKPOINT_FORMAT, "model": m.model_state(model)})
    tuned = to_dict(ClusteringSettings(candidate_distance=0.3))
    write_json(tmp_path / "tuned.json", {"clustering": tuned})
    m.ship(tmp_path / "best.pt", tmp_path / "tuned.json", "a note")
    again, content = m.load_model(Path("embedded"))
    assert content["clustering"] == tuned and content["splits"] == {} and again.settings.backbone == "embedded"
    x = pixels(size=112)
    assert torch.allclose(model(x), again(x), atol=2e-2) and not torch.equal(model(x), again(x))
    unfrozen = m.ForgeryModel(correlating(backbone, "patch-correlation", unfreeze_blocks=1))
    m.save_checkpoint(tmp_path / "other.pt", {"format": m.CHECKPOINT_FORMAT, "model": m.model_state(unfrozen)})
    with pytest.raises(InputError, match="does not belong to the embedded backbone"):
        m.ship(tmp_path / "other.pt", tmp_path / "tuned.json", "a note")


def test_blocks_are_compiled_one_by_one_and_keep_their_keys(backbone, monkeypatch):
    compiled = []
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: (compiled.append(part), compile_module(part)))
    plain = m.ForgeryModel(settings(backbone))
    assert not compiled
    model = m.ForgeryModel(settings(backbone, compile=True))
    assert compiled == list(model.backbone.encoder.layer)
    assert model.state_dict().keys() == plain.state_dict().keys()


def checkpoint(backbone, path, **change):
    model = m.ForgeryModel(settings(backbone))
    state = m.model_state(model) | change
    m.save_checkpoint(path, {"format": m.CHECKPOINT_FORMAT, "model": state})
    return state


def test_bad_checkpoints_are_one_clear_line(backbone, tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        m.load_model(path)
    state = checkpoint(backbone, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        m.load_model(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="truncated"):
        m.load_model(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        m.load_model(path)
    other = dict(state["settings"], embedding_size=9)
    checkpoint(backbone, path, settings=other)
    with pytest.raises(InputError, match="another head"):
        m.load_model(path)
    checkpoint(backbone, path, backbone_fingerprint="0")
    with pytest.raises(InputError, match="trained on a backbone whose weights differ"):
        m.load_model(path)


def test_hostile_checkpoints_are_one_clear_line(backbone, tmp_path):
    path, packed = tmp_path / "c.pt", tmp_path / "packed.pt"
    state = checkpoint(backbone, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name))
    with pytest.raises(InputError, match="compressed parts"):  # 4 MB may unpack to 4 GB
        m.load_model(packed)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w") as other:
        for name in whole.namelist():
            other.writestr(
                name, b"\x80\x02s." if name.endswith("data.pkl") else whole.read(name)
            )  # pops an empty stack
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        m.load_model(packed)
    checkpoint(backbone, path, settings=dict(state["settings"], head_widths=[10**9]))
    with pytest.raises(InputError, match="another head"):
        m.load_model(path)
    checkpoint(backbone, path, settings=None)
    with pytest.raises(InputError, match="does not describe a model"):
        m.load_model(path)


class Bomb:
    def __reduce__(self):
        return (open, ("bomb", "w"))


def test_a_pickle_with_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Bomb()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"format": 1, "model": Bomb()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(InputError, match="could run code"):
            m.load_checkpoint(tmp_path / name)
    assert not (tmp_path / "bomb").exists()


def test_full_disk_keeps_the_last_checkpoint(backbone, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint(backbone, path)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(m.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        m.save_checkpoint(path, {})
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def test_missing_weights_stop_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: no network, wherever this runs
    start = time.monotonic()
    for name in ("nobody/no-such-model", "nowhere/else/folder", "missing.pth", "/no/such/folder"):
        with pytest.raises(InputError, match="three ways to get weights"):
            m.load_backbone(name)
    assert time.monotonic() - start < 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        m.load_backbone(str(tmp_path / "empty"))
