"""Teach a small backbone, from a random start, to know a patch again that was turned, scaled or pasted elsewhere.

    python pretrain.py --data IMAGES --out runs/backbone            authentic images, no truth needed
    python train.py --data DIR --backbone runs/backbone/backbone --preset self-correlation --out runs/a

A step makes two views of each image of a batch: a crop, and the same crop moved, turned, scaled, mirrored and
recoloured, of which a blot is pasted into another image. A cell of one view must find its place in the other among
all cells of the other view and all distant cells of its own (InfoNCE, van den Oord et al. 2018, on the backbone's
tokens). That is the question a search for copies asks: is this content there once more, and where?

OUT gets settings.json, log.jsonl, curves.png, last.pt (for --resume) and, with every checkpoint, backbone/ in the
format of transformers' `Dinov2Model`. SIGTERM and Ctrl-C save and end with status 143 and 130.
"""

from config import PretrainSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(PretrainSettings)  # above the heavy imports: `--help` and mistakes answer at once

import json
import math
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from config import PATCH
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, exclusive_lock, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONTENT_SIZE = 462  # longer side of an image, in pixels, at which views of scale 1 are taken
NEAR = 2  # cells of the own view this near (Chebyshev) are no contrast: they show partly the same
BLANK = 2.0  # cells whose grey values deviate by less than this, of 255, cannot be told apart and are no anchors
POSITION_WIDTH = 64  # channels of the tokens that begin as a code of the position
CURVES = {
    "loss": ("loss",),
    "share of cells that find their place": ("recall",),
    "learning rate": ("learning_rate",),
}


# Views ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two views of an image, N = G * G cells each.

    images: (2, S, S, 3) uint8 RGB. places: (2, N, 4) int64 and shares: (2, N, 4) float32: the four cells of the other
    view around the place of a cell, and their bilinear weights; all zero where a cell is no anchor.
    """

    images: np.ndarray
    places: np.ndarray
    shares: np.ndarray


@dataclass
class Views:
    """Makes pairs out of images that are kept in memory in two sizes."""

    images: list[np.ndarray]  # (H, W, 3) uint8 RGB
    size: int  # S, side of a view in pixels
    levels: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # longer side 1 and 2 x CONTENT_SIZE

    def __post_init__(self) -> None:
        from images.letterbox import LetterboxedImage

        none = [np.zeros((0, *image.shape[:2]), bool) for image in self.images]
        for image, masks in zip(self.images, none, strict=True):
            sizes = (CONTENT_SIZE, 2 * CONTENT_SIZE)
            self.levels.append(tuple(LetterboxedImage.of(image, masks, size).image for size in sizes))
        self.images = []

    def pair(self, index: int, rng: np.random.Generator, difficulty: float = 1.0) -> Pair:
        """A pair of views of image `index`; `difficulty` 0 to 1, see `random_change`."""
        base = self._base(index, rng)
        first, inside = self._view(index, base)
        change = random_change(self.size, rng, difficulty)
        second, inside_second = self._view(index, change @ base)
        shown = inside_second
        if rng.random() < 0.7:
            blot = random_blot(self.size, rng)
            other = int(rng.integers(len(self.levels)))
            second = np.where(blot[..., None], second, self._view(other, self._base(other, rng))[0])
            shown = inside_second & blot
        visible = (inside, shown)
        maps = (change, np.linalg.inv(change))
        found = [
            correspond(maps[k], anchors(view, visible[k]), visible[1 - k]) for k, view in enumerate((first, second))
        ]
        images = np.stack([recolour(view, rng) for view in (first, second)])
        return Pair(images, np.stack([f[0] for f in found]), np.stack([f[1] for f in found]))

    def _base(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """(3, 3) map from pixels of the small level to a view: scale 0.8 to 2, inside the image where it can be."""
        height, width = self.levels[index][0].shape[:2]
        scale = math.exp(rng.uniform(math.log(0.8), math.log(2.0)))
        half = self.size / scale / 2
        centre = [rng.uniform(half, side - half) if side > 2 * half else side / 2 for side in (width, height)]
        middle = (self.size - 1) / 2
        return np.array([[scale, 0, middle - scale * centre[0]], [0, scale, middle - scale * centre[1]], [0, 0, 1.0]])

    def _view(self, index: int, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The view (S, S, 3) uint8, and (S, S) bool where it shows the image."""
        from images.letterbox import PADDING

        small, large = self.levels[index]
        scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        source = small
        if scale > 1:
            ratio_x, ratio_y = small.shape[1] / large.shape[1], small.shape[0] / large.shape[0]
            # Pixel centres: (x + 0.5) * ratio - 0.5.
            shrink = np.array([[ratio_x, 0, ratio_x / 2 - 0.5], [0, ratio_y, ratio_y / 2 - 0.5], [0, 0, 1.0]])
            source, matrix = large, matrix @ shrink
        shape = (self.size, self.size)
        view = cv2.warpAffine(source, matrix[:2], shape, flags=cv2.INTER_LINEAR, borderValue=PADDING)
        whole = np.ones(source.shape[:2], np.uint8)
        return view, cv2.warpAffine(whole, matrix[:2], shape, flags=cv2.INTER_NEAREST) > 0


def random_change(size: int, rng: np.random.Generator, difficulty: float = 1.0) -> np.ndarray:
    """(3, 3) map of one view into the other: a similarity about the middle, and a shift.

    Tokens of patches that lie the same way match from the first step on, those of patches cut elsewhere hardly at all:
    2 px of shift take the share of cells that find their place from 0.7 to 0.2. So the changes begin small. At
    `difficulty` 0 the shift is by whole cells; half of a cell comes with 1. From 0.3 on there are rotations, scales
    and mirror images, at 1 in half of the pairs.
    """
    angle, scale, flip = 0.0, 1.0, 1.0
    change = max(0.0, (difficulty - 0.3) / 0.7)
    if rng.random() < 0.5 * change:
        kind = rng.random()
        angle = 90.0 * rng.integers(4) if kind < 0.3 else rng.uniform(-180, 180) * change if kind < 0.7 else 0.0
        scale = math.exp(change * rng.uniform(math.log(0.6), math.log(1.6))) if rng.random() < 0.5 else 1.0
        flip = -1.0 if rng.random() < 0.35 else 1.0
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    linear = scale * np.array([[flip * cosine, -sine], [flip * sine, cosine]])
    middle = np.full(2, (size - 1) / 2)
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    shift = PATCH * (rng.integers(-1, 2, 2) + difficulty * rng.uniform(-0.5, 0.5, 2))
    matrix[:2, 2] = middle - linear @ middle + shift
    return matrix


def random_blot(size: int, rng: np.random.Generator) -> np.ndarray:
    """(S, S) bool: a smooth random area, 30 to 70 % of the view."""
    coarse = rng.standard_normal((int(rng.integers(3, 7)),) * 2).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return smooth > np.quantile(smooth, rng.uniform(0.3, 0.7))


def recolour(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast, blur, noise, JPEG: each on some views."""
    if rng.random() < 0.5:
        view = cv2.convertScaleAbs(view, alpha=rng.uniform(0.75, 1.3), beta=rng.uniform(-25, 25))
    if rng.random() < 0.15:
        view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.2:
        noise = rng.normal(0, rng.uniform(2, 8), view.shape)
        view = np.clip(view + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, data = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])
        view = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return view


def anchors(view: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """(N,) bool: the cells of a view (S, S, 3) that show something and whose half at least is visible, (S, S) bool."""
    grid = view.shape[0] // PATCH
    cells = (grid, PATCH, grid, PATCH)
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).reshape(cells)
    return ((grey.std(axis=(1, 3)) >= BLANK) & (visible.reshape(cells).mean(axis=(1, 3)) >= 0.5)).ravel()


def correspond(matrix: np.ndarray, anchor: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the cells of a view lie in another.

    Args:
        matrix: (3, 3), pixel (x, y, 1) of the view -> pixel of the other. anchor: (N,) bool, the cells to ask for.
        visible: (S, S) bool, where the other view shows the same content.
    Returns:
        places (N, 4) int64 and shares (N, 4) float32, see `Pair`. No anchor any more: what falls outside the other's
        cells or on what isn't visible.
    """
    size = len(visible)
    grid = size // PATCH
    row, column = np.divmod(np.arange(grid * grid), grid)
    centres = np.stack([column, row, np.zeros_like(row)]) * PATCH + np.array([[6.5], [6.5], [1.0]])
    x, y = (matrix @ centres)[:2]
    at_x, at_y = (np.clip(np.rint(v), 0, size - 1).astype(np.int64) for v in (x, y))
    u, v = (x + 0.5) / PATCH - 0.5, (y + 0.5) / PATCH - 0.5  # in cells, whole at their centres
    inside = (np.minimum(u, v) >= -0.5) & (np.maximum(u, v) <= grid - 0.5) & visible[at_y, at_x]
    u, v = np.clip(u, 0, grid - 1), np.clip(v, 0, grid - 1)
    left, top = np.minimum(u.astype(np.int64), grid - 2), np.minimum(v.astype(np.int64), grid - 2)
    du, dv = u - left, v - top
    places = np.stack([top * grid + left, top * grid + left + 1, (top + 1) * grid + left, (top + 1) * grid + left + 1])
    shares = np.stack([(1 - dv) * (1 - du), (1 - dv) * du, dv * (1 - du), dv * du]) * (anchor & inside)
    return places.T, shares.T.astype(np.float32)


# Model ----------------------------------------------------------------------------------------------------------


def dct_filters(count: int) -> np.ndarray:
    """(count, 3, 14, 14) float32 filters: the lowest cosine waves of grey, and of two colour differences.

    Each has a norm in proportion to its frequency, since the amplitudes of images fall about as 1 / frequency, so
    that all answer about as strongly. Of five filters three are grey.
    """
    order = sorted(((u, v) for u in range(PATCH) for v in range(PATCH)), key=lambda w: (sum(w), abs(w[0] - w[1]), w))
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float64)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    position = (np.arange(PATCH) + 0.5) * np.pi / PATCH
    chosen = [0, 1, 0, 2, 0]
    used = [0, 0, 0]
    filters = np.zeros((count, 3, PATCH, PATCH), np.float32)
    for i in range(count):
        colour = chosen[i % len(chosen)]
        u, v = order[used[colour]]
        used[colour] += 1
        wave = np.outer(np.cos(u * position), np.cos(v * position))
        gain = (1 + u + v) / 4 if u + v else 1 / 60  # found on the images: about 0.5 for all, in normalised pixels
        wave *= gain / np.linalg.norm(wave)
        filters[i] = colours[colour][:, None, None] * wave
    return filters


def set_local_start(backbone: "nn.Module") -> None:
    """Let a random backbone begin as filters of the patch and as a look at the neighbouring cells.

    The patch projection begins with cosine waves (`dct_filters`).

    A transformer from a random start first has to find out which tokens are neighbours, which takes more images
    than a CPU sees in hours. So, in the manner of ConViT (d'Ascoli et al. 2021), `POSITION_WIDTH` channels of the
    tokens begin as random Fourier features of the position (Rahimi and Recht 2007), whose inner product falls off
    like a Gaussian with the distance, and queries and keys of all but the last two blocks as maps of those channels:
    each head looks at one cell, its own or one of the eight around it. Everything stays free to learn.
    """
    import torch

    c = backbone.config
    half = POSITION_WIDTH // 2
    j = torch.arange(half)
    radius = 0.9 * torch.sqrt(-2 * torch.log1p(-(j + 0.5) / half))  # radians per cell, of a 2-D normal distribution
    turn = j * math.pi * (3 - math.sqrt(5))
    waves = torch.stack([radius * torch.cos(turn), radius * torch.sin(turn)], 1)  # (half, 2)
    grid = c.image_size // c.patch_size
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    phase = torch.stack([column, row], -1).reshape(-1, 2).float() @ waves.T  # (grid^2, half)
    steps = [(0, 0), (1, 0), (-1, 0), (0, 0), (0, 1), (0, -1), (0, 0), (1, 1), (-1, -1), (0, 0), (1, -1), (-1, 1)]
    with torch.no_grad():
        embeddings = backbone.embeddings
        projection = embeddings.patch_embeddings.projection
        projection.weight[:-POSITION_WIDTH] = torch.from_numpy(dct_filters(c.hidden_size - POSITION_WIDTH))
        projection.weight[-POSITION_WIDTH:] = 0
        embeddings.position_embeddings.zero_()
        embeddings.position_embeddings[0, 1:, -POSITION_WIDTH:] = 0.5 * torch.cat([phase.cos(), phase.sin()], 1)
        backbone.layernorm.weight[-POSITION_WIDTH:] = 0.1  # the place is no part of a patch's look
        width = c.hidden_size // c.num_attention_heads
        for b, block in enumerate(backbone.encoder.layer[:-2]):
            for h in range(c.num_attention_heads):
                dx, dy = steps[(b * c.num_attention_heads + h) % len(steps)]
                shift = waves @ torch.tensor([float(dx), float(dy)])
                cosine, sine = torch.diag(shift.cos()), torch.diag(shift.sin())
                # cos(p + s) = cos p cos s - sin p sin s, sin(p + s) = sin p cos s + cos p sin s
                moved = torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])
                place = slice(h * width, h * width + POSITION_WIDTH)
                block.attention.q_proj.weight[place, -POSITION_WIDTH:] = 1.5 * moved
                block.attention.k_proj.weight[place, -POSITION_WIDTH:] = 1.5 * torch.eye(POSITION_WIDTH)


def tokens(backbone: "nn.Module", pixels: "Tensor", corners: "Tensor") -> "Tensor":
    """Unit tokens (B, N, D) of views (B, 3, S, S) that lie in the backbone's own grid with their corner at `corners`.

    Interpolated position embeddings would make neighbours of a small view look further apart than those of a whole
    image; instead each view takes a window of them, at another place each time, corners (B, 2) int64 (row, column).
    """
    import torch
    from torch.nn import functional as F

    e, c = backbone.embeddings, backbone.config
    patches = e.patch_embeddings(pixels)
    side, grid = pixels.shape[-1] // PATCH, c.image_size // c.patch_size
    step = torch.arange(side)
    rows, columns = corners[:, :1] + step, corners[:, 1:] + step  # (B, side)
    index = (rows[:, :, None] * grid + columns[:, None, :]).flatten(1)  # (B, side^2)
    position = e.position_embeddings[0]
    whole = torch.cat([(e.cls_token + position[:1]).expand(len(pixels), -1, -1), patches + position[1:][index]], 1)
    out = backbone.layernorm(backbone.encoder(whole).last_hidden_state)[:, 1:]
    return F.normalize(out.float(), dim=-1)


def correspondence_loss(
    z: "Tensor", places: "Tensor", shares: "Tensor", temperature: "Tensor | float"
) -> "tuple[Tensor, Tensor]":
    """InfoNCE of cells that look for their place in the other view.

    Args:
        z: (B, 2, N, D) float32 unit vectors of both views. places: (B, 2, N, 4) int64. shares: (B, 2, N, 4) float32.
    Returns:
        Loss: mean over the anchors of both views of -log of the probability that falls on the right four cells, each
        weighted by its share, where the probability is a softmax of similarity / temperature over all cells of the
        other view and the cells of the own view further than `NEAR`. And the share of anchors whose most similar
        cell is one of the four. Both float32 scalars; 0 without any anchor.
    """
    import torch

    grid = math.isqrt(z.shape[2])
    row, column = torch.arange(z.shape[2]) // grid, torch.arange(z.shape[2]) % grid
    near = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()) <= NEAR
    across = z @ z.flip(1).transpose(2, 3) / temperature  # (B, 2, N, N)
    within = (z @ z.transpose(2, 3) / temperature).masked_fill(near, -math.inf)
    both = torch.cat([across, within], 3)
    log_probability = across.gather(3, places) - both.logsumexp(3, keepdim=True)
    anchor = shares.sum(3) > 0
    count = anchor.sum().clamp(min=1)
    found = (both.argmax(3, keepdim=True) == places).any(3) & anchor
    return -(shares * log_probability).sum() / count, found.sum() / count


# Loop -----------------------------------------------------------------------------------------------------------


def main(settings: PretrainSettings) -> int:
    """Train; returns the exit status."""
    check(settings)
    with exclusive_lock(settings.out):
        return train(settings)


def train(settings: PretrainSettings) -> int:
    """Train in a folder that no other run works in; returns the exit status."""
    import torch
    from tqdm import tqdm

    from model import load_checkpoint, random_backbone
    from train import Interrupt, Log, Progress

    last = settings.out / "last.pt"
    if last.exists() and not settings.resume:
        raise InputError(f"{settings.out} holds a run already; go on with --resume or choose another --out")
    checkpoint = load_checkpoint(last) if settings.resume else None
    views = Views(read_images(settings), settings.view_size)
    backbone = random_backbone(settings.seed)
    set_local_start(backbone)
    backbone.log_temperature = torch.nn.Parameter(torch.tensor(math.log(settings.temperature)))
    optimizer = torch.optim.AdamW(backbone.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    progress = Progress()
    if checkpoint:
        check_same_run(checkpoint["settings"], settings)
        backbone.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        progress = Progress(**checkpoint["progress"])
    settings.out.mkdir(parents=True, exist_ok=True)
    for left in settings.out.glob(".*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_json(settings.out / "settings.json", to_dict(settings))
    log, interrupt, saved = Log(settings.out, progress), Interrupt(), time.monotonic()
    bar = tqdm(initial=progress.total_steps, total=settings.steps, unit="step")
    while progress.total_steps < settings.steps and not interrupt.signal:
        started = time.perf_counter()
        values = train_step(settings, views, backbone, optimizer, progress.total_steps)
        progress.total_steps += 1
        values["seconds"] = time.perf_counter() - started
        log.write("step", progress.total_steps, {"epoch": 0, **values})
        bar.set_postfix(loss=f"{values['loss']:.3f}", recall=f"{values['recall']:.3f}")
        bar.update()
        if time.monotonic() - saved >= settings.checkpoint_seconds:
            save(settings, backbone, optimizer, progress)
            saved = time.monotonic()
    bar.close()
    save(settings, backbone, optimizer, progress)
    log.events.close()
    return 128 + interrupt.signal if interrupt.signal else 0


def check(settings: PretrainSettings) -> None:
    """Raise InputError for a setting out of its range."""
    from model import check_image_size

    check_image_size(settings.view_size)
    if not 4 * PATCH <= settings.view_size <= CONTENT_SIZE:
        raise InputError(f"--view-size {settings.view_size}; allowed: {4 * PATCH} to {CONTENT_SIZE}")
    for name in ("steps", "batch_size"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")


def check_same_run(before: dict[str, Any], settings: PretrainSettings) -> None:
    """Raise InputError where settings that change what is learned differ from those of the run that was stopped."""
    free = {"resume", "out", "checkpoint_seconds", "data"}
    now = to_dict(settings)
    if changed := sorted(name for name in now if name not in free and now[name] != before.get(name)):
        raise InputError(f"{settings.out} belongs to other settings: {', '.join(changed)}; give the same ones")


def read_images(settings: PretrainSettings) -> list[np.ndarray]:
    """All authentic images of the folder, in the order of their names."""
    from images.folders import find_images
    from images.pairs import read_pairs, readable_images

    scenes, skipped = readable_images(find_images(settings.data.data), settings.data)
    authentic = [scene for scene in scenes if scene.forged is False]
    if not authentic:
        raise InputError(f"{settings.data.data} holds no authentic images; give a folder that does")
    images = [image for _, image, _ in read_pairs(authentic, settings.data, skipped)]
    for line in skipped:
        print(f"left out: {line}")
    return images


def train_step(
    settings: PretrainSettings,
    views: Views,
    backbone: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    step: int,
) -> dict[str, float]:
    """One optimiser step; what it sees depends on the seed and the step alone."""
    import torch

    from model import to_pixels

    rng = np.random.default_rng([settings.seed, step])
    chosen = rng.integers(len(views.levels), size=settings.batch_size)
    difficulty = min(1.0, step / max(1, settings.ramp_steps))
    pairs = [views.pair(int(index), rng, difficulty) for index in chosen]
    images = torch.from_numpy(np.concatenate([pair.images for pair in pairs]))
    side, grid = settings.view_size // PATCH, backbone.config.image_size // PATCH
    corners = torch.from_numpy(rng.integers(0, grid - side + 1, (len(images), 2)))
    z = tokens(backbone, to_pixels(images), corners).unflatten(0, (len(pairs), 2))
    places, shares = (torch.from_numpy(np.stack([getattr(p, name) for p in pairs])) for name in ("places", "shares"))
    loss, recall = correspondence_loss(z, places, shares, backbone.log_temperature.exp())
    if not math.isfinite(loss.item()):
        raise InputError(f"the loss is not finite in step {step + 1}; lower --learning-rate and go on with --resume")
    rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup_steps)
    rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "recall": recall.item(), "gradient_norm": float(norm), "learning_rate": rate} | {
        "temperature": math.exp(backbone.log_temperature.item())
    }


def save(settings: PretrainSettings, backbone: "nn.Module", optimizer: Any, progress: Any) -> None:
    """Write last.pt, backbone/ and the curves."""
    import copy
    from dataclasses import asdict

    from model import CHECKPOINT_FORMAT, save_checkpoint
    from report.training_page import plot_training

    content = {"format": CHECKPOINT_FORMAT, "model": backbone.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"progress": asdict(progress), "settings": to_dict(settings)}
    save_checkpoint(settings.out / "last.pt", content)
    shipped = copy.deepcopy(backbone).half()
    del shipped.log_temperature
    save_backbone(shipped, settings.out / "backbone")
    lines = [json.loads(line) for line in (settings.out / "log.jsonl").read_text().splitlines()]
    if lines:
        width = max(1, len(lines) // 200)  # means over some steps: single batches differ a lot
        names = [name for group in CURVES.values() for name in group]
        groups = [lines[i : i + width] for i in range(0, len(lines), width)]
        means = [
            {"total_steps": g[-1]["total_steps"]} | {n: float(np.mean([line[n] for line in g])) for n in names}
            for g in groups
        ]
        plot_training(means, settings.out / "curves.png", curves=CURVES)


def save_backbone(backbone: "nn.Module", folder: Path) -> None:
    """Write a backbone in transformers' format, each file whole or not at all. config.json, without which no folder is
    taken for a backbone, comes last; it is the same at every checkpoint of a run, so files of two make a whole one."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as temporary:
        backbone.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == "config.json"):
            atomic_write(folder / path.name, path.rename)


if __name__ == "__main__":
    run(main, SETTINGS)
