"""The whole search: copies with known maps are found with their masks; what only looks like a copy is not."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from config import MatchingSettings
from copymove.detect import detect_copies
from copymove.exact_blocks import find_exact_blocks
from copymove.geometry import invert_affine, transform_points
from tests.scenes import affine_map, astronaut, camera, f1, grainy, jpeg, paste, shaded_copy

SETTINGS = MatchingSettings()


@pytest.mark.parametrize(
    "degrees, scale, mirrored",
    [(0, 1.0, False), (35, 1.0, False), (90, 1.0, False), (0, 1.0, True), (-60, 1.2, False), (130, 0.8, True)],
)
def test_map_and_mask_are_recovered(degrees, scale, mirrored):
    """Of a rotated, scaled or mirrored disc the map is found within 1 px, 2 % and 1.5 degrees."""
    centre, target = (170, 110), (60, 290)
    true = affine_map(centre, target, degrees, scale, mirrored)
    image, mask = paste(astronaut(), true, centre, 42)
    found = detect_copies(image, SETTINGS)
    assert len(found.instances) == 1
    copy = found.instances[0].copies[0]
    if np.linalg.norm(transform_points(copy.affine, np.array([centre], float)) - target) > 10:
        copy = dataclasses.replace(copy, affine=invert_affine(copy.affine))
    assert np.abs(transform_points(copy.affine, np.array([centre], float)) - target).max() < 1.0
    assert copy.mirrored == mirrored
    assert copy.scale == pytest.approx(scale, rel=0.02)
    expected = dataclasses.replace(copy, affine=true).rotation
    assert abs((copy.rotation - expected + 180) % 360 - 180) < 1.5
    assert f1(found.instances[0].mask, mask) > 0.8


@pytest.mark.parametrize("degrees", [0, 25])
def test_copies_survive_jpeg_and_brightness(degrees):
    """A copy that was made brighter, in an image saved as JPEG of quality 85."""
    true = affine_map((170, 110), (60, 290), degrees)
    image, mask = paste(astronaut(), true, (170, 110), 45)
    inside = cv2.circle(np.zeros(mask.shape, np.uint8), (60, 290), 45, 1, -1) > 0
    image[inside] = np.clip(image[inside] * 0.9 + 15, 0, 255)
    found = detect_copies(jpeg(image, 85), SETTINGS)
    assert len(found.instances) == 1
    assert f1(found.instances[0].mask, mask) > 0.75


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_masks_end_where_copies_do(degrees):
    """Also in a JPEG, where windows of correlation would draw them some 3 px too wide: then F1 is at most 0.86."""
    for scene, source, target in ((camera(), (150, 150), (300, 253)), (astronaut(), (150, 150), (300, 253))):
        image, mask = paste(scene, affine_map(source, target, degrees), source, 30)
        (instance,) = detect_copies(jpeg(image, 90), SETTINGS).instances
        assert f1(instance.mask, mask) > 0.88


def test_a_rotated_cell_is_found():
    """One cell of twenty-five is a rotated copy of another; without it nothing is found."""
    rng = np.random.default_rng(5)
    image = rng.normal(30, 4, (300, 300))
    grain = cv2.GaussianBlur(rng.normal(0, 60, (300, 300)), (0, 0), 1.2)
    cells = [(x, y) for x in range(40, 280, 55) for y in range(40, 280, 55)]
    for x, y in cells[:-1]:
        blob = cv2.circle(np.zeros((300, 300)), (x, y), 16, 1.0, -1)
        image += cv2.GaussianBlur(blob, (0, 0), 1.5) * (90 + grain)
    image = np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2)
    assert detect_copies(image, SETTINGS).instances == ()
    forged, mask = paste(image, affine_map(cells[6], cells[-1], 110), cells[6], 19)
    found = detect_copies(forged, SETTINGS)
    assert len(found.instances) == 1
    assert f1(found.instances[0].mask, mask) > 0.7


def test_instances_hold_all_their_copies():
    """A content that stands three times is one instance; another content is a second one."""
    image = astronaut()
    pristine = image.copy()
    for x, y in ((20, 300), (150, 320)):
        image[y : y + 50, x : x + 60] = pristine[60:110, 150:210]
    image[200:240, 300:350] = pristine[10:50, 20:70]
    found = detect_copies(image, SETTINGS)
    assert len(found.instances) == 2
    sizes = sorted(int(instance.mask.sum()) for instance in found.instances)
    assert sizes == [2 * 40 * 50, 3 * 50 * 60]


def test_copies_on_the_jpeg_grid():
    """Of three copies in a JPEG one lies whole blocks away from its source, and is bit-identical; all are found."""
    image = camera()
    block = image[100:164, 200:264].copy()
    truth = np.zeros(image.shape[:2], bool)
    truth[100:164, 200:264] = True
    for y, x in ((20, 40), (380, 30), (391, 331)):  # the first two are whole blocks away
        image[y : y + 64, x : x + 64] = block
        truth[y : y + 64, x : x + 64] = True
    (instance,) = detect_copies(jpeg(image, 80), SETTINGS).instances
    assert f1(instance.mask, truth) > 0.9


def test_copies_side_by_side_are_grouped():
    """Three equal blocks in a row, where the region of a pair overlaps with its copy, are one instance."""
    image = camera()
    block = image[100:180, 180:240].copy()  # the photographer's head
    truth = np.zeros(image.shape[:2], bool)
    truth[100:180, 180:240] = True
    for x in (243, 306):  # region and copy overlap: the pair holds the middle one twice
        image[100:180, x : x + 60] = block
        truth[100:180, x : x + 60] = True
    found = detect_copies(jpeg(image, 95), SETTINGS)
    assert len(found.instances) == 1
    assert f1(found.instances[0].mask, truth) > 0.9


def test_a_shaded_copy_is_found():
    """A copy with another contrast and shading has no identical block; its map of whole pixels is found."""
    image, mask = shaded_copy(grainy())
    assert find_exact_blocks(image) == []
    (instance,) = detect_copies(image, SETTINGS).instances
    assert instance.copies[0].affine.round(6).tolist() in ([[1, 0, 150], [0, 1, 90]], [[1, 0, -150], [0, 1, -90]])
    assert f1(instance.mask, mask) > 0.9


def test_proposed_regions_need_the_same_proof():
    """A region of two unrelated places gives nothing; one of another size is refused."""
    region = np.zeros((384, 384), bool)
    region[60:110, 150:210] = region[250:300, 30:90] = True
    assert detect_copies(astronaut(), SETTINGS, [region]).instances == ()
    with pytest.raises(ValueError, match="region"):
        detect_copies(astronaut(), SETTINGS, [region[1:]])


@pytest.mark.parametrize("name", ["black", "white", "noise", "chequers", "stripes", "tiles", "text"])
def test_nothing_is_found(name):
    """Flat images, noise, patterns and text hold no copies."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:256, :256]
    images = {
        "black": np.zeros((256, 256)),
        "white": np.full((256, 256), 255),
        "noise": rng.integers(0, 256, (256, 256)),
        "chequers": ((x // 16 + y // 16) % 2) * 255,
        "stripes": 128 + 100 * np.sin(x / 3) + rng.normal(0, 3, x.shape),
        "tiles": np.tile(rng.integers(0, 256, (32, 32)), (8, 8)) + rng.normal(0, 3, x.shape),
        "text": np.full((256, 256), 255.0),
    }
    image = np.clip(images[name], 0, 255).astype(np.uint8)
    if name == "text":
        for row in range(20, 250, 24):
            cv2.putText(image, "abba banana 0101", (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 0, 2, cv2.LINE_AA)
    found = detect_copies(np.repeat(image[..., None], 3, 2), SETTINGS)
    assert found.instances == ()
    assert found.complete


def test_photographs_give_nothing():
    """Two authentic photographs."""
    for image in (camera(), astronaut()):
        assert detect_copies(image, SETTINGS).instances == ()


def test_equal_arrows_and_letters_are_ignored():
    """Arrows and letters that were drawn on a micrograph are alike, and no copies."""
    image = grainy()
    for x, y in ((40, 60), (200, 90), (90, 250), (230, 300)):
        cv2.arrowedLine(image, (x, y), (x + 30, y + 22), (255, 255, 255), 2, cv2.LINE_AA, tipLength=0.4)
        cv2.putText(image, "Bk", (x - 20, y + 50), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (0, 0, 0), 2, cv2.LINE_AA)
    assert detect_copies(image, SETTINGS).instances == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 7), (24, 24)])
def test_tiny_images_give_nothing(shape):
    """Images down to a single pixel."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detect_copies(image, SETTINGS).instances == ()


def test_wrong_images_are_refused():
    """An image needs three channels."""
    with pytest.raises(ValueError, match="uint8"):
        detect_copies(np.zeros((50, 50), np.uint8), SETTINGS)


def test_the_time_budget_is_kept():
    """A search that ends early says so."""
    found = detect_copies(camera(), dataclasses.replace(SETTINGS, search_budget=1e-6))
    assert not found.complete


@pytest.mark.slow
def test_compiling_costs_no_time_budget():
    """The first search compiles everything before its time counts: a larger one then compiles nothing more."""
    code = """
import importlib, pkgutil
import numba.core.registry, numpy, skimage.data
import copymove
from config import MatchingSettings
from copymove.detect import detect_copies

modules = [importlib.import_module(f"copymove.{module.name}") for module in pkgutil.iter_modules(copymove.__path__)]

def compiled():
    functions = [(m.__name__, f) for m in modules for f in vars(m).items()]
    return {(m, n): len(f.signatures) for m, (n, f) in functions if isinstance(f, numba.core.registry.CPUDispatcher)}

assert not detect_copies(numpy.zeros((30, 30, 3), numpy.uint8), MatchingSettings()).seconds  # ends at once
before = compiled()
image = skimage.data.astronaut()[:256, :256].copy()
image[150:200, 30:90] = image[20:70, 100:160]
image[180:240, 180:230] = image[20:70, 100:160].swapaxes(0, 1) * 0.9
assert detect_copies(image, MatchingSettings()).instances
assert compiled() == before and any(before.values()), (before, compiled())
"""
    folder = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
