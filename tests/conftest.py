"""A small data set and an untrained backbone, made once, and a training on them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library reads it: tests run side by side, one on each core

import cv2
import numpy as np
import pytest

from config import (
    ClusteringSettings,
    DataSettings,
    LoaderSettings,
    ModelSettings,
    SplitSettings,
    TrainSettings,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Nine base images, each authentic and forged: grain in which a square stands twice."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def grain(height, width):
        return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 1.5)

    for folder in ("authentic", "forged", "masks"):
        (root / folder).mkdir()
    for i in range(9):
        height, width = (100, 120) if i % 2 else (112, 84)
        image = grain(height, width)
        mask = np.zeros((1, height, width), np.uint8)
        forged, patch = image.copy(), grain(30, 30)
        for y, x in ((3, 5), (55, 40)):
            forged[y : y + 30, x : x + 30] = patch
            mask[0, y : y + 30, x : x + 30] = 1
        cv2.imwrite(str(root / "authentic" / f"{i}.png"), image)
        cv2.imwrite(str(root / "forged" / f"{i}.png"), forged)
        np.save(root / "masks" / f"{i}.npy", mask)
    return root


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """Folder of a tiny random DINOv2."""
    from backbones import random_backbone

    folder = tmp_path_factory.mktemp("backbone")
    random_backbone(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56).save_pretrained(folder)
    return str(folder)


def small_training(data, backbone, out):
    """Settings of two short epochs of training."""
    return TrainSettings(
        data=DataSettings(data=data),
        out=out,
        epochs=2,
        batch_size=2,
        gradient_accumulation_steps=2,
        loader=LoaderSettings(num_workers=0, synthesis_probability=0.5),
        model=ModelSettings(backbone=backbone, image_size=56, head_widths=(16,), embedding_size=8),
    )


@pytest.fixture
def settings(data, backbone, tmp_path):
    """Settings of two short epochs of training in a folder of this test."""
    return small_training(data, backbone, tmp_path / "run")


# Small grids need small clusters, and low thresholds let an untrained model find something at all.
LOW_THRESHOLDS = ClusteringSettings(
    min_cluster_size=5, min_samples=2, candidate_distance=0.05, anomaly_threshold=0.0, loose_min_cluster_size=4
)


@pytest.fixture(scope="session")
def trained(data, backbone, tmp_path_factory):
    """Folder of a short training with a cascade of low thresholds; three base images each to validate and to test."""
    import train

    out = tmp_path_factory.mktemp("runs") / "a"
    train.main(
        TrainSettings(
            data=DataSettings(data=data),
            split=SplitSettings(val_fraction=0.3, test_fraction=0.3),
            out=out,
            epochs=2,
            batch_size=4,
            loader=LoaderSettings(num_workers=0),
            model=ModelSettings(backbone=backbone, image_size=112, head_widths=(16,), embedding_size=8),
            clustering=LOW_THRESHOLDS,
        )
    )
    return out
