"""Backbones: the official file against the official network, folders, the local start, and what is refused."""

import time

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from backbones import load_backbone, random_backbone, set_local_start
from model import to_pixels
from runtime.errors import InputError

TINY = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}


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


def test_official_file_gives_official_tokens(tmp_path):
    """The official state dict, renamed, gives the tokens that the official network computes."""
    torch.manual_seed(0)
    official = OfficialViT(128, 3, 16)
    path = tmp_path / "dinov2_vitx14_pretrain.pth"
    torch.save(official.state_dict(), path)
    loaded = load_backbone(str(path))
    x = to_pixels(torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8))
    with torch.no_grad():
        tokens = loaded.eval()(pixel_values=x).last_hidden_state[:, 1:]
        assert torch.allclose(tokens, official(x), atol=1e-4)


def test_misfit_official_file_is_refused(tmp_path):
    """A key too many (registers) or too few is an error, not a partly random backbone."""
    state = OfficialViT(128, 1, 16).state_dict()
    path = tmp_path / "x.pth"
    for changed in (
        state | {"register_tokens": torch.zeros(1, 4, 128)},
        {k: v for k, v in state.items() if k != "norm.bias"},
    ):
        torch.save(changed, path)
        with pytest.raises(InputError, match="does not fit"):
            load_backbone(str(path))


def test_folder_without_tensor_is_refused(tmp_path):
    """The message names the tensor that model.safetensors lacks."""
    random_backbone(**TINY).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys: layernorm\.weight"):
        load_backbone(str(tmp_path))


def test_missing_weights_stop_at_once(tmp_path, monkeypatch):
    """Without a network the error comes within seconds and names the ways to get weights."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: no network, wherever this runs
    start = time.monotonic()
    for name in ("nobody/no-such-model", "nowhere/else/folder", "missing.pth", "/no/such/folder"):
        with pytest.raises(InputError, match="three ways to get weights"):
            load_backbone(name)
    assert time.monotonic() - start < 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_backbone(str(tmp_path / "empty"))


def test_heads_start_at_their_cell():
    """On a real texture, most of each head's attention in the first block lies on the cell it was set to."""
    backbone = random_backbone(0)
    set_local_start(backbone)
    backbone.set_attn_implementation("eager")
    noise = np.random.default_rng(0).integers(0, 256, (462, 462, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX)
    with torch.no_grad():
        embedded = backbone.embeddings(to_pixels(torch.from_numpy(image[None])))
        block = backbone.encoder.layer[0]
        weights = block.attention(block.norm1(embedded))[1][0, :, 1:, 1:].view(3, 33, 33, 33, 33)
    for head, (dx, dy) in enumerate([(0, 0), (1, 0), (-1, 0)]):
        around = [
            weights[head, y, x, y + dy - 1 : y + dy + 2, x + dx - 1 : x + dx + 2].sum() for y, x in [(9, 9), (20, 14)]
        ]
        assert min(around) > 0.5
