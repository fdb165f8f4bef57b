"""The one inference path, and tuning and test on top of it."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from tests.scripts import launch

import test
import train
import tuning
from clustering import cascade
from config import (
    ClusteringSettings,
    DataSettings,
    LoaderSettings,
    ModelSettings,
    SplitSettings,
    TestSettings as ScoreSettings,
    TrainSettings,
    TuningSettings,
)
from detector import Detector, draw
from images.folders import find_images
from images.letterbox import Letterbox
from images.masks import read_masks
from images.read import read_image
from metrics import Record, decode_annotation, object_f1, summarize
from runtime.errors import InputError

# Small cells need small clusters; a low bar, so that an untrained model finds something at all.
LOW = ClusteringSettings(
    min_cluster_size=5, min_samples=2, candidate_distance=0.05, anomaly_threshold=0.0, loose_min_cluster_size=4
)


@pytest.fixture(scope="module")
def run(data, backbone, tmp_path_factory):
    """A short training on the small data set."""
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
            clustering=LOW,
        )
    )
    return out


@pytest.fixture(scope="module")
def detector(run):
    return Detector.load(run / "best.pt").alone("embedding")


def score(data, run, out, **other):
    """Settings of a test; the cascade alone unless said otherwise, for the matching has tests of its own."""
    return ScoreSettings(DataSettings(data), out, **({"checkpoint": run / "best.pt", "modes": ("embedding",)} | other))


def test_masks_have_the_size_of_the_image(detector, data):
    found_any = False
    for scene in find_images(data):
        image = read_image(scene.image)
        found = detector.detect(image)
        assert found.masks.shape == (len(found.instances), *image.shape[:2]) and found.masks.dtype == bool
        assert found.masks.sum(axis=0).max(initial=0) <= 1  # instances of the grid do not overlap
        assert found.score == max((i.score for i in found.instances), default=0.0) and 0 <= found.score <= 1
        found_any |= len(found.instances) > 0
    assert found_any


def test_a_images_result_does_not_depend_on_its_batch(detector, data):
    images = [read_image(scene.image) for scene in find_images(data)]
    for together, image in zip(detector.detect_batch(images), images, strict=True):
        alone = detector.detect(image)
        assert (alone.masks == together.masks).all() and alone.reason == together.reason


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (300, 7), (112, 112)])
def test_odd_sizes(detector, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detector.detect(image).masks.shape[1:] == shape


def test_padding_reaches_no_clustering(detector):
    image = detector.embed([np.zeros((50, 100, 3), np.uint8)])[0]
    assert image.cells.shape == (4, 8)  # 112 px wide, 56 px of the 112 high, 14 px a cell


def test_drawing_the_grid_at_full_resolution():
    box = Letterbox.fit((200, 100), 112)  # 56 px wide in the input: 8 x 4 cells of 25 px
    grid = np.arange(32).reshape(8, 4)
    assert (draw(grid, box) == np.kron(grid, np.ones((25, 25), int))).all()


def test_counting_per_cell_equals_counting_pixels(detector, data):
    """The score that tuning maximises is the score that test.py prints."""
    for scene in find_images(data):
        image = read_image(scene.image)
        masks = np.zeros((0, *image.shape[:2]), bool)
        if scene.mask is not None:
            masks = read_masks(scene.mask, image.shape[:2])
        embedded = detector.embed([image])[0]
        example = tuning.Example.of(embedded, masks)
        for settings in (LOW, replace(LOW, growth_distance=0.01), ClusteringSettings()):
            full = draw(cascade(embedded.cells, settings).labels, embedded.box)
            predicted = np.stack([full == k for k in range(1, full.max() + 1)]) if full.max() else masks[:0]
            assert example.score(settings) == pytest.approx(object_f1(predicted, masks), abs=1e-9)


def test_tuning_writes_what_test_reproduces(run, data, tmp_path, capsys):
    settings = TuningSettings(DataSettings(data), run / "best.pt", tmp_path / "tuned.json", trials=4)
    tuning.main(settings)
    stopped = json.loads(settings.out.read_text())
    assert stopped["of1"] >= stopped["of1_before"] and stopped["trials"] == 4 and stopped["images"] == 6
    tuning.main(replace(settings, trials=8))
    assert "going on with 4 trials" in capsys.readouterr().out
    tuned = json.loads(settings.out.read_text())
    assert tuned["trials"] == 8 and tuned["of1"] >= stopped["of1"]
    trials = list(csv.DictReader((tmp_path / "tuned.csv").open()))
    assert [int(row["trial"]) for row in trials] == list(range(8))
    assert max(float(row["of1"]) for row in trials) == tuned["of1"]
    assert cv2.imread(str(tmp_path / "tuned.png")) is not None
    # A search that was never stopped draws the same parameters.
    tuning.main(replace(settings, out=tmp_path / "whole.json", trials=8))
    assert list(csv.DictReader((tmp_path / "whole.csv").open())) == trials
    test.main(score(data, run, tmp_path / "test", clustering=settings.out, split="val"))
    figures = json.loads((tmp_path / "test" / "metrics.json").read_text())["modes"]["embedding"]["figures"]
    assert figures["of1"]["value"] == pytest.approx(tuned["of1"], abs=1e-9) and figures["of1"]["images"] == 6
    with pytest.raises(InputError, match="another checkpoint, folder or seed"):
        tuning.main(replace(settings, seed=1))


def test_test_scores_its_split_once_and_keeps_the_records(run, data, tmp_path, capsys):
    test.main(score(data, run, tmp_path / "test"))
    assert "oF1, all images" in capsys.readouterr().out
    splits = json.loads((run / "splits.json").read_text())
    expected = sorted(
        f"{folder}/{base}" for base in splits if splits[base] == "test" for folder in ("authentic", "forged")
    )
    lines = [json.loads(line) for line in (tmp_path / "test" / "records.jsonl").read_text().splitlines()]
    assert {line.pop("mode") for line in lines} == {"embedding"}
    records = [Record(**line) for line in lines]
    assert [record.id for record in records] == expected
    table = json.loads((tmp_path / "test" / "metrics.json").read_text())["modes"]["embedding"]["figures"]
    assert table == json.loads(json.dumps(summarize(records)))
    detector = Detector.load(run / "best.pt").alone("embedding")
    rows = list(csv.DictReader((tmp_path / "test" / "submission.csv").open()))
    for row in rows:
        image = read_image(data / f"{row['case_id']}.png")
        masks = decode_annotation(row["annotation"], image.shape[:2])
        assert (masks == detector.detect(image).masks).all()


def test_two_ranks_score_the_same(run, data, tmp_path):
    arguments = ("test.py", "--data", data, "--checkpoint", run / "best.pt", "--split", "test", "--modes", "embedding")
    arguments = (*arguments, "--out")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    for done in (launch(*arguments, tmp_path / "one"), launch(*torchrun, *arguments, tmp_path / "two")):
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "submission.csv").read_text() for name in ("one", "two"))
    assert one == two and one.count("\n") == 7


def test_the_three_ways(run, data, tmp_path):
    """The matching proves the squares that stand twice to the bit, whatever an untrained model proposes."""
    test.main(score(data, run, tmp_path, modes=("embedding", "matching", "both"), split="val"))
    modes = json.loads((tmp_path / "metrics.json").read_text())["modes"]
    assert list(modes) == ["embedding", "matching", "both"]
    for way in ("matching", "both"):
        figures = modes[way]["figures"]
        assert figures["of1_forged"]["value"] > 0.95 and figures["false_positive_rate"]["value"] == 0
    found = Detector.load(run / "best.pt").detect(read_image(data / "forged" / "0.png"))
    assert found.grid is not None and len(found.instances) == 1 and found.instances[0].copies
    test.main(score(data, run, tmp_path, checkpoint=None, split="all"))
    assert list(json.loads((tmp_path / "metrics.json").read_text())["modes"]) == ["matching"]


def test_evidence_alone_needs_no_torch():
    code = (
        "import sys, numpy as np; from detector import Detector\n"
        "found = Detector.load().detect(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))\n"
        "assert not found.instances and 'torch' not in sys.modules"
    )
    done = launch("-c", code)
    assert done.returncode == 0, done.stderr


def test_refusals(run, data, tmp_path):
    settings = score(data, run, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        test.main(replace(settings, checkpoint=tmp_path / "none.pt"))
    with pytest.raises(FileNotFoundError, match=r"make one with tuning\.py"):
        test.main(replace(settings, clustering=tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text('{"clustering": {"min_cluster": 3}}')
    with pytest.raises(InputError, match="unknown settings min_cluster"):
        test.main(replace(settings, clustering=tmp_path / "bad.json"))
    (tmp_path / "worse.json").write_text("not json")
    with pytest.raises(InputError, match="not a JSON file"):
        test.main(replace(settings, clustering=tmp_path / "worse.json"))
    other = tmp_path / "other" / "authentic"
    other.mkdir(parents=True)
    cv2.imwrite(str(other / "new.png"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(InputError, match="--split all"):
        test.main(replace(settings, checkpoint=None))
    with pytest.raises(InputError, match="--checkpoint too"):
        test.main(replace(settings, checkpoint=None, clustering=tmp_path / "x.json", split="all"))
    with pytest.raises(InputError, match="--split all"):
        test.main(replace(settings, data=DataSettings(other.parent)))
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    checkpoint["model"]["settings"]["embedding_size"] = 9
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(InputError, match="another head"):
        test.main(replace(settings, checkpoint=tmp_path / "other.pt"))
