"""Every setting of the project, once: frozen dataclasses from which the command line is made.

The comment after each field is its help: meaning, unit, allowed values, and what a larger or smaller one does. The
settings of a script are one class (`TrainSettings`, `TuningSettings`, ...), made of the groups that it needs.
`runtime/command_line.py` turns a class into a command line and into JSON. Nothing heavy is imported here, so that
`--help` answers at once.
"""

import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

PATCH = 14  # side in pixels of a DINOv2 patch, which is one cell of the embedding grid
WEIGHTS = Path(__file__).resolve().parent / "weights"  # the weights that come with the project
MAX_PAGES = 100  # most pages, channels and planes of one image file that are examined
EMBEDDED_BACKBONE = WEIGHTS  # what `--backbone embedded` means

# What a pixel of a figure may be: what lies between panels, a photograph or micrograph, a blot, a gel, a drawing, text.
PIXEL_KINDS = ("ground", "photo", "blot", "gel", "drawing", "text")

# A field's help is the comment on its line, however long: no formatting here.
# fmt: off


@dataclass(frozen=True)
class DataSettings:
    """Images: where they are and how they are read."""

    data: Path  # folder of images, in one of two layouts: Recod.ai/LUC (train_images/, train_masks/, ...) or authentic/, forged/ and masks/
    skip_unreadable: bool = False  # leave out images that cannot be read, and name them, instead of stopping at the first one
    max_megapixels: float = 200.0  # refuse larger images before decoding them, in megapixels; raise it where there is memory enough for larger ones


@dataclass(frozen=True)
class SplitSettings:
    """How the base images are split. An image and all that was made from it fall into the same part."""

    val_fraction: float = 0.15  # share of the base images for validation and tuning, 0 to 1; more makes their scores steadier and leaves less to train on
    test_fraction: float = 0.15  # share of the base images for the test, 0 to 1; more makes its scores steadier and leaves less to train on
    split_seed: int = 0  # seed of the split, any whole number; the same seed and folder always give the same split


@dataclass(frozen=True)
class LoaderSettings:
    """How images reach the training loop."""

    num_workers: int = 2  # processes per rank that prepare images; more keep a fast GPU busy and take more memory, 0 prepares them in the main process
    cache: Path | None = None  # folder that keeps the decoded images at the model's input size, so that later epochs need not decode them again; no cache when not given
    cache_gb: float = 20.0  # largest size of the cache in GB (10^9 bytes); images beyond it are decoded in each epoch
    augment: bool = True  # change each training image at random: flips, rotation, blur, JPEG, noise, colour
    label_coverage: float = 0.5  # share of a cell that an instance must cover for the cell to take its label, over 0 to 1; smaller labels more cells at its edge
    synthesis_probability: float = 0.0  # share of the authentic training images that are turned into forgeries on the fly, 0 to 1; 0 trains on the given forgeries alone


ContentKind = Literal["object", "blob", "ellipse", "rectangle", "polygon", "panel"]
CopyTransform = Literal["rotation", "right-angle", "scale", "mirror", "recolour"]
CopyBlending = Literal["hard", "feathered", "poisson"]
Degradation = Literal["jpeg", "noise", "blur", "resize"]


@dataclass(frozen=True)
class DemoSettings:
    """Write the images that scikit-image and scikit-learn carry in their packages."""

    out: Positional[Path]  # folder to write them into; it is made where it is missing


@dataclass(frozen=True)
class SynthesisSettings:
    """What forgeries are made of. Shares follow the Recod.ai/LUC training images."""

    max_contents: int = 3  # most contents that are duplicated in one image, 1 to 4
    max_copies: int = 4  # most copies of one content beside its source, 1 to 4
    min_copy_pixels: int = 16  # shortest side of a source or a copy in the finished image, in pixels; smaller makes forgeries that are harder to find
    max_copy_pixels: int | None = None  # longest side of a source or a copy in the finished image, in pixels; as large as the image allows when not given
    content_kinds: tuple[ContentKind, ...] = typing.get_args(ContentKind)  # what may be copied: object is a cell or a band along its outline; panel, a panel or a part of one, is found in composed figures only
    transform_probability: float = 0.6  # share of the copies that are changed before they are pasted, 0 to 1; 0 pastes them as they are
    copy_transforms: tuple[CopyTransform, ...] = typing.get_args(CopyTransform)  # what may change those copies, at least one each; recolour changes brightness and contrast
    min_scale: float = 0.5  # smallest scale of a copy against its source, over 0; 0.5 halves it
    max_scale: float = 2.0  # largest scale of a copy against its source; 2 doubles it
    copy_blendings: tuple[CopyBlending, ...] = typing.get_args(CopyBlending)  # how copies are pasted: with a hard edge, with a soft one, or by Poisson blending, which takes on the new place's brightness
    panel_probability: float = 0.3  # share of the images that are composed of several panels with labels, arrows and scale bars, 0 to 1
    degrade_probability: float = 0.5  # share of the finished images that are degraded as by publishing, 0 to 1; more makes forgeries that are harder to find
    degradations: tuple[Degradation, ...] = typing.get_args(Degradation)  # what may degrade those images, at least one each
    min_jpeg_quality: int = 60  # lowest JPEG quality of a degraded image, 1 to 100; lower leaves less of a copy's fine structure
    max_jpeg_quality: int = 95  # highest JPEG quality of a degraded image, 1 to 100


@dataclass(frozen=True)
class SynthesizeSettings:
    """Make forgeries with exact masks out of a folder of authentic images."""

    authentic: Path  # folder of authentic images, searched recursively
    out: Path  # folder to make: authentic/, forged/, masks/; it must hold no other run unless --resume
    count: int = 2000  # forged images to make
    authentic_count: int | None = None  # authentic images to write beside them; as many as forged ones when not given
    seed: int = 0  # any whole number; the same seed, folder and settings give the same files
    num_workers: int = os.cpu_count() or 1  # processes that make images at the same time; all processor cores unless given
    group_size: int = 4  # images of one folder that may meet in one composed figure; the JSON names them as one `base`, so that all fall into the same split
    skip_unreadable: bool = False  # leave out images that cannot be read, and name them, instead of stopping at the first one
    resume: bool = False  # go on with the run in OUT that was stopped
    figures: bool = False  # make whole figures as papers have them instead of forgeries, with what each pixel is; nothing in them is copied
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)


@dataclass(frozen=True)
class ModelSettings:
    """Backbone and head."""

    backbone: str = "facebook/dinov2-base"  # name on the Hugging Face hub, folder in that format, official dinov2_vit*14_pretrain.pth file, or `embedded`: the small backbone in weights/
    image_size: int = 462  # side of the model's square input in pixels, a multiple of 14; larger shows smaller copies and costs memory and time by the square
    preset: Literal["mlp", "self-correlation", "patch-correlation"] = "mlp"  # what the head sees of a cell. mlp: its token. self-correlation: also where in the image similar tokens are. patch-correlation: also where the same pixels are again
    neighbours: int = 6  # preset self-correlation: number of most similar cells that are looked at for each cell
    exclusion: int = 2  # presets with correlation: cells as near as this are no match, counted in cells along the farther axis
    correlation_width: int = 48  # presets with correlation: channels of the two convolutions over the similarities; more can learn more and take longer
    head_widths: tuple[int, ...] = (1024, 768)  # widths of the hidden layers of the MLP head; wider ones can learn more and overfit sooner
    embedding_size: int = 512  # length of the unit vector that describes a cell; longer can hold more and takes more memory
    unfreeze_blocks: int = 0  # last blocks of the backbone that are trained too; 0 keeps it frozen, each block more takes memory and needs more data
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # mixed precision. auto: bf16 or fp16 on a GPU, off on a CPU; off is slower and the most exact
    compile: bool = False  # compile the backbone with torch.compile: a minute at the start, faster steps on a GPU

    @property
    def grid_size(self) -> int:
        """Cells along one side of the embedding grid."""
        return self.image_size // PATCH


@dataclass(frozen=True)
class LossSettings:
    """Weighted sum of the three losses of losses.py."""

    supcon_weight: float = 1.2  # weight of the supervised contrastive loss, which pulls the cells of one label together and apart from the others; 0 leaves it out
    separation_weight: float = 1.0  # weight of the separation loss, which pushes the centroids of different labels apart; 0 leaves it out
    uniformity_weight: float = 0.5  # weight of the uniformity loss, which pulls cells towards their label's centroid; 0 leaves it out
    class_balanced: bool = False  # supervised contrastive loss: give every label of an image the same weight, instead of every cell, of which most are background
    temperature: float = 0.07  # temperature of the supervised contrastive loss, over 0; smaller puts more weight on the hardest pairs of cells
    separation_margin: float = 2.0  # distance below which two centroids repel each other, 0 to 2; at 2, the diameter of the unit sphere, all always do
    uniformity_margin: float = 0.1  # mean squared distance from the centroid above which a label's cells are pulled in, 0 to 1; larger leaves them looser


@dataclass(frozen=True)
class ClusteringSettings:
    """The cascade of clusterings. Distances are cosine distances, 0 to 2; defaults are those of the method."""

    min_cluster_size: int = 15  # strict HDBSCAN: smallest cluster, in cells; smaller finds smaller copies and gives more false alarms
    min_samples: int = 5  # strict HDBSCAN: neighbours that make a cell a core, in cells; larger leaves more cells out as noise
    cluster_selection_epsilon: float = 0.0  # strict HDBSCAN: clusters nearer than this Euclidean distance are not split; larger gives fewer, larger clusters
    candidate_distance: float = 0.5  # least distance between the centroids of a candidate and of the background; smaller finds more and gives more false alarms
    anomaly_threshold: float = 0.05  # an image without candidates and with a lower anomaly score is authentic; smaller sends more images to the loose clustering
    loose_min_cluster_size: int = 5  # loose HDBSCAN: smallest cluster, in cells; smaller finds smaller copies and gives more false alarms
    loose_min_samples: int = 2  # loose HDBSCAN: neighbours that make a cell a core, in cells; larger leaves more cells out as noise
    loose_candidate_distance: float = 0.2  # loose HDBSCAN: as --candidate-distance
    growth_distance: float = 0.2  # a neighbouring cell that is nearer than this to the centroid of a candidate's core joins it; larger gives larger masks
    max_instances: int = 5  # most instances in one image, the best first


MatchingKind = Literal["exact", "keypoints", "objects", "dense"]
SearchedContent = Literal["recorded", "all"]


@dataclass(frozen=True)
class MatchingSettings:
    """The search for copies on the pixels."""

    target_fpr: float = 0.03  # share of authentic images in which something may be found by mistake, 0.001 to 1, in the mean over five kinds that the score was not fitted on; smaller asks for stronger evidence and misses more copies
    search_budget: float = 30.0  # time for one image in seconds; what was found by then is reported, and that the search is not complete
    matching_kinds: tuple[MatchingKind, ...] = typing.get_args(MatchingKind)  # searches that are on: identical blocks, SIFT keypoints, single objects such as cells, dense field; fewer are faster and miss more
    content: SearchedContent = "recorded"  # where copies are sought: in photographs, micrographs, blots and gels only, or also in what is drawn (charts, schematics, text), which repeats by its nature
    max_keypoints: int = 12000  # most keypoints of an image, the strongest first; more find more in large images and take longer
    ratio_test: float = 0.8  # a keypoint match counts if its distance is below this share of that of the next unrelated keypoint, 0 to 1; smaller is stricter
    max_candidates: int = 40  # most candidates of an image that are aligned and measured; more find more and take longer


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
    out: Path = WEIGHTS / "evidence.json"  # file to write
    limit: int | None = None  # at most this many forged and this many authentic images of each folder, evenly spaced
    num_workers: int = os.cpu_count() or 1  # processes that examine images side by side


@dataclass(frozen=True)
class ThresholdSettings:
    """Measure the thresholds of the score on kinds of authentic images that took no part in fitting it."""

    left_out: tuple[Path, ...]  # folders of authentic images, one for each kind; each kind counts the same
    out: Path = WEIGHTS / "evidence.json"  # calibration whose thresholds are replaced
    num_workers: int = os.cpu_count() or 1  # processes that examine images side by side


@dataclass(frozen=True)
class MaskRefinerSettings:
    """Train the network that redraws the outlines of proven copies."""

    data: tuple[Path, ...]  # folders made by synthesis.py, whose forgeries it learns from
    out: Path = WEIGHTS / "outline.onnx"  # file to write, after every epoch
    limit: int | None = None  # at most this many forgeries of each folder, evenly spaced
    epochs: int = 8  # passes over the windows
    batch_size: int = 32  # windows per step
    learning_rate: float = 2e-3  # highest learning rate; it falls on a cosine to 0
    seed: int = 0  # of the initial weights, and of the order and the augmentation of the windows
    num_workers: int = os.cpu_count() or 1  # processes that cut windows side by side


@dataclass(frozen=True)
class ContentSettings:
    """Train the network that tells recorded from drawn content."""

    data: tuple[Path, ...]  # folders made by synthesis.py --figures
    out: Path = WEIGHTS / "content.onnx"  # file to write, every 250 steps
    steps: int = 3000  # optimiser steps
    batch_size: int = 8  # crops per step
    crop: int = 96  # side of a crop in cells of 4 pixels, a multiple of 16
    learning_rate: float = 3e-3  # highest learning rate; it rises over a tenth of the steps and falls on a cosine
    num_workers: int = os.cpu_count() or 1  # processes that read figures side by side
    seed: int = 0  # of the initial weights, and of the crops and their changes


@dataclass(frozen=True)
class TrainSettings:
    """Train the head (and the last blocks of the backbone, if asked for)."""

    data: DataSettings
    out: Path  # run folder: settings, splits, log, curves, last.pt and best.pt; it must be new unless --resume
    resume: bool = False  # go on from OUT/last.pt as if the run had never stopped
    epochs: int = 40  # most passes over the training images; the learning rate falls to its end over all of them
    batch_size: int = 8  # images per rank and forward pass; larger is faster on a GPU and takes more memory
    gradient_accumulation_steps: int = 2  # forward passes per optimiser step: a step sees batch size x this x ranks images
    learning_rate: float = 1e-3  # learning rate of the head at the start, from which it falls on a cosine; too large diverges, too small learns slowly
    backbone_learning_rate: float = 1e-5  # the same for the unfrozen blocks of the backbone; far smaller, so that they keep what they know
    unfreeze_epoch: int = 0  # epoch, counted from 0, with which the unfrozen blocks start to learn; later gives the head time to settle
    min_learning_rate: float = 1e-7  # learning rate at the end of the cosine
    weight_decay: float = 1e-4  # weight decay of AdamW; larger keeps the weights smaller, against overfitting
    max_grad_norm: float = 1.0  # gradients with a larger norm are scaled down to it; smaller makes steps more cautious
    patience: int = 10  # the run ends after this many epochs without a better validation oF1
    validation_images: int | None = None  # score at most this many validation images after each epoch, evenly spread; all when not given
    checkpoint_seconds: float = 600.0  # also save last.pt within an epoch, after this many seconds; smaller loses less when a run is killed
    cache_features: bool = False  # keep the features of the frozen backbone in memory, 1 MB an image at 462 px: later epochs are some ten times faster on a CPU; needs --no-augment
    seed: int = 0  # seed of the initial weights, the order of the images and the augmentation, any whole number
    split: SplitSettings = field(default_factory=SplitSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    clustering: ClusteringSettings = field(default_factory=ClusteringSettings)


@dataclass(frozen=True)
class PretrainSettings:
    """Train a small backbone to recognise the same patch in two views of an image."""

    data: DataSettings
    out: Path  # run folder: settings, log, curves, last.pt and backbone/; it must be new unless --resume
    resume: bool = False  # go on from OUT/last.pt as if the run had never stopped
    steps: int = 5000  # optimiser steps in all
    batch_size: int = 8  # images per step, each of which gives two views; more give more pairs to tell apart and take more memory
    view_size: int = 238  # side of a view in pixels, a multiple of 14; larger gives more cells to tell apart and takes more memory
    learning_rate: float = 1e-3  # highest learning rate, reached after the warm-up; it falls on a cosine to 0
    warmup_steps: int = 100  # steps in which the learning rate rises from 0 to its highest; more makes the start steadier
    ramp_steps: int = 2500  # steps in which the shifts, rotations and scales between two views grow from none to their full range
    weight_decay: float = 0.05  # weight decay of AdamW; larger keeps the weights smaller, against overfitting
    temperature: float = 0.2  # temperature of the softmax over the cells at the start, over 0, learned from then on; smaller puts more weight on the hardest cells
    checkpoint_seconds: float = 600.0  # save last.pt after this many seconds; smaller loses less when a run is killed
    seed: int = 0  # seed of the initial weights, the choice of images and the views, any whole number


@dataclass(frozen=True)
class TuningSettings:
    """Find the cascade's parameters on the validation split."""

    data: DataSettings
    checkpoint: Path  # best.pt of a run; the parameters are tuned on its validation split
    out: Path  # JSON file for the best parameters; the study, the trials and their plot are written beside it
    trials: int = 100  # parameter sets to try in all, those of an earlier search that was stopped included; more find better ones, ever more slowly
    seed: int = 0  # seed of the search, any whole number
    target_fpr: float | None = None  # most authentic images in which something is found, as a share from 0 to 1: the highest oF1 of the forged images within it is best; without it the highest oF1 of all images is
    backbone: str | None = None  # where the backbone is, if not where it was in training


DetectionMode = Literal["embedding", "matching", "both"]


@dataclass(frozen=True)
class TestSettings:
    """Score detection on images whose truth is known, and write a submission."""

    data: DataSettings
    out: Path  # folder for metrics.json, records.jsonl, submission.csv and report/
    checkpoint: Path | None = None  # best.pt of a run, or `embedded`, the model in weights/; the search on the pixels alone is scored when not given
    clustering: Path | None = None  # JSON of tuning.py; the checkpoint's own parameters when not given
    split: Literal["test", "val", "train", "all"] = "test"  # part of DATA as it was split in training; all: every image, also those that were trained on
    modes: tuple[DetectionMode, ...] = typing.get_args(DetectionMode)  # what is scored: the embedding alone, the search on the pixels alone, both joined; submission and report are those of the last one
    backbone: str | None = None  # where the backbone is, if not where it was in training
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
    | Annotated[ThresholdSettings, subcommand("thresholds")]
    | Annotated[MaskRefinerSettings, subcommand("train-mask-refiner")]
    | Annotated[ContentSettings, subcommand("train-content")]
    | Annotated[SearchTimingSettings, subcommand("timing-search")]
    | Annotated[LearnedTimingSettings, subcommand("timing-learned")]
    | Annotated[StepTimingSettings, subcommand("timing-step")]
    | Annotated[AblationSettings, subcommand("ablation")]
    | Annotated[RobustnessSettings, subcommand("robustness")]
)  # what benchmark.py does


@dataclass(frozen=True)
class PredictSettings:
    """Find forgeries in images and show the evidence."""

    paths: Positional[tuple[Path, ...]]  # images, folders (searched recursively), patterns such as 'scans/**/*.tif', and PDFs
    out: Path  # folder for predictions.jsonl, masks/, submission.csv and report/; it must hold no other run unless --resume
    checkpoint: Path | None = None  # best.pt of a run, or `embedded`, the model in weights/; the search on the pixels alone when not given
    clustering: Path | None = None  # JSON of tuning.py; the checkpoint's own parameters when not given
    backbone: str | None = None  # where the backbone is, if not where it was in training
    evidence_only: bool = False  # the search on the pixels alone, without any model and without importing torch
    resume: bool = False  # go on with the run in OUT: images that have a line in predictions.jsonl are not examined again
    num_workers: int | None = None  # processes per rank, each with a model of its own; one for each processor core when not given, 0 examines in this process
    image_timeout: float = 900.0  # an image that takes longer, in seconds, is given up and has an error line; 0: no limit
    max_megapixels: float = 200.0  # refuse larger images before decoding them, in megapixels; raise it where there is memory enough for larger ones
    max_pages: int = MAX_PAGES  # most pages, channels and planes of one image file that are examined; the others are listed as not examined
    matching: MatchingSettings = field(default_factory=MatchingSettings)


# fmt: on
