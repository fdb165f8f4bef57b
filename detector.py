"""The one inference path: an image goes in, a `Detection` comes out.

    detector = Detector.load()              # pixel evidence alone; Detector.load("runs/a/best.pt") for both paths
    detection = detector.detect(image)      # image (H, W, 3) uint8 RGB
    detection.masks                         # (N, H, W) bool, one mask for each duplicated content

Training (validation), tuning, test and prediction all come through here. What a detector is made of decides its mode:

- `embedding`, a model alone: the instances that the cascade finds in the embeddings;
- `matching`, matching settings alone: copies that are proven on the pixels, without torch;
- `both`: the cascade proposes, the pixels prove. The matching searches more thoroughly in proposed instances that
  consist of two or more parts; an instance of the result is always one that was proven.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

from config import ClusteringSettings, DetectionMode, MatchingSettings
from copymove.copies import Instance, SearchResult
from copymove.detect import detect_copies
from images.letterbox import Letterbox, letterbox
from runtime.command_line import from_dict
from runtime.errors import InputError
from runtime.files import read_json

if TYPE_CHECKING:
    import torch

    from clustering import EmbeddingGrid
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
    anomaly: np.ndarray | None = None  # (g_h, g_w) float32 cosine distance of each cell to the image's mean vector
    reason: str = ""  # the cascade's step that decided, see `clustering.Cascade`
    search: SearchResult | None = None  # all that the search on the pixels verified, with its features and times

    @property
    def searched(self) -> float:
        """Share of the image in which the search on the pixels sought copies: the rest is drawn, text or ground."""
        return 1.0 if self.search is None else self.search.searched

    @property
    def masks(self) -> np.ndarray:
        """Instance masks (N, H, W) bool."""
        if not self.instances:
            return np.zeros((0, *self.shape), bool)
        return np.stack([instance.mask for instance in self.instances])


@dataclass(frozen=True)
class GridEmbedding:
    """An image's embedding: what the cascade and the tuning work on."""

    grid: "EmbeddingGrid"  # the cells that lie over the image
    box: Letterbox  # where the image lies in the model's input


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
        """Take what the detector is made of.

        Args:
            model: used as it is, so that a model in training can be validated.
            device: where the model lies.
            splits: base image -> split, as it was when the model was trained.
            matching: settings of the search on the pixels; None: no search.
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
            checkpoint: `best.pt` of a run, or `embedded`; without one, the matching alone, and torch is not imported.
            clustering: JSON of tuning.py; the checkpoint's own settings when not given.
            backbone: where the backbone lies, if not where it lay in training.
            matching: settings of the search on the pixels; its defaults when not given.
            evidence_only: no model is wanted; a checkpoint that is given as well is an error.
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

    def embed(self, images: Sequence[np.ndarray]) -> list[GridEmbedding]:
        """Embed images (H, W, 3) uint8 RGB of any sizes, in one batch."""
        import torch

        from clustering import EmbeddingGrid
        from model import autocast, to_pixels

        inputs, boxes = zip(*(letterbox(image, self.model.settings.image_size) for image in images), strict=True)
        valid = [box.valid for box in boxes]
        with torch.inference_mode(), autocast(self.model.settings, self.device):
            embeddings = self.model(
                to_pixels(torch.from_numpy(np.stack(inputs)).to(self.device)),
                torch.from_numpy(np.stack(valid)).to(self.device),
            )
        # The part of the grid that lies over the image: padding lies to the right and below.
        return [
            GridEmbedding(EmbeddingGrid(grid[: cells.any(axis=1).sum(), : cells.any(axis=0).sum()]), box)
            for grid, cells, box in zip(embeddings.cpu().numpy(), valid, boxes, strict=True)
        ]

    def detect(self, image: np.ndarray) -> Detection:
        """Find the duplicated contents of one image (H, W, 3) uint8 RGB."""
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detection]:
        """Find the duplicated contents of several images, embedded together."""
        if self.model is None:
            return [self._search(image, []) for image in images]
        proposed = self._propose(images)
        if self.matching is None:
            return proposed
        return [
            _join(proposal, self._search(image, regions_to_search(proposal)))
            for image, proposal in zip(images, proposed, strict=True)
        ]

    def detect_in_modes(self, image: np.ndarray, modes: Sequence[DetectionMode]) -> dict[DetectionMode, Detection]:
        """Detections of one image in several modes, from one pass.

        The image is embedded once. It is searched once, and a second time only where the embedding proposes regions
        to search: only there the modes `matching` and `both` differ. `seconds` of each detection is the time that its
        mode would take alone.
        """
        detections: dict[DetectionMode, Detection] = {}
        if "embedding" in modes or "both" in modes:
            detections["embedding"] = self._propose([image])[0]
        regions = regions_to_search(detections["embedding"]) if "both" in modes else []
        if "matching" in modes or ("both" in modes and not regions):
            detections["matching"] = self._search(image, [])
        if "both" in modes:
            searched = self._search(image, regions) if regions else detections["matching"]
            detections["both"] = _join(detections["embedding"], searched)
        return {mode: detections[mode] for mode in modes}

    def _propose(self, images: Sequence[np.ndarray]) -> list[Detection]:
        """The embedding's detections, without any search on the pixels."""
        from clustering import cascade

        start = time.perf_counter()
        embeddings = self.embed(images)
        embedding_seconds = (time.perf_counter() - start) / len(images)
        proposed = []
        for image, embedding in zip(images, embeddings, strict=True):
            start = time.perf_counter()
            found = cascade(embedding.grid, self.clustering)
            labels = draw(found.labels, embedding.box)
            instances = [Instance(labels == k + 1, score, ()) for k, score in enumerate(found.scores)]
            instances = tuple(instance for instance in instances if instance.mask.any())
            proposed.append(
                Detection(
                    shape=image.shape[:2],
                    score=best_score(instances),
                    instances=instances,
                    seconds=embedding_seconds + time.perf_counter() - start,
                    grid=found.labels,
                    anomaly=found.anomaly,
                    reason=found.reason,
                )
            )
        return proposed

    def _search(self, image: np.ndarray, regions: Sequence[np.ndarray]) -> Detection:
        """Detection by the search on the pixels alone, which is more thorough in the regions, masks (H, W) bool."""
        start = time.perf_counter()
        found = detect_copies(image, self.matching, regions)
        return Detection(
            shape=image.shape[:2],
            score=best_score(found.instances),
            instances=found.instances,
            seconds=time.perf_counter() - start,
            complete=found.complete,
            search=found,
        )


def best_score(instances: Sequence[Instance]) -> float:
    """Score of the best instance; 0 where there is none."""
    return max((instance.score for instance in instances), default=0.0)


def _join(proposed: Detection, searched: Detection) -> Detection:
    """Detection of both paths: proven instances, and what the cascade found on its grid."""
    return replace(
        searched,
        seconds=proposed.seconds + searched.seconds,
        grid=proposed.grid,
        anomaly=proposed.anomaly,
        reason=proposed.reason,
    )


def regions_to_search(proposed: Detection) -> list[np.ndarray]:
    """Masks (H, W) bool of the instances with two or more parts (8-connected), which may be copies of each other."""
    eight_connected = np.ones((3, 3))
    return [mask for mask in proposed.masks if ndimage.label(mask, structure=eight_connected)[1] > 1]


def draw(grid: np.ndarray, box: Letterbox) -> np.ndarray:
    """Draw labels of a grid's cells at the image's full resolution, by the nearest cell: (g_h, g_w) -> (H, W)."""
    return grid[box.rows()[:, None], box.columns()]


def read_clustering(path: Path) -> dict[str, object]:
    """Clustering settings written by tuning.py."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; make one with tuning.py --out {path}")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("clustering"), dict):
        raise InputError(f'{path} holds no "clustering" settings; make it with tuning.py')
    return content["clustering"]
