"""The model: unit vectors on the grid, head, freezing, presets, compiling, and what is refused."""

import pytest
import torch

from backbones import random_backbone
from config import ModelSettings
from model import ForgeryModel, check_image_size, to_pixels
from runtime.errors import InputError

TINY = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}


def settings(backbone, **other):
    return ModelSettings(backbone=backbone, image_size=56, head_widths=(24, 16), embedding_size=8, **other)


def pixels(n=2, size=56):
    return to_pixels(torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8))


def correlating(backbone, preset, **other):
    return ModelSettings(backbone, 112, preset, 3, 2, 8, (24, 16), 8, **other)


def test_embeddings_are_unit_vectors(backbone):
    """One float32 unit vector for each cell, also inside autocast."""
    model = ForgeryModel(settings(backbone))
    out = model(pixels())
    assert out.shape == (2, 4, 4, 8) and out.dtype == torch.float32
    assert torch.allclose(out.norm(dim=-1), torch.ones(2, 4, 4), atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(pixels()).dtype == torch.float32


def test_cells_are_patches_in_order():
    """Row-major order of the tokens: with the blocks silenced, only the changed patch's cell changes."""
    model = ForgeryModel(settings("unused"), random_backbone(**TINY, layerscale_value=0.0))
    a = torch.zeros(1, 56, 56, 3, dtype=torch.uint8)
    b = a.clone()
    b[0, 14:28, 42:56] = 255
    changed = (model(to_pixels(a)) - model(to_pixels(b))).abs().sum(-1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 3]]


def test_normalisation_is_imagenets():
    """White pixels against the published mean and deviation."""
    white = to_pixels(torch.full((1, 14, 14, 3), 255, dtype=torch.uint8))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert torch.allclose(white[0, :, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_gradients_reach_what_is_trained(backbone, blocks):
    """Head, and the unfrozen blocks with the final norm; nothing else. The optimiser has the same parameters."""
    model = ForgeryModel(settings(backbone, unfreeze_blocks=blocks)).train()
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
def test_correlation_presets_train_their_head(backbone, blocks, preset):
    """Gradients reach the whole head, and the backbone only where it is unfrozen."""
    model = ForgeryModel(correlating(backbone, preset, unfreeze_blocks=blocks)).train()
    out = model(pixels(size=112), torch.ones(2, 8, 8, dtype=torch.bool))
    assert out.shape == (2, 8, 8, 8)
    (out * torch.randn(2, 8, 8, 8)).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, _ in model.named_parameters() if name.startswith("head.")} <= reached
    assert any(name.startswith("backbone.") for name in reached) is (blocks > 0)


def test_small_grids_are_refused(backbone):
    """A grid of 4 x 4 cells has none outside of a cell's neighbourhood."""
    with pytest.raises(InputError, match="--image-size 56 gives 4 x 4 cells, of which 0"):
        ForgeryModel(settings(backbone, preset="self-correlation"))


def test_impossible_sizes_are_refused(backbone):
    """More blocks than the backbone has; a side that is no multiple of the patch, with the two nearest that are."""
    with pytest.raises(InputError, match="has 3 blocks"):
        ForgeryModel(settings(backbone, unfreeze_blocks=4))
    with pytest.raises(InputError, match="460 is not a multiple of the patch 14; try 448 or 462"):
        check_image_size(460)


def test_compiling_keeps_the_keys(backbone, monkeypatch):
    """The blocks are compiled one by one, and the state dict has the same keys as without compiling."""
    compiled = []
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: (compiled.append(part), compile_module(part)))
    plain = ForgeryModel(settings(backbone))
    assert not compiled
    model = ForgeryModel(settings(backbone, compile=True))
    assert compiled == list(model.backbone.encoder.layer)
    assert model.state_dict().keys() == plain.state_dict().keys()
