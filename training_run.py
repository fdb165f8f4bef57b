"""What a training has around its loop: its state, signals, its log, and the checks when it goes on after a stop.

train.py and pretrain.py keep these files in their run folder: settings.json, log.jsonl, TensorBoard events, and
last.pt, from which `--resume` goes on as if the run had never stopped.
"""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from checkpoints import load_checkpoint, load_model_state, model_state, save_checkpoint
from config import TrainSettings
from distributed import gather, sum_over_ranks
from images.folders import ImageFile
from runtime.command_line import changed_settings, from_dict, to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, flush_to_disk
from runtime.ranks import Ranks

if TYPE_CHECKING:
    from dataset import Loader
    from losses import ForgeryLoss
    from model import ForgeryModel

# Settings of train.py that may change when a run goes on: they do not change what is learned.
FREE_ON_RESUME = {"resume", "out", "data", "max_megapixels", "checkpoint_seconds", "num_workers"}
FREE_ON_RESUME |= {"cache", "cache_gb", "cache_features"}
# Earlier names in a run's identity; `from_dict` knows those of the settings.
OLD_IDENTITY_NAMES = {"step_pictures": "step_images"}


@dataclass
class Progress:
    """Where a training stands: what a checkpoint keeps beside weights and optimiser."""

    epoch: int = 0  # the epoch that is running
    step: int = 0  # optimiser steps of this epoch that are done
    total_steps: int = 0  # optimiser steps of the whole run that are done
    best_of1: float = -1.0  # best validation oF1 so far
    best_epoch: int = -1  # the epoch that had it
    finished: bool = False  # the last epoch is done, or early stopping has ended the run


class Interrupt:
    """Remembers SIGTERM and Ctrl-C until the loop can save; a second Ctrl-C ends the process at once.

    A second SIGTERM is ignored: a scheduler sends one to every process of the job, and torchrun sends its ranks one
    more.
    """

    def __init__(self) -> None:
        self.signal = 0  # number of the signal that came; 0: none
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Log:
    """log.jsonl, one JSON object a line, and the same numbers as TensorBoard events; written by the main rank only."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Open for appending; lines beyond `progress`, which a killed run wrote after its checkpoint, are dropped."""
        self.path = folder / "log.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and _is_within(json.loads(line), progress)]
        atomic_write(self.path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))
        self.events = SummaryWriter(str(folder / "events"), purge_step=progress.total_steps + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a line; `kind` is `step` or `epoch`, `step` counts the optimiser steps of the whole run."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "total_steps": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self.events.add_scalar(f"{kind}/{name}", value, step)

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def flush_to_disk(self) -> None:
        """Wait until all lines are on the disk: a checkpoint that is ahead of the log would leave a gap in it."""
        flush_to_disk(self.path)


def _is_within(line: dict[str, Any], progress: Progress) -> bool:
    return line["epoch"] < progress.epoch or (line["kind"] == "step" and line["total_steps"] <= progress.total_steps)


@dataclass
class Run:
    """Everything that the loop of train.py works on."""

    settings: TrainSettings
    ranks: Ranks
    device: torch.device
    interrupt: Interrupt
    splits: dict[str, str]  # base image -> train, val or test
    identity: dict[str, Any]  # what must be the same when the run goes on, see `run_identity`
    validation: list[ImageFile]  # images that are scored after every epoch
    loader: "Loader"  # training batches of this rank
    model: "ForgeryModel"
    replica: torch.nn.Module  # the model, wrapped by DDP where there are several ranks
    criterion: "ForgeryLoss"
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    log: Log | None = None  # on the main rank
    saved_at: float = 0.0  # when last.pt was written, in seconds of time.monotonic

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
        self.log.flush_to_disk()
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        save_checkpoint(self.last, self._model_content() | state | {"progress": asdict(self.progress)})
        self.saved_at = time.monotonic()

    def save_best(self, figures: dict[str, float]) -> None:
        """Write best.pt: what inference needs."""
        clustering = to_dict(self.settings.clustering)
        save_checkpoint(self.best, self._model_content() | {"clustering": clustering, "validation": figures})

    def _model_content(self) -> dict[str, Any]:
        return {"model": model_state(self.model), "splits": self.splits, "identity": self.identity}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the content of last.pt. Raises InputError where it belongs to another run."""
        check_same_run(checkpoint["identity"], self.identity, self.settings, self.last)
        load_model_state(self.model, checkpoint["model"], self.last)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.progress = Progress(**checkpoint["progress"])

    def sum_over_ranks(self, *values: torch.Tensor) -> list[float]:
        """Sums of float64 numbers (N,) over the ranks and, last, whether any rank was asked to stop (0: none)."""
        stop = torch.tensor([float(self.interrupt.signal)], dtype=torch.float64, device=self.device)
        return sum_over_ranks(torch.cat([*values, stop])).tolist()


# Going on after a stop ----------------------------------------------------------------------------------------------


def open_last_checkpoint(last: Path, resume: bool, restarted: bool = False) -> dict[str, Any] | None:
    """Read the checkpoint from which a run goes on; None for a new run.

    Args:
        last: OUT/last.pt. resume: `--resume` was given. restarted: torchrun has started a failed job again, which goes
            on where it has saved something.
    Raises:
        FileNotFoundError: `--resume`, but there is no checkpoint.
        InputError: no `--resume`, but the folder holds a run.
    """
    if resume and not last.exists():
        raise FileNotFoundError(f"there is no checkpoint {last} to go on from; leave --resume out to start a new run")
    if last.exists() and not (resume or restarted):
        raise InputError(f"{last.parent} holds a run already; go on with --resume or choose another --out")
    return load_checkpoint(last) if last.exists() else None


def remove_unfinished_files(folder: Path) -> None:
    """Delete the temporary files and folders of a run that was killed while it wrote them."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_same_settings(saved: dict[str, Any], now: Any, may_change: Collection[str], last: Path) -> None:
    """Check that a run goes on with the settings that it was started with.

    Args:
        saved: settings of the checkpoint, from `to_dict` of this or an earlier version. now: settings object.
        may_change: names of settings that do not change what is learned.
        last: the checkpoint, for the message.
    Raises:
        InputError: others have changed; the message lists them all.
    """
    # Through the class, so that a setting that is younger than the checkpoint has its default.
    changed = changed_settings(to_dict(from_dict(type(now), saved)), to_dict(now), may_change)
    if changed:
        raise InputError(
            f"{last} belongs to other settings: {'; '.join(changed)}. Give the same ones, or start a new --out"
        )


def run_identity(
    settings: Any, step_images: int, training: Sequence[ImageFile], validation: Sequence[ImageFile]
) -> dict[str, Any]:
    """What a checkpoint keeps so that `check_same_run` can tell whether a run goes on as it was started.

    Args:
        step_images: images of one optimiser step over all ranks.
    """
    return {
        "settings": to_dict(settings),
        "step_images": step_images,
        "training": digest_of_images(training),
        "validation": digest_of_images(validation),
    }


def check_same_run(saved: dict[str, Any], now: dict[str, Any], settings: TrainSettings, last: Path) -> None:
    """Check that a run goes on with the same settings, images per step, and images.

    Args:
        saved: the checkpoint's identity. now: the identity of the run that goes on, and its settings.
        last: the checkpoint, for messages.
    Raises:
        InputError: something differs.
    """
    saved = {OLD_IDENTITY_NAMES.get(name, name): value for name, value in saved.items()}
    check_same_settings(saved["settings"], settings, FREE_ON_RESUME, last)
    if saved["step_images"] != now["step_images"]:
        raise InputError(
            f"{last} was made with {saved['step_images']} images per optimiser step over all ranks, now it would "
            f"be {now['step_images']}; use the same number of processes"
        )
    if (saved["training"], saved["validation"]) != (now["training"], now["validation"]):
        raise InputError(f"the images in the data folder are not those that {last} was made with; restore them")


def check_same_place(progress: Progress, out: Path) -> None:
    """Check that all ranks go on from one checkpoint: on machines that share no folder only the first one has it.

    Raises:
        InputError: they do not.
    """
    places = gather([(progress.epoch, progress.step)])
    if len(set(places)) > 1:
        raise InputError(
            f"the ranks would go on at different places (epoch, step): {places}; {out} must be one folder that all "
            "machines share"
        )


def digest_of_images(image_files: Sequence[ImageFile]) -> str:
    """Short hash of a list of images: of their names, truth and base images, not of their pixels."""
    names = "\n".join(f"{image_file.id} {image_file.forged} {image_file.base}" for image_file in image_files)
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:16]
