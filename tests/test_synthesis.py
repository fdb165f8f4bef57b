import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from benchmarks.robustness import Script, family, lives, wait_until, workers_of
from config import SynthesisSettings, SynthesizeSettings
from forgery.contents import Composition
from forgery.forge import _finish, forge
from forgery.paste import PAD, _blend
from images.folders import find_images
from runtime.errors import InputError
from synthesis import main

ROOT = Path(__file__).resolve().parent.parent
PLAIN = SynthesisSettings(
    max_contents=1,
    max_copies=1,
    content_kinds=("blob", "ellipse", "rectangle", "polygon"),
    transform_probability=0.0,
    copy_blendings=("hard",),
    panel_probability=0.0,
    degrade_probability=0.0,
)


def textured(height=200, width=260, seed=0, smooth=2.0):
    """(H, W, 3) uint8 with structure everywhere and no two places alike."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    noise = ndimage.gaussian_filter(noise, (smooth, smooth, 0))
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def discs(count=30, seed=0, size=320):
    """Bright soft discs of 20 to 34 px on a dark ground, apart from each other, and their label map."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size), 20.0)
    labels = np.zeros((size, size), int)
    rows, columns = np.mgrid[:size, :size]
    while labels.max() < count:
        y, x, radius = *rng.uniform(20, size - 20, 2), rng.uniform(10, 17)
        distance = np.hypot(rows - y, columns - x)
        if not labels[distance < radius + 8].any():
            labels[distance < radius] = labels.max() + 1
            inside = 110 + 60 * np.cos(rows / rng.uniform(1.5, 3)) * np.cos(columns / rng.uniform(1.5, 3))
            image = np.where(distance < radius, inside, image)
    image = cv2.GaussianBlur(image, (0, 0), 1.0) + rng.normal(0, 1.5, image.shape)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2), labels


def forged(image, settings, seed, **more):
    return forge(image, settings, np.random.default_rng(seed), **more)


def only(forgery):
    """The one content's mask, source box and copy of a forgery with one content and one copy."""
    (content,) = forgery.record["contents"]
    (copy,) = content["copies"]
    return forgery.masks[0], content["source"]["box"], copy


def inside(mask, box):
    """The mask within a box, False elsewhere."""
    x, y, width, height = box
    part = np.zeros_like(mask)
    part[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
    return part


def overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def mapped(affine, points):
    """(N, 2) points x, y through a 2 x 3 matrix."""
    affine = np.array(affine)
    return points @ affine[:, :2].T + affine[:, 2]


@pytest.mark.parametrize("transforms", [(), ("right-angle",), ("mirror",), ("right-angle", "mirror")])
def test_copies_without_interpolation_are_identical_to_the_bit(transforms):
    image = textured()
    settings = replace(PLAIN, copy_transforms=transforms, transform_probability=1.0)
    seen = set()
    for seed in range(50):
        forgery = forged(image, settings, seed)
        mask, box, copy = only(forgery)
        seen.add((copy["rotation"], copy["mirrored"]))
        if overlap(box, copy["box"]):
            continue
        source = inside(mask, box)
        points = np.argwhere(source)[:, ::-1]
        target = mapped(copy["affine"], points)
        assert np.abs(target - np.round(target)).max() < 1e-9
        x, y = np.round(target).astype(int).T
        assert np.array_equal(forgery.image[y, x], image[source])

        pasted = np.zeros_like(mask)
        pasted[y, x] = True
        assert np.array_equal(mask, source | pasted)
        changed = (forgery.image != image).any(axis=2)
        assert not (changed & ~pasted).any()
        assert changed[pasted].mean() > 0.9
    # Right angles alone: each of three; mirror alone: one; both allowed: at least one of them each time.
    expected = {(): {(0, False)}, ("mirror",): {(0, True)}, ("right-angle",): {(90, False), (180, False), (270, False)}}
    if transforms in expected:
        assert seen == expected[transforms]
    else:
        assert (0, False) not in seen and len(seen) >= 5


@pytest.mark.parametrize("transforms", [("rotation",), ("scale",), ("rotation", "scale", "mirror")])
def test_the_recorded_matrix_maps_the_source_onto_the_copy(transforms):
    image = textured(smooth=4.0)
    settings = replace(PLAIN, copy_transforms=transforms, transform_probability=1.0, min_copy_pixels=24)
    compared = 0
    for seed in range(20):
        forgery = forged(image, settings, seed)
        mask, box, copy = only(forgery)
        if overlap(box, copy["box"]):
            continue
        linear = np.array(copy["affine"])[:, :2]
        assert np.sign(np.linalg.det(linear)) == (-1 if copy["mirrored"] else 1)
        assert np.sqrt(abs(np.linalg.det(linear))) == pytest.approx(copy["scale"])
        # (0, 1), the downward axis, is never mirrored: it shows the clockwise turn alone.
        turn = np.degrees(np.arctan2(-linear[0, 1], linear[1, 1])) % 360
        assert turn == pytest.approx(copy["rotation"])

        points = np.argwhere(ndimage.binary_erosion(inside(mask, copy["box"]), iterations=2))[:, ::-1]
        back = (points - np.array(copy["affine"])[:, 2]) @ np.linalg.inv(linear).T
        for channel in range(3):
            expected = ndimage.map_coordinates(image[..., channel].astype(float), back[:, ::-1].T, order=1)
            difference = np.abs(forgery.image[points[:, 1], points[:, 0], channel] - expected)
            assert difference.mean() < 2.5  # of a standard deviation of 45
        source = inside(mask, box)
        at = np.round(back).astype(int)
        assert source[at[:, 1], at[:, 0]].mean() > 0.99
        compared += 1
    assert compared >= 10


def test_brightness_and_contrast_are_those_of_the_record():
    image = textured(smooth=3.0) // 2 + 60  # far from 0 and 255
    settings = replace(PLAIN, copy_transforms=("recolour",), transform_probability=1.0)
    compared = 0
    for seed in range(10):
        forgery = forged(image, settings, seed)
        mask, box, copy = only(forgery)
        if overlap(box, copy["box"]):
            continue
        points = np.argwhere(inside(mask, box))[:, ::-1]
        before = image[points[:, 1], points[:, 0]].astype(float)
        x, y = np.round(mapped(copy["affine"], points)).astype(int).T
        expected = (before - before.mean()) * copy["contrast"] + before.mean() + copy["brightness"]
        assert np.abs(forgery.image[y, x] - expected).max() <= 0.51
        assert (copy["brightness"], copy["contrast"]) != (0.0, 1.0)
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("blending", ["feathered", "poisson"])
def test_blending_changes_nothing_outside_the_mask_and_keeps_the_content(blending):
    image = textured(smooth=3.0)
    settings = replace(PLAIN, copy_blendings=(blending,), min_copy_pixels=30)
    for seed in range(12):
        forgery = forged(image, settings, seed)
        mask, box, copy = only(forgery)
        assert copy["blending"] == blending
        assert not ((forgery.image != image).any(axis=2) & ~mask).any()
        if overlap(box, copy["box"]):
            continue
        points = np.argwhere(ndimage.binary_erosion(inside(mask, box), iterations=4))[:, ::-1]
        x, y = np.round(mapped(copy["affine"], points)).astype(int).T
        a, b = forgery.image[y, x].mean(axis=1), image[points[:, 1], points[:, 0]].mean(axis=1)
        assert np.corrcoef(a, b)[0, 1] > 0.6


def test_poisson_blending_puts_the_content_exactly_in_its_place():
    # Content that continues its surroundings must come out unchanged; one pixel off would change it by about 10.
    image = textured(smooth=3.0)
    for shape in ((40, 50), (41, 53)):
        mask = np.zeros(shape, bool)
        mask[1:-1, 1:-1] = True
        mask[0, 20] = mask[20, 0] = mask[-1, 20] = mask[20, -1] = True
        pad = PAD
        content = image[60 - pad : 60 + shape[0] + pad, 70 - pad : 70 + shape[1] + pad]
        blended = _blend(image, content, mask, 70, 60, "poisson")
        difference = np.abs(blended[mask].astype(int) - image[60 : 60 + shape[0], 70 : 70 + shape[1]][mask])
        assert difference.mean() < 1


def test_masks_hold_what_is_visible_and_never_overlap():
    image = textured(160, 160)
    settings = SynthesisSettings(panel_probability=0.0, degrade_probability=0.0, min_copy_pixels=20)
    covered = 0
    for seed in range(60):
        forgery = forged(image, settings, seed)
        assert forgery.masks.sum(axis=0).max() <= 1
        assert forgery.masks.any(axis=(1, 2)).all()
        everywhere = np.zeros((160, 160), int)
        for mask, content in zip(forgery.masks, forgery.record["contents"], strict=True):
            for region in (content["source"], *content["copies"]):
                x, y, width, height = region["box"]
                assert mask[y : y + height, x : x + width].any()
                everywhere[y : y + height, x : x + width] += 1
        covered += (everywhere > 1).any()
        # The last copy is on top of everything: it is wholly visible.
        if forgery.record["contents"]:
            last = forgery.record["contents"][-1]["copies"][-1]
            part = inside(forgery.masks[-1], last["box"])
            assert part.any(axis=0).sum() == last["box"][2] and part.any(axis=1).sum() == last["box"][3]
    assert covered > 5  # boxes did meet


def test_a_later_paste_takes_its_pixels_from_earlier_ones():
    image = Composition(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.int16), [(0, 0, 20, 20)], 4, 99)
    image.claim(2, 3, np.ones((4, 5), bool))
    image.claim(5, 3, np.ones((4, 5), bool))  # covers two of five columns
    assert image.sizes == [0, 20, 20] and image.visible == [0, 12, 20]
    assert (image.owner == 1).sum() == 12 and (image.owner == 2).sum() == 20
    assert image.covered(0, 0, np.ones((20, 20), bool)).tolist() == [0, 12, 20]


def test_every_source_and_copy_stays_visible(monkeypatch):
    images = []
    finish = _finish
    monkeypatch.setattr("forgery.forge._finish", lambda scene, *rest: images.append(scene) or finish(scene, *rest))
    image = textured(120, 120)
    for seed in range(60):
        forged(image, SynthesisSettings(min_copy_pixels=30), seed, panels=[textured(120, 120, 1)])
    for scene in images:
        assert scene.visible[1:] == np.bincount(scene.owner.ravel(), minlength=len(scene.sizes))[1:].tolist()
        assert (np.array(scene.visible) >= 0.6 * np.array(scene.sizes)).all()
    assert any(scene.visible != scene.sizes for scene in images)


def test_feathered_copies_fade_towards_their_outline():
    image = np.full((60, 60, 3), 50, np.uint8)
    content = np.full((30 + 2 * PAD, 40 + 2 * PAD, 3), 250, np.uint8)
    blended = _blend(image, content, np.ones((30, 40), bool), 10, 15, "feathered")[15, :, 0]
    # Weight: depth in pixels (1 for the outermost) over 1 + 30 / 12 = 3.5.
    assert blended[:5].tolist() == [round(50 + 200 * min(1, depth / 3.5)) for depth in (1, 2, 3, 4, 5)]
    assert blended.tolist() == blended[::-1].tolist()


@pytest.mark.parametrize("degradations", [(), ("resize",)])
def test_sizes_keep_their_limits_in_the_finished_image(degradations):
    image = textured(300, 300, smooth=1.5)
    settings = SynthesisSettings(
        min_copy_pixels=20,
        max_copy_pixels=60,
        degrade_probability=1.0,
        degradations=degradations,
        panel_probability=0.3,
    )
    sizes = []
    for seed in range(60):
        forgery = forged(image, settings, seed)
        for content in forgery.record["contents"]:
            sizes += [region["size"] for region in (content["source"], *content["copies"])]
    assert len(sizes) > 100
    assert min(map(min, sizes)) >= 20 and max(map(max, sizes)) <= 60
    assert min(map(min, sizes)) <= 24  # small ones do occur


def test_resize_moves_boxes_masks_and_matrices_along():
    image = textured(300, 400, smooth=5.0)
    settings = replace(PLAIN, degrade_probability=1.0, degradations=("resize",), min_copy_pixels=30)
    factors = []
    for seed in range(12):
        forgery = forged(image, settings, seed)
        mask, box, copy = only(forgery)
        factor = forgery.record["resize"]
        factors.append(factor)
        assert forgery.image.shape[:2] == mask.shape == (round(300 * factor), round(400 * factor))
        assert forgery.record["size"] == [round(400 * factor), round(300 * factor)]
        if overlap(box, copy["box"]):
            continue
        points = np.argwhere(ndimage.binary_erosion(inside(mask, box), iterations=4))[:, ::-1]
        target = mapped(copy["affine"], points)
        here = forgery.image[points[:, 1], points[:, 0], 0].astype(float)
        there = ndimage.map_coordinates(forgery.image[..., 0].astype(float), target[:, ::-1].T, order=1)
        assert np.abs(here - there).mean() < 1.5
    assert min(factors) < 0.8 and max(factors) > 1.2


def test_cells_are_cut_along_their_outline():
    image, labels = discs()
    settings = replace(PLAIN, content_kinds=("object",), min_copy_pixels=20, max_copy_pixels=60)
    for seed in range(10):
        mask, box, copy = only(forged(image, settings, seed))
        source = inside(mask, box)
        cell = labels == np.bincount(labels[source & (labels > 0)]).argmax()
        assert (source & cell).sum() > 0.97 * cell.sum()  # the whole cell,
        assert source.sum() < 1.9 * cell.sum()  # its soft edge, and no more
        x, y, width, height = copy["box"]
        assert (labels[y : y + height, x : x + width] == 0).mean() > 0.5  # on background rather than on other cells


def test_composed_figures_use_no_pixel_twice():
    images = [textured(240, 300, seed) for seed in range(3)]
    settings = SynthesisSettings(panel_probability=1.0, degrade_probability=0.0)
    counts = set()
    for seed in range(20):
        forgery = forged(images[0], settings, seed, forged=False, panels=images[1:])
        assert forgery.masks.shape == (0, *forgery.image.shape[:2]) and forgery.record["contents"] == []
        panels = forgery.record["panels"]
        counts.add(len(panels))
        used = [np.zeros(image.shape[:2], int) for image in images]
        for panel in panels:
            x, y, width, height = panel["origin"]
            used[panel["image"]][y : y + height, x : x + width] += 1
            assert width > 0 and height > 0 and y + height <= 240 and x + width <= 300
        assert max(map(np.max, used)) == 1
        shown = np.zeros(forgery.image.shape[:2], int)
        for panel in panels:
            x, y, width, height = panel["box"]
            shown[y : y + height, x : x + width] += 1
        assert shown.max() == 1
    assert len(counts) >= 4


def test_panels_return_in_composed_figures():
    images = [textured(240, 300, seed) for seed in range(3)]
    settings = replace(PLAIN, content_kinds=("panel",), panel_probability=1.0)
    whole = 0
    for seed in range(25):
        forgery = forged(images[0], settings, seed, panels=images[1:])
        mask, box, copy = only(forgery)
        boxes = [panel["box"] for panel in forgery.record["panels"]]
        whole += box in boxes and copy["box"] in boxes
        assert box != copy["box"] and sum(overlap(box, panel) for panel in boxes) == 1
        points = np.argwhere(inside(mask, box))[:, ::-1]
        x, y = np.round(mapped(copy["affine"], points)).astype(int).T
        seen = mask[y, x]  # letters and bars may hide some pixels, and only at the copy or only at the source
        if not overlap(box, copy["box"]):
            assert seen.mean() > 0.5
            assert np.array_equal(forgery.image[y, x][seen], forgery.image[points[:, 1], points[:, 0]][seen])
    assert whole >= 3


def test_authentic_twin_goes_through_the_same_pipeline():
    image = textured()
    untouched = forged(image, PLAIN, 3, forged=False)
    assert np.array_equal(untouched.image, image) and untouched.masks.shape == (0, 200, 260)
    assert untouched.record["forged"] is False
    settings = SynthesisSettings(degrade_probability=1.0, degradations=("jpeg",), panel_probability=0.0)
    qualities = [forged(image, settings, seed, forged=False).record["jpeg_quality"] for seed in range(40)]
    assert min(qualities) >= 60 and max(qualities) <= 95 and len(set(qualities)) > 10
    authentic, with_copy = (forged(image, settings, 5, forged=f) for f in (False, True))
    # JPEG spreads a change over a block of 16 x 16, and colour a pixel farther.
    away = ~ndimage.maximum_filter(with_copy.masks.any(axis=0), 37)
    assert away.mean() > 0.3
    assert authentic.record["jpeg_quality"] == with_copy.record["jpeg_quality"]
    assert np.array_equal(authentic.image[away], with_copy.image[away])


def test_degradation_keeps_grey_images_grey_and_changes_them():
    image, _ = discs()
    for kind in ("noise", "blur"):
        settings = replace(PLAIN, degrade_probability=1.0, degradations=(kind,))
        result = forged(image, settings, 0, forged=False)
        assert result.record[f"{kind}_sigma"] > 0
        assert (result.image == result.image[..., :1]).all()
        assert np.abs(result.image.astype(int) - image).mean() > 0.1
    noisy = forged(np.full((200, 200, 3), 128, np.uint8), replace(settings, degradations=("noise",)), 1, forged=False)
    assert np.std(noisy.image.astype(float)) == pytest.approx(noisy.record["noise_sigma"], rel=0.05)


@pytest.mark.parametrize("size", [(32, 32), (33, 600), (85, 517), (40, 47)])
def test_small_and_long_images_are_forged(size):
    image = textured(*size, smooth=1.5)
    made = [forged(image, SynthesisSettings(), seed, panels=[textured(50, 50, 9)]) for seed in range(12)]
    assert all(forgery.masks.shape[1:] == forgery.image.shape[:2] for forgery in made)
    assert sum(len(forgery.masks) > 0 for forgery in made) >= 10


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_image_without_structure_comes_back_authentic(level):
    for seed in range(5):
        forgery = forged(np.full((90, 120, 3), level, np.uint8), SynthesisSettings(), seed)
        assert len(forgery.masks) == 0 and forgery.record["forged"] is False


def test_copies_show():
    # Cells on an even ground: what is pasted differs from what was there.
    image, _ = discs()
    for seed in range(15):
        forgery = forged(image, PLAIN, seed)
        mask, box, copy = only(forgery)
        pasted = inside(mask, copy["box"])
        assert np.abs(forgery.image[pasted].astype(int) - image[pasted]).mean() >= 2
        assert image[inside(mask, box)].std() > 3


def test_same_generator_same_forgery():
    image, panels = textured(), [textured(seed=1), textured(seed=2)]
    for seed in range(6):
        first, second = (forged(image, SynthesisSettings(), seed, panels=panels) for _ in range(2))
        assert np.array_equal(first.image, second.image) and np.array_equal(first.masks, second.masks)
        assert first.record == second.record
    assert not np.array_equal(forged(image, PLAIN, 0).image, forged(image, PLAIN, 1).image)


def test_the_input_is_not_changed_and_the_record_is_json():
    image, panel = textured(), textured(seed=1)
    kept = image.copy(), panel.copy()
    for seed in range(8):
        forgery = forged(image, SynthesisSettings(), seed, panels=[panel])
        assert json.loads(json.dumps(forgery.record)) == forgery.record
    assert np.array_equal(image, kept[0]) and np.array_equal(panel, kept[1])


def test_number_and_area_of_contents_follow_the_data_set():
    image = textured(462, 462, smooth=3.0)
    shapes = ("blob", "ellipse", "rectangle", "polygon")  # cells are as large as the image's cells are
    settings = SynthesisSettings(content_kinds=shapes, panel_probability=0.0)
    made = [forged(image, settings, seed) for seed in range(200)]
    contents = np.array([len(forgery.masks) for forgery in made])
    shares = np.array([forgery.masks.any(axis=0).mean() for forgery in made])
    assert 0.55 < (contents == 1).mean() < 0.8 and 0.15 < (contents == 2).mean() < 0.37
    assert contents.min() == 1 and contents.max() == 3
    low, median, high = np.percentile(shares, [25, 50, 75])
    assert 0.005 < low < 0.012 and 0.017 < median < 0.04 and 0.055 < high < 0.12
    assert max(len(c["copies"]) for forgery in made for c in forgery.record["contents"]) == 4


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((31, 200, 3), np.uint8), "200 x 31"),
        (np.zeros((60, 60), np.uint8), r"\(60, 60\)"),
        (np.zeros((60, 60, 3), np.float32), "float32"),
    ],
)
def test_images_that_cannot_be_used_are_refused(image, words):
    with pytest.raises(ValueError, match=words):
        forged(image, SynthesisSettings(), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_kinds": ("cell",)},
        {"content_kinds": ()},
        {"max_copy_pixels": 10},
        {"min_scale": 0.0},
        {"min_jpeg_quality": 96},
        {"max_contents": 0},
        {"max_copies": 9},
        {"panel_probability": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)).split("_")[-1].rstrip("s")[:5]):
        forged(textured(), replace(SynthesisSettings(), **wrong), 0)


# The command line


@pytest.fixture
def folder(tmp_path):
    for series in ("a", "b"):
        (tmp_path / "in" / series).mkdir(parents=True)
        for number in range(3):
            image = textured(90, 110, seed=number + 10 * (series == "b"))
            cv2.imwrite(str(tmp_path / "in" / series / f"{number}.png"), image[..., ::-1])
    return tmp_path / "in"


def run(folder, out, **more):
    main(SynthesizeSettings(**({"authentic": folder, "out": out, "count": 6, "num_workers": 1} | more)))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_files_are_the_same_for_any_number_of_workers(folder, tmp_path):
    one, two = run(folder, tmp_path / "one"), run(folder, tmp_path / "two", num_workers=2)
    assert one == two
    other = run(folder, tmp_path / "other", seed=1)
    assert other.keys() == one.keys() and other != one


def test_the_folder_is_a_data_set_with_bases(folder, tmp_path):
    files = run(folder, tmp_path / "out", group_size=2, authentic_count=4)
    assert len(files) == 6 * 3 + 4 * 2 + 1
    images = find_images(tmp_path / "out")
    assert sum(scene.forged for scene in images) == 6 and len(images) == 10
    # Groups of two within a folder: 0 and 1 together, 2 alone.
    members = {"a__0": {"a/0.png", "a/1.png"}, "a__2": {"a/2.png"}, "b__0": {"b/0.png", "b/1.png"}, "b__2": {"b/2.png"}}
    seen = set()
    for scene in images:
        record = json.loads(scene.image.with_suffix(".json").read_text())
        assert set(record["images"]) <= members[record["base"]] and record["base"] == scene.base
        assert record["forged"] is scene.forged
        seen |= set(record["images"])
        image = cv2.imread(str(scene.image))
        if scene.forged:
            masks = np.load(scene.mask, allow_pickle=False)
            assert masks.dtype == np.uint8 and masks.shape == (len(record["contents"]), *image.shape[:2])
            assert masks.max() == 1 and masks.any(axis=(1, 2)).all()
    assert len(seen) == 6  # every authentic image is used


def test_mistakes_on_the_command_line(folder, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        run(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="count"):
        run(folder, tmp_path / "out", count=0)
    with pytest.raises(InputError, match="not empty"):
        run(folder, folder)
    assert not (tmp_path / "out").exists()
    cv2.imwrite(str(tmp_path / "empty" / "black.png"), np.zeros((80, 80, 3), np.uint8))
    with pytest.raises(InputError, match=r"black\.png"):
        run(tmp_path / "empty", tmp_path / "out")


def test_a_killed_run_leaves_no_process_and_goes_on_with_the_same_files(folder, tmp_path):
    whole, out = run(folder, tmp_path / "whole", count=150), tmp_path / "out"

    def start(*more):
        return Script(
            "synthesis.py", "--authentic", folder, "--out", out, "--count", 150, "--num-workers", 2, *more
        )  # fmt: skip

    def made():
        return len(list(out.glob("*/*.png")))

    process = start()
    assert wait_until(lambda: made() > 5, process)
    others = family(process.pid)
    process.kill()  # the main process alone
    process.finish()
    end = time.monotonic() + 10
    while any(map(lives, others)):
        assert time.monotonic() < end, "its workers live on"
        time.sleep(0.05)
    assert 5 < (before := made()) < 300
    process = start("--resume")
    assert wait_until(lambda: made() > before + 5, process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    status, said = process.finish()
    assert status == 2 and "Traceback" not in said
    assert "was killed, probably because memory ran out" in said.splitlines()[-1] and "--resume" in said
    sorted(out.glob("forged/*.png"))[0].write_bytes(b"")  # as a power cut may leave one
    (out / "forged/.000000.png.7.tmp").write_bytes(b"half")
    assert start("--resume").finish()[0] == 0
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


def test_a_run_goes_on_with_the_same_settings_and_images_only(folder, tmp_path):
    with pytest.raises(InputError, match="no run in"):
        run(folder, tmp_path / "out", resume=True)
    run(folder, tmp_path / "out")
    for change in ({"seed": 1}, {"count": 7}):
        with pytest.raises(InputError, match="other settings or images"):
            run(folder, tmp_path / "out", resume=True, **change)
    moved = folder.rename(tmp_path / "moved")
    run(moved, tmp_path / "out", resume=True, num_workers=2)
    (moved / "a" / "0.png").unlink()
    with pytest.raises(InputError, match="other settings or images"):
        run(moved, tmp_path / "out", resume=True)


def test_an_unreadable_image_is_named_or_left_out(folder, tmp_path, capsys):
    (folder / "a" / "1.png").write_bytes(b"not an image")
    for num_workers in (1, 2):
        with pytest.raises(InputError, match=r"1\.png.*--skip-unreadable"):
            run(folder, tmp_path / f"stopped{num_workers}", num_workers=num_workers)
    files = run(folder, tmp_path / "out", skip_unreadable=True)
    assert sum(name.startswith("forged/") for name in files) == 12
    assert capsys.readouterr().out.count("1.png") == 1
    assert not any(b"a/1.png" in data for name, data in files.items() if name.endswith(".json"))


def test_import_is_light():
    code = "import sys, synthesis; print(*[m for m in ('torch', 'skimage', 'scipy', 'tqdm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
