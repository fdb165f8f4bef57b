"""Beside the best copy of an image only those may stand that share enough of its grain: the others are repeats."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from copymove.copies import Copy, VerifiedCopy, copy_on_jpeg_grid
from copymove.regions import Region
from copymove.suppression import (
    ALTERED_RESIDUAL,
    BESIDE,
    BESIDE_RESIDUAL,
    BESIDE_SAME,
    BESIDE_TURNED,
    IDENTICAL_GRAIN,
    suppress_repeats,
)


def verified(kind="dense", degrees=0.0, content=0, grain=1.0, margin=0.4, residual=0.0) -> VerifiedCopy:
    """A copy, off the grid of JPEG blocks, with these features; copies of one content share a region."""
    affine = cv2.getRotationMatrix2D((5, 5), degrees, 1.0)
    affine[:, 2] += (43.0, 21.0)
    region = Region(0, 100 * content, np.ones((10, 10), bool))
    features = {"grain_ncc_p80": grain, "fine_margin": margin, "residual": residual, "noise": 0.0}
    return VerifiedCopy(Copy(kind, affine, 9, 1.0, 0.9, region, region), {} if kind == "exact" else features)


def on_jpeg_grid(copy: VerifiedCopy) -> VerifiedCopy:
    moved = dataclasses.replace(copy.copy, affine=np.array([[1.0, 0, 48], [0, 1, 24]]))
    assert copy_on_jpeg_grid(moved)
    return dataclasses.replace(copy, copy=moved)


BEST = verified("keypoints")


@pytest.mark.parametrize(
    "copy, kept",
    [
        (verified(content=1, grain=BESIDE + 0.01), True),
        (verified(content=1, grain=BESIDE - 0.01), False),
        (verified(content=1, degrees=30, grain=BESIDE_TURNED + 0.01), True),  # it lost some grain by being rotated
        (verified(content=1, degrees=30, grain=BESIDE_TURNED - 0.01), False),
        (verified(content=1, margin=0.4 * BESIDE + 0.01), True),
        (verified(content=1, margin=0.4 * BESIDE - 0.01), False),
        (verified(content=1, residual=BESIDE_RESIDUAL - 0.01), True),
        (verified(content=1, residual=BESIDE_RESIDUAL + 0.01), False),  # it differs more than three times as much
        (verified(content=0, grain=BESIDE_SAME + 0.01), True),  # a further copy of the best one's content
        (verified(content=0, grain=BESIDE_SAME - 0.01), False),
    ],
)
def test_copies_need_grain_beside_the_best(copy, kept):
    """A copy needs its share of the best copy's grain and margin, and may not differ much more."""
    assert suppress_repeats([BEST, copy]) == ([BEST, copy] if kept else [BEST])


@pytest.mark.parametrize(
    "copy, share, residual",
    [
        (verified(content=1), BESIDE, 5.0),
        (verified(content=0), BESIDE, 5.0),
        (verified(content=1, degrees=30), BESIDE, 5.0),
        (verified(content=0, degrees=30), BESIDE_TURNED, 5.0),  # a rotated copy of the identical content
        (verified(content=0), BESIDE_TURNED, math.log(ALTERED_RESIDUAL[0]) - 0.01),  # hardly differs otherwise
        (verified(content=0), BESIDE, math.log(ALTERED_RESIDUAL[0]) + 0.01),
        (verified(content=1, degrees=30), BESIDE_TURNED, math.log(ALTERED_RESIDUAL[1]) - 0.01),
        (verified(content=1, degrees=30), BESIDE, math.log(ALTERED_RESIDUAL[1]) + 0.01),
    ],
)
def test_copies_beside_identical_ones(copy, share, residual):
    """Beside a bit-identical copy less grain is enough only for what hardly differs, or is a rotated copy of it."""
    exact = verified("exact")
    for grain, kept in ((share * IDENTICAL_GRAIN + 0.01, True), (share * IDENTICAL_GRAIN - 0.01, False)):
        measured = dataclasses.replace(copy, features=copy.features | {"grain_ncc_p80": grain, "residual": residual})
        assert suppress_repeats([exact, measured]) == ([exact, measured] if kept else [exact])


def test_grid_copies_measure_nothing():
    """A bit-identical copy on the grid was rounded as its source: the others are compared among themselves."""
    exact = on_jpeg_grid(verified("exact"))
    others = [verified(content=1), verified(content=2, degrees=30)]
    assert suppress_repeats([exact, *others]) == [exact, *others]
    assert suppress_repeats([exact]) == [exact]
    assert suppress_repeats([]) == []


def test_grid_copies_choose_the_best():
    """The best one is the best copy of the same content as the first, where that one itself lies on the grid."""

    def copy(y, shift, grain, margin):
        mask = np.ones((10, 10), bool)
        regions = Region(0, y, mask), Region(shift, y, mask)
        features = {"grain_ncc_p80": grain, "fine_margin": margin, "residual": 0.0}
        return VerifiedCopy(Copy("dense", np.array([[1.0, 0, shift], [0, 1, 0]]), 9, 1.0, 0.9, *regions), features)

    first, other, again = copy(0, 80, 2.5, 0.7), copy(50, 43, 1.3, 0.2), copy(0, 101, 0.7, 0.4)
    assert copy_on_jpeg_grid(first.copy)
    assert suppress_repeats([first, other, again]) == [first, again]
    assert suppress_repeats([other, again]) == [other]  # without the first one, the other content is best
