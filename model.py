"""A frozen DINOv2 backbone and an MLP head: an image goes in, one unit vector per 14-px patch comes out.

    model = ForgeryModel(ModelSettings(backbone="embedded"))
    embeddings = model(to_pixels(images))      # (B, S, S, 3) uint8 -> (B, G, G, 512) float32, unit length

This file owns loading and saving of both: backbones from the hub, a local folder or the official file, and
checkpoints, which are read with `weights_only=True`, so that a file from a stranger cannot run code.
"""

import contextlib
import hashlib
import pickle
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import EMBEDDED_BACKBONE, PATCH, ModelSettings
from correlation import PATCH_NUMBERS, TOKEN_EXTRAS, patch_correlation, self_correlation
from runtime.command_line import from_dict, to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from images.cache import ArrayCache

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHIPPED = EMBEDDED_BACKBONE / "detector"  # .json and .safetensors of what `--checkpoint embedded` means
CHECKPOINT_FORMAT = 1  # raised when a checkpoint's content changes its meaning

THREE_WAYS = (
    "three ways to get weights: (1) on a machine with a network, run once and the hub's cache is used from then on; "
    "(2) copy the folder of that model (config.json, model.safetensors) and give its path; "
    "(3) download dinov2_vitb14_pretrain.pth of the official release and give its path. "
    "`--backbone embedded` runs on the small backbone that ships with the project"
)


def to_pixels(images: Tensor) -> Tensor:
    """Images (B, S, S, 3) uint8 RGB -> normalised pixels (B, 3, S, S) float32 (ImageNet mean and deviation)."""
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
    """Backbone and head: the method's MLP on each cell's token, or one that also sees where the token stands again.

    The backbone is in eval mode at all times and frozen, but for the last `unfreeze_blocks` blocks and the final
    norm. When all blocks are unfrozen, the patch and position embeddings learn too.

    Raises:
        InputError: the image size is no multiple of 14, the weights are missing, or too many blocks are unfrozen.
    """

    feature_cache: "ArrayCache | None" = None  # keeps the features of each image, while the backbone is frozen

    def __init__(self, settings: ModelSettings, backbone: nn.Module | None = None) -> None:
        """Take `backbone`, or load the one that the settings name."""
        super().__init__()
        check_image_size(settings.image_size)
        check_correlation(settings)
        self.settings = settings
        self.backbone = backbone if backbone is not None else load_backbone(settings.backbone)
        build = build_head if settings.preset == "mlp" else CorrelationHead
        self.head = build(self.backbone.config.hidden_size, settings)
        self._freeze(settings.unfreeze_blocks)
        if settings.compile:
            # Block by block: of the whole model, torch 2.11 writes the attention out in float32, which is 2.5 times
            # slower than no compiling. In place, so that the state dict keeps its keys.
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
            # Never used in the forward pass: DDP would wait for its gradient.
            self.backbone.embeddings.mask_token.requires_grad_(False)

    def train(self, mode: bool = True) -> "ForgeryModel":
        """Training mode of the head; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            pixels: (B, 3, S, S) float32, normalised; S a multiple of 14.
            valid: (B, G, G) bool, G = S / 14: cells that are not padding; all when not given. Only the
                correlations look at it: padding is nobody's match.
        Returns:
            (B, G, G, D) float32 unit vectors.
        """
        embeddings = self.head(*self.features(pixels, valid))
        return F.normalize(embeddings.float(), dim=-1)  # float32 also inside autocast

    def features(self, pixels: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the head sees: tokens (B, G, G, hidden) and, for the presets with correlation, numbers and match.

        Args and cells: as `forward`; numbers (B, G, G, C) float32 and match (B, G, G) int64 as in correlation.py.
        Nothing of it changes in training while the backbone is frozen: `feature_cache`, where there is one, then
        gives the features of each image that it has seen before.
        """
        if valid is None:
            valid = torch.ones(len(pixels), *[pixels.shape[-1] // PATCH] * 2, dtype=torch.bool, device=pixels.device)
        if self.feature_cache is None or self.settings.unfreeze_blocks:
            return self._compute_features(pixels, valid)
        rows = [self._cached_features(*row) for row in zip(pixels.split(1), valid.split(1), strict=True)]
        return tuple(torch.from_numpy(np.concatenate(kind)).to(pixels.device) for kind in zip(*rows, strict=True))

    def _cached_features(self, pixels: Tensor, valid: Tensor) -> list[np.ndarray]:
        """`features` of one image as arrays, which never have numpy's missing type bfloat16."""

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
    """Raise InputError where the grid leaves a cell fewer than k cells outside its neighbourhood."""
    if settings.preset == "mlp":
        return
    if settings.neighbours < 1 or settings.exclusion < 0 or settings.correlation_width < 1:
        raise InputError("--neighbours and --correlation-width must be at least 1, --exclusion at least 0")
    distant = settings.grid_size**2 - min(settings.grid_size, 2 * settings.exclusion + 1) ** 2
    if distant < settings.neighbours:
        raise InputError(
            f"--image-size {settings.image_size} gives {settings.grid_size} x {settings.grid_size} cells, of which "
            f"{distant} lie further than --exclusion {settings.exclusion} from the middle one; --neighbours "
            f"{settings.neighbours} needs as many: take larger inputs"
        )


class CorrelationHead(nn.Module):
    """Head of the other presets: each cell is described together with its best match elsewhere.

    A token tells what a cell shows, never whether the same stands elsewhere in the image. So the numbers of
    correlation.py go through two 3 x 3 convolutions over the grid, and the method's MLP gets, beside the token, what
    comes out at the cell and at the cell that it matches.
    """

    def __init__(self, width: int, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.correlation_width
        tokens = settings.preset == "self-correlation"
        numbers = settings.neighbours + TOKEN_EXTRAS if tokens else PATCH_NUMBERS
        self.local = nn.Sequential(
            nn.Conv2d(numbers, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.mlp = build_head(width + 2 * channels, settings)

    def forward(self, tokens: Tensor, numbers: Tensor, match: Tensor) -> Tensor:
        """tokens (B, G, G, hidden), numbers (B, G, G, C), match (B, G, G) -> (B, G, G, D), not normalised."""
        here = self.local(numbers.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, G, G, channels)
        there = here.flatten(1, 2).gather(1, match.flatten(1)[..., None].expand(-1, -1, here.shape[3]))
        return self.mlp(torch.cat([tokens, here, there.view_as(here)], 3))


def amp_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype | None:
    """Type of the mixed-precision forward pass; None for float32. `auto` is bf16 or fp16 on a GPU, None on a CPU."""
    if settings.amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.amp)


def autocast(settings: ModelSettings, device: torch.device) -> torch.autocast:
    """Context of the forward pass, as `--amp` says."""
    dtype = amp_dtype(settings, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def check_image_size(size: int) -> None:
    """Raise InputError unless the side S is a positive multiple of the patch."""
    if size <= 0 or size % PATCH:
        below = max(1, size // PATCH) * PATCH
        raise InputError(f"--image-size {size} is not a multiple of the patch {PATCH}; try {below} or {below + PATCH}")


# Backbones --------------------------------------------------------------------------------------------------------


def load_backbone(name: str) -> nn.Module:
    """A DINOv2 backbone (transformers' `Dinov2Model`, SDPA attention, float32) from where `name` says.

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
    wrong = [f"{kind.replace('_', ' ')}: {', '.join(map(str, report[kind]))}" for kind in report if report[kind]]
    if wrong:
        raise InputError(f"{source} does not fit a DINOv2 backbone: {'; '.join(wrong)[:300]}")
    return model


def locate_backbone(name: str) -> Path:
    """Where the weights lie on this machine: a folder or a `.pth` file; downloads from the hub when it must.

    Raises:
        InputError: they are nowhere; the text names the three ways to get them. Takes at most 3 s without a network.
    """
    path = EMBEDDED_BACKBONE if name == "embedded" else Path(name)
    if path.exists():
        if path.is_dir() and not (path / "config.json").is_file():
            raise InputError(f"the folder {path} holds no config.json; {THREE_WAYS}")
        return path
    if name.endswith(".pth") or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"the backbone {name} does not exist here; {THREE_WAYS}")
    from huggingface_hub import hf_hub_url, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    files = ["config.json", "*.safetensors"]
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=files))
    except HFValidationError as fault:
        raise InputError(
            f"the backbone {name} does not exist here and is no hub name ({fault}); {THREE_WAYS}"
        ) from None
    except LocalEntryNotFoundError:
        pass
    try:
        # One short question first: the hub's client tries for 20 s and more when there is no network.
        urllib.request.urlopen(urllib.request.Request(hf_hub_url(name, "config.json"), method="HEAD"), timeout=3)
        return Path(snapshot_download(name, allow_patterns=files))
    except OSError as fault:
        raise InputError(
            f"the backbone {name} is not in the cache and cannot be fetched ({fault}); {THREE_WAYS}"
        ) from None


def _load_official(path: Path) -> nn.Module:
    """Load the official DINOv2 release's state dict; every key must find its place."""
    state = _torch_load(path)
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
    """Keys of the official DINOv2 release -> keys of `Dinov2Model`; the joint qkv projection becomes three."""
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


def random_backbone(seed: int = 0, **config: Any) -> nn.Module:
    """An untrained DINOv2 backbone, the same for the same seed.

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


def fingerprint(module: nn.Module) -> str:
    """Short hash of a module's parameters, to tell one backbone from another (64 values of each tensor)."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# Checkpoints ------------------------------------------------------------------------------------------------------


def model_state(model: ForgeryModel) -> dict[str, Any]:
    """What a checkpoint keeps of a model: settings, head, and the backbone's weights only where they were trained."""
    trained = model.settings.unfreeze_blocks > 0
    return {
        "settings": to_dict(model.settings),
        "head": model.head.state_dict(),
        "backbone": model.backbone.state_dict() if trained else None,
        "backbone_config": model.backbone.config.to_dict() if trained else None,
        "backbone_fingerprint": None if trained else fingerprint(model.backbone),
    }


def load_model_state(model: ForgeryModel, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a model of the same shape.

    Raises:
        InputError: another head size, another backbone, or missing keys.
    """
    try:
        model.head.load_state_dict(state["head"], strict=True)
        if state["backbone"] is not None:
            model.backbone.load_state_dict(state["backbone"], strict=True)
    except RuntimeError as fault:
        raise InputError(
            f"{path} was made with another head or backbone: {str(fault).splitlines()[-1].strip()}"
        ) from None
    expected = state["backbone_fingerprint"]
    if expected is not None and fingerprint(model.backbone) != expected:
        raise InputError(
            f"{path} was trained on a backbone whose weights differ from {model.settings.backbone}; "
            "give --backbone the one it was trained on"
        )


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all. A full disk raises OSError and leaves the old file as it was."""

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as fault:
            # torch's zip writer reports a failed write (a full disk) as a RuntimeError about file positions.
            cause = fault.__context__ if isinstance(fault.__context__, OSError) else None
            raise OSError(cause.errno if cause else 28, f"cannot write {path}: {cause or fault}") from fault

    atomic_write(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        FileNotFoundError: there is none.
        InputError: truncated, not a checkpoint of this project, or holding more than weights and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; train one with train.py --out {path.parent}")
    content = _torch_load(path)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT or "model" not in content:
        raise InputError(f"{path} is not a checkpoint of this project (format {CHECKPOINT_FORMAT})")
    return content


def _torch_load(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise InputError(f"{path} holds compressed parts, which torch never writes; it is not unpacked")
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than weights and plain values, or is damaged; it is not loaded, for it could run code"
        ) from None
    except Exception as fault:  # a damaged pickle also ends in IndexError, TypeError, AssertionError, struct.error
        raise InputError(
            f"{path} is truncated or not a checkpoint ({str(fault).partition(chr(10))[0] or type(fault).__name__})"
        ) from None


def ship(checkpoint: Path, clustering: Path, note: str) -> None:
    """Make a checkpoint with a frozen backbone the model that `--checkpoint embedded` means.

    Writes weights/detector.safetensors (the head, float16) and weights/detector.json (settings, clustering, note).

    Args:
        clustering: JSON of tuning.py. note: what it was trained on, and how.
    Raises:
        InputError: the checkpoint's backbone was trained with it or isn't the embedded one.
    """
    from safetensors.torch import save_file

    state = load_checkpoint(Path(checkpoint))["model"]
    if state["backbone"] is not None or state["backbone_fingerprint"] != fingerprint(load_backbone("embedded")):
        raise InputError(f"{checkpoint} does not belong to the embedded backbone; ship that one first")
    head = {name: value.half().contiguous() for name, value in state["head"].items()}
    atomic_write(SHIPPED.with_suffix(".safetensors"), lambda temporary: save_file(head, temporary))
    settings = state["settings"] | {"backbone": "embedded"}
    content = {"note": note, "settings": settings, "backbone_fingerprint": state["backbone_fingerprint"]}
    write_json(SHIPPED.with_suffix(".json"), content | {"clustering": read_json(Path(clustering))["clustering"]})


def _load_shipped() -> dict[str, Any]:
    """The shipped model, in the form of a checkpoint's content."""
    from safetensors.torch import load_file

    if not SHIPPED.with_suffix(".json").is_file():
        raise FileNotFoundError(f"no model ships: there is no {SHIPPED.with_suffix('.json')}; train one with train.py")
    content = read_json(SHIPPED.with_suffix(".json"))
    head = {name: value.float() for name, value in load_file(SHIPPED.with_suffix(".safetensors")).items()}
    model = {"settings": content["settings"], "head": head, "backbone": None, "backbone_config": None}
    model["backbone_fingerprint"] = content["backbone_fingerprint"]
    return {"format": CHECKPOINT_FORMAT, "model": model, "clustering": content["clustering"], "splits": {}}


def load_model(path: Path, backbone: str | None = None) -> tuple[ForgeryModel, dict[str, Any]]:
    """Model of a checkpoint, in eval mode on the CPU, and the checkpoint's whole content.

    Args:
        path: checkpoint, or `embedded`: the model that ships in weights/.
        backbone: where the backbone lies on this machine, if not where it lay in training.
    """
    content = _load_shipped() if str(path) == "embedded" else load_checkpoint(path)
    state = content["model"]
    try:
        settings = from_dict(ModelSettings, state["settings"] | ({"backbone": backbone} if backbone else {}))
        _check_sizes(state, settings, path)
        # A trained backbone comes with the checkpoint; only a frozen one is looked for on this machine.
        trained = random_backbone(**state["backbone_config"]) if state["backbone_config"] else None
        model = ForgeryModel(settings, trained)
        load_model_state(model, content["model"], path)
    except InputError:
        raise
    except Exception as fault:
        reason = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
        raise InputError(f"{path} does not describe a model of this project ({reason})") from fault
    return model.eval(), content


def _check_sizes(state: dict[str, Any], settings: ModelSettings, path: Path) -> None:
    """Compare the sizes that a checkpoint claims with those of its tensors, before any memory is taken for them.

    Raises:
        InputError: they differ.
    """
    convolutions = [] if settings.preset == "mlp" else [settings.correlation_width] * 2
    claimed = [*convolutions, *settings.head_widths, settings.embedding_size]
    there = [len(value) for value in state["head"].values() if value.ndim in (2, 4)]
    if claimed == there and state["backbone_config"]:
        claimed = state["backbone_config"]["num_hidden_layers"]
        there = len({name.split(".")[2] for name in state["backbone"] if name.startswith("encoder.layer.")})
        if claimed == there:
            with torch.device("meta"):
                skeleton = random_backbone(**state["backbone_config"]).state_dict()
            claimed = {name: tuple(value.shape) for name, value in skeleton.items()}
            there = {name: tuple(value.shape) for name, value in state["backbone"].items()}
    if claimed != there:
        raise InputError(f"{path} was made with another head or backbone than its settings say, or is damaged")
