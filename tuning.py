"""Find the cascade's parameters on the validation split of a checkpoint.

    python tuning.py --data DIR --checkpoint runs/a/best.pt --out runs/a/tuned.json

The images are embedded once; then Optuna searches for the highest validation oF1, of all images or, with
--target-fpr, of the forged ones at a bounded rate of false alarms. OUT gets the best parameters;
beside it lie the study (.sqlite3: the same command goes on where it was stopped), the trials (.csv) and an image and
a page of the search (.png, .html).
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
from typing import TYPE_CHECKING, Any

from config import ClusteringSettings
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, write_json

if TYPE_CHECKING:
    import numpy as np

    from clustering import Cells

# Searched ranges: (low, high) of a number, or the allowed values where one HDBSCAN tree is made for each.
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


@dataclass
class Example:
    """A validation image, ready to be scored with any parameters."""

    cells: "Cells"
    counts: "np.ndarray"  # (K, g_h, g_w) float64: pixels of each true instance in each cell
    areas: "np.ndarray"  # (g_h, g_w) float64: pixels of the image in each cell

    @classmethod
    def of(cls, image_file: Any, masks: "np.ndarray") -> "Example":
        """From an `Embedded` image and its masks (K, H, W) bool."""
        import numpy as np

        from detector import columns, rows

        box = image_file.box
        # One-hot rows and columns: counts[k] = R^T mask C, all pixels of a cell summed.
        r, c = np.eye(rows(box))[box.rows()], np.eye(columns(box))[box.columns()]  # (H, g_h), (W, g_w)
        counts = [r.T @ (mask.astype(np.float32) @ c) for mask in masks]
        return cls(
            image_file.cells,
            np.array(counts).reshape(len(masks), rows(box), columns(box)),
            np.outer(r.sum(0), c.sum(0)),
        )

    def score(self, settings: ClusteringSettings) -> float:
        """oF1 at full resolution: predicted masks are unions of whole cells, so counting per cell is exact."""
        import numpy as np

        from clustering import cascade
        from metrics import f1_from_counts, object_f1_from_matrix

        found = cascade(self.cells, settings)
        members = found.labels.ravel() == np.arange(1, len(found.scores) + 1)[:, None]  # (N, cells)
        area = members @ self.areas.ravel()
        members, area = members[area > 0], area[area > 0]
        overlap = members @ self.counts.reshape(len(self.counts), self.areas.size).T
        return object_f1_from_matrix(f1_from_counts(overlap, area, self.counts.sum((1, 2))))


def main(settings: TuningSettings) -> int:
    """Tune; returns the exit status."""
    import optuna
    from tqdm import tqdm

    from detector import Detector

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
    _check_same_study(study, storage, settings, len(examples))
    done = _finished(study)
    if not done:
        study.enqueue_trial(_searched(detector.clustering))  # never worse than what the checkpoint came with
    else:
        print(f"going on with {len(done)} trials of {storage}")
    bar = tqdm(range(len(done), settings.trials), initial=len(done), total=settings.trials, desc="tuning", unit="trial")
    for number in bar:
        # A sampler per trial: a search that was stopped goes on as it would have.
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed + number, n_startup_trials=20, multivariate=True)
        trial = study.ask()
        values = suggest(trial)
        study.tell(trial, objective(examples, ClusteringSettings(**values), settings.target_fpr))
        bar.set_postfix(best=f"{study.best_value:.4f}")
    write_results(study, settings, len(examples))
    return 0


def objective(examples: Sequence[Example], clustering: ClusteringSettings, target_fpr: float | None) -> float:
    """What the search maximises: mean oF1 of all images, or of the forged ones while the alarms are bounded.

    Where half of the images are authentic an empty answer has a mean of 0.5, and the search ends at parameters that
    find next to nothing; a bound says how many alarms a finding may cost. Over the bound the value is negative: the
    bound less the share of authentic images with an alarm.
    """
    scores = [(example.score(clustering), len(example.counts) > 0) for example in examples]
    forged = [score for score, is_forged in scores if is_forged]
    alarms = [1.0 - score for score, is_forged in scores if not is_forged]
    if target_fpr is None:
        return sum(score for score, _ in scores) / len(scores)
    share = sum(alarms) / max(len(alarms), 1)
    return sum(forged) / max(len(forged), 1) if share <= target_fpr else target_fpr - share


def embed_split(detector: Any, settings: TuningSettings) -> list[Example]:
    """Embed the validation split once; N x N distances are dropped, the trees that any trial needs are kept."""
    from tqdm import tqdm

    from images.folders import find_images
    from images.pairs import read_pairs
    from images.splits import select_split

    image_files = select_split(find_images(settings.data.data), detector.splits, "val")
    samples = sorted({*SPACE["min_samples"], *SPACE["loose_min_samples"]})
    own = {detector.clustering.min_samples, detector.clustering.loose_min_samples}
    examples, skipped = [], []
    for _, image, masks in read_pairs(tqdm(image_files, desc="embedding", unit="image"), settings.data, skipped):
        image_file = detector.embed([image])[0]
        image_file.cells.keep_only_trees(sorted({*samples, *own}))
        examples.append(Example.of(image_file, masks))
    for line in skipped:
        print(f"left out: {line}")
    return examples


def suggest(trial: Any) -> dict[str, Any]:
    """A trial's parameters, one for each of `SPACE`."""
    values: dict[str, Any] = {}
    for name, allowed in SPACE.items():
        if isinstance(allowed, list):
            values[name] = trial.suggest_categorical(name, allowed)
        elif isinstance(allowed[0], int):
            values[name] = trial.suggest_int(name, *allowed)
        else:
            values[name] = trial.suggest_float(name, *allowed)
    return values


def _searched(settings: ClusteringSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name in SPACE}


def _finished(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.value is not None]


def _check_same_study(study: Any, storage: Path, settings: TuningSettings, image_files: int) -> None:
    """A study belongs to one checkpoint and one set of images."""
    digest = hashlib.sha256(settings.checkpoint.read_bytes()).hexdigest()[:16]
    identity = {"checkpoint": digest, "images": image_files, "seed": settings.seed}
    if settings.target_fpr is not None:
        identity["target_fpr"] = settings.target_fpr
    known = study.user_attrs.get("identity", identity)
    if known != identity:
        raise InputError(
            f"{storage} is a search with another checkpoint, folder or seed ({known} then, {identity} now); "
            "give another --out, or remove it"
        )
    study.set_user_attr("identity", identity)


def write_results(study: Any, settings: TuningSettings, image_files: int) -> None:
    """The best parameters as JSON, the trials as CSV, the search as PNG and page; and a line on the screen."""
    from report.training_page import write_run_page

    trials: Sequence[Any] = _finished(study)
    first, best = trials[0], max(trials, key=lambda trial: trial.value)  # of equal ones the first
    clustering = asdict(ClusteringSettings(**best.params))
    write_json(
        settings.out,
        {
            "clustering": clustering,
            "of1": best.value,
            "of1_before": first.value,
            "target_fpr": settings.target_fpr,
            "images": image_files,
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
    image_file = settings.out.with_suffix(".png")
    plot_search(trials, image_file)
    changed = [[name, str(first.params[name]), str(best.params[name])] for name in SPACE]
    write_run_page(
        settings.out.with_suffix(".html"),
        title=f"Tuning of {settings.checkpoint}",
        figures=[("Validation oF1 of every trial, over the trials and over each parameter", image_file)],
        tables=[
            (
                "Parameters",
                [["", "before", "best"], *changed, ["validation oF1", f"{first.value:.4f}", f"{best.value:.4f}"]],
            )
        ],
        details={"Settings": json.dumps(to_dict(settings))},
    )
    of = "" if settings.target_fpr is None else f" of the forged at {settings.target_fpr:g} alarms or fewer"
    print(
        f"validation oF1{of} {best.value:.4f} (before tuning {first.value:.4f}) over {image_files} images, trial "
        f"{best.number} of {len(trials)}; parameters in {settings.out}"
    )


def plot_search(trials: Sequence[Any], path: Path) -> None:
    """oF1 of every trial over the trials, and over each parameter."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    values = np.array([trial.value for trial in trials])
    figure, axes = plt.subplots(2, 5, figsize=(16, 6), sharey=True, layout="constrained")
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
    plt.close(figure)


if __name__ == "__main__":
    run(main, SETTINGS)
