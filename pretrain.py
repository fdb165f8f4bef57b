"""Train a small backbone from random weights to recognise a patch after it was rotated, scaled or pasted elsewhere.

    python pretrain.py --data IMAGES --out runs/backbone            authentic images, no truth needed
    python train.py --data DIR --backbone runs/backbone/backbone --preset self-correlation --out runs/a

A step makes two views of each image of a batch: a crop, and the same crop shifted, rotated, scaled, mirrored and
recoloured, of which a part is pasted into another image. Each cell of one view must find its place in the other one
among all cells of the other view and the distant cells of its own (InfoNCE on the backbone's tokens). A search for
copies asks the same question: is this content there a second time, and where?

OUT gets settings.json, log.jsonl, curves.png, last.pt (for --resume) and, with every checkpoint, backbone/ in the
format of transformers' `Dinov2Model`. SIGTERM and Ctrl-C save and end with status 143 and 130.
"""

from config import PretrainSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(PretrainSettings)  # above the heavy imports: `--help` and mistakes answer at once

import copy
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from backbones import random_backbone, set_local_start
from checkpoints import save_checkpoint
from config import PATCH
from images.folders import find_images
from images.pairs import read_pairs, readable_images
from losses import correspondence_loss
from model import check_image_size, to_pixels
from report.training_page import plot_training
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, exclusive_lock, write_json
from training_run import (
    Interrupt,
    Log,
    Progress,
    check_same_settings,
    open_last_checkpoint,
    remove_unfinished_files,
)
from views import BASE_SIZE, ViewMaker

# Settings that may change when a run goes on: they do not change what is learned.
FREE_ON_RESUME = {"resume", "out", "checkpoint_seconds"}
FREE_ON_RESUME |= {"data", "skip_unreadable", "max_megapixels"}
CURVES = {  # panel of curves.png -> names in the log
    "loss": ("loss",),
    "share of cells that find their place": ("recall",),
    "learning rate": ("learning_rate",),
}


def main(settings: PretrainSettings) -> int:
    """Train; returns the exit status."""
    check_settings(settings)
    with exclusive_lock(settings.out):
        return train(settings)


def check_settings(settings: PretrainSettings) -> None:
    """Raise InputError for a setting out of its range."""
    check_image_size(settings.view_size)
    if not 4 * PATCH <= settings.view_size <= BASE_SIZE:
        raise InputError(f"--view-size {settings.view_size}; allowed: {4 * PATCH} to {BASE_SIZE}")
    for name in ("steps", "batch_size"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")


def train(settings: PretrainSettings) -> int:
    """Train in a folder in which no other run works; returns the exit status."""
    checkpoint = open_last_checkpoint(settings.out / "last.pt", settings.resume)
    views = ViewMaker(read_authentic_images(settings), settings.view_size)
    backbone = random_backbone(settings.seed)
    set_local_start(backbone)
    backbone.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
    optimizer = torch.optim.AdamW(backbone.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    progress = Progress()
    if checkpoint:
        check_same_settings(checkpoint["settings"], settings, FREE_ON_RESUME, settings.out / "last.pt")
        backbone.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        progress = Progress(**checkpoint["progress"])
    settings.out.mkdir(parents=True, exist_ok=True)
    remove_unfinished_files(settings.out)
    write_json(settings.out / "settings.json", to_dict(settings))
    log, interrupt, saved_at = Log(settings.out, progress), Interrupt(), time.monotonic()
    bar = tqdm(initial=progress.total_steps, total=settings.steps, unit="step")
    while progress.total_steps < settings.steps and not interrupt.signal:
        started = time.perf_counter()
        values = train_step(settings, views, backbone, optimizer, progress.total_steps)
        progress.total_steps += 1
        values["seconds"] = time.perf_counter() - started
        log.write("step", progress.total_steps, {"epoch": 0, **values})
        bar.set_postfix(loss=f"{values['loss']:.3f}", recall=f"{values['recall']:.3f}")
        bar.update()
        if time.monotonic() - saved_at >= settings.checkpoint_seconds:
            save(settings, backbone, optimizer, progress, log)
            saved_at = time.monotonic()
    bar.close()
    save(settings, backbone, optimizer, progress, log)
    log.events.close()
    return 128 + interrupt.signal if interrupt.signal else 0


def read_authentic_images(settings: PretrainSettings) -> list[np.ndarray]:
    """Read all authentic images of the folder, (H, W, 3) uint8 RGB, in the order of their names."""
    image_files, skipped = readable_images(find_images(settings.data.data), settings.data)
    authentic = [image_file for image_file in image_files if image_file.forged is False]
    if not authentic:
        raise InputError(f"{settings.data.data} holds no authentic images; give a folder that does")
    images = [image for _, image, _ in read_pairs(authentic, settings.data, skipped)]
    for line in skipped:
        print(f"left out: {line}")
    return images


def train_step(
    settings: PretrainSettings, views: ViewMaker, backbone: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    """Make one optimiser step; the images and views it takes depend on the seed and the step alone."""
    rng = np.random.default_rng([settings.seed, step])
    chosen = rng.integers(len(views), size=settings.batch_size)
    difficulty = min(1.0, step / max(1, settings.ramp_steps))
    pairs = [views.make_pair(int(index), rng, difficulty) for index in chosen]
    images = torch.from_numpy(np.concatenate([pair.images for pair in pairs]))
    places = torch.from_numpy(np.stack([pair.places for pair in pairs]))
    weights = torch.from_numpy(np.stack([pair.weights for pair in pairs]))
    side, grid = settings.view_size // PATCH, backbone.config.image_size // PATCH
    corners = torch.from_numpy(rng.integers(0, grid - side + 1, (len(images), 2)))
    z = embed_views(backbone, to_pixels(images), corners).unflatten(0, (len(pairs), 2))
    loss, recall = correspondence_loss(z, places, weights, backbone.log_temperature.exp())
    if not math.isfinite(loss.item()):
        raise InputError(f"the loss is not finite in step {step + 1}; lower --learning-rate and go on with --resume")
    rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup_steps)
    rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()
    norm = nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": loss.item(),
        "recall": recall.item(),
        "gradient_norm": float(norm),
        "learning_rate": rate,
        "temperature": math.exp(backbone.log_temperature.item()),
    }


def embed_views(backbone: nn.Module, pixels: Tensor, corners: Tensor) -> Tensor:
    """Embed views as if each were cut out of an image of the backbone's full size.

    Position embeddings that are interpolated for a small view would make its cells look further apart than those of a
    whole image. Instead each view takes a window of them, at another place each time.

    Args:
        pixels: (B, 3, S, S) float32, normalised. corners: (B, 2) int64, row and column of the window's first cell.
    Returns:
        (B, N, D) float32 unit vectors, N = (S / 14)^2.
    """
    embeddings, config = backbone.embeddings, backbone.config
    patches = embeddings.patch_embeddings(pixels)
    side, grid = pixels.shape[-1] // PATCH, config.image_size // config.patch_size
    step = torch.arange(side)
    rows, columns = corners[:, :1] + step, corners[:, 1:] + step  # (B, side)
    window = (rows[:, :, None] * grid + columns[:, None, :]).flatten(1)  # (B, side^2)
    position = embeddings.position_embeddings[0]
    class_token = (embeddings.cls_token + position[:1]).expand(len(pixels), -1, -1)
    tokens = torch.cat([class_token, patches + position[1:][window]], 1)
    output = backbone.layernorm(backbone.encoder(tokens).last_hidden_state)[:, 1:]
    return F.normalize(output.float(), dim=-1)


def save(
    settings: PretrainSettings, backbone: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, log: Log
) -> None:
    """Write last.pt, backbone/ and the curves."""
    content = {"model": backbone.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(settings.out / "last.pt", content | {"progress": asdict(progress), "settings": to_dict(settings)})
    shipped = copy.deepcopy(backbone).half()
    del shipped.log_temperature
    save_backbone(shipped, settings.out / "backbone")
    lines = log.read()
    if lines:
        width = max(1, len(lines) // 200)  # means over some steps, for single batches differ a lot
        names = [name for group in CURVES.values() for name in group]
        groups = [lines[i : i + width] for i in range(0, len(lines), width)]
        means = [
            {"total_steps": group[-1]["total_steps"]} | {n: float(np.mean([line[n] for line in group])) for n in names}
            for group in groups
        ]
        plot_training(means, settings.out / "curves.png", curves=CURVES)


def save_backbone(backbone: nn.Module, folder: Path) -> None:
    """Write a backbone in transformers' format, each file whole or not at all.

    config.json comes last, for a folder without it is not taken for a backbone. It is the same at every checkpoint of
    a run: so it also fits the weights of the checkpoint before or after.
    """
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as temporary:
        backbone.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == "config.json"):
            atomic_write(folder / path.name, path.rename)


if __name__ == "__main__":
    run(main, SETTINGS)
