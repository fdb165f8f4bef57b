"""The timing benchmarks measure what they say, and print it."""

import time

import cv2
import numpy as np
import pytest
import torch

from benchmarks import timing_search
from benchmarks.timing_learned import (
    hdbscan_of_vectors,
    loss_by_images,
    median_seconds,
    random_grids,
    time_step,
)
from clustering import EmbeddingGrid
from config import ModelSettings, SearchTimingSettings, StepTimingSettings
from copymove.copies import SearchResult
from detector import Detection
from losses import ForgeryLoss
from runtime.errors import InputError


def test_loss_by_images_is_the_loss():
    """The straightforward implementation gives the value and the gradient of `ForgeryLoss`."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(3, 40, 8, generator=generator), dim=-1).requires_grad_()
    labels = torch.zeros(3, 40, dtype=torch.int64)
    labels[0, :10], labels[1, :10], labels[1, 10:18], labels[:, 35:] = 1, 1, 2, -1
    values = ForgeryLoss()(embeddings, labels, 3)[0], loss_by_images(embeddings, labels)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in values]
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-5)
    assert torch.allclose(*gradients, atol=1e-6)


def test_hdbscan_of_vectors_agrees():
    """The labels that the benchmark compares with are those of the cascade's own clustering."""
    grid = random_grids(1)[0]
    assert grid.shape == (33, 33, 512) and np.allclose(np.linalg.norm(grid, axis=2), 1, atol=1e-5)
    part = grid[:16, :16]
    assert (EmbeddingGrid(part).hdbscan(15, 5) == hdbscan_of_vectors(part, 15, 5)).all()


def test_medians_of_alternating_calls():
    """Each call is made as often as asked, in turn, and its median is that of its own times."""
    calls, pauses = [], iter((0.0, 0.03, 0.5))

    def slow():
        calls.append("slow")
        time.sleep(next(pauses))

    quick, middle = median_seconds(3, lambda: calls.append("quick"), slow)
    assert calls == ["quick", "slow"] * 3
    assert quick < 0.02 < middle < 0.3


def test_step_times_are_printed(backbone, capsys):
    """One line for training and one for embedding per batch size, with the rate of images."""
    model = ModelSettings(backbone=backbone, image_size=56, head_widths=(16,), embedding_size=8)
    time_step(StepTimingSettings(batch_sizes=(1, 2), repeats=1, model=model))
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [name, "batch", size] for size in ("1:", "2:") for name in ("training", "embedding")
    ]
    assert all(float(line.split()[3]) > 0 and line.split()[6].startswith("images/s") for line in lines)
    with pytest.raises(InputError, match="must be at least 1 each"):
        time_step(StepTimingSettings(batch_sizes=(), model=model))


class SizedDetector:
    """A search that is told apart by the size of its image."""

    sizes: list = []  # noqa: RUF012 - shared by all detectors of this test

    def __init__(self, matching):
        pass

    def detect(self, image):
        self.sizes.append(image.shape[0] * image.shape[1])
        return Detection(image.shape[:2], 0.0, (), 0.0, search=SearchResult((), True, {"dense": 0.25, "all": 0.5}))


def test_search_times_are_printed(tmp_path, monkeypatch, capsys):
    """The image is searched at each size as often as asked, after a small part of it that warms up."""
    monkeypatch.setattr(timing_search, "Detector", SizedDetector)
    monkeypatch.setattr(timing_search, "call_in_process", lambda function, *arguments: function(*arguments))
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((200, 300, 3), np.uint8))
    timing_search.time_search(SearchTimingSettings(tmp_path / "image.png", megapixels=(0.03, 0.12), repeats=2))
    assert SizedDetector.sizes == pytest.approx([128 * 128, 3e4, 3e4, 128 * 128, 12e4, 12e4], rel=0.01)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "megapixels" and [line.split()[0] for line in lines] == ["0.03", "0.12"]
    assert all(line.endswith("dense 0.25") for line in lines)
