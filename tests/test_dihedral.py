"""An image in any of its eight orientations gives the same findings, brought to that orientation."""

import cv2
import numpy as np
import pytest

from config import MatchingSettings
from copymove.detect import detect_copies
from copymove.dihedral import apply_dihedral, canonical_orientation
from copymove.regions import warp_region
from tests.scenes import affine_map, astronaut, f1, paste

SETTINGS = MatchingSettings()


@pytest.fixture(scope="module")
def rotated_copy():
    """An image with a rotated copy, and the instance that is found in it."""
    image, _ = paste(astronaut()[:320], affine_map((170, 110), (60, 240), 40), (170, 110), 42)
    (instance,) = detect_copies(image, SETTINGS).instances
    return image, instance


@pytest.mark.parametrize("orientation", range(8))
def test_oriented_images_give_oriented_findings(rotated_copy, orientation):
    """Masks are equal to the pixel, scores to the bit; maps and regions hold in the coordinates of each image."""
    image, expected = rotated_copy
    scene = apply_dihedral(image, orientation)
    (instance,) = detect_copies(scene, SETTINGS).instances
    assert (apply_dihedral(expected.mask, orientation) == instance.mask).all()
    assert instance.score == expected.score
    copy = instance.copies[0]
    target = warp_region(copy.source, copy.affine, scene.shape[:2])
    assert f1(target.full(scene.shape[:2]), copy.target.full(scene.shape[:2])) > 0.97
    h, w = copy.source.mask.shape
    source = scene[copy.source.y : copy.source.y + h, copy.source.x : copy.source.x + w]
    moved = cv2.warpAffine(scene, copy.affine, scene.shape[1::-1], flags=cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC)
    there = moved[copy.source.y : copy.source.y + h, copy.source.x : copy.source.x + w]
    inside = cv2.erode(copy.source.mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    assert np.abs(source[inside].astype(float) - there[inside]).mean() < 8


def test_a_symmetrical_middle_decides_nothing():
    """Where the middle of an image is the same in all orientations, the whole image decides which one is searched."""
    image = np.zeros((700, 900, 3), np.uint8)
    image[5, 9] = 200
    for orientation in range(8):
        turned = apply_dihedral(image, orientation)
        assert (
            apply_dihedral(turned, canonical_orientation(turned)) == apply_dihedral(image, canonical_orientation(image))
        ).all()
