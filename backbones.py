"""DINOv2 backbones: from the hub, a local folder or the official file, or with random weights to train from scratch.

All are transformers' `Dinov2Model` in float32 with PyTorch's scaled dot-product attention. A backbone that cannot be
found is an error that names the ways to get one: nothing ever runs on random weights by accident.
"""

import hashlib
import math
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import EMBEDDED_BACKBONE, PATCH
from runtime.errors import InputError
from runtime.tensor_files import load_tensors

WAYS_TO_GET_WEIGHTS = (
    "three ways to get weights: (1) on a machine with a network, run once and the hub's cache is used from then on; "
    "(2) copy the folder of that model (config.json, model.safetensors) and give its path; "
    "(3) download dinov2_vitb14_pretrain.pth of the official release and give its path. "
    "`--backbone embedded` runs on the small backbone that ships with the project"
)
HUB_TIMEOUT = 3  # seconds in which the hub must answer; its client alone would try for 20 s and more
POSITION_CHANNELS = 64  # channels of the tokens that encode the position in a backbone with a local start


# Trained weights --------------------------------------------------------------------------------------------------


def load_backbone(name: str) -> nn.Module:
    """Load a DINOv2 backbone in float32 onto the CPU.

    Args:
        name: hub name, local folder (config.json, model.safetensors), official `dinov2_vit{s,b,l}14_pretrain.pth`,
            or `embedded`.
    Raises:
        InputError: the weights are not there (at once, without retries), or do not fit.
    """
    source = locate_backbone(name)  # before the import of transformers, which takes seconds
    from transformers import Dinov2Config, Dinov2Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    if source.is_file():
        return _load_official(source)
    try:
        config = Dinov2Config.from_pretrained(source, local_files_only=True)
        model, report = Dinov2Model.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as fault:
        raise InputError(f"{source} cannot be loaded as a DINOv2 backbone: {fault}") from fault
    misfits = [f"{kind.replace('_', ' ')}: {', '.join(map(str, report[kind]))}" for kind in report if report[kind]]
    if misfits:
        raise InputError(f"{source} does not fit a DINOv2 backbone: {'; '.join(misfits)[:300]}")
    return model


def locate_backbone(name: str) -> Path:
    """Folder or `.pth` file of a backbone on this machine; downloads it from the hub where it must.

    Raises:
        InputError: it is nowhere; the message names the three ways to get it. Takes at most 3 s without a network.
    """
    path = EMBEDDED_BACKBONE if name == "embedded" else Path(name)
    if path.exists():
        if path.is_dir() and not (path / "config.json").is_file():
            raise InputError(f"the folder {path} holds no config.json; {WAYS_TO_GET_WEIGHTS}")
        return path
    if name.endswith(".pth") or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"the backbone {name} does not exist here; {WAYS_TO_GET_WEIGHTS}")
    return _fetch_from_hub(name)


def _fetch_from_hub(name: str) -> Path:
    """Folder of a hub model in the hub's cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_url, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    files = ["config.json", "*.safetensors"]
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=files))
    except HFValidationError as fault:
        raise InputError(
            f"the backbone {name} does not exist here and is no hub name ({fault}); {WAYS_TO_GET_WEIGHTS}"
        ) from None
    except LocalEntryNotFoundError:
        pass
    try:
        request = urllib.request.Request(hf_hub_url(name, "config.json"), method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT)
        return Path(snapshot_download(name, allow_patterns=files))
    except OSError as fault:
        raise InputError(
            f"the backbone {name} is not in the cache and cannot be fetched ({fault}); {WAYS_TO_GET_WEIGHTS}"
        ) from None


def _load_official(path: Path) -> nn.Module:
    """Load the state dict of the official DINOv2 release; every key must find its place."""
    state = load_tensors(path)
    if not isinstance(state, dict) or "pos_embed" not in state or not torch.is_tensor(state["pos_embed"]):
        raise InputError(f"{path} is no official DINOv2 file: it has no pos_embed")
    tokens, width = state["pos_embed"].shape[1:]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    model = random_backbone(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        image_size=round((tokens - 1) ** 0.5) * PATCH,
    )
    try:
        model.load_state_dict(convert_official_state(state), strict=True)
    except (RuntimeError, KeyError) as fault:
        raise InputError(
            f"{path} does not fit DINOv2 ViT with patch {PATCH} (s, b or l, no registers): {fault}"
        ) from None
    return model


def convert_official_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of the official DINOv2 release to those of `Dinov2Model`; its qkv projection becomes three."""
    renamed = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks": "encoder.layer",
        "attn.proj": "attention.o_proj",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key
        for old, replacement in renamed.items():
            new = new.replace(old, replacement)
        if new.startswith("norm."):
            new = new.replace("norm.", "layernorm.")
        if ".attn.qkv." in new:
            for part, piece in zip("qkv", value.chunk(3, dim=0), strict=True):
                converted[new.replace("attn.qkv", f"attention.{part}_proj")] = piece
        else:
            converted[new] = value
    return converted


def fingerprint(module: nn.Module) -> str:
    """Short hash of a module's parameters, to tell one backbone from another (64 values of each tensor)."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# Random weights ---------------------------------------------------------------------------------------------------


def random_backbone(seed: int = 0, **config: Any) -> nn.Module:
    """Make an untrained DINOv2 backbone, the same one for the same seed.

    Args:
        config: fields of `Dinov2Config` that differ from the embedded one's (hidden 192, 6 blocks, 3 heads, 462 px).
    """
    from transformers import Dinov2Config, Dinov2Model

    small = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 462}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Dinov2Model(Dinov2Config(**(small | {"patch_size": PATCH} | config)))
    model.set_attn_implementation("sdpa")
    return model


def set_local_start(backbone: nn.Module) -> None:
    """Set the random weights of a backbone so that it starts with local filters and local attention, in place.

    The patch projection starts as cosine waves (`dct_filters`).

    A transformer with random weights first has to find out which tokens are neighbours, which takes more images than
    a CPU can process in hours. So, in the manner of ConViT (d'Ascoli et al. 2021), `POSITION_CHANNELS` channels of
    the tokens start as random Fourier features of the position (Rahimi and Recht 2007), whose inner product falls off
    like a Gaussian with the distance. Queries and keys of all blocks but the last two start as maps of those
    channels, such that each head attends to one cell: its own or one of the eight around it. All weights can learn.
    """
    c = backbone.config
    half = POSITION_CHANNELS // 2
    j = torch.arange(half)
    radius = 0.9 * torch.sqrt(-2 * torch.log1p(-(j + 0.5) / half))  # radians per cell, of a 2-D normal distribution
    angle = j * math.pi * (3 - math.sqrt(5))  # golden angles spread the directions evenly
    waves = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)  # (half, 2)
    grid = c.image_size // c.patch_size
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    phase = torch.stack([column, row], -1).reshape(-1, 2).float() @ waves.T  # (grid^2, half)
    with torch.no_grad():
        embeddings = backbone.embeddings
        projection = embeddings.patch_embeddings.projection
        projection.weight[:-POSITION_CHANNELS] = torch.from_numpy(dct_filters(c.hidden_size - POSITION_CHANNELS))
        projection.weight[-POSITION_CHANNELS:] = 0
        embeddings.position_embeddings.zero_()
        embeddings.position_embeddings[0, 1:, -POSITION_CHANNELS:] = 0.5 * torch.cat([phase.cos(), phase.sin()], 1)
        backbone.layernorm.weight[-POSITION_CHANNELS:] = 0.1  # the position is no part of what a patch looks like
        _set_local_attention(backbone, waves)


def _set_local_attention(backbone: nn.Module, waves: Tensor) -> None:
    """Let each head of all blocks but the last two attend to one cell near its own; waves (half, 2)."""
    c = backbone.config
    width = c.hidden_size // c.num_attention_heads
    steps = [(0, 0), (1, 0), (-1, 0), (0, 0), (0, 1), (0, -1), (0, 0), (1, 1), (-1, -1), (0, 0), (1, -1), (-1, 1)]
    for b, block in enumerate(backbone.encoder.layer[:-2]):
        for h in range(c.num_attention_heads):
            dx, dy = steps[(b * c.num_attention_heads + h) % len(steps)]
            shift = waves @ torch.tensor([float(dx), float(dy)])
            cosine, sine = torch.diag(shift.cos()), torch.diag(shift.sin())
            # cos(p + s) = cos p cos s - sin p sin s, sin(p + s) = sin p cos s + cos p sin s
            shifted = torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])
            channels = slice(h * width, h * width + POSITION_CHANNELS)
            block.attention.q_proj.weight[channels, -POSITION_CHANNELS:] = 1.5 * shifted
            block.attention.k_proj.weight[channels, -POSITION_CHANNELS:] = 1.5 * torch.eye(POSITION_CHANNELS)


def dct_filters(count: int) -> np.ndarray:
    """(count, 3, 14, 14) float32 filters: the lowest cosine waves (DCT-II) of grey and of two colour differences.

    Each one's norm is proportional to its frequency: the amplitudes of natural images fall about as 1 / frequency, so
    all filters respond about equally. Of five filters three are grey.
    """
    order = sorted(((u, v) for u in range(PATCH) for v in range(PATCH)), key=lambda w: (sum(w), abs(w[0] - w[1]), w))
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float64)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    position = (np.arange(PATCH) + 0.5) * np.pi / PATCH
    colour_of = [0, 1, 0, 2, 0]  # repeated over the filters
    used = [0, 0, 0]  # waves that each colour has so far
    filters = np.zeros((count, 3, PATCH, PATCH), np.float32)
    for i in range(count):
        colour = colour_of[i % len(colour_of)]
        u, v = order[used[colour]]
        used[colour] += 1
        wave = np.outer(np.cos(u * position), np.cos(v * position))
        gain = (1 + u + v) / 4 if u + v else 1 / 60  # measured on images: about 0.5 for all, in normalised pixels
        wave *= gain / np.linalg.norm(wave)
        filters[i] = colours[colour][:, None, None] * wave
    return filters
