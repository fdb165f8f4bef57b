"""Find the cascade's parameters on the validation split of a checkpoint.

    python tuning.py --data DIR --checkpoint runs/a/best.pt --out runs/a/tuned.json

The images are embedded once; then Optuna searches for the highest validation oF1 of all images. With --target-fpr it
searches for the highest oF1 of the forged ones at a bounded rate of false alarms. OUT gets the best parameters. Beside
it lie the study (.sqlite3: the same command goes on where it was stopped), the trials (.csv), and a plot and a page of
the search (.png, .html).
"""

from config import TuningSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(TuningSettings)  # above the heavy imports: `--help` and mistakes answer at once

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from tqdm import tqdm

from clustering import EmbeddingGrid, cascade
from config import ClusteringSettings
from detector import Detector, GridEmbedding
from images.folders import find_images
from images.pairs import read_pairs
from images.splits import select_split
from metrics import f1_from_counts, object_f1_from_matrix
from report.training_page import write_run_page
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, write_json

# Searched ranges: (lowest, highest) of a number, or the allowed values where one HDBSCAN tree is made for each.
SPACE: dict[str, tuple[float, float] | list[int]] = {
    "min_cluster_size": (5, 40),
    "min_samples": [2, 3, 5, 8, 12],
    "cluster_selection_epsilon": (0.0, 0.5),
    "candidate_distance": (0.05, 1.0),
    "anomaly_threshold": (0.0, 0.5),
    "loose_min_cluster_size": (4, 6),
    "loose_min_samples": [2, 3],
    "loose_candidate_distance": (0.15, 0.25),
    "growth_distance": (0.02, 0.4),
}


# Names in a study's identity before a renaming.
OLD_IDENTITY_NAMES = {"pictures": "images", "max_false_alarms": "target_fpr"}


@dataclass(frozen=True)
class Example:
    """A validation image, ready to be scored with any parameters."""

    grid: EmbeddingGrid
    counts: np.ndarray  # (K, g_h, g_w) float64: pixels of each true instance in each cell
    areas: np.ndarray  # (g_h, g_w) float64: pixels of the image in each cell

    @classmethod
    def of(cls, embedding: GridEmbedding, masks: np.ndarray) -> "Example":
        """Make an example of an embedded image and its true masks (K, H, W) bool."""
        (rows, columns), box = embedding.grid.shape, embedding.box
        # One-hot rows and columns: counts[k] = R^T mask C sums all pixels of each cell.
        r, c = np.eye(rows)[box.rows()], np.eye(columns)[box.columns()]  # (H, g_h), (W, g_w)
        counts = [r.T @ (mask.astype(np.float32) @ c) for mask in masks]
        return cls(
            embedding.grid, np.array(counts).reshape(len(masks), rows, columns), np.outer(r.sum(axis=0), c.sum(axis=0))
        )

    def score(self, settings: ClusteringSettings) -> float:
        """oF1 at full resolution: predicted masks are unions of whole cells, so counting per cell is exact."""
        found = cascade(self.grid, settings)
        members = found.labels.ravel() == np.arange(1, len(found.scores) + 1)[:, None]  # (N, cells)
        area = members @ self.areas.ravel()
        members, area = members[area > 0], area[area > 0]
        overlap = members @ self.counts.reshape(len(self.counts), self.areas.size).T
        return object_f1_from_matrix(f1_from_counts(overlap, area, self.counts.sum(axis=(1, 2))))


def main(settings: TuningSettings) -> int:
    """Tune; returns the exit status."""
    if settings.trials < 1:
        raise InputError(f"--trials is {settings.trials}; it must be at least 1")
    if settings.target_fpr is not None and not 0 <= settings.target_fpr <= 1:
        raise InputError(f"--target-fpr is {settings.target_fpr}; it is a share from 0 to 1")
    detector = Detector.load(settings.checkpoint, backbone=settings.backbone)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    storage = settings.out.with_suffix(".sqlite3")
    study = optuna.create_study(
        storage=f"sqlite:///{storage.absolute()}", study_name="cascade", direction="maximize", load_if_exists=True
    )
    examples = embed_split(detector, settings)
    check_same_study(study, storage, settings, len(examples))
    done = len(finished_trials(study))
    if done:
        print(f"going on with {done} trials of {storage}")
    else:
        # The checkpoint's own parameters first, so that the best ones are never worse.
        own = asdict(detector.clustering)
        study.enqueue_trial({name: own[name] for name in SPACE})
    bar = tqdm(range(done, settings.trials), initial=done, total=settings.trials, desc="tuning", unit="trial")
    for number in bar:
        # A new sampler for each trial: a search that was stopped goes on as if it had not been.
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed + number, n_startup_trials=20, multivariate=True)
        trial = study.ask()
        study.tell(trial, objective(examples, ClusteringSettings(**suggest(trial)), settings.target_fpr))
        bar.set_postfix(best=f"{study.best_value:.4f}")
    write_results(study, settings, len(examples))
    return 0


def objective(examples: Sequence[Example], clustering: ClusteringSettings, target_fpr: float | None) -> float:
    """What the search maximises: mean oF1 of all images, or of the forged ones at a bounded rate of false alarms.

    Where half of the images are authentic, finding nothing at all already gives a mean of 0.5, and the search ends at
    parameters that hardly find anything. So `target_fpr` bounds the share of authentic images with a finding. Above
    the bound the value is negative: the bound less that share.
    """
    scores = [(example.score(clustering), len(example.counts) > 0) for example in examples]
    if target_fpr is None:
        return sum(score for score, _ in scores) / len(scores)
    forged = [score for score, is_forged in scores if is_forged]
    false_alarms = [1.0 - score for score, is_forged in scores if not is_forged]
    false_positive_rate = sum(false_alarms) / max(len(false_alarms), 1)
    if false_positive_rate > target_fpr:
        return target_fpr - false_positive_rate
    return sum(forged) / max(len(forged), 1)


def embed_split(detector: Detector, settings: TuningSettings) -> list[Example]:
    """Embed the validation split once, with the trees that any trial needs; the N x N distances are dropped."""
    image_files = select_split(find_images(settings.data.data), detector.splits, "val")
    own = {detector.clustering.min_samples, detector.clustering.loose_min_samples}
    min_samples = sorted({*SPACE["min_samples"], *SPACE["loose_min_samples"], *own})
    examples, skipped = [], []
    for _, image, masks in read_pairs(tqdm(image_files, desc="embedding", unit="image"), settings.data, skipped):
        (embedding,) = detector.embed([image])
        embedding.grid.keep_only_trees(min_samples)
        examples.append(Example.of(embedding, masks))
    for line in skipped:
        print(f"left out: {line}")
    return examples


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Parameters of a trial, one for each of `SPACE`."""
    values: dict[str, Any] = {}
    for name, allowed in SPACE.items():
        if isinstance(allowed, list):
            values[name] = trial.suggest_categorical(name, allowed)
        elif isinstance(allowed[0], int):
            values[name] = trial.suggest_int(name, *allowed)
        else:
            values[name] = trial.suggest_float(name, *allowed)
    return values


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that have a value: a process that was killed leaves one without."""
    return [trial for trial in study.trials if trial.value is not None]


def check_same_study(study: optuna.Study, storage: Path, settings: TuningSettings, images: int) -> None:
    """Check that a study goes on with the checkpoint, number of images, seed and bound that it was started with.

    Raises:
        InputError: one of them differs.
    """
    digest = hashlib.sha256(settings.checkpoint.read_bytes()).hexdigest()[:16]
    identity = {"checkpoint": digest, "images": images, "seed": settings.seed}
    if settings.target_fpr is not None:
        identity["target_fpr"] = settings.target_fpr
    saved = study.user_attrs.get("identity", identity)
    saved = {OLD_IDENTITY_NAMES.get(name, name): value for name, value in saved.items()}
    if saved != identity:
        raise InputError(
            f"{storage} is a search with another checkpoint, folder or seed ({saved} then, {identity} now); "
            "give another --out, or remove it"
        )
    study.set_user_attr("identity", identity)


def write_results(study: optuna.Study, settings: TuningSettings, images: int) -> None:
    """The best parameters as JSON, the trials as CSV, the search as PNG and page; and a line on the screen."""
    trials = finished_trials(study)
    first, best = trials[0], max(trials, key=lambda trial: trial.value)  # of equal ones the first
    write_json(
        settings.out,
        {
            "clustering": asdict(ClusteringSettings(**best.params)),
            "of1": best.value,
            "of1_before": first.value,
            "target_fpr": settings.target_fpr,
            "images": images,
            "trials": len(trials),
            "checkpoint": str(settings.checkpoint),
        },
    )

    def write_table(path: Path) -> None:
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["trial", "of1", *SPACE])
            table.writerows([t.number, t.value, *(t.params[name] for name in SPACE)] for t in trials)

    atomic_write(settings.out.with_suffix(".csv"), write_table)
    plot = settings.out.with_suffix(".png")
    plot_search(trials, plot)
    rows = [[name, str(first.params[name]), str(best.params[name])] for name in SPACE]
    rows += [["validation oF1", f"{first.value:.4f}", f"{best.value:.4f}"]]
    write_run_page(
        settings.out.with_suffix(".html"),
        title=f"Tuning of {settings.checkpoint}",
        figures=[("Validation oF1 of every trial, over the trials and over each parameter", plot)],
        tables=[("Parameters", [["", "before", "best"], *rows])],
        details={"Settings": json.dumps(to_dict(settings))},
    )
    bound = settings.target_fpr
    of_what = "" if bound is None else f" of the forged images at a false positive rate of at most {bound:g}"
    print(
        f"validation oF1{of_what} {best.value:.4f} (before tuning {first.value:.4f}) over {images} images, trial "
        f"{best.number} of {len(trials)}; parameters in {settings.out}"
    )


def plot_search(trials: Sequence[optuna.trial.FrozenTrial], path: Path) -> None:
    """Plot the oF1 of every trial over the trials, and over each parameter."""
    values = np.array([trial.value for trial in trials])
    figure = Figure(figsize=(16, 6), layout="constrained")
    axes = figure.subplots(2, 5, sharey=True)
    axes[0, 0].plot(values, ".", color="0.6")
    axes[0, 0].plot(np.maximum.accumulate(values), color="C0", label="best so far")
    axes[0, 0].set_xlabel("trial")
    axes[0, 0].legend()
    for axis, name in zip(axes.ravel()[1:], SPACE, strict=True):
        axis.scatter([trial.params[name] for trial in trials], values, c=np.arange(len(values)), s=10)
        axis.axvline(trials[int(values.argmax())].params[name], color="C1", linewidth=1)
        axis.set_xlabel(name)
    for axis in axes[:, 0]:
        axis.set_ylabel("validation oF1")
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


if __name__ == "__main__":
    run(main, SETTINGS)
