"""The one inference path: an image goes in, a `Detection` comes out.

    detector = Detector.load()              # pixel evidence alone; Detector.load("runs/a/best.pt") for both paths
    detection = detector.detect(image)      # image (H, W, 3) uint8 RGB
    detection.masks                         # (N, H, W) bool, one per duplicated content

Training (validation), tuning, test and prediction all come through here. Three ways, by what a detector is made of:

- a model alone: the cascade's instances, as the method defines it;
- matching settings alone: copies proven on the pixels, without torch;
- both: the cascade proposes, the pixels prove. An instance with two or more parts is searched more thoroughly by the
  matching; only what is proven is an instance.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import ndimage

from config import ClusteringSettings, MatchingSettings
from copymove.copies import Instance, SearchResult
from copymove.detect import detect_copies
from images.letterbox import Letterbox, letterbox
from runtime.command_line import from_dict
from runtime.errors import InputError
from runtime.files import read_json

if TYPE_CHECKING:
    import torch

    from clustering import Cells
    from model import ForgeryModel


@dataclass(frozen=True)
class Detection:
    """What was found in one image."""

    shape: tuple[int, int]  # height and width of the image in pixels
    score: float  # 0 to 1: the best instance's score, 0 when nothing was found
    instances: tuple[Instance, ...]  # best first; masks (H, W) bool
    seconds: float  # time spent on this image
    complete: bool = True  # False when the time budget ended the search early
    grid: np.ndarray | None = None  # (g_h, g_w) int64 labels of the cascade over the image: 0 nothing, 1..n instance
    anomaly: np.ndarray | None = None  # (g_h, g_w) float32 cosine distance of each cell from the image's mean
    reason: str = ""  # why the cascade decided as it did
    search: SearchResult | None = None  # all that the search on the pixels verified, with its features and times

    @property
    def masks(self) -> np.ndarray:
        """Instance masks (N, H, W) bool."""
        if not self.instances:
            return np.zeros((0, *self.shape), bool)
        return np.stack([instance.mask for instance in self.instances])


@dataclass(frozen=True)
class Embedded:
    """An image's embedding: what the cascade and the tuning work on."""

    cells: "Cells"
    box: Letterbox


class Detector:
    """Model with cascade, matching, or both, behind one call."""

    def __init__(
        self,
        model: "ForgeryModel | None" = None,
        clustering: ClusteringSettings | None = None,
        device: "torch.device | None" = None,
        splits: Mapping[str, str] | None = None,
        matching: MatchingSettings | None = None,
    ) -> None:
        """Take what the detector is made of; a model is used as it is, so a model in training can be validated.

        Args:
            device: where the model lies.
            splits: base image -> split, as it was when the model was trained.
        """
        if model is None and matching is None:
            raise ValueError("a detector needs a model, matching settings, or both")
        self.model = model
        self.clustering = clustering or ClusteringSettings()
        self.device = device
        self.splits = splits or {}
        self.matching = matching

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | None = None,
        clustering: Path | str | None = None,
        backbone: str | None = None,
        matching: MatchingSettings | None = None,
        evidence_only: bool = False,
    ) -> "Detector":
        """Detector of a checkpoint joined with the matching, on the GPU where there is one.

        Args:
            checkpoint: `best.pt` of a run; without one, the matching alone, and torch is not imported.
            clustering: JSON of tuning.py; the checkpoint's own settings when not given.
            backbone: where the backbone lies, if not where it lay in training.
            matching: settings of the search on the pixels; its defaults when not given.
            evidence_only: say that no model is wanted; a checkpoint given beside it is an error.
        Raises:
            FileNotFoundError, InputError: a file is missing, damaged or does not fit.
        """
        matching = matching or MatchingSettings()
        if evidence_only and checkpoint is not None:
            raise InputError("--evidence-only uses no model; leave --checkpoint out, or --evidence-only")
        if checkpoint is None:
            if clustering is not None or backbone is not None:
                raise InputError("--clustering and --backbone belong to a model; give --checkpoint too")
            return cls(matching=matching)
        import torch

        from checkpoints import load_model

        model, content = load_model(Path(checkpoint), backbone)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        values = content.get("clustering", {}) if clustering is None else read_clustering(Path(clustering))
        settings = from_dict(ClusteringSettings, values)
        return cls(model.to(device), settings, device, content.get("splits"), matching)

    def alone(self, part: Literal["embedding", "matching"]) -> "Detector":
        """One of the two paths of this detector."""
        if part == "matching":
            return Detector(matching=self.matching)
        return Detector(self.model, self.clustering, self.device, self.splits)

    def embed(self, images: Sequence[np.ndarray]) -> list[Embedded]:
        """Embed images (H, W, 3) uint8 RGB of any sizes, in one batch."""
        import torch

        from clustering import Cells
        from model import autocast, to_pixels

        inputs, boxes = zip(*(letterbox(image, self.model.settings.image_size) for image in images), strict=True)
        valid = torch.from_numpy(np.stack([box.valid for box in boxes])).to(self.device)
        with torch.inference_mode(), autocast(self.model.settings, self.device):
            embeddings = self.model(to_pixels(torch.from_numpy(np.stack(inputs)).to(self.device)), valid)
        # The part of the grid over the image: padding lies to the right and below.
        return [
            Embedded(Cells(grid[: rows(box), : columns(box)]), box)
            for grid, box in zip(embeddings.cpu().numpy(), boxes, strict=True)
        ]

    def detect(self, image: np.ndarray) -> Detection:
        """Find the duplicated contents of one image (H, W, 3) uint8 RGB."""
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detection]:
        """Find the duplicated contents of several images, embedded together."""
        start = time.perf_counter()
        embedded = self.embed(images) if self.model is not None else [None] * len(images)
        share = (time.perf_counter() - start) / len(images)
        return [self._detect(image, embedded, share) for image, embedded in zip(images, embedded, strict=True)]

    def _detect(self, image: np.ndarray, embedded: Embedded | None, seconds: float) -> Detection:
        start = time.perf_counter()
        proposed: list[Instance] = []
        seen: dict[str, Any] = {}
        if embedded is not None:
            from clustering import cascade

            found = cascade(embedded.cells, self.clustering)
            full = draw(found.labels, embedded.box)
            proposed = [Instance(full == k + 1, score, ()) for k, score in enumerate(found.scores)]
            proposed = [instance for instance in proposed if instance.mask.any()]
            seen = {"grid": found.labels, "anomaly": found.anomaly, "reason": found.reason}
        instances, complete, search = tuple(proposed), True, None
        if self.matching is not None:
            regions = [instance.mask for instance in proposed if _parts(instance.mask) > 1]
            search = detect_copies(image, self.matching, regions)
            instances, complete = search.instances, search.complete
        return Detection(
            shape=image.shape[:2],
            score=max((instance.score for instance in instances), default=0.0),
            instances=instances,
            seconds=seconds + time.perf_counter() - start,
            complete=complete,
            search=search,
            **seen,
        )


def _parts(mask: np.ndarray) -> int:
    return ndimage.label(mask, structure=np.ones((3, 3)))[1]


def rows(box: Letterbox) -> int:
    """Rows of the grid that lie over the image."""
    return int(box.valid.any(axis=1).sum())


def columns(box: Letterbox) -> int:
    """Columns of the grid that lie over the image."""
    return int(box.valid.any(axis=0).sum())


def draw(grid: np.ndarray, box: Letterbox) -> np.ndarray:
    """Draw a labelling of the grid at the image's full resolution, nearest cell: (g_h, g_w) -> (H, W)."""
    return grid[box.rows()[:, None], box.columns()]


def read_clustering(path: Path) -> dict[str, object]:
    """Clustering settings written by tuning.py."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; make one with tuning.py --out {path}")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("clustering"), dict):
        raise InputError(f'{path} holds no "clustering" settings; make it with tuning.py')
    return content["clustering"]
