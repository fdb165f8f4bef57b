"""Train the network that redraws the outlines of proven copies; it is written as ONNX, which OpenCV runs."""

import itertools
import math
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy import choose_images
from benchmarks.mask_refiner_windows import Window, read_windows
from config import MaskRefinerSettings
from copymove.mask_refiner import INPUT_NAMES, network_input
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.workers import map_in_processes

VALIDATION_SHARE = 10  # one base image in so many is not trained on, only scored
DICE_SMOOTHING = 20  # pixels


class MaskRefinerNet(nn.Module):
    """Log-odds (B, 1, h, w) that a pixel of the template belongs to the copy.

    Its inputs are `copymove.mask_refiner.network_input` (B, 10, h, w) and the masks (B, 3, h, w) of 0 and 1: measured
    region, valid, informative. h and w are multiples of `copymove.mask_refiner.STEP`.

    Template and partner pass through the same two convolutions. Their product, difference and mean go on to a small
    U-Net (Ronneberger, Fischer and Brox 2015), since the surroundings tell where an outline may run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_conv(4, 12), nn.ReLU(), _conv(12, 12))
        self.compare = nn.Conv2d(3 * 12 + 2 + 4 + 3, 16, 1)
        widths = (16, 32, 48, 48)
        steps = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(_conv(a, b, stride=2) for a, b in steps)
        self.deep = nn.ModuleList(_conv(b, b) for _, b in steps)
        self.up = nn.ModuleList(nn.Conv2d(a + b, a, 1) for a, b in reversed(steps))
        self.smooth = nn.ModuleList(_conv(a, a) for a, _ in reversed(steps))
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        template, partner, difference = features[:, :4], features[:, 4:8], features[:, 8:]
        a, b = self.encoder(template), self.encoder(partner)
        compared = [a * b, (a - b).abs(), 0.5 * (a + b), difference, template * partner, masks]
        levels = [F.relu(self.compare(torch.cat(compared, 1)))]
        for down, deep in zip(self.down, self.deep, strict=True):
            smaller = F.relu(down(levels[-1]))
            levels.append(smaller + F.relu(deep(smaller)))
        x = levels.pop()
        for up, smooth in zip(self.up, self.smooth, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = F.relu(up(torch.cat([levels.pop(), x], 1)))
            x = x + F.relu(smooth(x))
        return self.out(x)


def _conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride=stride, padding=1)


def train_mask_refiner(settings: MaskRefinerSettings) -> None:
    """Cut the windows of all forgeries, train the network and write it after every epoch."""
    for name in ("epochs", "batch_size", "learning_rate"):
        if (value := getattr(settings, name)) <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be over 0")
    forgeries = [f.image for folder in settings.data for f in choose_images(folder, settings.limit) if f.forged]
    for path in forgeries:
        if not path.with_suffix(".json").is_file():
            raise InputError(f"{path} has no {path.stem}.json beside it; give folders that synthesis.py made")
    training, validation = [], []
    for base, windows in map_in_processes(read_windows, forgeries, settings.num_workers):
        (training if zlib.crc32(base.encode()) % VALIDATION_SHARE else validation).extend(windows)
    if not training or not validation:
        raise InputError(
            f"{len(training)} windows to train on and {len(validation)} of other base images to score; "
            "give more forgeries, of more base images"
        )
    print(f"{len(training)} windows to train on, {len(validation)} of other base images to score", flush=True)
    fit(training, validation, settings)


def fit(training: Sequence[Window], validation: Sequence[Window], settings: MaskRefinerSettings) -> None:
    """Minimise cross-entropy and soft Dice loss by AdamW on a cosine; prints the validation F1 after every epoch."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = MaskRefinerNet()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-2)
    steps = math.ceil(len(training) / settings.batch_size)  # per epoch
    warmup, total = min(200, steps), steps * settings.epochs
    measured_f1 = np.average([w.f1 for w in validation], weights=[w.weight for w in validation])
    for epoch in range(settings.epochs):
        losses, order = [], rng.permutation(len(training))
        for step in range(steps):
            done = epoch * steps + step
            rate = settings.learning_rate * min(1, (done + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done / total))
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = [training[k] for k in order[step * settings.batch_size : (step + 1) * settings.batch_size]]
            loss = batch_loss(network, *make_batch(chosen, rng))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise InputError(f"the loss is not finite in epoch {epoch + 1}; lower --learning-rate")
        save(network, settings.out)
        f1 = score(network, validation, settings.batch_size)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, F1 {f1:.4f} (as measured {measured_f1:.4f})", flush=True)


def make_batch(
    windows: Sequence[Window], rng: np.random.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors of B windows; with `rng` all are rotated by right angles, mirrored, and their partners exchanged alike.

    Returns:
        The network's inputs (B, 10, h, w) and (B, 3, h, w), the true region (B, h, w) and the valid pixels (B, h, w)
        as 0 and 1, and the weights (B,); float32, the weights float64.
    """
    quarter_turns, mirrored, exchanged = (int(rng.integers(n)) if rng else 0 for n in (4, 2, 2))
    pairs = []
    for window in windows:
        grey, masks = window.grey.astype(np.float32), window.unpacked_masks()
        grey, masks = (np.rot90(v, quarter_turns, (1, 2))[:, :, :: -1 if mirrored else 1] for v in (grey, masks))
        grey = np.ascontiguousarray(grey[::-1] if exchanged else grey)
        pairs.append((network_input(grey, masks[:3], window.noise), masks.astype(np.float32)))
    features, masks = (torch.from_numpy(np.stack(v)) for v in zip(*pairs, strict=True))
    features, known = (v.contiguous(memory_format=torch.channels_last) for v in (features, masks[:, :3]))
    return features, known, masks[:, 3], masks[:, 1], torch.tensor([w.weight for w in windows])


def batch_loss(
    network: nn.Module, features: Tensor, masks: Tensor, true: Tensor, valid: Tensor, weights: Tensor
) -> Tensor:
    """Weighted mean over windows of cross-entropy plus 1 - Dice, both over the valid pixels; bfloat16 inside."""
    with torch.autocast("cpu", torch.bfloat16):
        log_odds = network(features, masks)
    log_odds = log_odds[:, 0].float()
    entropy = F.binary_cross_entropy_with_logits(log_odds, true, reduction="none")
    entropy = (entropy * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    probability = torch.sigmoid(log_odds) * valid
    # The smoothing keeps an empty window from dividing by 0, and a tiny region from outweighing the others.
    dice = (2 * (probability * true).sum((1, 2)) + DICE_SMOOTHING) / (
        probability.sum((1, 2)) + true.sum((1, 2)) + DICE_SMOOTHING
    )
    return ((entropy + 1 - dice) * weights.float()).mean()


@torch.no_grad()
def score(network: nn.Module, windows: Sequence[Window], batch_size: int) -> float:
    """Mean F1 of the masks that the network draws in the windows, weighted as in the loss."""
    values = []
    for start in range(0, len(windows), batch_size):
        features, masks, true, valid, _ = make_batch(windows[start : start + batch_size])
        drawn = ((network(features, masks)[:, 0] > 0) & (valid > 0)).float()
        values += (2 * (drawn * true).sum((1, 2)) / (drawn.sum((1, 2)) + true.sum((1, 2))).clamp(min=1)).tolist()
    return float(np.average(values, weights=[w.weight for w in windows]))


def save(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX; the whole file or nothing.

    It is exported for one size of the inputs: its graph holds no sizes, only factors of two, so that OpenCV takes any
    other size too, while OpenCV 4 refuses sizes that are left open.
    """
    example = torch.zeros(1, 10, 64, 72), torch.zeros(1, 3, 64, 72)

    def export(out: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs one more library
            torch.onnx.export(
                network, example, str(out), input_names=list(INPUT_NAMES), output_names=["odds"], dynamo=False
            )

    atomic_write(path, export)
