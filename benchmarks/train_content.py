"""Train the network that tells recorded from drawn content, cell by cell; written as ONNX, which OpenCV runs."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from config import PIXEL_KINDS, ContentSettings
from copymove.content import CELL, CHANNELS, INPUT_NAME, MAX_SIDE, PADDED_TO, cell_features
from images.folders import image_paths
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.workers import map_in_processes

WIDTHS = (16, 24, 40, 64, 64)  # channels at 1, 1/2, ... 1/16 of the cells' resolution
VALIDATION_SHARE = 20  # one figure in so many is not trained on, only scored
SCORED_EVERY = 250  # steps
SMALLEST_SIDE = 700  # a larger figure is shown with its longer side between this and MAX_SIDE pixels
GROUND_WEIGHT = 0.4  # of a cell of ground in the loss: there is much of it, and it is easy
DRAWN = (PIXEL_KINDS.index("drawing"), PIXEL_KINDS.index("text"))
EVEN_SIDE = 11  # side in pixels of a neighbourhood of a drawing that counts as ground where it is even ...
EVEN_RANGE = 10  # ... to so many grey levels: nobody could tell a chart's white from the white around it


class ContentNet(nn.Module):
    """Logits (B, K, h, w) of the kinds of cells with features (B, CHANNELS, h, w), 0 to 1; h and w multiples of 16.

    A U-Net (Ronneberger, Fischer and Brox 2015) whose deepest level sees far by dilated convolutions: what a patch of
    grey is, a plot's filling or a micrograph's ground, only its surroundings tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down, width = nn.ModuleList(), CHANNELS
        for k, wider in enumerate(WIDTHS):
            deepest = k == len(WIDTHS) - 1
            blocks = [_block(width, wider, stride=2 if k else 1)]
            blocks += [_block(wider, wider, dilation=d) for d in ((2, 4, 1) if deepest else (1,))]
            self.down.append(nn.Sequential(*blocks))
            width = wider
        self.up = nn.ModuleList(_block(WIDTHS[k] + WIDTHS[k - 1], WIDTHS[k - 1]) for k in range(len(WIDTHS) - 1, 0, -1))
        self.out = nn.Conv2d(WIDTHS[0], len(PIXEL_KINDS), 1)

    def forward(self, cells: Tensor) -> Tensor:
        levels = []
        for down in self.down:
            cells = down(cells)
            levels.append(cells)
        x = levels.pop()
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), levels.pop()], 1))
        return self.out(x)


def _block(a: int, b: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())


@dataclass(frozen=True)
class LabelledFigure:
    """A figure as the network is shown it: cells (CHANNELS, h, w) uint8 and their kinds (h, w) uint8."""

    cells: np.ndarray
    kinds: np.ndarray


def train_content(settings: ContentSettings) -> None:
    """Read the figures, train, score on those held out, and write the network every SCORED_EVERY steps."""
    for name in ("steps", "batch_size", "learning_rate", "num_workers"):
        if (value := getattr(settings, name)) <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be over 0")
    if settings.crop % PADDED_TO or settings.crop < PADDED_TO:
        raise InputError(f"--crop is {settings.crop}; it must be a positive multiple of {PADDED_TO}")
    pairs = [pair for folder in settings.data for pair in figure_paths(folder)]
    jobs = [(*pair, number) for number, pair in enumerate(pairs)]
    figures = list(map_in_processes(read_figure, jobs, settings.num_workers))
    training = [figure for k, figure in enumerate(figures) if k % VALIDATION_SHARE]
    validation = figures[::VALIDATION_SHARE]
    if not training:
        raise InputError(f"{len(figures)} figures are too few to train on and to score; make more of them")
    print(f"{len(training)} figures to train on, {len(validation)} to score", flush=True)
    fit(training, validation, settings)


def figure_paths(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Images and their kinds in a folder of `synthesis.py --figures`.

    Raises:
        InputError: the folder is none of these.
    """
    images, kinds = image_paths(folder / "figures"), image_paths(folder / "kinds")
    if not images or images.keys() != kinds.keys():
        raise InputError(
            f"{folder} does not hold figures/ and kinds/ with the same names; make it with synthesis.py --figures"
        )
    yield from ((images[name], kinds[name]) for name in sorted(images))


def read_figure(job: tuple[Path, Path, int]) -> LabelledFigure:
    """A figure, shrunk and changed in tone as the seed says, with the kinds of its cells.

    Args:
        job: the image, its kinds, and the seed.
    """
    cv2.setNumThreads(1)  # the figures are what runs in parallel
    rng = np.random.default_rng(job[2])
    image, kinds = cv2.imread(str(job[0]))[..., ::-1], cv2.imread(str(job[1]), cv2.IMREAD_GRAYSCALE)
    longer = max(kinds.shape)
    wanted = min(longer, float(rng.uniform(SMALLEST_SIDE, MAX_SIDE)))
    size = tuple(max(round(side * wanted / longer), 1) for side in kinds.shape[::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    kinds = cv2.resize(kinds, size, interpolation=cv2.INTER_NEAREST)
    kinds[_even(image) & np.isin(kinds, DRAWN)] = 0
    cells = cell_features(_change_tone(image, rng))
    kinds = np.pad(kinds, [(0, -n % CELL) for n in kinds.shape], mode="edge")
    return LabelledFigure(cells, kinds[CELL // 2 :: CELL, CELL // 2 :: CELL].copy())


def _even(image: np.ndarray) -> np.ndarray:
    """Where the neighbourhood has hardly more than one colour, (h, w) bool."""
    square = np.ones((EVEN_SIDE, EVEN_SIDE), np.uint8)
    return cv2.subtract(cv2.dilate(image, square), cv2.erode(image, square)).max(axis=2) <= EVEN_RANGE


def _change_tone(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image (h, w, 3) uint8 inverted, without colour, with other colours or another contrast, now and then."""
    values = image.astype(np.float32)
    if rng.random() < 0.1:
        values = 255 - values
    if rng.random() < 0.15:
        values = np.repeat(values.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.2:
        values = values[..., rng.permutation(3)]
    if rng.random() < 0.2:
        values = (values - 128) * rng.uniform(0.7, 1.2) + 128 + rng.uniform(-20, 20)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


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
        cells, kinds = make_batch(chosen, settings.crop, rng)
        loss = F.cross_entropy(network(cells), kinds, weight=weights)
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
                f"step {step}: loss {np.mean(losses[-SCORED_EVERY:]):.4f}; share of cells right: {recalls}", flush=True
            )
            network.train()


def make_batch(figures: Sequence[LabelledFigure], crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of each figure, flipped half of the times.

    Returns:
        Cells (B, CHANNELS, crop, crop) float32, 0 to 1, and kinds (B, crop, crop) int64.
    """
    cells, kinds = zip(*(_random_crop(figure, crop, rng) for figure in figures), strict=True)
    return torch.from_numpy(np.stack(cells)).float() / 255, torch.from_numpy(np.stack(kinds)).long()


def _random_crop(figure: LabelledFigure, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shape = figure.kinds.shape
    y, x = (int(np.clip(rng.integers(-crop // 4, max(n - 3 * crop // 4, 1)), 0, max(n - crop, 0))) for n in shape)
    cells, kinds = figure.cells[:, y : y + crop, x : x + crop], figure.kinds[y : y + crop, x : x + crop]
    missing = [(0, crop - n) for n in kinds.shape]
    cells, kinds = np.pad(cells, [(0, 0), *missing], mode="edge"), np.pad(kinds, missing, mode="edge")
    return (cells[..., ::-1].copy(), kinds[:, ::-1].copy()) if rng.random() < 0.5 else (cells, kinds)


@torch.no_grad()
def score(network: nn.Module, figures: Sequence[LabelledFigure]) -> dict[str, float]:
    """Share of the cells of each kind that the network names rightly, over whole figures."""
    right, total = np.zeros(len(PIXEL_KINDS)), np.zeros(len(PIXEL_KINDS))
    for figure in figures:
        height, width = figure.kinds.shape
        padded = np.pad(figure.cells, [(0, 0), (0, -height % PADDED_TO), (0, -width % PADDED_TO)], mode="edge")
        named = network(torch.from_numpy(padded)[None].float() / 255)[0].argmax(0).numpy()[:height, :width]
        right += np.bincount(figure.kinds[named == figure.kinds], minlength=len(PIXEL_KINDS))
        total += np.bincount(figure.kinds.ravel(), minlength=len(PIXEL_KINDS))
    return dict(zip(PIXEL_KINDS, (right / np.maximum(total, 1)).tolist(), strict=True))


def save(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX; the whole file or nothing. It holds no sizes, so OpenCV takes any multiple of 16."""

    def export(out: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs one more library
            example = torch.zeros(1, CHANNELS, 64, 96)
            torch.onnx.export(
                network, example, str(out), input_names=[INPUT_NAME], output_names=["logits"], dynamo=False
            )

    atomic_write(path, export)
