"""Copies say how they were rotated and scaled, and are grouped into instances by the regions they share."""

import math

import numpy as np
import pytest

from copymove.copies import Copy, group_copies
from copymove.regions import Region
from tests.scenes import affine_map


def test_copies_are_grouped_by_shared_regions():
    """Two copies with a region in common are one instance; a third one is another."""

    def copy(x, y):
        region = [Region(place, 0, np.ones((10, 10), bool)) for place in (x, y)]
        return Copy("exact", np.eye(2, 3), 1, 1.0, 0.9, *region)

    instances = group_copies([copy(0, 40), copy(40, 80), copy(120, 160)], (10, 200))
    assert sorted(int(i.mask.sum()) for i in instances) == [200, 300]


def test_rotation_is_read_from_the_map():
    """It is counter-clockwise on the screen; the scale is the length of one pixel."""
    affine = affine_map((0, 0), (5, 5), degrees=30)
    region = Region(0, 0, np.ones((2, 2), bool))
    assert Copy("exact", affine, 1, 1.0, 1.0, region, region).rotation == pytest.approx(30)
    assert math.isclose(Copy("exact", affine * 2, 1, 1.0, 1.0, region, region).scale, 2)
