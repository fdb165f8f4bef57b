"""The ablation: its table comes from the records, and what is done is not done again."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import train
from benchmarks.ablation import Variant, kept_features, run_ablation, table, training_settings
from config import AblationSettings, ModelSettings
from metrics import Record, record_to_dict
from model import ForgeryModel
from runtime.errors import InputError


@pytest.fixture(scope="module")
def authentic(tmp_path_factory):
    """Folder of ten authentic images of grain with bright discs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(10):
        image = cv2.GaussianBlur(rng.integers(0, 120, (96, 112, 3), dtype=np.uint8), (0, 0), 1)
        for x, y in rng.integers(12, 84, (5, 2)):
            cv2.circle(image, (int(x), int(y)), 7, (200, 210, 190), -1)
        cv2.imwrite(str(folder / f"{i}.png"), image)
    return folder


@pytest.fixture
def settings(authentic, backbone, tmp_path, monkeypatch):
    """Two variants with one seed each, at 56 px."""
    small = {"image_size": 56, "head_widths": (16,), "embedding_size": 8}
    monkeypatch.setattr(
        "benchmarks.ablation.VARIANTS",
        {
            "narrow": Variant("plain", small),
            "class-balanced": Variant("balanced", small, {"class_balanced": True}, {"label_coverage": 0.25}),
            "end-to-end": Variant("trained through", small, end_to_end=True),
        },
    )
    return AblationSettings(
        train=authentic,
        dev=authentic,
        out=tmp_path / "ablation",
        variants=("narrow", "class-balanced"),
        seeds=(3,),
        forged=6,
        authentic=6,
        held_out=3,
        backbone=backbone,
        epochs=1,
        trials=2,
    )


@pytest.mark.slow
def test_ablation_resumes_where_it_stopped(settings, monkeypatch, capsys):
    """What is there is not made again; a run without records is scored again, to the same records."""
    trained = []
    whole = train.main
    monkeypatch.setattr(train, "main", lambda s: trained.append((s.out.name, s.resume)) or whole(s))
    assert run_ablation(settings) is None
    shown = capsys.readouterr().out
    assert trained == [("narrow-3", False), ("class-balanced-3", False)]
    runs = settings.out / "runs"
    records = {name: (runs / f"{name}-3" / "records.jsonl").read_text() for name in settings.variants}
    assert all(len(text.splitlines()) == 6 for text in records.values())
    features = sorted((settings.out / "features").glob("*.arrays"))
    # Both variants look at the same images: 12 made of TRAIN and 6 made of DEV, each embedded once. DEV is TRAIN
    # here, and an authentic image stands in both sets as it is: such a pair counts once.
    assert 9 < len(features) <= 18

    dates = [path.stat().st_mtime_ns for path in features]
    assert run_ablation(settings) is None
    assert len(trained) == 2 and [path.stat().st_mtime_ns for path in features] == dates
    assert capsys.readouterr().out.splitlines()[-4:] == shown.splitlines()[-4:]

    (runs / "class-balanced-3/records.jsonl").unlink()
    run_ablation(settings)
    assert trained[2:] == [("class-balanced-3", True)]
    again = [json.loads(line) for line in (runs / "class-balanced-3/records.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in records["class-balanced"].splitlines()]
    assert [r | {"seconds": 0} for r in again] == [r | {"seconds": 0} for r in before]

    # What each variant changes has reached the training.
    saved = json.loads((runs / "class-balanced-3/settings.json").read_text())
    assert saved["loss"]["class_balanced"] and saved["loader"]["label_coverage"] == 0.25
    assert json.loads((runs / "narrow-3/tuned.json").read_text())["target_fpr"] == 0.05

    with pytest.raises(InputError, match="forged was 6, is 7"):
        run_ablation(replace(settings, forged=7))


def test_end_to_end_trains_the_backbone(settings):
    """All blocks of the backbone are unfrozen."""
    made = training_settings(settings, "end-to-end", 0, settings.out)
    assert made.model.unfreeze_blocks == 3 and made.gradient_accumulation_steps == 1


def test_table_is_made_of_records(settings):
    """Means and ranges over the seeds, derived by hand."""

    def record(forged, of1, found):
        return Record("p", forged, found, of1, 5 * (forged and found), 0, 1, 0.5, 0.1)

    runs = {
        # oF1 of the forged 0.3; one of two authentic images with an alarm; one of two forged hit
        "narrow-0": [record(1, 0.6, 1), record(2, 0.0, 0), record(0, 0.0, 1), record(0, 1.0, 0)],
        # oF1 0.5, no alarm, all hit
        "narrow-1": [record(1, 0.4, 1), record(1, 0.6, 2), record(0, 1.0, 0)],
        "class-balanced-0": [record(1, 0.2, 1), record(0, 1.0, 0)],
    }
    for name, records in runs.items():
        path = settings.out / "runs" / name / "records.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record_to_dict(r)) + "\n" for r in records))
    head, _, *lines = table(settings.out, ("narrow", "class-balanced", "end-to-end")).splitlines()
    assert head.startswith("| variant | seeds | oF1, forged images | ")
    assert lines == [
        "| plain | 2 | 0.400 [0.300, 0.500] | 0.250 [0.000, 0.500] | 0.750 [0.500, 1.000] |",
        "| balanced | 1 | 0.200 | 0.000 | 1.000 |",
    ]


@pytest.mark.parametrize("preset", ["mlp", "patch-correlation"])
def test_kept_features_equal_computed_ones(backbone, tmp_path, preset):
    """Features are the model's own whether they are computed or read; the valid cells are part of their key."""
    model = ForgeryModel(ModelSettings(backbone=backbone, image_size=112, head_widths=(16,), preset=preset)).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 112, 112, generator=generator)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, 6:] = False
    computed = model.features(pixels, valid)
    with kept_features(tmp_path):
        for _ in range(2):  # computed, then read
            for value, kept in zip(computed, model.features(pixels, valid), strict=True):
                assert torch.allclose(value.float(), kept.float(), atol=1e-5)
        assert len(list(tmp_path.glob("*.arrays"))) == 2
        model.features(pixels, torch.ones_like(valid))  # another part of the second image counts
        assert len(list(tmp_path.glob("*.arrays"))) == 3
    assert ForgeryModel.feature_cache is None


@pytest.mark.parametrize("change", [{"variants": ()}, {"seeds": ()}, {"held_out": 2}])
def test_bad_settings_are_refused(settings, change):
    """Before anything is written."""
    with pytest.raises(InputError, match="must"):
        run_ablation(replace(settings, **change))
    assert not settings.out.exists()
