"""Checkpoints: what they keep of a model, how a model is made of one again, and the model that ships in weights/.

    model, content = load_model(Path("runs/a/best.pt"))     # ForgeryModel in eval mode; the checkpoint's whole content

A checkpoint holds tensors and plain values only, so that reading one from a stranger cannot run code. Names of
settings from before a renaming are understood (`runtime.command_line.from_dict`).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from backbones import fingerprint, load_backbone, random_backbone
from config import EMBEDDED_BACKBONE, ModelSettings
from model import ForgeryModel
from runtime.command_line import from_dict, to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json
from runtime.tensor_files import load_tensors, save_tensors

SHIPPED = EMBEDDED_BACKBONE / "detector"  # .json and .safetensors of what `--checkpoint embedded` means
CHECKPOINT_FORMAT = 1  # raised when a checkpoint's content changes its meaning


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all. A full disk raises OSError and leaves the old file as it was.

    Args:
        content: tensors and plain values; `model` as from `model_state` where `load_model` is to read it.
    """
    save_tensors(path, {"format": CHECKPOINT_FORMAT} | content)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        FileNotFoundError: there is none.
        InputError: truncated, not a checkpoint of this project, or holding more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; train one with train.py --out {path.parent}")
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT or "model" not in content:
        raise InputError(f"{path} is not a checkpoint of this project (format {CHECKPOINT_FORMAT})")
    return content


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
    """Put the weights of a checkpoint's `model_state` into a model of the same shape, in place.

    Args:
        path: the checkpoint, for messages.
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


def load_model(path: Path, backbone: str | None = None) -> tuple[ForgeryModel, dict[str, Any]]:
    """Make the model of a checkpoint, in eval mode on the CPU.

    Args:
        path: checkpoint, or `embedded`: the model that ships in weights/.
        backbone: where the backbone lies on this machine, if not where it lay in training.
    Returns:
        The model, and the checkpoint's whole content.
    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged, or its content does not fit together or to the backbone.
    """
    content = _load_shipped() if str(path) == "embedded" else load_checkpoint(path)
    state = content["model"]
    try:
        settings = from_dict(ModelSettings, state["settings"] | ({"backbone": backbone} if backbone else {}))
        _check_sizes(state, settings, path)
        # A trained backbone comes with the checkpoint; only a frozen one is looked for on this machine.
        trained = random_backbone(**state["backbone_config"]) if state["backbone_config"] else None
        model = ForgeryModel(settings, trained)
        load_model_state(model, state, path)
    except InputError:
        raise
    except Exception as fault:  # a checkpoint from a stranger may hold anything in any place
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
    present = [len(value) for value in state["head"].values() if value.ndim in (2, 4)]
    if claimed == present and state["backbone_config"]:
        claimed = state["backbone_config"]["num_hidden_layers"]
        present = len({name.split(".")[2] for name in state["backbone"] if name.startswith("encoder.layer.")})
        if claimed == present:
            with torch.device("meta"):
                skeleton = random_backbone(**state["backbone_config"]).state_dict()
            claimed = {name: tuple(value.shape) for name, value in skeleton.items()}
            present = {name: tuple(value.shape) for name, value in state["backbone"].items()}
    if claimed != present:
        raise InputError(f"{path} was made with another head or backbone than its settings say, or is damaged")


# The model that ships -----------------------------------------------------------------------------------------------


def ship(checkpoint: Path, clustering: Path, note: str) -> None:
    """Make a checkpoint with a frozen backbone the model that `--checkpoint embedded` means.

    Writes weights/detector.safetensors (the head, float16) and weights/detector.json (settings, clustering, note).

    Args:
        clustering: JSON of tuning.py. note: what it was trained on, and how.
    Raises:
        InputError: the checkpoint's backbone was trained with it or isn't the embedded one.
    """
    state = load_checkpoint(Path(checkpoint))["model"]
    if state["backbone"] is not None or state["backbone_fingerprint"] != fingerprint(load_backbone("embedded")):
        raise InputError(f"{checkpoint} does not belong to the embedded backbone; ship that one first")
    head = {name: value.half().contiguous() for name, value in state["head"].items()}
    atomic_write(SHIPPED.with_suffix(".safetensors"), lambda temporary: save_file(head, temporary))
    settings = to_dict(from_dict(ModelSettings, state["settings"] | {"backbone": "embedded"}))
    content = {"note": note, "settings": settings, "backbone_fingerprint": state["backbone_fingerprint"]}
    write_json(SHIPPED.with_suffix(".json"), content | {"clustering": read_json(Path(clustering))["clustering"]})


def _load_shipped() -> dict[str, Any]:
    """The shipped model, in the form of a checkpoint's content."""
    if not SHIPPED.with_suffix(".json").is_file():
        raise FileNotFoundError(f"no model ships: there is no {SHIPPED.with_suffix('.json')}; train one with train.py")
    content = read_json(SHIPPED.with_suffix(".json"))
    head = {name: value.float() for name, value in load_file(SHIPPED.with_suffix(".safetensors")).items()}
    model = {"settings": content["settings"], "head": head, "backbone": None, "backbone_config": None}
    model["backbone_fingerprint"] = content["backbone_fingerprint"]
    return {"format": CHECKPOINT_FORMAT, "model": model, "clustering": content["clustering"], "splits": {}}
