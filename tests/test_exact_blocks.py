"""Bit-identical copies are found to the pixel; what is flat, drawn, repeated or symmetrical is not one."""

import cv2
import numpy as np
import pytest

from copymove.exact_blocks import find_exact_blocks
from copymove.geometry import transform_points
from copymove.regions import Region, warp_region
from tests.scenes import camera, f1, jpeg


@pytest.mark.parametrize("variant", range(8))
def test_every_rotation_and_mirroring_is_found(variant):
    """A rectangle that was copied in each of the eight orientations is found to the pixel, with its map."""
    rng = np.random.default_rng(variant)
    image = rng.integers(0, 256, (120, 140, 3), dtype=np.uint8)
    patch = image[10:40, 20:60]
    if variant & 4:
        patch = patch.transpose(1, 0, 2)
    patch = patch[:: -1 if variant & 2 else 1, :: -1 if variant & 1 else 1]
    h, w = patch.shape[:2]
    image[70 : 70 + h, 80 : 80 + w] = patch
    (copy,) = find_exact_blocks(image)
    assert (copy.x, copy.y, copy.mask.shape) == (20, 10, (30, 40))
    assert copy.mask.all()
    ys, xs = np.mgrid[10:40, 20:60]
    there = transform_points(copy.affine, np.stack([xs.ravel(), ys.ravel()], 1).astype(float)).astype(int)
    assert (image[there[:, 1], there[:, 0]] == image[10:40, 20:60].reshape(-1, 3)).all()


def test_flat_and_repeated_things_are_ignored():
    """Tiles that repeat ten times are a pattern, and a black square on white has no texture."""
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert find_exact_blocks(np.tile(tile, (10, 10, 1))) == []
    flat = np.full((100, 100, 3), 255, np.uint8)
    flat[40:60, 40:60] = 0
    assert find_exact_blocks(flat) == []


@pytest.mark.parametrize("feather", [0, 2, 4])
def test_blended_edge_belongs_to_the_copy(feather):
    """A copy that was blended into its surroundings over a few pixels is found up to the end of the blending."""
    image = camera()
    truth = np.zeros(image.shape[:2], bool)
    truth[100:160, 200:260] = True
    depth = cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5)[100:160, 200:260]
    alpha = np.clip(depth / (feather + 1), 0, 1)[..., None]
    there = np.s_[380:440, 31:91]
    image[there] = np.rint(alpha * image[100:160, 200:260] + (1 - alpha) * image[there])
    truth[there] = True
    (found,) = find_exact_blocks(image)
    source = Region(found.x, found.y, found.mask)
    mask = source.full(truth.shape) | warp_region(source, found.affine, truth.shape).full(truth.shape)
    assert f1(mask, truth) > 0.98
    assert found.mask[0].any() and found.mask[-1].any() and found.mask[:, 0].any() and found.mask[:, -1].any()


def test_drawings_in_a_jpeg_are_ignored():
    """Lines and letters that were saved as JPEG hold many equal blocks, and no copies."""
    image = np.zeros((480, 640, 3), np.uint8)
    for x in (0, 640):
        cv2.line(image, (x, 0), (640 - x, 240), (0, 255, 0), 2, cv2.LINE_AA)
    cv2.putText(image, "Gaussian blur", (110, 255), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 1, cv2.LINE_AA)
    assert find_exact_blocks(jpeg(image, 85)) == []


@pytest.mark.parametrize("gap", [5, 12, 40])
@pytest.mark.parametrize("flip", [np.s_[:, ::-1], np.s_[::-1, ::-1]], ids=["mirrored", "half turn"])
def test_mirrored_neighbours_differ_from_symmetrical_things(flip, gap):
    """A mirrored copy beside its source is found if there is a gap between them; without one both are one thing."""
    image = np.random.default_rng(11).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    source = image[60:100, 40:80].copy()
    left = 80 + gap
    image[60:100, left : left + 40] = source[flip]
    (found,) = find_exact_blocks(image)
    assert (found.x, found.y, found.mask.shape, found.mask.sum()) == (40, 60, (40, 40), 1600)
    image[:, 80:] = np.random.default_rng(12).integers(0, 256, (160, 120, 3), dtype=np.uint8)
    image[60:100, 80:120] = source[flip]  # no gap: one thing, and its own mirror image
    assert find_exact_blocks(image) == []


def test_copies_are_found_in_the_dark():
    """Where there are four grey levels only, so that half of the pixels equal the next, a copy is still found."""
    rng = np.random.default_rng(5)
    levels = np.repeat(rng.integers(4, 8, (200, 150)), 2, axis=1).astype(np.uint8)  # half of the pixels equal the next
    image = np.repeat(levels[..., None], 3, axis=2)
    assert find_exact_blocks(image) == []
    image[100:150, 200:260] = image[20:70, 31:91]
    (found,) = find_exact_blocks(image)
    assert found.affine.tolist() == [[1, 0, 169], [0, 1, 80]]
    assert found.mask.sum() == pytest.approx(50 * 60, rel=0.05)
