"""Train the head on a frozen DINOv2 backbone, so that copied regions of an image cluster together.

One GPU, or none:      python train.py --data DIR --out runs/a
All GPUs of a node:    torchrun --nproc_per_node=gpu train.py --data DIR --out runs/a
Several nodes:         torchrun --nnodes=2 --nproc_per_node=gpu --rdzv_backend=c10d --rdzv_endpoint=HOST:29500
                       --max-restarts=3 train.py --data DIR --out runs/a
Go on after a stop:    the same command with --resume

OUT gets settings.json, splits.json, log.jsonl (a line per optimiser step and per epoch), index.html with the curves,
TensorBoard events, last.pt (everything that --resume needs) and best.pt (the model with the best validation oF1).
SIGTERM and Ctrl-C save last.pt at the next step and end with status 143 and 130.
"""

from config import TrainSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(TrainSettings)  # above the heavy imports: `--help` and mistakes answer at once

import contextlib
import hashlib
import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from distributed import barrier, finish, gather, seed_everything, start, sum_over_ranks
from runtime.command_line import from_dict, to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, exclusive_lock, flush_to_disk, write_json
from runtime.ranks import Ranks, read_ranks

# Settings that may change when a run goes on: they do not change what is learned.
FREE_ON_RESUME = {"resume", "out", "data.data", "data.max_megapixels", "checkpoint_seconds", "loader.num_workers"}
FREE_ON_RESUME |= {"loader.cache", "loader.cache_gb", "cache_features"}


@dataclass
class Progress:
    """Where the run stands: what a checkpoint keeps beside weights and optimiser."""

    epoch: int = 0  # epoch that is running
    step: int = 0  # optimiser steps of this epoch that are done
    total_steps: int = 0  # optimiser steps of the run that are done
    best_of1: float = -1.0  # best validation oF1
    best_epoch: int = -1
    finished: bool = False  # the last epoch is done, or patience ran out


class Interrupt:
    """Remembers SIGTERM and Ctrl-C until the loop can save; a second Ctrl-C ends the process at once.

    SIGTERM may come twice: a scheduler sends it to every process of the job, and torchrun to its ranks once more.
    """

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Log:
    """log.jsonl, one JSON object a line, and the same numbers as TensorBoard events; the main rank's only."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Open for appending; lines past `progress` come from a run that was killed later and are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and _is_past(json.loads(line), progress)]
        atomic_write(self.path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))
        self.events = SummaryWriter(str(folder / "events"), purge_step=progress.total_steps + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a line; `kind` is `step` or `epoch`."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "total_steps": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self.events.add_scalar(f"{kind}/{name}", value, step)


def _is_past(line: dict[str, Any], progress: Progress) -> bool:
    return line["epoch"] < progress.epoch or (line["kind"] == "step" and line["total_steps"] <= progress.total_steps)


@dataclass
class Run:
    """Everything the loop works on."""

    settings: TrainSettings
    ranks: Ranks
    device: Any
    loader: Any
    validation: list[Any]  # images scored after every epoch
    splits: dict[str, str]
    identity: dict[str, Any]  # what must be the same when the run goes on
    model: Any
    wrapped: Any  # the model as DDP sees it
    criterion: Any
    optimizer: Any
    autocast: Any
    scaler: Any
    progress: Progress
    interrupt: Interrupt
    log: Log | None = None  # on the main rank
    saved_at: float = 0.0  # when last.pt was written, in seconds

    @property
    def last(self) -> Path:
        """Checkpoint from which the run goes on."""
        return self.settings.out / "last.pt"

    @property
    def best(self) -> Path:
        """Model with the best validation oF1."""
        return self.settings.out / "best.pt"

    def save(self) -> None:
        """Write last.pt: everything from which the run goes on as if it had never stopped."""
        from model import save_checkpoint

        flush_to_disk(self.log.path)  # a checkpoint that is ahead of the log would leave a gap in it
        content = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        save_checkpoint(self.last, self._model_content() | content | {"progress": asdict(self.progress)})
        self.saved_at = time.monotonic()

    def save_best(self, figures: dict[str, float]) -> None:
        """Write best.pt: what inference needs."""
        from model import save_checkpoint

        clustering = to_dict(self.settings.clustering)
        save_checkpoint(self.best, self._model_content() | {"clustering": clustering, "validation": figures})

    def _model_content(self) -> dict[str, Any]:
        from model import CHECKPOINT_FORMAT, model_state

        content = {"format": CHECKPOINT_FORMAT, "model": model_state(self.model)}
        return content | {"splits": self.splits, "identity": self.identity}

    def sum(self, values: Any) -> list[float]:
        """Sum over ranks of some numbers and, last, of who was asked to stop."""
        import torch

        stop = torch.tensor([float(self.interrupt.signal)], dtype=torch.float64, device=self.device)
        return sum_over_ranks(torch.cat([values, stop])).tolist()


def main(settings: TrainSettings) -> int:
    """Train; returns the exit status."""
    with exclusive_lock(settings.out) if read_ranks().main else contextlib.nullcontext():
        return train(settings)


def train(settings: TrainSettings) -> int:
    """Train in a folder that no other run works in; returns the exit status."""
    checkpoint = open_run(settings)
    run = build_run(settings, checkpoint)
    while not run.progress.finished:
        if not train_epoch(run):
            return stop(run)
        figures = validate(run)
        if figures is None:
            return stop(run)  # the epoch's steps are done: --resume validates first
        end_epoch(run, figures)
    progress = run.progress
    if run.log:
        run.log.events.close()
        why = (
            "all epochs done" if progress.epoch == settings.epochs else f"no better oF1 for {settings.patience} epochs"
        )
        print(f"{why}: best validation oF1 {progress.best_of1:.4f} in epoch {progress.best_epoch}, {run.best}")
    finish()
    return 0


def open_run(settings: TrainSettings) -> dict[str, Any] | None:
    """Check the command before anything heavy is loaded; the checkpoint to go on from, or None for a new run."""
    from model import check_image_size, load_checkpoint, locate_backbone

    check_image_size(settings.model.image_size)
    for name in ("epochs", "batch_size", "gradient_accumulation_steps", "patience"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")
    changing = (
        settings.loader.augment or settings.loader.synthesis_probability > 0 or settings.model.unfreeze_blocks > 0
    )
    if settings.cache_features and changing:
        raise InputError("--cache-features needs --no-augment, no --synthesis-probability and no --unfreeze-blocks")
    locate_backbone(settings.model.backbone)
    last = settings.out / "last.pt"
    restarted = read_ranks().restarts > 0 and last.exists()  # torchrun starts a failed job again
    if settings.resume and not last.exists():
        raise FileNotFoundError(f"there is no {last} to go on from; leave --resume out to start a new run")
    if last.exists() and not (settings.resume or restarted):
        raise InputError(f"{settings.out} holds a run already; go on with --resume or choose another --out")
    return load_checkpoint(last) if last.exists() else None


def build_run(settings: TrainSettings, checkpoint: dict[str, Any] | None) -> Run:
    """Ranks, seeds, data, model, optimiser, and where the run goes on."""
    import torch

    from dataset import make_loader
    from images.cache import MemoryCache
    from images.folders import find_images
    from images.pairs import readable_images
    from images.splits import select_split, split_images
    from losses import ForgeryLoss
    from model import ForgeryModel, amp_dtype, autocast, load_model_state

    ranks, device = start()
    seed_everything(settings.seed)
    interrupt = Interrupt()
    image_files, skipped = readable_images(find_images(settings.data.data), settings.data)
    splits = split_images(image_files, settings.split, checkpoint["splits"] if checkpoint else None)
    training, validation = select_split(image_files, splits, "train"), select_split(image_files, splits, "val")
    loader = make_loader(
        training,
        settings.model.image_size,
        settings.data,
        settings.loader,
        settings.synthesis,
        batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        rank=ranks.rank,
        world=ranks.world,
        seed=settings.seed,
    )
    model = ForgeryModel(settings.model).to(device).train()
    if settings.cache_features:
        model.feature_cache = MemoryCache()
    groups = model.parameter_groups(settings.learning_rate, settings.backbone_learning_rate)
    run = Run(
        settings=settings,
        ranks=ranks,
        device=device,
        loader=loader,
        validation=_every_nth(validation, settings.validation_images),
        splits=splits,
        identity={
            "settings": to_dict(settings),
            "step_images": loader.sampler.step_images,
            "training": _names_hash(training),
            "validation": _names_hash(validation),
        },
        model=model,
        wrapped=torch.nn.parallel.DistributedDataParallel(model) if ranks.world > 1 else model,
        criterion=ForgeryLoss(**asdict(settings.loss)),
        optimizer=torch.optim.AdamW(groups, weight_decay=settings.weight_decay),
        autocast=autocast(settings.model, device),
        # bf16 has float32's range and needs no scaling.
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype(settings.model, device) == torch.float16),
        progress=Progress(),
        interrupt=interrupt,
        saved_at=time.monotonic(),
    )
    if checkpoint:
        _check_same_run(checkpoint["identity"], run.identity, run.last)
        load_model_state(model, checkpoint["model"], run.last)
        run.optimizer.load_state_dict(checkpoint["optimizer"])
        run.scaler.load_state_dict(checkpoint["scaler"])
        run.progress = Progress(**checkpoint["progress"])
    _check_same_place(run)
    if ranks.main:
        settings.out.mkdir(parents=True, exist_ok=True)
        for left in settings.out.glob(".*.tmp"):  # of a run that was killed while it wrote
            left.unlink()
        write_json(settings.out / "settings.json", to_dict(settings))
        write_json(settings.out / "splits.json", splits)
        run.log = Log(settings.out, run.progress)
        _announce(run, training, skipped)
    return run


def train_epoch(run: Run) -> bool:
    """Train to the end of the epoch; False when the run was asked to stop before."""
    from tqdm import tqdm

    progress, sampler = run.progress, run.loader.sampler
    sampler.set_epoch(progress.epoch, progress.step)
    batches = iter(run.loader)
    name = f"epoch {progress.epoch}"
    with tqdm(total=sampler.steps, initial=progress.step, desc=name, unit="step", disable=not run.ranks.main) as bar:
        for step in range(progress.step, sampler.steps):
            started = time.perf_counter()
            values, stopped = train_step(run, [next(batches) for _ in sampler.step_sizes(step)])
            progress.step += 1
            progress.total_steps += 1
            if run.log:
                values |= {"seconds": time.perf_counter() - started}
                run.log.write("step", progress.total_steps, {"epoch": progress.epoch, "step": progress.step, **values})
                bar.set_postfix(loss=f"{values['loss']:.3f}")
                bar.update()
            if stopped:
                return False
            if run.log and time.monotonic() - run.saved_at >= run.settings.checkpoint_seconds:
                run.save()
    return True


def train_step(run: Run, batches: list[dict[str, Any]]) -> tuple[dict[str, float], bool]:
    """One optimiser step over its batches: loss, its terms, gradient norm and learning rate; and whether to stop."""
    import torch

    from model import to_pixels

    set_learning_rates(run)
    image_files = sum(len(batch["ids"]) for batch in batches)
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)  # mean loss and its terms
    for i, batch in enumerate(batches):
        share = len(batch["ids"]) / image_files  # the last batch of an epoch may be smaller
        alone = run.wrapped is run.model
        # Gradients travel between ranks with the last batch of a step only.
        with contextlib.nullcontext() if alone or i == len(batches) - 1 else run.wrapped.no_sync():
            labels = batch["labels"].to(run.device, non_blocking=True)
            with run.autocast:
                embeddings = run.wrapped(to_pixels(batch["image"].to(run.device, non_blocking=True)), labels >= 0)
            loss, terms = run.criterion(embeddings, labels, batch["num_labels"])
            run.scaler.scale(loss * share).backward()
        sums += share * torch.stack([loss.detach(), *terms.values()]).double()
    # One exchange between ranks, and one wait for the device, per step.
    *means, stopped = run.sum(sums / run.ranks.world)
    values = dict(zip(("loss", *terms), means, strict=True))
    if not all(map(math.isfinite, means)):
        raise InputError(_diverged(run, values))
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.max_grad_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    values |= {"gradient_norm": float(norm), "learning_rate": run.optimizer.param_groups[0]["lr"]}
    return values, bool(stopped)


def set_learning_rates(run: Run) -> None:
    """Cosine per step from each group's learning rate to the least one; unfrozen blocks wait for their epoch."""
    settings, progress = run.settings, run.progress
    cosine = 0.5 * (1 + math.cos(math.pi * progress.total_steps / (settings.epochs * run.loader.sampler.steps)))
    rates = {"head": settings.learning_rate, "backbone": settings.backbone_learning_rate}
    for group in run.optimizer.param_groups:
        low = settings.min_learning_rate
        group["lr"] = low + (rates[group["name"]] - low) * cosine
        # By the rate, not by requires_grad: DDP fixes at its start which gradients it averages.
        if group["name"] == "backbone" and progress.epoch < settings.unfreeze_epoch:
            group["lr"] = 0.0


def validate(run: Run) -> dict[str, float] | None:
    """Validation figures by the real inference path, every image exactly once; None when asked to stop."""
    import torch
    from tqdm import tqdm

    from detector import Detector
    from images.pairs import read_pairs
    from metrics import score_image, summarize

    detector = Detector(run.model.eval(), run.settings.clustering, run.device)
    mine, records, skipped = run.ranks.share(run.validation), [], []
    bar = tqdm(total=len(mine), desc="validation", unit="image", disable=not run.ranks.main, leave=False)
    for image_file, image, masks in read_pairs(mine, run.settings.data, skipped):
        if run.interrupt.signal:
            break
        found = detector.detect(image)
        records.append(score_image(image_file.id, found.masks, masks, found.score, found.seconds))
        bar.update()
    bar.close()
    run.model.train()
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    if run.sum(torch.zeros(0, dtype=torch.float64, device=run.device))[-1]:
        return None
    # In one order, so that every rank, and any number of ranks, gets the same figures to the last bit.
    records = sorted(gather(records), key=lambda record: (record.id, record.n_true))
    return {name: float(row["value"]) for name, row in summarize(records, resamples=1).items()}


def end_epoch(run: Run, figures: dict[str, float]) -> None:
    """Keep the best model, decide about stopping early (the same on every rank), save."""
    progress, settings = run.progress, run.settings
    improved = figures["of1"] > progress.best_of1
    if improved:
        progress.best_of1, progress.best_epoch = figures["of1"], progress.epoch
    if run.log:
        line = {"epoch": progress.epoch, "images": len(run.validation), **figures}
        run.log.write("epoch", progress.total_steps, line)
        run.log.events.flush()
        print(f"epoch {progress.epoch}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)
    patient = progress.epoch - progress.best_epoch < settings.patience
    progress.epoch, progress.step = progress.epoch + 1, 0
    progress.finished = progress.epoch == settings.epochs or not patient
    if run.log:
        if improved:
            run.save_best(figures)
        run.save()
        write_page(run)


def write_page(run: Run) -> None:
    """curves.png and index.html of the run so far."""
    from report.training_page import plot_training, write_run_page

    lines = [json.loads(line) for line in run.log.path.read_text().splitlines()]
    curves = run.settings.out / "curves.png"
    plot_training(lines, curves, x="total_steps")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    names = [name for name in epochs[-1] if name not in ("kind", "total_steps")]
    rows = [[f"{line[n]:.4f}" if isinstance(line.get(n), float) else line.get(n, "") for n in names] for line in epochs]
    write_run_page(
        run.settings.out / "index.html",
        title=f"Training {run.settings.out.name}",
        figures=[("Loss and its terms, validation oF1, learning rate, over optimiser steps", curves)],
        tables=[("Validation", [names, *rows])],
        details={"Settings": json.dumps(to_dict(run.settings))},
    )


def stop(run: Run) -> int:
    """Save and leave after a signal; the exit status is 128 + the signal's number, as shells have it."""
    if run.ranks.main:
        run.save()
        run.log.events.close()
        where = f"epoch {run.progress.epoch}, step {run.progress.step}"
        print(f"interrupted after {where}; saved {run.last}, go on with --resume", file=sys.stderr)
    barrier()
    finish()
    return 128 + (run.interrupt.signal or signal.SIGTERM)


def _diverged(run: Run, values: dict[str, float]) -> str:
    terms = ", ".join(f"{name} {value}" for name, value in values.items())
    kept = f"{run.last} holds the last good state" if run.last.exists() else "nothing was saved yet"
    return (
        f"the loss is not finite in epoch {run.progress.epoch}, step {run.progress.step + 1}: {terms}; "
        f"lower --learning-rate, or try --amp off; {kept}"
    )


def _every_nth(image_files: list[Any], count: int | None) -> list[Any]:
    """`count` images spread over the list, so that authentic and forged ones stay in proportion."""
    if count is None or count >= len(image_files):
        return image_files
    return [image_files[i * len(image_files) // count] for i in range(count)]


def _names_hash(image_files: list[Any]) -> str:
    names = "\n".join(f"{image_file.id} {image_file.forged} {image_file.base}" for image_file in image_files)
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _check_same_run(saved: dict[str, Any], now: dict[str, Any], last: Path) -> None:
    """Stop unless the run that goes on is the run that was stopped."""
    # Through the class, so that a setting that is younger than the checkpoint has its default.
    before = _flat(to_dict(from_dict(TrainSettings, saved["settings"])))
    after = _flat(now["settings"])
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    changed = [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names if name not in FREE_ON_RESUME
    ]
    if changed:
        raise InputError(
            f"{last} belongs to other settings: {'; '.join(changed)}. Give the same ones, or start a new --out"
        )
    if saved["step_images"] != now["step_images"]:
        raise InputError(
            f"{last} was made with {saved['step_images']} images per optimiser step over all ranks, now it would "
            f"be {now['step_images']}; use the same number of processes"
        )
    if (saved["training"], saved["validation"]) != (now["training"], now["validation"]):
        raise InputError(f"the images in the data folder are not those that {last} was made with; restore them")


def _check_same_place(run: Run) -> None:
    """All ranks must go on from one checkpoint: on machines that share no folder only the first one has it."""
    places = gather([(run.progress.epoch, run.progress.step)])
    if len(set(places)) > 1:
        raise InputError(
            f"the ranks would go on at different places (epoch, step): {places}; {run.settings.out} must be one folder "
            "that all machines share"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _announce(run: Run, training: list[Any], skipped: list[str]) -> None:
    """Say what is about to happen, before the first bar."""
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    forged = sum(bool(image_file.forged) for image_file in training)
    test = sum(split == "test" for split in run.splits.values())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    held = sum(p.numel() for p in run.model.parameters())
    again = f"; going on at epoch {run.progress.epoch}, step {run.progress.step}" if run.progress.total_steps else ""
    print(
        f"{len(training)} training images ({forged} forged), {len(run.validation)} for validation, {test} base "
        f"images kept for the test, {len(skipped)} left out\n{trained:,} of {held:,} parameters are trained; "
        f"{run.ranks.world} process(es) on {run.device.type}; run folder {run.settings.out}{again}",
        flush=True,
    )


if __name__ == "__main__":
    run(main, SETTINGS)
