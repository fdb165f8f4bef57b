"""oF1 case by case with numbers worked out by hand, run lengths, and the table."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import metrics as m

NONE = np.zeros((0, 4, 10), bool)


def bars(*spans):
    """Masks (N, 4, 10) that fill columns start..stop."""
    masks = np.zeros((len(spans), 4, 10), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[:, start:stop] = True
    return masks


A, B, C = (0, 2), (3, 5), (6, 9)


@pytest.mark.parametrize(
    ("case", "predicted", "true", "expected"),
    [
        ("authentic, nothing found", NONE, NONE, 1.0),
        ("authentic, something found", bars(A), NONE, 0.0),
        ("forged, nothing found", NONE, bars(A), 0.0),
        ("exact", bars(A, B, C), bars(A, B, C), 1.0),
        ("exact in another order", bars(C, A, B), bars(A, B, C), 1.0),
        ("one of three missed", bars(A, C), bars(A, B, C), 2 / 3),
        ("one extra", bars(A, B, C), bars(A, B), 2 / 3),
        ("two extra for one", bars(A, B, C), bars(A), 1 / 3),
        # 2 of 3 columns: F1 = 2 * 2 / (2 + 3); mean over the one true instance.
        ("too large", bars((0, 3)), bars(A), 0.8),
        # The assignment that gives the first prediction its best partner (F1 1 and 0) is worse than 0.8 + 0.8.
        ("best sum, not greedy", bars((0, 2), (2, 4)), bars((0, 3), (3, 5)), (0.8 + 0.5) / 2),
        # One prediction over both true ones: F1 = 2 * 2 / (5 + 2) with one of them, the other is missed.
        ("two merged into one", bars((0, 5)), bars(A, B), (4 / 7 + 0) / 2),
        ("an empty prediction is an extra instance", np.concatenate([bars(A), bars((0, 0))]), bars(A), 0.5),
    ],
)
def test_object_f1_case_by_case(case, predicted, true, expected):
    """Each row of the table in metrics.py, and some more, with a value worked out by hand."""
    assert m.object_f1(predicted, true) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("truth", "mean"),
    # F1 = 2 * 102 / (102 + 103); one of two instances found. Two other images of the set are exact.
    [("[101, 103]", 0.99837), ("[101, 102];[300, 100]", 0.83333)],
)
def test_competition_examples(truth, mean):
    """The two examples that the competition's page works out."""
    predicted, true = (m.decode_annotation(text, (720, 960)) for text in ("[101, 102]", truth))
    assert (1 + 1 + m.object_f1(predicted, true)) / 3 == pytest.approx(mean, abs=5e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**31))
def test_against_all_permutations(n_pred, n_true, seed):
    """The assignment is the best of all that are possible, in small random cases."""
    rng = np.random.default_rng(seed)
    predicted, true = rng.random((n_pred, 6, 7)) < 0.4, rng.random((n_true, 6, 7)) < 0.4
    value = m.object_f1(predicted, true)
    if n_true == 0 or n_pred == 0:
        assert value == float(n_true == n_pred)
        return
    f1 = [[2 * (p & t).sum() / max(p.sum() + t.sum(), 1) for t in true] for p in predicted]
    few, many = min(n_pred, n_true), max(n_pred, n_true)
    best = max(
        sum(f1[i][j] if n_pred <= n_true else f1[j][i] for i, j in enumerate(order))
        for order in itertools.permutations(range(many), few)
    )
    assert value == pytest.approx(best / n_true * n_true / many)
    assert 0 <= value <= 1
    assert m.object_f1(predicted[::-1], true[::-1]) == pytest.approx(value)
    assert m.object_f1(true, true) == pytest.approx(1) if true.any(axis=(1, 2)).all() else True


def test_f1_matrix_on_odd_sizes():
    """Sizes that fill no whole word of bits; other types and sizes are refused."""
    rng = np.random.default_rng(0)
    p, t = rng.random((3, 13, 11)) < 0.5, rng.random((2, 13, 11)) < 0.5
    slow = [[2 * (a & b).sum() / (a.sum() + b.sum()) for b in t] for a in p]
    assert np.allclose(m.f1_matrix(p, t), slow)
    with pytest.raises(ValueError, match="one size"):
        m.f1_matrix(p, t[:, :, :5])
    with pytest.raises(ValueError, match="bool"):
        m.f1_matrix(p.astype(np.uint8), t)


def slow_runs(mask):
    runs, flat, start = [], mask.T.reshape(-1).tolist(), None
    for i, value in enumerate([*flat, False]):
        if value and start is None:
            start = i
        if not value and start is not None:
            runs += [start + 1, i - start]
            start = None
    return runs


@settings(max_examples=100, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_round_trip(mask):
    """Encoding equals a loop over pixels, and decoding undoes it."""
    runs = m.encode_mask(mask)
    assert runs == slow_runs(mask)
    assert (m.decode_mask(runs, mask.shape) == mask).all()


def test_annotations():
    """Instances in a submission, joined by semicolons; `authentic` for none."""
    masks = bars(A, C)
    text = m.encode_annotation(masks)
    assert text == "[1, 8];[25, 12]"  # columns 0 and 1 of height 4; columns 6 to 8
    assert (m.decode_annotation(text, (4, 10)) == masks).all()
    assert m.encode_annotation(NONE) == "authentic" and m.decode_annotation("authentic", (4, 10)).shape == (0, 4, 10)


@pytest.mark.parametrize(
    "text", ["[1, 2, 3]", "[40, 2]", "[0, 2]", "[5, 2, 5, 1]", "[9, 1, 5, 1]", "[1, 0]", "nonsense"]
)
def test_malformed_annotations_are_refused(text):
    """Odd counts, runs beyond the image, overlapping or unordered ones."""
    with pytest.raises(ValueError):
        m.decode_annotation(text, (4, 10))


def test_summary_by_hand():
    """Every figure of four images, worked out by hand."""
    records = [
        m.score_image("a", NONE, NONE, 0.0, 0.1),
        m.score_image("b", bars(A), NONE, 0.7, 0.1),
        m.score_image("c", bars((0, 3)), bars(A), 0.9, 0.1),
        m.score_image("d", NONE, bars(A), 0.1, 0.1),
    ]
    table = m.summarize(records)
    assert table["of1"]["value"] == pytest.approx((1 + 0 + 0.8 + 0) / 4)
    assert table["of1_forged"]["value"] == pytest.approx(0.4) and table["of1_forged"]["images"] == 2
    assert table["false_positive_rate"]["value"] == 0.5 and table["image_recall"]["value"] == 0.5
    assert table["pixel_f1"]["value"] == pytest.approx(0.4)
    assert table["pixel_precision"]["value"] == pytest.approx((8 / 12 + 0) / 2)
    assert table["pixel_recall"]["value"] == pytest.approx(0.5)
    assert table["of1"]["low"] <= table["of1"]["value"] <= table["of1"]["high"]
    assert m.summarize(records) == table  # the bootstrap is seeded
    assert "false_positive_rate" not in m.summarize(records[2:])
    assert "oF1, all images" in m.format_table(table)
