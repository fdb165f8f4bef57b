"""Ablation: variants of the learned path, each trained, tuned and scored with several seeds.

OUT holds the images, the features of the frozen backbone, and one run folder per variant and seed. A step whose result
is already there is left out, so that a run that was stopped goes on.
"""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

import synthesis
import train
import tuning
from backbones import load_backbone
from config import (
    AblationSettings,
    DataSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    SplitSettings,
    SynthesizeSettings,
    TrainSettings,
    TuningSettings,
)
from detector import Detector
from images.cache import DiskCache
from images.folders import find_images
from images.pairs import read_pairs
from metrics import FIGURES, Record, record_to_dict, score_image, summarize
from model import ForgeryModel
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json

TUNING_SHARE = 0.3  # share of the base images made of TRAIN that the cascade is tuned on
SYNTHESIS_SEEDS = {"training": 21, "held-out": 22}  # fixed: the images are the same for all variants and seeds
SMALL_HEAD = {"head_widths": (256, 192), "embedding_size": 128}  # takes a fifth of the time of the method's head
CORRELATION_OF_PIXELS = SMALL_HEAD | {"preset": "patch-correlation"}
COLUMNS = (
    "of1_forged",
    "false_positive_rate",
    "image_recall",
)  # of metrics.FIGURES


@dataclass(frozen=True)
class Variant:
    """What a variant changes in the settings of a training."""

    title: str  # its line in the table
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    end_to_end: bool = False  # the whole backbone is trained too


VARIANTS: dict[str, Variant] = {
    "mlp": Variant("(a) the method as defined: head of 1024, 768, 512"),
    "narrow": Variant("(a) with a head of 256, 192, 128, as all below", SMALL_HEAD),
    "class-balanced": Variant("(b) class-balanced anchors", SMALL_HEAD, {"class_balanced": True}),
    "temperature": Variant("(b) temperature 0.2", SMALL_HEAD, {"temperature": 0.2}),
    "margin": Variant("(b) separation margin 1", SMALL_HEAD, {"separation_margin": 1.0}),
    "label-coverage": Variant(
        "(b) cells labelled from a quarter of their area on", SMALL_HEAD, loader={"label_coverage": 0.25}
    ),
    "self-correlation": Variant("(c) correlation of tokens", SMALL_HEAD | {"preset": "self-correlation"}),
    "patch-correlation": Variant("(c) correlation of pixels", CORRELATION_OF_PIXELS),
    "patch-class-balanced": Variant(
        "(c) correlation of pixels, class-balanced", CORRELATION_OF_PIXELS, {"class_balanced": True}
    ),
    "large-input": Variant("(d) inputs of 924 px, 66 x 66 cells", SMALL_HEAD | {"image_size": 924}),
    "patch-large-input": Variant(
        "(c) and (d) correlation of pixels at 616 px, class-balanced",
        CORRELATION_OF_PIXELS | {"image_size": 616},
        {"class_balanced": True},
    ),
    "end-to-end": Variant("(a) with the backbone trained too", SMALL_HEAD, end_to_end=True),
}


def run_ablation(settings: AblationSettings) -> int | None:
    """Do what is missing and print the table; the exit status of a training that was asked to stop, else None."""
    check_settings(settings)
    make_images(settings)
    with kept_features(settings.out / "features"):
        for seed in settings.seeds:  # the outer loop, so that a run that is stopped has the same seeds of all variants
            for name in settings.variants:
                if status := run_variant(settings, name, seed):
                    return status
    print(table(settings.out, settings.variants))
    return None


def check_settings(settings: AblationSettings) -> None:
    """Refuse settings that cannot work, and an OUT that was made with others. Raises InputError."""
    if not settings.variants or not settings.seeds:
        raise InputError("--variants and --seeds must name at least one each")
    if min(settings.forged, settings.authentic, settings.held_out) < 3:
        raise InputError("--forged, --authentic and --held-out must be at least 3 each")
    fixed = {name: value for name, value in to_dict(settings).items() if name not in ("variants", "seeds", "out")}
    path = settings.out / "ablation.json"
    if path.exists() and (known := read_json(path)) != fixed:
        changed = ", ".join(
            f"{name} was {known.get(name)}, is {value}" for name, value in fixed.items() if known.get(name) != value
        )
        raise InputError(f"{settings.out} was made with other settings ({changed}); give another --out")
    write_json(path, fixed)


def make_images(settings: AblationSettings) -> None:
    """Make OUT/training and OUT/held-out with synthesis.py, each whole or not at all."""
    wanted = {
        "training": (settings.train, settings.forged, settings.authentic),
        "held-out": (settings.dev, settings.held_out, settings.held_out),
    }
    for name, (source, forged, authentic) in wanted.items():
        folder = settings.out / name
        if folder.exists():
            continue
        unfinished = settings.out / f".{name}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        synthesis.main(
            SynthesizeSettings(
                authentic=source,
                out=unfinished,
                count=forged,
                authentic_count=authentic,
                seed=SYNTHESIS_SEEDS[name],
                num_workers=1,
            )
        )
        os.replace(unfinished, folder)


def run_variant(settings: AblationSettings, name: str, seed: int) -> int:
    """Train, tune and score one variant with one seed, from where it stopped; the training's exit status."""
    folder = settings.out / "runs" / f"{name}-{seed}"
    if (folder / "records.jsonl").exists():
        return 0
    print(f"\n{name}, seed {seed}", flush=True)
    with restored_signals():
        status = train.main(training_settings(settings, name, seed, folder))
    if status:
        return status
    # last.pt and not best.pt: eight validation images and an untuned cascade are too little to choose an epoch by.
    checkpoint, tuned = folder / "last.pt", folder / "tuned.json"
    data = DataSettings(settings.out / "training")
    tuning.main(TuningSettings(data, checkpoint, tuned, settings.trials, seed, target_fpr=settings.target_fpr))
    score(settings, folder)
    return 0


def training_settings(settings: AblationSettings, name: str, seed: int, folder: Path) -> TrainSettings:
    """The settings with which train.py trains a variant into a run folder."""
    variant = VARIANTS[name]
    model = ModelSettings(backbone=settings.backbone, **variant.model)
    if variant.end_to_end:
        model = replace(model, unfreeze_blocks=load_backbone(settings.backbone).config.num_hidden_layers)
    return TrainSettings(
        data=DataSettings(settings.out / "training"),
        out=folder,
        resume=(folder / "last.pt").exists(),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        backbone_learning_rate=settings.learning_rate / 10,
        patience=settings.epochs,
        validation_images=8,
        checkpoint_seconds=60.0,
        seed=seed,
        split=SplitSettings(val_fraction=TUNING_SHARE, test_fraction=0.0),
        loader=LoaderSettings(num_workers=0, augment=False, **variant.loader),
        model=model,
        loss=LossSettings(**variant.loss),
    )


def score(settings: AblationSettings, folder: Path) -> None:
    """Write records.jsonl of a run: the learned path alone on every held-out image."""
    detector = Detector.load(folder / "last.pt", folder / "tuned.json").alone("embedding")
    data = DataSettings(settings.out / "held-out")
    image_files = tqdm(find_images(data.data), desc="held out", unit="image")
    lines = []
    for image_file, image, masks in read_pairs(image_files, data, []):
        found = detector.detect(image)
        record = score_image(image_file.id, found.masks, masks, found.score, found.seconds)
        lines.append(json.dumps(record_to_dict(record)) + "\n")
    atomic_write(folder / "records.jsonl", lambda path: path.write_text("".join(lines)))


def table(out: Path, variants: Sequence[str]) -> str:
    """Markdown: for each variant that has records, the mean over its seeds and, where there are several, the range."""
    headings = [FIGURES[column][0] for column in COLUMNS]
    lines = [f"| variant | seeds | {' | '.join(headings)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name in variants:
        runs = [summarize(read_records(path), resamples=1) for path in sorted(out.glob(f"runs/{name}-*/records.jsonl"))]
        if runs:
            values = [[float(run[column]["value"]) for run in runs] for column in COLUMNS]
            ranges = [f" [{min(v):.3f}, {max(v):.3f}]" if len(v) > 1 else "" for v in values]
            cells = [f"{sum(v) / len(v):.3f}{r}" for v, r in zip(values, ranges, strict=True)]
            lines.append(f"| {VARIANTS[name].title} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_records(path: Path) -> list[Record]:
    """Records of a run."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def kept_features(folder: Path) -> Iterator[None]:
    """Inside, every model with a frozen backbone keeps the features of images in `folder`, and reads them there.

    The folder belongs to one backbone.
    """
    ForgeryModel.feature_cache = DiskCache(folder)
    try:
        yield
    finally:
        ForgeryModel.feature_cache = None


@contextlib.contextmanager
def restored_signals() -> Iterator[None]:
    """Restore the handlers of SIGTERM and Ctrl-C after a training, which sets its own and keeps them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
