"""Findings are those of the golden table (see golden.py), which was made before the code was moved into rooms."""

import pytest

from tests.golden import findings, golden_images, read_table

QUICK = ("camera", "cell")  # the others are slow


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_findings_equal_the_table(slow):
    """Masks to the pixel; scores, maps and features to the rounding of another processor's arithmetic."""
    table = read_table()
    for name, image in golden_images():
        if slow == name.startswith(QUICK):
            continue
        expected, found = table[name], findings(image)
        assert found["checksum"] == expected["checksum"], f"{name} is drawn otherwise"
        assert [i["rle"] for i in found["instances"]] == [i["rle"] for i in expected["instances"]], name
        for instance, known in zip(found["instances"], expected["instances"], strict=True):
            assert instance["score"] == pytest.approx(known["score"], abs=1e-9), name
        for pair, known in zip(found["pairs"], expected["pairs"], strict=False):
            for field in ("affine", "features"):
                assert pair[field] == pytest.approx(known[field], rel=1e-7, abs=1e-7), (name, field)
