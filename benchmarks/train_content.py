"""Train the network that tells recorded from drawn content, pixel by pixel; written as ONNX, which OpenCV runs."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from config import PIXEL_KINDS, ContentSettings
from copymove.content import INPUT_NAME, MAX_SIDE, OUTPUT_STRIDE, PADDED_TO
from images.folders import image_paths
from runtime.errors import InputError
from runtime.files import atomic_write

WIDTHS = (8, 24, 40, 64, 96)  # channels at 1/2, 1/4, ... 1/32 of the image's resolution
VALIDATION_SHARE = 10  # one figure in so many is not trained on, only scored
SCORED_EVERY = 250  # steps
SMALLEST_SIDE = 700  # a larger figure is shown with its longer side between this and MAX_SIDE pixels
GROUND_WEIGHT = 0.6  # of a pixel of ground in the loss: there is much of it, and it is easy


class ContentNet(nn.Module):
    """Logits (B, K, H / 2, W / 2) of the kinds of pixels of images (B, 3, H, W), 0 to 1; H and W multiples of 32.

    A U-Net (Ronneberger, Fischer and Brox 2015) whose deepest level sees far by dilated convolutions: what a patch of
    grey is, a plot's filling or a micrograph's ground, only its surroundings tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down, width = nn.ModuleList(), 3
        for k, wider in enumerate(WIDTHS):
            deepest = k == len(WIDTHS) - 1
            blocks = [_block(width, wider, stride=2)]
            blocks += [_block(wider, wider, dilation=d) for d in ((2, 4, 1) if deepest else (1,))]
            self.down.append(nn.Sequential(*blocks))
            width = wider
        self.up = nn.ModuleList(_block(WIDTHS[k] + WIDTHS[k - 1], WIDTHS[k - 1]) for k in range(len(WIDTHS) - 1, 0, -1))
        self.out = nn.Conv2d(WIDTHS[0], len(PIXEL_KINDS), 1)

    def forward(self, images: Tensor) -> Tensor:
        levels = []
        for down in self.down:
            images = down(images)
            levels.append(images)
        x = levels.pop()
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), levels.pop()], 1))
        return self.out(x)


def _block(a: int, b: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())


@dataclass(frozen=True)
class LabelledFigure:
    """A figure as the network is shown it: image (h, w, 3) uint8 RGB and kinds (h, w) uint8."""

    image: np.ndarray
    kinds: np.ndarray


def train_content(settings: ContentSettings) -> None:
    """Read the figures, train, score on those held out, and write the network every SCORED_EVERY steps."""
    for name in ("steps", "batch_size", "learning_rate"):
        if (value := getattr(settings, name)) <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be over 0")
    if settings.crop % PADDED_TO or settings.crop < PADDED_TO:
        raise InputError(f"--crop is {settings.crop}; it must be a positive multiple of {PADDED_TO}")
    figures = [figure for folder in settings.data for figure in read_figures(folder)]
    training = [figure for k, figure in enumerate(figures) if k % VALIDATION_SHARE]
    validation = figures[::VALIDATION_SHARE]
    if not training:
        raise InputError(f"{len(figures)} figures are too few to train on and to score; make more of them")
    print(f"{len(training)} figures to train on, {len(validation)} to score", flush=True)
    fit(training, validation, settings)


def read_figures(folder: Path) -> list[LabelledFigure]:
    """Figures of a folder of `synthesis.py --figures`, shrunk as the network sees them; all are kept in memory."""
    images, kinds = image_paths(folder / "figures"), image_paths(folder / "kinds")
    if not images or images.keys() != kinds.keys():
        raise InputError(
            f"{folder} does not hold figures/ and kinds/ with the same names; make it with synthesis.py --figures"
        )
    found = []
    for number, name in enumerate(sorted(images)):
        image, kind = cv2.imread(str(images[name]))[..., ::-1], cv2.imread(str(kinds[name]), cv2.IMREAD_GRAYSCALE)
        longer = max(kind.shape)
        wanted = min(longer, float(np.random.default_rng(number).uniform(SMALLEST_SIDE, MAX_SIDE)))
        size = tuple(max(round(side * wanted / longer), 1) for side in kind.shape[::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        found.append(LabelledFigure(image, cv2.resize(kind, size, interpolation=cv2.INTER_NEAREST)))
    return found


def fit(training: Sequence[LabelledFigure], validation: Sequence[LabelledFigure], settings: ContentSettings) -> None:
    """Minimise cross-entropy over random crops by AdamW, the rate on one cycle; score and save on the way."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = ContentNet()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.1
    )
    weights = torch.ones(len(PIXEL_KINDS))
    weights[0] = GROUND_WEIGHT
    losses = []
    for step in tqdm(range(1, settings.steps + 1), desc="content", unit="step"):
        chosen = [training[k] for k in rng.integers(len(training), size=settings.batch_size)]
        images, kinds = make_batch(chosen, settings.crop, rng)
        loss = F.cross_entropy(network(images), kinds, weight=weights)
        if not math.isfinite(loss.item()):
            raise InputError(f"the loss is not finite in step {step}; lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % SCORED_EVERY == 0 or step == settings.steps:
            save(network.eval(), settings.out)
            recalls = ", ".join(f"{name} {value:.3f}" for name, value in score(network, validation).items())
            print(
                f"step {step}: loss {np.mean(losses[-SCORED_EVERY:]):.4f}; share of pixels right: {recalls}", flush=True
            )
            network.train()


def make_batch(figures: Sequence[LabelledFigure], crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of each figure, changed in scale, tone and colour.

    Returns:
        Images (B, 3, crop, crop) float32, 0 to 1, and kinds (B, crop / 2, crop / 2) int64.
    """
    images, kinds = zip(*(_random_crop(figure, crop, rng) for figure in figures), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(kinds)).long()


def _random_crop(figure: LabelledFigure, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    image, kinds = figure.image, figure.kinds
    if rng.random() < 0.3:
        zoom = float(rng.uniform(0.6, 1.3))
        image = cv2.resize(
            image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        )
        kinds = cv2.resize(kinds, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    y, x = (int(np.clip(rng.integers(-crop // 4, max(n - 3 * crop // 4, 1)), 0, max(n - crop, 0))) for n in kinds.shape)
    image, kinds = image[y : y + crop, x : x + crop], kinds[y : y + crop, x : x + crop]
    missing = [(0, crop - n) for n in kinds.shape]
    image = np.pad(image, (*missing, (0, 0)), constant_values=255 if rng.random() < 0.9 else 0)
    kinds = np.pad(kinds, missing)
    image = image.astype(np.float32) / 255
    if rng.random() < 0.15:
        image = 1 - image
    if rng.random() < 0.2:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.2:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.3:
        image = np.clip((image - 0.5) * rng.uniform(0.7, 1.2) + 0.5 + rng.uniform(-0.08, 0.08), 0, 1)
    if rng.random() < 0.3:
        image, kinds = image[:, ::-1], kinds[:, ::-1]
    offset = OUTPUT_STRIDE // 2
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32), kinds[
        offset::OUTPUT_STRIDE, offset::OUTPUT_STRIDE
    ].copy()


@torch.no_grad()
def score(network: nn.Module, figures: Sequence[LabelledFigure]) -> dict[str, float]:
    """Share of the pixels of each kind that the network names rightly, over whole figures."""
    right, total = np.zeros(len(PIXEL_KINDS)), np.zeros(len(PIXEL_KINDS))
    for figure in figures:
        height, width = (n + -n % PADDED_TO for n in figure.kinds.shape)
        padding = [(0, height - figure.kinds.shape[0]), (0, width - figure.kinds.shape[1])]
        image = np.pad(figure.image, (*padding, (0, 0)), mode="edge").astype(np.float32) / 255
        named = network(torch.from_numpy(image.transpose(2, 0, 1))[None])[0].argmax(0).numpy()
        offset = OUTPUT_STRIDE // 2
        kinds = figure.kinds[offset::OUTPUT_STRIDE, offset::OUTPUT_STRIDE]
        named = named[: kinds.shape[0], : kinds.shape[1]]
        right += np.bincount(kinds[named == kinds], minlength=len(PIXEL_KINDS))
        total += np.bincount(kinds.ravel(), minlength=len(PIXEL_KINDS))
    return dict(zip(PIXEL_KINDS, (right / np.maximum(total, 1)).tolist(), strict=True))


def save(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX; the whole file or nothing. It holds no sizes, so OpenCV takes any multiple of 32."""

    def export(out: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs one more library
            example = torch.zeros(1, 3, 64, 96)
            torch.onnx.export(
                network, example, str(out), input_names=[INPUT_NAME], output_names=["logits"], dynamo=False
            )

    atomic_write(path, export)
