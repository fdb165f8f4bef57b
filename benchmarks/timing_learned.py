"""Time and memory of the learned path: of its parts on the CPU, and of training steps and embedding on this device."""

import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import hdbscan
import numpy as np
import torch
from tqdm import tqdm

from clustering import EmbeddingGrid, cascade
from config import (
    ClusteringSettings,
    DataSettings,
    LearnedTimingSettings,
    ModelSettings,
    StepTimingSettings,
)
from detector import Detector
from images.cache import ImageCache, read_letterboxed
from images.folders import find_images
from images.read import read_image
from losses import ForgeryLoss
from model import ForgeryModel, amp_dtype, autocast
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.workers import call_in_process

WARM_UP_STEPS = 3  # that are not timed


def hardware() -> str:
    """Processor, cores and versions of the libraries, in one line that makes two measurements comparable."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(": ")[1] for line in text.splitlines() if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}, hdbscan {importlib.metadata.version('hdbscan')}"
    )


# The parts of the learned path --------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Seconds of a part of the learned path, and of the straightforward implementation of the same."""

    name: str
    ours: float
    straightforward: float
    note: str


def time_learned(settings: LearnedTimingSettings) -> None:
    """Print how much faster each part of the learned path is than its straightforward implementation."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            *compare_cascade(settings),
            compare_loss(settings.repeats),
            compare_image_cache(settings.repeats, Path(folder)),
        ]
    print(f"{hardware()}; medians of {settings.repeats} alternating runs")
    for name, ours, straightforward, note in rows:
        faster = f"{straightforward / ours:6.1f} times faster"
        print(f"{name:46} {ours:9.4f} s  against {straightforward:9.4f} s: {faster}; {note}")


def median_seconds(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call. The calls alternate, so that a machine that slows down slows all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def compare_cascade(settings: LearnedTimingSettings) -> list[Comparison]:
    """The cascade, and 80 parameter sets of it as in tuning, against HDBSCAN called on the vectors."""
    defaults = ClusteringSettings()
    grids = random_grids(settings.grids) + (real_grids(settings.data, settings.grids) if settings.data else [])
    same = 0
    for grid in tqdm(grids, desc="labels", unit="grid"):
        for size, samples in ((defaults.min_cluster_size, defaults.min_samples), (5, 2)):
            same += int((EmbeddingGrid(grid).hdbscan(size, samples) == hdbscan_of_vectors(grid, size, samples)).all())
    grid = random_grids(1)[0]
    once = median_seconds(
        settings.repeats,
        lambda: cascade(EmbeddingGrid(grid), defaults),
        lambda: hdbscan_of_vectors(grid, defaults.min_cluster_size, defaults.min_samples),
    )
    sets = [
        (size, samples, epsilon)
        for size in (5, 10, 15, 25)
        for samples in (2, 3, 5, 8)
        for epsilon in (0, 0.1, 0.2, 0.3, 0.4)
    ]

    def tune() -> None:
        cells = EmbeddingGrid(grid)
        for size, samples, epsilon in sets:
            changes = {"min_cluster_size": size, "min_samples": samples, "cluster_selection_epsilon": epsilon}
            cascade(cells, replace(defaults, **changes))

    tuned = median_seconds(1, tune, lambda: [hdbscan_of_vectors(grid, *values) for values in sets])
    note = f"labels identical in {same} of {2 * len(grids)} clusterings of {len(grids)} grids"
    return [
        Comparison("cascade of an image, 1089 x 512", *once, note),
        Comparison(f"{len(sets)} parameter sets of an image", *tuned, "the whole cascade against HDBSCAN alone"),
    ]


def hdbscan_of_vectors(grid: np.ndarray, min_cluster_size: int, min_samples: int, epsilon: float = 0.0) -> np.ndarray:
    """HDBSCAN's labels (G * G,) of the vectors of a grid (G, G, D), by the library's own search for neighbours."""
    clusterer = hdbscan.HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples, cluster_selection_epsilon=epsilon
    )
    return clusterer.fit_predict(grid.reshape(-1, grid.shape[2]).astype(np.float64))


def random_grids(count: int) -> list[np.ndarray]:
    """(33, 33, 512) float32 unit vectors: a background and four clusters far from it, in some grids very diffuse."""
    grids = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(5, 512))
        member = rng.choice(5, 1089, p=[0.8, 0.05, 0.05, 0.05, 0.05])
        grid = rng.normal(0, rng.uniform(0.2, 1.5), (1089, 512)) + centres[member]
        grids.append((grid / np.linalg.norm(grid, axis=1, keepdims=True)).reshape(33, 33, 512).astype(np.float32))
    return grids


def real_grids(data: Path, count: int) -> list[np.ndarray]:
    """(G_h, G_w, 512) float32 unit vectors of real images: the embedded backbone under an untrained head."""
    torch.manual_seed(0)
    model = ForgeryModel(ModelSettings(backbone="embedded")).eval()
    detector = Detector(model, ClusteringSettings(), torch.device("cpu"))
    image_files = find_images(data)
    chosen = [image_files[i * len(image_files) // count] for i in range(min(count, len(image_files)))]
    cells = [detector.embed([read_image(image_file.image)])[0].grid for image_file in chosen]
    return [c.vectors.reshape(*c.shape, -1).astype(np.float32) for c in cells]


def compare_loss(repeats: int) -> Comparison:
    """Loss forward and backward for eight images against a loop over the images; peak memory of both."""
    embeddings, labels = _loss_batch()
    criterion = ForgeryLoss()
    seconds = median_seconds(
        repeats,
        lambda: criterion(embeddings.requires_grad_(), labels, 6)[0].backward(),
        lambda: loss_by_images(embeddings.requires_grad_(), labels).backward(),
    )
    # Fresh processes, whose peak memory is that of the loss alone.
    peaks = [call_in_process(_loss_peak, by_images) for by_images in (False, True)]
    difference = abs(criterion(embeddings, labels, 6)[0].item() - loss_by_images(embeddings, labels).item())
    note = f"peak memory {peaks[0]:.0f} against {peaks[1]:.0f} MB; values differ by {difference:.0e}"
    return Comparison("loss forward and backward, 8 images", *seconds, note)


def loss_by_images(embeddings: torch.Tensor, labels: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """`ForgeryLoss` with its default weights in a straightforward form, image by image.

    SupCon is written as in the SupContrast repository (github.com/HobbitLong/SupContrast), the other terms as loops
    over the labels.

    Args:
        embeddings: (B, N, D) float32 unit vectors. labels: (B, N) int64, negative for padding.
    """
    losses = []
    for z, label in zip(embeddings, labels, strict=True):
        z, label = z[label >= 0], label[label >= 0]
        similarity = z @ z.T / temperature
        logits = similarity - similarity.max(dim=1, keepdim=True).values.detach()
        others = 1.0 - torch.eye(len(label))
        positives = (label[:, None] == label[None, :]).float() * others
        log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
        count = positives.sum(1)
        supcon = -((positives * log_probability).sum(1) / count.clamp(min=1))[count > 0].mean()
        centroids, spreads = [], []
        for k in label.unique():
            group = z[label == k]
            centroids.append(group.mean(0))
            spreads.append(((group - centroids[-1]).square().sum(1).mean() - 0.1).clamp(min=0))
        pairs = [(2 - (a - b).norm()).clamp(min=0) for i, a in enumerate(centroids) for b in centroids[:i]]
        separation = torch.stack(pairs).mean() if pairs else 0.0
        losses.append(1.2 * supcon + separation + 0.5 * torch.stack(spreads).mean())
    return torch.stack(losses).mean()


def _loss_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Random embeddings (8, 1089, 512) and labels (8, 1089): up to five instances of 40 cells in each image."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 1089, 512, generator=generator), dim=-1)
    labels = torch.zeros(8, 1089, dtype=torch.int64)
    for image in range(6):
        for k in range(image):
            labels[image, 60 * k : 60 * k + 40] = k + 1
    return embeddings, labels


def _loss_peak(by_images: bool) -> float:
    """Megabytes that one forward and backward pass takes at its peak (Linux)."""
    embeddings, labels = _loss_batch()
    embeddings.requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is in memory now
    before = _memory("VmRSS")
    (loss_by_images(embeddings, labels) if by_images else ForgeryLoss()(embeddings, labels, 6)[0]).backward()
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def compare_image_cache(repeats: int, folder: Path) -> Comparison:
    """Reading 2-megapixel PNGs from the image cache, as every epoch after the first does, against decoding them."""
    rng = np.random.default_rng(0)
    (folder / "authentic").mkdir()
    for i in range(12):
        noise = rng.integers(0, 256, (1200, 1680, 3), dtype=np.uint8)
        # Blurred, so that PNG compresses it about as well as a photograph.
        cv2.imwrite(str(folder / "authentic" / f"{i}.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    image_files, data = find_images(folder), DataSettings(folder)
    cache = ImageCache(folder / "cache", 1.0, 462)

    def read(cache: ImageCache | None) -> None:
        for image_file in image_files:
            read_letterboxed(image_file, 462, data, cache)

    read(cache)
    cached, decoded = median_seconds(repeats, lambda: read(cache), lambda: read(None))
    count = len(image_files)
    return Comparison("reading a 2-megapixel image", cached / count, decoded / count, "one process, files in memory")


# Steps on this device -----------------------------------------------------------------------------------------------


def time_step(settings: StepTimingSettings) -> None:
    """Print milliseconds, images per second and, on a GPU, peak memory of training and embedding per batch size."""
    if min(settings.batch_sizes, default=0) < 1 or settings.repeats < 1:
        raise InputError("--batch-sizes and --repeats must be at least 1 each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    model = ForgeryModel(settings.model).to(device)
    criterion = ForgeryLoss(**asdict(settings.loss))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype(settings.model, device) == torch.float16)
    mixed = autocast(settings.model, device)

    def train_step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        with mixed:
            embeddings = model(pixels)
        scaler.scale(criterion(embeddings, labels, 2)[0]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    def embed(pixels: torch.Tensor, _: torch.Tensor) -> None:
        with torch.no_grad(), mixed:
            model(pixels)

    print(f"{torch.cuda.get_device_name() + ', ' if on_gpu else ''}{hardware()}; {to_dict(settings.model)}")
    for batch_size in settings.batch_sizes:
        batch = _random_batch(settings.model, batch_size, device)
        for name, step in (("training", train_step), ("embedding", embed)):
            model.train(step is train_step)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = _seconds_per_step(partial(step, *batch), settings.repeats, on_gpu)
            line = f"{name:9} batch {batch_size:3}: {1000 * seconds:8.1f} ms, {batch_size / seconds:7.1f} images/s"
            print(f"{line}, peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if on_gpu else line, flush=True)


def _random_batch(settings: ModelSettings, batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (B, 3, S, S) float32 and labels (B, G, G) int64 with one instance in two corners of the grid."""
    size, grid = settings.image_size, settings.grid_size
    pixels = torch.randn(batch_size, 3, size, size, device=device)
    labels = torch.zeros(batch_size, grid, grid, dtype=torch.int64, device=device)
    labels[:, : grid // 4, : grid // 4] = labels[:, -(grid // 4) :, -(grid // 4) :] = 1
    return pixels, labels


def _seconds_per_step(step: Callable[[], None], repeats: int, on_gpu: bool) -> float:
    """Mean seconds of a step, after some that warm up; a GPU is waited for before and after all of them together."""
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    for _ in range(WARM_UP_STEPS):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - start) / repeats
