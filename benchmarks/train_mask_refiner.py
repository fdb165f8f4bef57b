import itertools
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy import choose_images, recompress
from config import OutlineSettings
from copymove.geometry import invert_affine, scale_factor
from copymove.growth import grow_region
from copymove.image_features import ImageFeatures, compute_features
from copymove.mask_refiner import crop_pair, network_input
from copymove.measurements import PairMeasurements, measure_pair
from copymove.regions import Region, deepest_point
from copymove.screening import screen_candidates
from copymove.verification import MIN_FINE_NCC
from copymove.warping import warp_to_template
from images.masks import read_masks
from images.read import read_image
from runtime.command_line import run
from runtime.errors import InputError
from runtime.files import atomic_write, read_json
from runtime.workers import map_in_processes

SIDE = 96  # of the windows that it learns from, in pixels


HELD_OUT = 10  # one base image of so many is only scored


OVERLAP = 0.3  # share of a learned region that must be true, else its map is wrong


SPOTS = 3  # windows along the edge of a copy that is larger than a window; one more lies anywhere in it


DEGRADED = 0.4  # share of the forgeries that get noise, or are saved as JPEG, before they are looked at


MAX_NOISE = 5.0  # standard deviation, grey levels


JPEG = (60, 96)  # least and most quality


class OutlineNet(nn.Module):
    """Log-odds (B, 1, h, w) that a pixel belongs to the copy, from `outline.structures` and masks.

    h and w are multiples of `outline.STEP`.

    Both partners go through the same two convolutions; their product and difference through a small U-Net
    (Ronneberger, Fischer, Brox 2015) with skip connections, for the surroundings say where an outline may run.
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

    def forward(self, seen: Tensor, masks: Tensor) -> Tensor:
        a, b = self.encoder(seen[:, :4]), self.encoder(seen[:, 4:8])
        compared = [a * b, (a - b).abs(), 0.5 * (a + b), seen[:, 8:], seen[:, :4] * seen[:, 4:8], masks]
        levels = [F.relu(self.compare(torch.cat(compared, 1)))]
        for down, deep in zip(self.down, self.deep, strict=True):
            smaller = F.relu(down(levels[-1]))
            levels.append(smaller + F.relu(deep(smaller)))
        here = levels.pop()
        for up, smooth in zip(self.up, self.smooth, strict=True):
            there = levels.pop()
            here = F.interpolate(here, scale_factor=2.0, mode="bilinear", align_corners=False)
            here = F.relu(up(torch.cat([there, here], 1)))
            here = here + F.relu(smooth(here))
        return self.out(here)


def _conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride=stride, padding=1)


@dataclass(frozen=True)
class Window:
    """A window of a true copy, small enough that thousands fit into memory."""

    grey: np.ndarray  # (2, SIDE, SIDE) float16
    masks: np.ndarray  # packed bits of (4, SIDE, SIDE): region, valid, told, and what is true
    noise: float
    weight: float  # of a copy's windows the sum is 1
    f1: float  # of the outline as it was proven, over the whole copy


def read_windows(path: Path) -> tuple[str, list[Window]]:
    """Base image of a forgery of synthesis.py, and windows of all of its copies that the evidence aligns."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    image, truth = read_image(path), read_json(path.with_suffix(".json"))
    if rng.random() < DEGRADED:
        jpeg = rng.random() < 0.5
        image = recompress(
            image, int(rng.integers(*JPEG)) if jpeg else None, 0.0 if jpeg else rng.uniform(0, MAX_NOISE)
        )
    contents = read_masks(path.parent.parent / "masks" / f"{path.stem}.npy", image.shape[:2])
    canvas, windows = compute_features(image), []
    for mask, content in zip(contents, truth["contents"], strict=True):
        for copy in content["copies"]:
            affine, here, there = np.array(copy["affine"]), content["source"]["box"], copy["box"]
            if scale_factor(affine) < 1:
                affine, here, there = invert_affine(affine), there, here
            source, target = (_in_box(mask, box) for box in (here, there))
            x, y, radius = deepest_point(Region(0, 0, source))
            centre, radius = np.array([x, y], float), min(max(radius, 5.0), 20.0)
            affines, _, _, values = screen_candidates(canvas, affine[None], centre[None], np.array([radius]))
            grown = grow_region(canvas, affines[0], centre, radius, MIN_FINE_NCC) if values[0, 0] > 0.5 else None
            evidence = measure_pair(canvas, grown) if grown else None
            if evidence and evidence.mask.any() and evidence.fine_ncc > MIN_FINE_NCC:
                whole = (0, 0, *image.shape[1::-1])
                moved = warp_to_template(target.view(np.uint8), evidence.affine, whole, cv2.INTER_LINEAR)
                windows += _windows(canvas, evidence, source & (moved > 0), rng)
    return truth["base"], windows


def _in_box(mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """What of a mask (H, W) bool lies in a box (x, y, width, height)."""
    x, y, width, height = box
    part = np.zeros_like(mask)
    part[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
    return part


def _windows(
    canvas: ImageFeatures, evidence: PairMeasurements, true: np.ndarray, rng: np.random.Generator
) -> list[Window]:
    """The window of a small copy, or some of a large one; none where the map is wrong."""
    region = Region(evidence.x, evidence.y, evidence.mask).full(canvas.shape)
    both = int((region & true).sum())
    if both < OVERLAP * region.sum():
        return []
    f1 = float(2 * both / (region.sum() + true.sum()))
    ys, xs = np.nonzero(region | true)
    if max(np.ptp(ys), np.ptp(xs)) < SIDE - 16:
        spots = [((xs.min() + xs.max()) // 2, (ys.min() + ys.max()) // 2)]
    else:
        square = np.ones((3, 3), np.uint8)
        edges = [cv2.morphologyEx(m.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0 for m in (region, true)]
        spots = [(xs[k], ys[k]) for k in rng.integers(len(xs), size=1)]
        ys, xs = np.nonzero(edges[0] | edges[1])
        spots += [(xs[k], ys[k]) for k in rng.integers(len(xs), size=SPOTS)]
    windows = []
    for x, y in spots:
        left, top = (int(v) - SIDE // 2 + int(rng.integers(-6, 7)) for v in (x, y))
        grey, masks = crop_pair(canvas, evidence.affine, (left, top, left + SIDE, top + SIDE), region, true)
        windows.append(Window(grey.astype(np.float16), np.packbits(masks), canvas.noise, 1 / len(spots), f1))
    return windows


def main(settings: OutlineSettings) -> None:
    """Cut the windows, teach the network and write it after every epoch."""
    for name in ("epochs", "batch_size", "learning_rate"):
        if (value := getattr(settings, name)) <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be over 0")
    image_files = [p.image for folder in settings.data for p in choose_images(folder, settings.limit) if p.forged]
    for path in image_files:
        if not path.with_suffix(".json").is_file():
            raise InputError(f"{path} has no {path.stem}.json beside it; give folders that synthesis.py made")
    learned, scored = [], []
    for base, windows in map_in_processes(read_windows, image_files, settings.num_workers):
        (learned if zlib.crc32(base.encode()) % HELD_OUT else scored).extend(windows)
    if not learned or not scored:
        raise InputError(f"{len(learned)} windows to learn from and {len(scored)} to score; give more forgeries")
    print(f"{len(learned)} windows to learn from, {len(scored)} of other base images to score", flush=True)
    teach(learned, scored, settings)


def teach(learned: Sequence[Window], scored: Sequence[Window], settings: OutlineSettings) -> None:
    """Cross-entropy and soft Dice loss by AdamW on a cosine; prints the mean F1 of the scored windows' masks."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = OutlineNet()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-2)
    per_epoch = math.ceil(len(learned) / settings.batch_size)
    warm, total = min(200, per_epoch), per_epoch * settings.epochs
    before = np.average([w.f1 for w in scored], weights=[w.weight for w in scored])
    for epoch in range(settings.epochs):
        losses, order = [], rng.permutation(len(learned))
        for step in range(per_epoch):
            done = epoch * per_epoch + step
            rate = settings.learning_rate * min(1, (done + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done / total))
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = [learned[k] for k in order[step * settings.batch_size : (step + 1) * settings.batch_size]]
            loss = batch_loss(network, *_batch(chosen, rng))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise InputError(f"the loss is not finite in epoch {epoch + 1}; lower --learning-rate")
        save(network, settings.out)
        now = score(network, scored, settings.batch_size)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, F1 {now:.4f} (as proven {before:.4f})", flush=True)


def _batch(
    windows: Sequence[Window], rng: np.random.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Structures, masks, truth, where it counts, weights; turned, mirrored and exchanged at random with `rng`."""
    turns, mirrored, exchanged = (int(rng.integers(n)) if rng else 0 for n in (4, 2, 2))
    shown = []
    for window in windows:
        grey, masks = window.grey.astype(np.float32), np.unpackbits(window.masks).reshape(4, SIDE, SIDE) > 0
        grey, masks = (np.rot90(v, turns, (1, 2))[:, :, :: -1 if mirrored else 1] for v in (grey, masks))
        grey = np.ascontiguousarray(grey[::-1] if exchanged else grey)
        shown.append((network_input(grey, masks[:3], window.noise), masks.astype(np.float32)))
    seen, masks = (torch.from_numpy(np.stack(v)) for v in zip(*shown, strict=True))
    seen, three = (v.contiguous(memory_format=torch.channels_last) for v in (seen, masks[:, :3]))
    return seen, three, masks[:, 3], masks[:, 1], torch.tensor([w.weight for w in windows])


def batch_loss(network: nn.Module, seen: Tensor, masks: Tensor, true: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over windows of cross-entropy and 1 - Dice, both over the valid pixels; bfloat16 inside."""
    with torch.autocast("cpu", torch.bfloat16):
        odds = network(seen, masks)
    odds = odds[:, 0].float()
    entropy = F.binary_cross_entropy_with_logits(odds, true, reduction="none")
    entropy = (entropy * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    chance = torch.sigmoid(odds) * valid
    # 20 pixels more on both sides: an empty window does not divide by 0, a tiny one does not outweigh the others.
    dice = (2 * (chance * true).sum((1, 2)) + 20) / (chance.sum((1, 2)) + true.sum((1, 2)) + 20)
    return ((entropy + 1 - dice) * weights.float()).mean()


@torch.no_grad()
def score(network: nn.Module, windows: Sequence[Window], batch_size: int) -> float:
    """Mean F1 of the drawn masks in their windows, weighted as in the loss."""
    values = []
    for start in range(0, len(windows), batch_size):
        seen, masks, true, valid, _ = _batch(windows[start : start + batch_size])
        drawn = ((network(seen, masks)[:, 0] > 0) & (valid > 0)).float()
        values += (2 * (drawn * true).sum((1, 2)) / (drawn.sum((1, 2)) + true.sum((1, 2))).clamp(min=1)).tolist()
    return float(np.average(values, weights=[w.weight for w in windows]))


def save(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX, which OpenCV runs without torch; the whole file or nothing.

    Exported for one size: all that its graph knows of sizes are factors of two, so that OpenCV takes any other, while
    sizes left open are refused by its version 4.
    """
    example, names = (torch.zeros(1, 10, 64, 72), torch.zeros(1, 3, 64, 72)), ["seen", "masks"]

    def export(out: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs one more library
            torch.onnx.export(network, example, str(out), input_names=names, output_names=["odds"], dynamo=False)

    atomic_write(path, export)


if __name__ == "__main__":
    run(main, OutlineSettings)
