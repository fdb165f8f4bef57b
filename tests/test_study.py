"""The study of variants: its table comes from the records, and what is done isn't done again."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import train
import tuning
from benchmarks.ablation import Variant, kept_features, study, table, training
from config import ClusteringSettings, ModelSettings, StudySettings
from metrics import Record, record_to_dict
from model import ForgeryModel
from runtime.errors import InputError


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """Ten authentic images of grain with bright discs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(10):
        image = cv2.GaussianBlur(rng.integers(0, 120, (96, 112, 3), dtype=np.uint8), (0, 0), 1)
        for x, y in rng.integers(12, 84, (5, 2)):
            cv2.circle(image, (int(x), int(y)), 7, (200, 210, 190), -1)
        cv2.imwrite(str(folder / f"{i}.png"), image)
    return folder


@pytest.fixture
def settings(image_files, backbone, tmp_path, monkeypatch):
    """Two variants with one seed each, at 56 px."""
    small = {"image_size": 56, "head_widths": (16,), "embedding_size": 8}
    monkeypatch.setattr(
        "benchmarks.ablation.VARIANTS",
        {
            "narrow": Variant("plain", small),
            "balance": Variant("balanced", small, {"class_balanced": True}, {"label_coverage": 0.25}),
            "end-to-end": Variant("trained through", small, end_to_end=True),
        },
    )
    return StudySettings(
        train=image_files,
        dev=image_files,
        out=tmp_path / "study",
        variants=("narrow", "balance"),
        seeds=(3,),
        forged=6,
        authentic=6,
        held_out=3,
        backbone=backbone,
        epochs=1,
        trials=2,
    )


def test_a_study_runs_once_and_goes_on_where_it_stopped(settings, monkeypatch, capsys):
    trained = []
    whole = train.main
    monkeypatch.setattr(train, "main", lambda s: trained.append((s.out.name, s.resume)) or whole(s))
    assert study(settings) is None
    shown = capsys.readouterr().out
    assert trained == [("narrow-3", False), ("balance-3", False)]
    records = {name: (settings.out / "runs" / f"{name}-3" / "records.jsonl").read_text() for name in settings.variants}
    assert all(len(text.splitlines()) == 6 for text in records.values())
    features = sorted((settings.out / "features").glob("*.arrays"))
    # Both variants look at the same images: 12 made of TRAIN and 6 made of DEV, each embedded once. DEV is TRAIN
    # here, and an authentic image stands in both sets as it is: such a pair counts once.
    assert 9 < len(features) <= 18

    # The same command does nothing again, and shows the same table.
    dates = [path.stat().st_mtime_ns for path in features]
    assert study(settings) is None
    assert len(trained) == 2 and [path.stat().st_mtime_ns for path in features] == dates
    assert capsys.readouterr().out.splitlines()[-4:] == shown.splitlines()[-4:]

    # A run whose scoring is missing is scored again, from the training that is there, to the same records.
    (settings.out / "runs" / "balance-3" / "records.jsonl").unlink()
    study(settings)
    assert trained[2:] == [("balance-3", True)]
    again = [json.loads(line) for line in (settings.out / "runs/balance-3/records.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in records["balance"].splitlines()]
    assert [r | {"seconds": 0} for r in again] == [r | {"seconds": 0} for r in before]

    # What each variant changes has reached the training.
    saved = json.loads((settings.out / "runs/balance-3/settings.json").read_text())
    assert saved["loss"]["class_balanced"] and saved["loader"]["label_coverage"] == 0.25
    assert json.loads((settings.out / "runs/narrow-3/tuned.json").read_text())["target_fpr"] == 0.05

    with pytest.raises(InputError, match="forged was 6, is 7"):
        study(replace(settings, forged=7))


def test_end_to_end_trains_the_backbone(settings):
    made = training(settings, "end-to-end", 0, settings.out)
    assert made.model.unfreeze_blocks == 3 and made.gradient_accumulation_steps == 1


def test_table_is_made_of_the_records(settings):
    def record(forged, of1, found):
        return Record("p", forged, found, of1, 5 * (forged and found), 0, 1, 0.5, 0.1)

    runs = {
        # oF1 of the forged 0.3; one of two authentic images with an alarm; one of two forged hit
        "narrow-0": [record(1, 0.6, 1), record(2, 0.0, 0), record(0, 0.0, 1), record(0, 1.0, 0)],
        # oF1 0.5, no alarm, all hit
        "narrow-1": [record(1, 0.4, 1), record(1, 0.6, 2), record(0, 1.0, 0)],
        "balance-0": [record(1, 0.2, 1), record(0, 1.0, 0)],
    }
    for name, records in runs.items():
        path = settings.out / "runs" / name / "records.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record_to_dict(r)) + "\n" for r in records))
    head, _, *lines = table(settings.out, ("narrow", "balance", "end-to-end")).splitlines()
    assert head == "| variant | seeds | oF1, forged | authentic with a false alarm | forged with a hit |"
    assert lines == [
        "| plain | 2 | 0.400 [0.300, 0.500] | 0.250 [0.000, 0.500] | 0.750 [0.500, 1.000] |",
        "| balanced | 1 | 0.200 | 0.000 | 1.000 |",
    ]


@pytest.mark.parametrize("preset", ["mlp", "patch-correlation"])
def test_kept_features_are_the_models_own(backbone, tmp_path, preset):
    model = ForgeryModel(ModelSettings(backbone=backbone, image_size=112, head_widths=(16,), preset=preset)).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 112, 112, generator=generator)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, 6:] = False
    own = model.features(pixels, valid)
    with kept_features(tmp_path):
        for _ in range(2):  # computed, then read
            for value, kept in zip(own, model.features(pixels, valid), strict=True):
                assert torch.allclose(value.float(), kept.float(), atol=1e-5)
        assert len(list(tmp_path.glob("*.arrays"))) == 2
        model.features(pixels, torch.ones_like(valid))  # another part of the second image counts
        assert len(list(tmp_path.glob("*.arrays"))) == 3
    assert ForgeryModel.feature_cache is None


def test_tuning_under_a_bound_prefers_findings_within_it():
    """By hand: oF1 of two forged images 0.4 and 0.2; a finding in one of four authentic ones."""

    class Known:
        def __init__(self, score, contents):
            self.counts, self.value = np.zeros((contents, 1, 1)), score

        def score(self, clustering):
            return self.value

    examples = [Known(0.4, 1), Known(0.2, 2), Known(1.0, 0), Known(1.0, 0), Known(0.0, 0), Known(1.0, 0)]
    value = {bound: tuning.objective(examples, ClusteringSettings(), bound) for bound in (None, 0.25, 0.2)}
    assert value == {None: pytest.approx(3.6 / 6), 0.25: pytest.approx(0.3), 0.2: pytest.approx(-0.05)}


@pytest.mark.parametrize("change", [{"variants": ()}, {"seeds": ()}, {"held_out": 2}])
def test_what_cannot_be_run_is_refused(settings, change):
    with pytest.raises(InputError, match="must"):
        study(replace(settings, **change))
    assert not settings.out.exists()
