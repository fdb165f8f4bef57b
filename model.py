"""A frozen DINOv2 backbone and an MLP head: an image goes in, one unit vector for each 14-pixel patch comes out.

    model = ForgeryModel(ModelSettings(backbone="embedded"))
    embeddings = model(to_pixels(images))      # (B, S, S, 3) uint8 -> (B, G, G, 512) float32, unit length

S is the side of the square input in pixels, a multiple of 14; G = S / 14 is the side of the grid in cells, one for
each patch. Where backbones come from is in backbones.py, saving and loading in checkpoints.py.
"""

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import load_backbone
from config import PATCH, ModelSettings
from correlation import PATCH_MEASURES, TOKEN_EXTRAS, patch_correlation, self_correlation
from runtime.errors import InputError

if TYPE_CHECKING:
    from images.cache import ArrayCache

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_pixels(images: Tensor) -> Tensor:
    """Images (B, S, S, 3) uint8 RGB -> pixels (B, 3, S, S) float32, normalised by ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device) * 255
    std = torch.tensor(IMAGENET_STD, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def build_head(width: int, settings: ModelSettings) -> nn.Sequential:
    """MLP head: (Linear, LayerNorm, ReLU) per hidden width, then Linear to the embedding."""
    layers: list[nn.Module] = []
    for hidden in settings.head_widths:
        layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, settings.embedding_size))


class ForgeryModel(nn.Module):
    """Backbone and head. The head is an MLP on each cell's token, or one that is also given the cell's best match.

    The backbone is in eval mode at all times. It is frozen, except for its last `unfreeze_blocks` blocks and, where
    there are any, its final norm. When all blocks are unfrozen, the patch and position embeddings learn too.

    Raises:
        InputError: the image size is no multiple of 14, the weights are missing, or too many blocks are unfrozen.
    """

    feature_cache: "ArrayCache | None" = None  # keeps the features of each image while the backbone is frozen

    def __init__(self, settings: ModelSettings, backbone: nn.Module | None = None) -> None:
        """Use `backbone`, or load the one that the settings name."""
        super().__init__()
        check_image_size(settings.image_size)
        check_correlation(settings)
        self.settings = settings
        self.backbone = backbone if backbone is not None else load_backbone(settings.backbone)
        build = build_head if settings.preset == "mlp" else CorrelationHead
        self.head = build(self.backbone.config.hidden_size, settings)
        self._freeze(settings.unfreeze_blocks)
        if settings.compile:
            # Block by block: compiling the whole model makes torch 2.11 compute attention in float32, 2.5 times slower
            # than without compiling. In place, so that the state dict keeps its keys.
            for block in self.backbone.encoder.layer:
                block.compile()

    def _freeze(self, unfreeze_blocks: int) -> None:
        blocks = self.backbone.encoder.layer
        if not 0 <= unfreeze_blocks <= len(blocks):
            raise InputError(f"--unfreeze-blocks is {unfreeze_blocks}; this backbone has {len(blocks)} blocks")
        self.backbone.requires_grad_(False).eval()
        if unfreeze_blocks == 0:
            return
        self.backbone.layernorm.requires_grad_(True)
        for block in blocks[len(blocks) - unfreeze_blocks :]:
            block.requires_grad_(True)
        if unfreeze_blocks == len(blocks):
            self.backbone.embeddings.requires_grad_(True)
            # It takes no part in the forward pass: DDP would wait for its gradient.
            self.backbone.embeddings.mask_token.requires_grad_(False)

    def train(self, mode: bool = True) -> "ForgeryModel":
        """Set the head's mode; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            pixels: (B, 3, S, S) float32 from `to_pixels`.
            valid: (B, G, G) bool: cells that are not padding; all when not given. Only the presets with correlation
                use it: a padding cell is no other cell's match.
        Returns:
            (B, G, G, D) float32 unit vectors.
        """
        embeddings = self.head(*self.features(pixels, valid))
        return F.normalize(embeddings.float(), dim=-1)  # float32 also inside autocast

    def features(self, pixels: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        """The head's input: a tuple of tokens (B, G, G, hidden) and, for the presets with correlation, two more.

        These are measures (B, G, G, C) float32 and match (B, G, G) int64, see correlation.py. While the backbone is
        frozen the features of an image stay the same during training: then they are taken from `feature_cache`,
        where there is one, for each image that came before. Args: as `forward`.
        """
        if valid is None:
            valid = torch.ones(len(pixels), *[pixels.shape[-1] // PATCH] * 2, dtype=torch.bool, device=pixels.device)
        if self.feature_cache is None or self.settings.unfreeze_blocks:
            return self._compute_features(pixels, valid)
        rows = [self._cached_features(*row) for row in zip(pixels.split(1), valid.split(1), strict=True)]
        return tuple(torch.from_numpy(np.concatenate(kind)).to(pixels.device) for kind in zip(*rows, strict=True))

    def _cached_features(self, pixels: Tensor, valid: Tensor) -> list[np.ndarray]:
        """`features` of one image as arrays: in float32, for numpy has no bfloat16."""

        def make() -> list[np.ndarray]:
            found = self._compute_features(pixels, valid)
            return [(value.float() if value.is_floating_point() else value).cpu().numpy() for value in found]

        s = self.settings
        depends_on = (f"{s.preset} {s.neighbours} {s.exclusion}", pixels.cpu().numpy(), valid.cpu().numpy())
        return self.feature_cache.get(depends_on, make)

    def _compute_features(self, pixels: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        tokens, s = self.tokens(pixels), self.settings
        if s.preset == "mlp":
            return (tokens,)
        if s.preset == "self-correlation":
            return tokens, *self_correlation(tokens, valid, s.neighbours, s.exclusion)
        return tokens, *patch_correlation(pixels, valid, s.exclusion)

    def tokens(self, pixels: Tensor) -> Tensor:
        """The backbone's patch tokens after its final norm: pixels (B, 3, S, S) -> (B, G, G, hidden)."""
        grid = pixels.shape[-1] // PATCH
        with contextlib.nullcontext() if self.settings.unfreeze_blocks else torch.no_grad():
            tokens = self.backbone(pixel_values=pixels).last_hidden_state[:, 1:]  # (B, G * G, hidden)
        return tokens.unflatten(1, (grid, grid))

    def parameter_groups(self, head_lr: float, backbone_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of what is trained: `head`, and `backbone` where blocks are unfrozen."""
        groups = [{"name": "head", "params": list(self.head.parameters()), "lr": head_lr}]
        unfrozen = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        if unfrozen:
            groups.append({"name": "backbone", "params": unfrozen, "lr": backbone_lr})
        return groups


def check_correlation(settings: ModelSettings) -> None:
    """Raise InputError where a preset with correlation has too few cells outside of a cell's neighbourhood."""
    if settings.preset == "mlp":
        return
    if settings.neighbours < 1 or settings.exclusion < 0 or settings.correlation_width < 1:
        raise InputError("--neighbours and --correlation-width must be at least 1, --exclusion at least 0")
    distant = settings.grid_size**2 - min(settings.grid_size, 2 * settings.exclusion + 1) ** 2
    if distant < settings.neighbours:
        raise InputError(
            f"--image-size {settings.image_size} gives {settings.grid_size} x {settings.grid_size} cells, of which "
            f"{distant} lie further than --exclusion {settings.exclusion} from the middle one, but --neighbours is "
            f"{settings.neighbours}; give a larger --image-size, or smaller values of the other two"
        )


class CorrelationHead(nn.Module):
    """Head of the presets with correlation: each cell is described together with its best match elsewhere.

    A token describes what a cell shows, but not whether the image shows it a second time. So the measures of
    correlation.py go through two 3 x 3 convolutions over the grid. The MLP gets three vectors for each cell: its
    token, the convolutions' output at the cell, and their output at the cell that it matches.
    """

    def __init__(self, width: int, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.correlation_width
        tokens = settings.preset == "self-correlation"
        measures = settings.neighbours + TOKEN_EXTRAS if tokens else PATCH_MEASURES
        self.local = nn.Sequential(
            nn.Conv2d(measures, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.mlp = build_head(width + 2 * channels, settings)

    def forward(self, tokens: Tensor, measures: Tensor, match: Tensor) -> Tensor:
        """tokens (B, G, G, hidden), measures (B, G, G, C), match (B, G, G) -> (B, G, G, D), not normalised."""
        here = self.local(measures.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, G, G, channels)
        there = here.flatten(1, 2).gather(1, match.flatten(1)[..., None].expand(-1, -1, here.shape[3]))
        return self.mlp(torch.cat([tokens, here, there.view_as(here)], 3))


def amp_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype | None:
    """Type of the mixed-precision forward pass; None: float32. `--amp auto` is bf16 or fp16 on a GPU, None on a CPU."""
    if settings.amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.amp)


def autocast(settings: ModelSettings, device: torch.device) -> torch.autocast:
    """Context in which the forward pass runs in the precision that `--amp` asks for."""
    dtype = amp_dtype(settings, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def check_image_size(size: int) -> None:
    """Raise InputError unless the side S is a positive multiple of the patch."""
    if size <= 0 or size % PATCH:
        below = max(1, size // PATCH) * PATCH
        raise InputError(f"--image-size {size} is not a multiple of the patch {PATCH}; try {below} or {below + PATCH}")
