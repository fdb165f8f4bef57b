"""More than 8 bits become 8 by one rule, whatever single pixels hold."""

import numpy as np
import pytest
import tifffile

from images.depth import BY_PERCENTILES, FULL_RANGE, to_8_bit
from images.inputs import ImageSource
from tests.made_files import noise
from tests.prediction import lines_of, predict_in


def levels(pixels):
    return len(np.unique(pixels))


def grey(low, high, dtype=np.uint16, size=(160, 160)):
    """An image whose values go from `low` to `high`."""
    values = noise(*size)[..., 0] / 255.0
    return (low + values * (high - low)).astype(dtype)


@pytest.mark.parametrize(
    "dtype, outlier", [("uint16", 65535), ("uint32", 2**32 - 1), ("float32", 1e30), ("float64", 1e300)]
)
def test_outliers_cost_no_levels(dtype, outlier):
    """Fifty isolated pixels that are far too bright leave the others as they were."""
    values = grey(200, 1200, dtype)
    plain, _ = to_8_bit(values)
    hot = values.copy()
    hot[5::16, 3::32] = outlier
    shown, intensity = to_8_bit(hot)
    others = hot == values
    assert levels(shown) >= 100 and intensity.rule == BY_PERCENTILES
    assert np.abs(shown[others].astype(int) - plain[others]).max() <= 3
    hot[20, 20:30] = np.nan if dtype.startswith("float") else outlier  # a line of them
    assert levels(to_8_bit(hot)[0]) >= 100


def test_small_bright_cell_is_kept():
    """A cell of 20 x 20 px, under 0.1 % of a dark field, keeps its texture."""
    field = grey(100, 130, size=(1000, 1000))
    field[300:320, 400:420] = grey(2000, 4000, size=(20, 20))
    shown, intensity = to_8_bit(field)
    assert levels(shown[300:320, 400:420]) > 60 and intensity.high > 3500


@pytest.mark.parametrize(
    "values",
    [
        noise(40, 50)[..., 0].astype(np.uint16),
        noise(40, 50)[..., 0].astype(np.uint16) * 257,
        noise(40, 50)[..., 0].astype(np.float32) / 255,
        noise(40, 50)[..., 0].astype(np.float64),
        noise(40, 50)[..., 0].astype(np.int32),
    ],
)
def test_eight_bits_come_back(values):
    """What was 8 bit once is 8 bit again, to the bit."""
    shown, intensity = to_8_bit(values)
    assert (shown == noise(40, 50)[..., 0]).all() and intensity.rule == FULL_RANGE


def test_colours_share_one_range():
    """The channels of a colour image are not stretched apart."""
    colour = np.stack([grey(0, 1000), grey(0, 500), grey(0, 250)], axis=-1)
    shown = to_8_bit(colour)[0].astype(float).mean(axis=(0, 1))
    assert shown[0] / shown[1] == pytest.approx(2, rel=0.05) and shown[1] / shown[2] == pytest.approx(2, rel=0.05)


def test_mapping_is_recorded(tmp_path):
    """The line tells the range that became 0 to 255; an image of 8 bits has none."""
    tifffile.imwrite(tmp_path / "deep.tif", grey(200, 1200))
    tifffile.imwrite(tmp_path / "plain.tif", noise(160, 160), photometric="rgb")
    predict_in(tmp_path / "out", tmp_path / "deep.tif", tmp_path / "plain.tif")
    deep, plain = lines_of(tmp_path / "out")
    assert deep["intensity"]["rule"] == BY_PERCENTILES and deep["intensity"]["dtype"] == "uint16"
    low, high = deep["intensity"]["low"], deep["intensity"]["high"]
    assert 200 <= low < 300 and 1100 < high <= 1200 and "intensity" not in plain
    shown = ImageSource(str(tmp_path / "deep.tif")).read(200.0)[..., 0]
    expected = np.rint((grey(200, 1200).clip(low, high) - low) / (high - low) * 255)
    assert np.abs(shown - expected).max() <= 1
