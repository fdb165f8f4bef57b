import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metrics import Record
from config import (
    DataSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    SplitSettings,
    StudySettings,
    SynthesizeSettings,
    TrainSettings,
    TuningSettings,
)
from images.cache import DiskCache
from images.folders import find_images
from images.pairs import read_pairs
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json
from synthesis import main

TUNING_SHARE = 0.3  # of the base images made of TRAIN


SYNTHESIS_SEEDS = {"training": 21, "held-out": 22}  # the images are the same for all variants and seeds


NARROW = {"head_widths": (256, 192), "embedding_size": 128}  # a fifth of the time of the method's head


COLUMNS = {
    "of1_forged": "oF1, forged",
    "false_positive_rate": "authentic with a false alarm",
    "image_recall": "forged with a hit",
}


@dataclass(frozen=True)
class Variant:
    """What differs from the method as defined."""

    what: str  # its line in the table
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    end_to_end: bool = False  # the backbone is trained too


VARIANTS: dict[str, Variant] = {
    "method": Variant("(a) the method as defined: 1024, 768, 512"),
    "narrow": Variant("(a) with a head of 256, 192, 128, as all below", NARROW),
    "balance": Variant("(b) balanced anchors", NARROW, {"class_balanced": True}),
    "temperature": Variant("(b) temperature 0.2", NARROW, {"temperature": 0.2}),
    "margin": Variant("(b) separation margin 1", NARROW, {"separation_margin": 1.0}),
    "coverage": Variant("(b) cells labelled from a quarter of their area on", NARROW, loader={"label_coverage": 0.25}),
    "self-correlation": Variant("(c) matches among tokens", NARROW | {"preset": "self-correlation"}),
    "patch-correlation": Variant("(c) matches among pixels", NARROW | {"preset": "patch-correlation"}),
    "patch-balance": Variant(
        "(c) the same, balanced", NARROW | {"preset": "patch-correlation"}, {"class_balanced": True}
    ),
    "large": Variant("(d) inputs of 924 px, 66 x 66 cells", NARROW | {"image_size": 924}),
    "patch-large": Variant(
        "(c) and (d) matches among pixels at 616 px, balanced",
        NARROW | {"preset": "patch-correlation", "image_size": 616},
        {"class_balanced": True},
    ),
    "end-to-end": Variant("(a) with the backbone trained too", NARROW, end_to_end=True),
}


def study(settings: StudySettings) -> int | None:
    """Run what is missing and print the table; the exit status of a training that was asked to stop."""
    check(settings)
    make_images(settings)
    with kept_features(settings.out / "features"):
        for seed in settings.seeds:  # outermost: a study that is stopped has the same seeds of all variants
            for name in settings.variants:
                if status := run_variant(settings, name, seed):
                    return status
    print(table(settings.out, settings.variants))
    return None


def check(settings: StudySettings) -> None:
    """Refuse what cannot be run, and an OUT that belongs to other settings."""
    if not settings.variants or not settings.seeds:
        raise InputError("--variants and --seeds must name at least one each")
    if min(settings.forged, settings.authentic, settings.held_out) < 3:
        raise InputError("--forged, --authentic and --held-out must be at least 3 each")
    same = {name: value for name, value in to_dict(settings).items() if name not in ("variants", "seeds", "out")}
    path = settings.out / "study.json"
    if path.exists() and (known := read_json(path)) != same:
        changed = ", ".join(
            f"{name} was {known.get(name)}, is {same[name]}" for name in same if known.get(name) != same[name]
        )
        raise InputError(f"{settings.out} is a study with other settings ({changed}); give another --out")
    write_json(path, same)


def make_images(settings: StudySettings) -> None:
    """OUT/training and OUT/held-out, each whole or not at all."""

    wanted = {
        "training": (settings.train, settings.forged, settings.authentic),
        "held-out": (settings.dev, settings.held_out, settings.held_out),
    }
    for name, (authentic, forged, count) in wanted.items():
        folder = settings.out / name
        if folder.exists():
            continue
        unfinished = settings.out / f".{name}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        main(
            SynthesizeSettings(
                authentic=authentic,
                out=unfinished,
                count=forged,
                authentic_count=count,
                seed=SYNTHESIS_SEEDS[name],
                num_workers=1,
            )
        )
        os.replace(unfinished, folder)


def run_variant(settings: StudySettings, name: str, seed: int) -> int:
    """Train, tune and score one variant with one seed, from where it stands; the training's exit status."""
    import train
    import tuning

    folder = settings.out / "runs" / f"{name}-{seed}"
    if (folder / "records.jsonl").exists():
        return 0
    print(f"\n{name}, seed {seed}", flush=True)
    with own_signals():
        status = train.main(training(settings, name, seed, folder))
    if status:
        return status
    # Not best.pt: a cascade that was not tuned yet and a few images are too little to choose an epoch by.
    checkpoint, tuned = folder / "last.pt", folder / "tuned.json"
    data = DataSettings(settings.out / "training")

    tuning.main(TuningSettings(data, checkpoint, tuned, settings.trials, seed, target_fpr=settings.target_fpr))
    score(settings, folder)
    return 0


def training(settings: StudySettings, name: str, seed: int, folder: Path) -> TrainSettings:
    """train.py's settings for a variant."""
    variant = VARIANTS[name]
    model = ModelSettings(backbone=settings.backbone, **variant.model)
    if variant.end_to_end:
        from backbones import load_backbone

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


def score(settings: StudySettings, folder: Path) -> None:
    """records.jsonl of a run: the embedding alone on every held-out image."""
    from tqdm import tqdm

    from detector import Detector
    from metrics import record_to_dict, score_image

    detector = Detector.load(folder / "last.pt", folder / "tuned.json").alone("embedding")
    image_files = find_images(settings.out / "held-out")
    lines = []
    data = DataSettings(settings.out / "held-out")
    for image_file, image, masks in read_pairs(tqdm(image_files, desc="held out", unit="image"), data, []):
        found = detector.detect(image)
        record = score_image(image_file.id, found.masks, masks, found.score, found.seconds)
        lines.append(json.dumps(record_to_dict(record)) + "\n")
    atomic_write(folder / "records.jsonl", lambda path: path.write_text("".join(lines)))


def table(out: Path, variants: Sequence[str]) -> str:
    """Markdown: for each variant that has records, the mean over its seeds and, of several, the range."""
    from metrics import summarize

    lines = [f"| variant | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name in variants:
        runs = [summarize(read_records(path), resamples=1) for path in sorted(out.glob(f"runs/{name}-*/records.jsonl"))]
        if runs:
            values = [[float(run[column]["value"]) for run in runs] for column in COLUMNS]
            ranges = [f" [{min(v):.3f}, {max(v):.3f}]" if len(v) > 1 else "" for v in values]
            cells = [f"{sum(v) / len(v):.3f}{r}" for v, r in zip(values, ranges, strict=True)]
            lines.append(f"| {VARIANTS[name].what} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_records(path: Path) -> "list[Record]":
    """Records of a run."""
    from metrics import Record

    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def kept_features(folder: Path) -> Iterator[None]:
    """Inside, every model with a frozen backbone keeps the features of images in `folder`, and reads them there.

    The folder belongs to one backbone.
    """
    from model import ForgeryModel

    ForgeryModel.feature_cache = DiskCache(folder)
    try:
        yield
    finally:
        ForgeryModel.feature_cache = None


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Give SIGTERM and Ctrl-C their meaning back after a training, which keeps them for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
