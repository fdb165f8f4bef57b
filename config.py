"""Every setting of the project, once: frozen dataclasses from which the command line is made.

The text after each field is its help: meaning, unit, limits. A script's settings are one class (`TrainSettings`,
`TuningSettings`, ...) made of the groups it needs. `runtime/command_line.py` turns a class into a command line and into
JSON. Nothing heavy is imported here, so that `--help` answers at once.
"""

import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

PATCH = 14  # side of a DINOv2 patch in pixels: one cell of the embedding grid
WEIGHTS = Path(__file__).resolve().parent / "weights"  # what ships
EMBEDDED_BACKBONE = WEIGHTS  # what `--backbone embedded` means

# A field's help is the comment on its line, however long: no formatting here.
# fmt: off


@dataclass(frozen=True)
class DataSettings:
    """Images: where they are and how they are read."""

    data: Path  # folder of images: Recod.ai/LUC (train_images/, train_masks/) or authentic/, forged/, masks/
    skip_unreadable: bool = False  # leave out images that cannot be read (counted and named) instead of stopping
    max_megapixels: float = 200.0  # refuse larger images by their header, before decoding, in megapixels


@dataclass(frozen=True)
class SplitSettings:
    """How base images are split; an image and all that was made from it fall into the same part."""

    val_fraction: float = 0.15  # share of the base images kept for validation and tuning, 0 to 1
    test_fraction: float = 0.15  # share of the base images kept for the test, 0 to 1
    split_seed: int = 0  # seed of the split; the same seed and folder always give the same split


@dataclass(frozen=True)
class LoaderSettings:
    """How images reach the training loop."""

    num_workers: int = 2  # loader processes per rank; 0 reads in the main process
    cache: Path | None = None  # folder for decoded, letterboxed images, so that an epoch is not bound by decoding
    cache_gb: float = 20.0  # largest size of that folder in GB; images beyond it are decoded each time
    augment: bool = True  # flips, rotation, blur, JPEG, noise, colour
    label_coverage: float = 0.5  # least share of a cell that a content covers for the cell to take its label, over 0 to 1
    synthesis_probability: float = 0.0  # share of authentic training images turned into forgeries on the fly, 0 to 1


# object: a cell or a band along its outline; panel: a panel or a part of one, in composed figures only
ContentKind = Literal["object", "blob", "ellipse", "rectangle", "polygon", "panel"]
CopyTransform = Literal["rotation", "right-angle", "scale", "mirror", "recolour"]  # recolour: brightness and contrast
CopyBlending = Literal["hard", "feathered", "poisson"]
Degradation = Literal["jpeg", "noise", "blur", "resize"]


@dataclass(frozen=True)
class DemoSettings:
    """Write the images that scikit-image and scikit-learn carry."""

    out: Positional[Path]  # folder to write them into


@dataclass(frozen=True)
class SynthesisSettings:
    """What forgeries are made of. Shares follow the Recod.ai/LUC training images."""

    max_contents: int = 3  # most duplicated contents in one image, 1 to 4
    max_copies: int = 4  # most copies of one content, its source not counted, 1 to 4
    min_copy_pixels: int = 16  # smallest side of a source or copy in the finished image, in pixels
    max_copy_pixels: int | None = None  # largest such side in pixels; free when not given
    content_kinds: tuple[ContentKind, ...] = typing.get_args(ContentKind)  # what may be copied; panel: in composed figures only
    transform_probability: float = 0.6  # share of copies that are rotated, scaled, mirrored or recoloured
    copy_transforms: tuple[CopyTransform, ...] = typing.get_args(CopyTransform)  # changes of those, at least one each
    min_scale: float = 0.5  # smallest side of a scaled copy against its source
    max_scale: float = 2.0  # largest side of a scaled copy against its source
    copy_blendings: tuple[CopyBlending, ...] = typing.get_args(CopyBlending)  # how copies are pasted
    panel_probability: float = 0.3  # share of images composed of panels with labels, arrows and scale bars
    degrade_probability: float = 0.5  # share of finished images that get JPEG, noise, blur or a resize
    degradations: tuple[Degradation, ...] = typing.get_args(Degradation)  # what those may get, at least one each
    min_jpeg_quality: int = 60  # lowest JPEG quality of a degraded image, 1 to 100
    max_jpeg_quality: int = 95  # highest JPEG quality of a degraded image, 1 to 100


@dataclass(frozen=True)
class SynthesizeSettings:
    """Make forgeries with exact masks out of a folder of authentic images."""

    authentic: Path  # folder of authentic images, searched recursively
    out: Path  # folder to make: authentic/, forged/, masks/; must hold no other run unless --resume
    count: int = 2000  # forged images to make
    authentic_count: int | None = None  # authentic images to write beside them; as many as forged ones when not given
    seed: int = 0  # the same seed, folder and settings give the same files
    num_workers: int = os.cpu_count() or 1  # processes that make images side by side
    group_size: int = 4  # images from one folder that may meet in one composed figure; they share `base` in the JSON, so that one split takes them all
    skip_unreadable: bool = False  # leave out images that cannot be read (counted and named) instead of stopping
    resume: bool = False  # go on with the run in OUT, which was stopped
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)


@dataclass(frozen=True)
class ModelSettings:
    """Backbone and head."""

    backbone: str = "facebook/dinov2-base"  # hub name, local folder in that format, official dinov2_vit*14_pretrain.pth file, or `embedded`: the small one that ships
    image_size: int = 462  # side of the model's square input in pixels, a multiple of 14; the grid has side / 14 cells
    preset: Literal["mlp", "self-correlation", "patch-correlation"] = "mlp"  # what the head sees of a cell: its token; its token and where in the image similar tokens stand; its token and where its pixels stand again
    neighbours: int = 6  # preset self-correlation: most similar cells that are looked at for each cell
    exclusion: int = 2  # both presets with correlation: cells this near are no match, in cells (the larger of rows and columns)
    correlation_width: int = 48  # both presets with correlation: channels of the two convolutions over the similarities
    head_widths: tuple[int, ...] = (1024, 768)  # hidden widths of the MLP head
    embedding_size: int = 512  # length of the unit vector of each cell
    unfreeze_blocks: int = 0  # last blocks of the backbone that are trained too; 0 keeps it frozen
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # mixed precision; auto: bf16 or fp16 on a GPU, off on a CPU
    compile: bool = False  # torch.compile of the backbone's blocks; a minute at the start

    @property
    def grid_size(self) -> int:
        """Cells along one side of the embedding grid."""
        return self.image_size // PATCH


@dataclass(frozen=True)
class LossSettings:
    """Weighted sum of the three losses of losses.py."""

    supcon_weight: float = 1.2  # weight of the supervised contrastive loss
    separation_weight: float = 1.0  # weight of the separation loss
    uniformity_weight: float = 0.5  # weight of the uniformity loss
    class_balanced: bool = False  # supervised contrastive loss: mean over labels of the mean over a label's cells, instead of the mean over all cells
    temperature: float = 0.07  # of the supervised contrastive loss
    separation_margin: float = 2.0  # distance between centroids under which they repel; 2 is the unit sphere's diameter, so this hinge never closes
    uniformity_margin: float = 0.1  # mean squared distance to the centroid above which a label's cells are pulled in


@dataclass(frozen=True)
class ClusteringSettings:
    """The cascade. Distances are cosine distances, 0 to 2."""

    min_cluster_size: int = 15  # strict HDBSCAN: smallest cluster in cells
    min_samples: int = 5  # strict HDBSCAN: neighbours that make a core, in cells
    cluster_selection_epsilon: float = 0.0  # strict HDBSCAN: clusters nearer than this are not split (Euclidean)
    candidate_distance: float = 0.5  # least distance of a candidate's centroid from the background's
    anomaly_threshold: float = 0.05  # an image without candidates and with a lower anomaly score is authentic
    loose_min_cluster_size: int = 5  # loose HDBSCAN: smallest cluster in cells
    loose_min_samples: int = 2  # loose HDBSCAN: neighbours that make a core, in cells
    loose_candidate_distance: float = 0.2  # loose HDBSCAN: least distance of a candidate from the background
    growth_distance: float = 0.2  # a neighbouring cell nearer than this to the core's centroid joins it
    max_instances: int = 5  # most instances in one image, the best first


MatchingKind = Literal["exact", "keypoints", "objects", "dense"]


@dataclass(frozen=True)
class MatchingSettings:
    """The search for copies on the pixels."""

    target_fpr: float = 0.01  # share of authentic images in which something may be found by mistake, 0.001 to 1; smaller asks for more evidence
    search_budget: float = 30.0  # time budget for one image in seconds; the best found by then is returned and said so
    matching_kinds: tuple[MatchingKind, ...] = typing.get_args(MatchingKind)  # searches that are on: identical blocks, SIFT keypoints, single objects, dense field
    max_keypoints: int = 12000  # most keypoints per image, the strongest first
    ratio_test: float = 0.8  # of a keypoint match's distance to that of the next unrelated keypoint, 0 to 1; smaller is stricter
    max_candidates: int = 40  # most candidates per image that are aligned over their whole region


@dataclass(frozen=True)
class AccuracySettings:
    """Score the search on the pixels on folders whose truth is known."""

    data: tuple[Path, ...]  # folders of images in any of the layouts; each is one line of the table
    jpeg: int | None = None  # first save every image as JPEG of this quality, 1 to 100
    noise: float = 0.0  # first add Gaussian noise of this standard deviation, in grey levels
    limit: int | None = None  # at most this many forged and this many authentic images of each folder, evenly spaced
    num_workers: int = os.cpu_count() or 1  # processes that examine images side by side
    records: Path | None = None  # file for one JSON line per image
    matching: MatchingSettings = field(default_factory=MatchingSettings)


@dataclass(frozen=True)
class SearchTimingSettings:
    """Time and memory of the search on the pixels, on one image at 1 to 16 megapixels."""

    image: Path  # an image; it is resized to each size
    megapixels: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)  # sizes to measure
    repeats: int = 3  # runs per size
    matching: MatchingSettings = field(default_factory=MatchingSettings)


@dataclass(frozen=True)
class CalibrationSettings:
    """Fit the score of the evidence and its thresholds on forgeries and authentic images."""

    data: tuple[Path, ...]  # folders with forged and authentic images; all their candidates are used
    authentic: tuple[Path, ...]  # more folders, of which only the authentic images are used
    out: Path = Path("weights/evidence.json")  # file to write
    limit: int | None = None  # at most this many forged and this many authentic images of each folder, evenly spaced
    num_workers: int = os.cpu_count() or 1  # processes that examine images side by side


@dataclass(frozen=True)
class MaskRefinerSettings:
    """Train the network that redraws the outlines of proven copies."""

    data: tuple[Path, ...]  # folders made by synthesis.py, whose forgeries it learns from
    out: Path = Path("weights/outline.onnx")  # file to write, after every epoch
    limit: int | None = None  # at most this many forgeries of each folder, evenly spaced
    epochs: int = 8  # passes over the windows
    batch_size: int = 32  # windows per step
    learning_rate: float = 2e-3  # highest learning rate; it falls on a cosine to 0
    seed: int = 0  # of the initial weights, and of the order and the augmentation of the windows
    num_workers: int = os.cpu_count() or 1  # processes that cut windows side by side


@dataclass(frozen=True)
class TrainSettings:
    """Train the head (and the last blocks of the backbone, if asked for)."""

    data: DataSettings
    out: Path  # run folder: settings, splits, log, last.pt, best.pt; must be new unless --resume
    resume: bool = False  # go on from OUT/last.pt as if the run had never stopped
    epochs: int = 40  # passes over the training images
    batch_size: int = 8  # images per rank and forward pass
    gradient_accumulation_steps: int = 2  # forward passes per optimiser step
    learning_rate: float = 1e-3  # of the head at the start; falls on a cosine per step
    backbone_learning_rate: float = 1e-5  # of the unfrozen blocks
    unfreeze_epoch: int = 0  # the unfrozen blocks start to learn with this epoch, counted from 0
    min_learning_rate: float = 1e-7  # at the end of the cosine
    weight_decay: float = 1e-4  # weight decay of AdamW
    max_grad_norm: float = 1.0  # largest gradient norm
    patience: int = 10  # epochs without a better validation oF1 before the run ends
    validation_images: int | None = None  # score at most this many validation images per epoch; all when not given
    checkpoint_seconds: float = 600.0  # also save last.pt within an epoch after this many seconds
    cache_features: bool = False  # keep what backbone and correlation say of each image in memory, 1 MB an image at 462 px: epochs after the first are some ten times faster on a CPU; without augmentation only
    seed: int = 0  # weights, order of the images, augmentation
    split: SplitSettings = field(default_factory=SplitSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    clustering: ClusteringSettings = field(default_factory=ClusteringSettings)


@dataclass(frozen=True)
class PretrainSettings:
    """Teach a small backbone to know the same patch again."""

    data: DataSettings
    out: Path  # run folder: settings, log, curves, last.pt, backbone/; must be new unless --resume
    resume: bool = False  # go on from OUT/last.pt as if the run had never stopped
    steps: int = 5000  # optimiser steps
    batch_size: int = 8  # images per step; each gives two views
    view_size: int = 238  # side of a view in pixels, a multiple of 14
    learning_rate: float = 1e-3  # highest, after the warm-up; falls on a cosine to 0
    warmup_steps: int = 100  # steps in which the learning rate rises
    ramp_steps: int = 2500  # steps in which shifts, rotations and scales grow from none to their full range
    weight_decay: float = 0.05  # weight decay of AdamW
    temperature: float = 0.2  # of the softmax over cells at the start; it is learned too
    checkpoint_seconds: float = 600.0  # save after this many seconds
    seed: int = 0  # weights, choice of images, views


@dataclass(frozen=True)
class TuningSettings:
    """Find the cascade's parameters on the validation split."""

    data: DataSettings
    checkpoint: Path  # best.pt of a run; its validation split is what the search looks at
    out: Path  # JSON file for the best parameters; the study, the trials and their image lie beside it
    trials: int = 100  # parameter sets to try in all, those of an earlier, stopped search included
    seed: int = 0  # of the search
    target_fpr: float | None = None  # highest oF1 of the forged images with alarms in at most this share of the authentic ones, 0 to 1; highest oF1 of all when not given
    backbone: str | None = None  # where the backbone lies, if not where it lay in training


DetectionMode = Literal["embedding", "matching", "both"]


@dataclass(frozen=True)
class TestSettings:
    """Score detection."""

    data: DataSettings
    out: Path  # folder for metrics.json, records.jsonl and submission.csv
    checkpoint: Path | None = None  # best.pt of a run, or `embedded`: the model that ships; the matching alone is scored when not given
    clustering: Path | None = None  # JSON of tuning.py; the checkpoint's own parameters when not given
    split: Literal["test", "val", "train", "all"] = "test"  # part of DATA as split in training; all: every image
    modes: tuple[DetectionMode, ...] = typing.get_args(DetectionMode)  # what is scored; the submission is the last one's
    backbone: str | None = None  # where the backbone lies, if not where it lay in training
    matching: MatchingSettings = field(default_factory=MatchingSettings)


@dataclass(frozen=True)
class LearnedTimingSettings:
    """Time the parts of the learned path against the straightforward implementation of each."""

    data: Path | None = None  # folder of images whose embedding grids are clustered too, beside random ones
    grids: int = 50  # random grids, and as many of images, on which both clusterings are compared
    repeats: int = 5  # runs of each implementation, alternating; the median is shown


@dataclass(frozen=True)
class StepTimingSettings:
    """Time training steps and embedding on the GPU, or on the CPU where there is none; the images are random."""

    batch_sizes: tuple[int, ...] = (8, 32)  # images per step
    repeats: int = 20  # steps that are timed, after three that are not
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)


AblationVariant = Literal[
    "mlp",
    "narrow",
    "class-balanced",
    "temperature",
    "margin",
    "label-coverage",
    "self-correlation",
    "patch-correlation",
    "patch-class-balanced",
    "large-input",
    "patch-large-input",
    "end-to-end",
]


@dataclass(frozen=True)
class AblationSettings:
    """Train, tune and score variants of the learned path with several seeds each."""

    train: Path  # folder of authentic images; forgeries made of them are trained on and tuned on
    dev: Path  # folder of other authentic images; forgeries made of them are only scored
    out: Path  # folder for the images, the features and one run folder per variant and seed; what is already there is not made again
    variants: tuple[AblationVariant, ...] = typing.get_args(AblationVariant)  # what is compared; benchmarks/ablation.py says what each one changes
    seeds: tuple[int, ...] = (0, 1, 2)  # of the weights, the order of the images and the tuning
    forged: int = 160  # forgeries made of TRAIN; seven in ten are trained on, the others tuned on
    authentic: int = 140  # authentic images beside them, divided in the same way
    held_out: int = 75  # forgeries made of DEV, and as many authentic images
    backbone: str = "embedded"  # as for train.py
    epochs: int = 5  # passes over the training images
    batch_size: int = 6  # images per optimiser step
    learning_rate: float = 3e-3  # of the head at the start
    trials: int = 20  # parameter sets of the cascade that are tried for each run
    target_fpr: float = 0.05  # share of the authentic tuning images in which the tuned cascade may find something, 0 to 1


AttackKind = Literal["files", "bombs", "names", "training", "prediction", "determinism", "equivariance", "load"]


@dataclass(frozen=True)
class RobustnessSettings:
    """Attack the readers, training and prediction, and put them under load."""

    kinds: tuple[AttackKind, ...] = typing.get_args(AttackKind)  # what is tried
    out: Path | None = None  # folder for all files that are made; a temporary one, deleted at the end, when not given
    files: int = 24000  # mutated files in all, a sixth of each file format
    kills: int = 20  # how often a training, a prediction and its workers are killed
    images: int = 10000  # images of the prediction under load
    lines: int = 1000000  # lines of the predictions that a run is resumed with
    transformed: int = 50  # forged images that are mirrored and rotated to test equivariance
    seed: int = 0  # of everything that is drawn at random


BenchmarkCommand = (
    Annotated[AccuracySettings, subcommand("accuracy")]
    | Annotated[CalibrationSettings, subcommand("calibrate")]
    | Annotated[MaskRefinerSettings, subcommand("train-mask-refiner")]
    | Annotated[SearchTimingSettings, subcommand("timing-search")]
    | Annotated[LearnedTimingSettings, subcommand("timing-learned")]
    | Annotated[StepTimingSettings, subcommand("timing-step")]
    | Annotated[AblationSettings, subcommand("ablation")]
    | Annotated[RobustnessSettings, subcommand("robustness")]
)  # what benchmark.py does


@dataclass(frozen=True)
class PredictSettings:
    """Find forgeries in images and show the evidence."""

    paths: Positional[tuple[Path, ...]]  # images, folders (searched recursively), globs and PDFs
    out: Path  # folder for predictions.jsonl, masks/, submission.csv and report/; must hold no other run unless --resume
    checkpoint: Path | None = None  # best.pt of a run, or `embedded`: the model that ships; pixel evidence alone when not given
    clustering: Path | None = None  # JSON of tuning.py; the checkpoint's own parameters when not given
    backbone: str | None = None  # where the backbone lies, if not where it lay in training
    evidence_only: bool = False  # pixel evidence alone, without any model and without importing torch
    resume: bool = False  # go on with the run in OUT: what predictions.jsonl holds is done
    num_workers: int | None = None  # processes per rank, each with its own model; one per CPU core when not given, 0: in this process
    image_timeout: float = 900.0  # an image that takes longer is given up and recorded, in seconds; 0: no limit
    max_megapixels: float = 200.0  # refuse larger images by their header, before decoding, in megapixels
    matching: MatchingSettings = field(default_factory=MatchingSettings)


# fmt: on
