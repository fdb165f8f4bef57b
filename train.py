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
import math
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from backbones import locate_backbone
from dataset import make_loader
from detector import Detector
from distributed import barrier, finish, gather, seed_everything, start
from images.cache import MemoryCache
from images.folders import ImageFile, find_images
from images.pairs import read_pairs, readable_images
from images.splits import select_split, split_images
from losses import ForgeryLoss
from metrics import score_image, summarize
from model import ForgeryModel, amp_dtype, autocast, check_image_size, to_pixels
from report.training_page import write_training_page
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import exclusive_lock, write_json
from runtime.ranks import read_ranks
from training_run import (
    Interrupt,
    Log,
    Run,
    check_same_place,
    open_last_checkpoint,
    remove_unfinished_files,
    run_identity,
)


def main(settings: TrainSettings) -> int:
    """Train; returns the exit status."""
    with exclusive_lock(settings.out) if read_ranks().main else contextlib.nullcontext():
        return train(settings)


def train(settings: TrainSettings) -> int:
    """Train in a folder in which no other run works; returns the exit status."""
    check_settings(settings)
    last, restarted = settings.out / "last.pt", read_ranks().restarts > 0
    run = build_run(settings, open_last_checkpoint(last, settings.resume, restarted))
    progress = run.progress
    while not progress.finished:
        if not train_epoch(run):
            return stop(run)
        figures = validate(run)
        if figures is None:
            return stop(run)  # the epoch's steps are done: --resume begins with the validation
        end_epoch(run, figures)
    if run.log:
        run.log.events.close()
        done = progress.epoch == settings.epochs
        reason = "all epochs done" if done else f"no better oF1 for {settings.patience} epochs"
        print(f"{reason}: best validation oF1 {progress.best_of1:.4f} in epoch {progress.best_epoch}, {run.best}")
    finish()
    return 0


def check_settings(settings: TrainSettings) -> None:
    """Raise InputError for a setting out of its range, before images and weights are read."""
    check_image_size(settings.model.image_size)
    for name in ("epochs", "batch_size", "gradient_accumulation_steps", "patience"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")
    loader = settings.loader
    features_change = loader.augment or loader.synthesis_probability > 0 or settings.model.unfreeze_blocks > 0
    if settings.cache_features and features_change:
        raise InputError("--cache-features needs --no-augment, no --synthesis-probability and no --unfreeze-blocks")
    locate_backbone(settings.model.backbone)


def build_run(settings: TrainSettings, checkpoint: dict[str, Any] | None) -> Run:
    """Ranks, seeds, data, model, optimiser; and the state of the checkpoint, where the run goes on."""
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
        interrupt=interrupt,
        splits=splits,
        identity=run_identity(settings, loader.sampler.step_images, training, validation),
        validation=spread_evenly(validation, settings.validation_images),
        loader=loader,
        model=model,
        replica=DistributedDataParallel(model) if ranks.world > 1 else model,
        criterion=ForgeryLoss(**asdict(settings.loss)),
        optimizer=torch.optim.AdamW(groups, weight_decay=settings.weight_decay),
        autocast=autocast(settings.model, device),
        # bf16 has float32's range and needs no scaling.
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype(settings.model, device) == torch.float16),
    )
    if checkpoint:
        run.restore(checkpoint)
    check_same_place(run.progress, settings.out)
    if ranks.main:
        open_folder(run)
        announce(run, training, skipped)
    return run


def open_folder(run: Run) -> None:
    """Prepare the run folder and its log, on the main rank."""
    out = run.settings.out
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished_files(out)
    write_json(out / "settings.json", to_dict(run.settings))
    write_json(out / "splits.json", run.splits)
    run.log, run.saved_at = Log(out, run.progress), time.monotonic()


def spread_evenly(image_files: list[ImageFile], count: int | None) -> list[ImageFile]:
    """`count` images evenly spread over the list, so that authentic and forged ones stay in proportion; None: all."""
    if count is None or count >= len(image_files):
        return image_files
    return [image_files[i * len(image_files) // count] for i in range(count)]


def announce(run: Run, training: list[ImageFile], skipped: list[str]) -> None:
    """Print what is trained on what, before the first progress bar."""
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    forged = sum(bool(image_file.forged) for image_file in training)
    test = sum(split == "test" for split in run.splits.values())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in run.model.parameters())
    place = f"; going on at epoch {run.progress.epoch}, step {run.progress.step}" if run.progress.total_steps else ""
    print(
        f"{len(training)} training images ({forged} forged), {len(run.validation)} for validation, {test} base "
        f"images kept for the test, {len(skipped)} left out\n{trained:,} of {total:,} parameters are trained; "
        f"{run.ranks.world} process(es) on {run.device.type}; run folder {run.settings.out}{place}",
        flush=True,
    )


def train_epoch(run: Run) -> bool:
    """Train to the end of the epoch; False when the run was asked to stop before."""
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
    """Make one optimiser step over its batches.

    Returns:
        Loss, its terms, gradient norm and learning rate; and whether a rank was asked to stop.
    """
    set_learning_rates(run)
    step_images = sum(len(batch["ids"]) for batch in batches)
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)  # mean loss and its three terms
    for i, batch in enumerate(batches):
        share = len(batch["ids"]) / step_images  # the last batch of an epoch may be smaller
        # Gradients are exchanged between ranks with the last batch of a step only.
        exchange = run.replica is run.model or i == len(batches) - 1
        with contextlib.nullcontext() if exchange else run.replica.no_sync():
            labels = batch["labels"].to(run.device, non_blocking=True)
            with run.autocast:
                pixels = to_pixels(batch["image"].to(run.device, non_blocking=True))
                embeddings = run.replica(pixels, labels >= 0)
            loss, terms = run.criterion(embeddings, labels, batch["num_labels"])
            run.scaler.scale(loss * share).backward()
        sums += share * torch.stack([loss.detach(), *terms.values()]).double()
    # One exchange between ranks, and one wait for the device, in each step.
    *means, stopped = run.sum_over_ranks(sums / run.ranks.world)
    values = dict(zip(("loss", *terms), means, strict=True))
    if not all(map(math.isfinite, means)):
        raise InputError(divergence_message(run, values))
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.max_grad_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    values |= {"gradient_norm": float(norm), "learning_rate": run.optimizer.param_groups[0]["lr"]}
    return values, bool(stopped)


def set_learning_rates(run: Run) -> None:
    """Cosine over all steps from each group's learning rate to the smallest; unfrozen blocks wait for their epoch."""
    settings, progress = run.settings, run.progress
    cosine = 0.5 * (1 + math.cos(math.pi * progress.total_steps / (settings.epochs * run.loader.sampler.steps)))
    rates = {"head": settings.learning_rate, "backbone": settings.backbone_learning_rate}
    for group in run.optimizer.param_groups:
        low = settings.min_learning_rate
        group["lr"] = low + (rates[group["name"]] - low) * cosine
        # By the rate, not by requires_grad: DDP fixes at its start which gradients it averages.
        if group["name"] == "backbone" and progress.epoch < settings.unfreeze_epoch:
            group["lr"] = 0.0


def divergence_message(run: Run, values: dict[str, float]) -> str:
    """What to tell the user when the loss is not finite."""
    terms = ", ".join(f"{name} {value}" for name, value in values.items())
    kept = f"{run.last} holds the last good state" if run.last.exists() else "nothing was saved yet"
    return (
        f"the loss is not finite in epoch {run.progress.epoch}, step {run.progress.step + 1}: {terms}; "
        f"lower --learning-rate, or try --amp off; {kept}"
    )


def validate(run: Run) -> dict[str, float] | None:
    """Validation figures by the real inference path, every image exactly once; None when asked to stop."""
    detector = Detector(run.model.eval(), run.settings.clustering, run.device)
    own, records, skipped = run.ranks.share(run.validation), [], []
    bar = tqdm(total=len(own), desc="validation", unit="image", disable=not run.ranks.main, leave=False)
    for image_file, image, masks in read_pairs(own, run.settings.data, skipped):
        if run.interrupt.signal:
            break
        found = detector.detect(image)
        records.append(score_image(image_file.id, found.masks, masks, found.score, found.seconds))
        bar.update()
    bar.close()
    run.model.train()
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    (stopped,) = run.sum_over_ranks()
    if stopped:
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
    out_of_patience = progress.epoch - progress.best_epoch >= settings.patience
    progress.epoch, progress.step = progress.epoch + 1, 0
    progress.finished = progress.epoch == settings.epochs or out_of_patience
    if run.log:
        if improved:
            run.save_best(figures)
        run.save()
        write_training_page(settings.out, run.log.read(), to_dict(settings))


def stop(run: Run) -> int:
    """Save and end after a signal; the exit status is 128 + the signal's number, as shells have it."""
    if run.ranks.main:
        run.save()
        run.log.events.close()
        place = f"epoch {run.progress.epoch}, step {run.progress.step}"
        print(f"interrupted after {place}; saved {run.last}, go on with --resume", file=sys.stderr)
    barrier()
    finish()
    return 128 + (run.interrupt.signal or signal.SIGTERM)


if __name__ == "__main__":
    run(main, SETTINGS)
