"""Time and memory."""

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

import importlib.metadata
import multiprocessing
import os
import platform
import tempfile
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    import torch
from config import (
    ClusteringSettings,
    DataSettings,
    MatchingSettings,
    MatchingSpeedSettings,
    ModelSettings,
    SpeedSettings,
    StepSpeedSettings,
)
from copymove.detect import detect_copies
from images.cache import ImageCache, read_letterboxed
from images.folders import find_images
from images.read import read_image
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.workers import follow_parent


def matching_speed(settings: MatchingSpeedSettings) -> None:
    """Time and peak memory per size, each size in a process of its own."""
    jobs = [(settings.image_file, size, settings.repeats, settings.matching) for size in settings.megapixels]
    for place, job in enumerate(jobs):
        # A fresh process, whose peak memory is this size's.
        with ProcessPoolExecutor(1, initializer=follow_parent) as pool:
            seconds, peak, stages = pool.submit(_time, job).result()
        if place == 0:  # no head over an error
            print(f"{'megapixels':>10} {'median s':>9} {'worst s':>8} {'s/MP':>6} {'peak MiB':>9}  seconds by stage")
        middle = statistics.median(seconds)
        parts = ", ".join(f"{name} {value:.2f}" for name, value in stages.items() if name != "all")
        print(f"{job[1]:10g} {middle:9.2f} {max(seconds):8.2f} {middle / job[1]:6.2f} {peak:9.0f}  {parts}", flush=True)


def _time(job: tuple[Path, float, int, MatchingSettings]) -> tuple[list[float], float, dict[str, float]]:
    import resource

    import cv2

    cv2.setNumThreads(1)
    path, megapixels, repeats, settings = job
    image = read_image(path)
    detect_copies(image[:128, :128].copy(), settings)  # compiled code is loaded
    zoom = math.sqrt(megapixels * 1e6 / (image.shape[0] * image.shape[1]))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    seconds, stages = [], {}
    for _ in range(repeats):
        begun = time.perf_counter()
        stages = detect_copies(image, settings).seconds
        seconds.append(time.perf_counter() - begun)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, stages


Row = tuple[str, float, float, str]  # what, our seconds, the other way's seconds, note


def speed(settings: SpeedSettings) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [*cascade_rows(settings), *loss_rows(settings), *cache_rows(settings, Path(folder))]
    print(f"{hardware()}; medians of {settings.repeats} runs in turn")
    for name, ours, theirs, note in rows:
        print(f"{name:46} {ours:9.4f} s  against {theirs:9.4f} s: {theirs / ours:6.1f} times faster; {note}")


def step_speed(settings: StepSpeedSettings) -> None:
    """Print milliseconds, images per second and, on a GPU, peak memory of training and embedding per batch size."""
    import torch

    from losses import ForgeryLoss
    from model import ForgeryModel, amp_dtype, autocast

    if min(settings.batch_sizes, default=0) < 1 or settings.repeats < 1:
        raise InputError("--batch-sizes and --repeats must be at least 1 each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    model = ForgeryModel(settings.model).to(device)
    criterion = ForgeryLoss(**asdict(settings.loss))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype(settings.model, device) == torch.float16)
    mixed = autocast(settings.model, device)
    size, grid = settings.model.image_size, settings.model.grid_size

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
    for batch in settings.batch_sizes:
        pixels = torch.randn(batch, 3, size, size, device=device)
        labels = torch.zeros(batch, grid, grid, dtype=torch.int64, device=device)
        labels[:, : grid // 4, : grid // 4] = labels[:, -(grid // 4) :, -(grid // 4) :] = 1
        for name, step in (("training", train_step), ("embedding", embed)):
            model.train(step is train_step)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = _steps_seconds(partial(step, pixels, labels), settings.repeats, on_gpu)
            line = f"{name:9} batch {batch:3}: {1000 * seconds:8.1f} ms, {batch / seconds:7.1f} images/s"
            print(f"{line}, peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if on_gpu else line, flush=True)


def _steps_seconds(step: Callable[[], None], repeats: int, on_gpu: bool) -> float:
    """Mean seconds of a step after three others; a GPU is waited for before and after all of them, not between."""
    import torch

    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - start) / repeats


def hardware() -> str:
    """Processor, cores and versions: what a reader needs to compare with."""
    import torch

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(": ")[1] for line in text.splitlines() if line.startswith("model name")), platform.machine()
    )
    version = importlib.metadata.version
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}, hdbscan {version('hdbscan')}"
    )


def timed_in_turn(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call; the calls take turns, so that a machine that slows down slows all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def random_grids(count: int) -> list[np.ndarray]:
    """(33, 33, 512) float32 unit vectors: a background and up to four far clusters, some of them faint."""
    grids = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(5, 512))
        member = rng.choice(5, 1089, p=[0.8, 0.05, 0.05, 0.05, 0.05])
        grid = rng.normal(0, rng.uniform(0.2, 1.5), (1089, 512)) + centres[member]
        grids.append((grid / np.linalg.norm(grid, axis=1, keepdims=True)).reshape(33, 33, 512).astype(np.float32))
    return grids


def real_grids(data: Path, count: int) -> list[np.ndarray]:
    """(G_h, G_w, 512) unit vectors of real images: the embedded backbone under an untrained head."""
    import torch

    from detector import Detector
    from model import ForgeryModel

    torch.manual_seed(0)
    detector = Detector(
        ForgeryModel(ModelSettings(backbone="embedded")).eval(), ClusteringSettings(), torch.device("cpu")
    )
    image_files = find_images(data)
    chosen = [image_files[i * len(image_files) // count] for i in range(min(count, len(image_files)))]
    cells = [detector.embed([read_image(image_file.image)])[0].cells for image_file in chosen]
    return [c.vectors.reshape(*c.shape, -1).astype(np.float32) for c in cells]


def cascade_rows(settings: SpeedSettings) -> list[Row]:
    """The cascade and 80 parameter sets against HDBSCAN called on the vectors."""
    import hdbscan

    from clustering import Cells, cascade

    defaults = ClusteringSettings()

    def on_vectors(grid: np.ndarray, min_cluster_size: int, min_samples: int, epsilon: float = 0.0) -> np.ndarray:
        vectors = grid.reshape(-1, grid.shape[2]).astype(np.float64)
        return hdbscan.HDBSCAN(
            min_cluster_size=min_cluster_size, min_samples=min_samples, cluster_selection_epsilon=epsilon
        ).fit_predict(vectors)

    grids = random_grids(settings.grids) + (real_grids(settings.data, settings.grids) if settings.data else [])
    same = 0
    for grid in tqdm(grids, desc="labels", unit="grid"):
        for size, samples in ((defaults.min_cluster_size, defaults.min_samples), (5, 2)):
            same += int((Cells(grid).hdbscan(size, samples) == on_vectors(grid, size, samples)).all())
    grid = random_grids(1)[0]
    ours, theirs = timed_in_turn(
        settings.repeats,
        lambda: cascade(Cells(grid), defaults),
        lambda: on_vectors(grid, defaults.min_cluster_size, defaults.min_samples),
    )
    labels = f"labels identical in {same} of {2 * len(grids)} clusterings of {len(grids)} grids"
    rows = [("cascade of an image, 1089 x 512", ours, theirs, labels)]
    sets = [
        (size, samples, eps) for size in (5, 10, 15, 25) for samples in (2, 3, 5, 8) for eps in (0, 0.1, 0.2, 0.3, 0.4)
    ]

    def tune() -> None:
        cells = Cells(grid)
        for size, samples, epsilon in sets:
            cascade(
                cells, replace(defaults, min_cluster_size=size, min_samples=samples, cluster_selection_epsilon=epsilon)
            )

    ours, theirs = timed_in_turn(1, tune, lambda: [on_vectors(grid, *values) for values in sets])
    return [
        *rows,
        (f"{len(sets)} parameter sets of an image", ours, theirs, "the whole cascade against HDBSCAN alone"),
    ]


def supcon_by_images(z: "torch.Tensor", labels: "torch.Tensor", temperature: float = 0.07) -> "torch.Tensor":
    """The same loss, image by image: SupCon as the SupContrast repository writes it, the other terms by loops."""
    import torch

    losses = []
    for image_file, label in zip(z, labels, strict=True):
        image_file, label = image_file[label >= 0], label[label >= 0]
        similarity = image_file @ image_file.T / temperature
        logits = similarity - similarity.max(dim=1, keepdim=True).values.detach()
        others = 1.0 - torch.eye(len(label))
        positives = (label[:, None] == label[None, :]).float() * others
        log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
        count = positives.sum(1)
        supcon = -((positives * log_probability).sum(1) / count.clamp(min=1))[count > 0].mean()
        centroids, spreads = [], []
        for k in label.unique():
            group = image_file[label == k]
            centroids.append(group.mean(0))
            spreads.append(((group - centroids[-1]).square().sum(1).mean() - 0.1).clamp(min=0))
        pairs = [(2 - (a - b).norm()).clamp(min=0) for i, a in enumerate(centroids) for b in centroids[:i]]
        separation = torch.stack(pairs).mean() if pairs else 0.0
        losses.append(1.2 * supcon + separation + 0.5 * torch.stack(spreads).mean())
    return torch.stack(losses).mean()


def loss_rows(settings: SpeedSettings) -> list[Row]:
    """Loss forward and backward at batch 8 against the loop over images; peak memory of each in its own process."""
    from losses import ForgeryLoss

    z, labels = _loss_batch()
    closed = ForgeryLoss()
    ours, theirs = timed_in_turn(
        settings.repeats,
        lambda: closed(z.requires_grad_(), labels, 6)[0].backward(),
        lambda: supcon_by_images(z.requires_grad_(), labels).backward(),
    )
    context = multiprocessing.get_context("spawn")  # a fresh process: the peak is the loss's own
    peaks = []
    for way in ("closed", "loop"):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks.append(pool.submit(_loss_peak, way).result())
    difference = abs(closed(z, labels, 6)[0].item() - supcon_by_images(z, labels).item())
    note = f"peak memory {peaks[0]:.0f} against {peaks[1]:.0f} MB; values differ by {difference:.0e}"
    return [("loss forward and backward, 8 images", ours, theirs, note)]


def _loss_batch() -> "tuple[torch.Tensor, torch.Tensor]":
    """Eight images of 33 x 33 cells: two authentic, the others with one to five instances of 40 cells."""
    import torch

    z = torch.nn.functional.normalize(torch.randn(8, 1089, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.zeros(8, 1089, dtype=torch.int64)
    for image_file in range(6):
        for k in range(image_file):
            labels[image_file, 60 * k : 60 * k + 40] = k + 1
    return z, labels


def _loss_peak(way: str) -> float:
    """Megabytes that one forward and backward pass takes at its peak (Linux)."""
    from losses import ForgeryLoss

    z, labels = _loss_batch()
    z.requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is in memory now
    before = _memory("VmRSS")
    (ForgeryLoss()(z, labels, 6)[0] if way == "closed" else supcon_by_images(z, labels)).backward()
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def cache_rows(settings: SpeedSettings, folder: Path) -> list[Row]:
    """Reading 2-megapixel PNGs from the image cache, as an epoch after the first does, against decoding them."""

    rng = np.random.default_rng(0)
    (folder / "authentic").mkdir()
    for i in range(12):
        noise = rng.integers(0, 256, (1200, 1680, 3), dtype=np.uint8)  # blurred: PNG shrinks it as it does a photograph
        cv2.imwrite(str(folder / "authentic" / f"{i}.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    image_files, data = find_images(folder), DataSettings(folder)
    cache = ImageCache(folder / "cache", 1.0, 462)

    def read(cache: "ImageCache | None") -> None:
        for image_file in image_files:
            read_letterboxed(image_file, 462, data, cache)

    read(cache)
    ours, theirs = timed_in_turn(settings.repeats, lambda: read(cache), lambda: read(None))
    return [
        (
            "reading a 2-megapixel image",
            ours / len(image_files),
            theirs / len(image_files),
            "one process, files in memory",
        )
    ]
