"""Forgeries: copies are where the record says, masks hold what is visible, and settings keep their limits."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage

from config import SynthesisSettings
from forgery.composition import Composition
from forgery.forge import forge
from forgery.paste import MARGIN, blend
from runtime.errors import InputError
from tests.scenes import textured

PLAIN = SynthesisSettings(
    max_contents=1,
    max_copies=1,
    content_kinds=("blob", "ellipse", "rectangle", "polygon"),
    transform_probability=0.0,
    copy_blendings=("hard",),
    panel_probability=0.0,
    degrade_probability=0.0,
)


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
def test_whole_pixel_copies_are_identical(transforms):
    """Copies that are moved, mirrored or rotated by right angles equal their source to the bit."""
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
def test_matrix_maps_source_to_copy(transforms):
    """The recorded matrix maps the source to the copy, in pixels and in the mask."""
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


def test_brightness_and_contrast_as_recorded():
    """The change of grey values is that of the record."""
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
def test_blending_stays_within_the_mask(blending):
    """Blending changes nothing outside of the mask, and the copy stays similar to its source."""
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


def test_poisson_blending_is_not_shifted():
    """Content that continues its surroundings comes out unchanged; one pixel off would change it by about 10."""
    image = textured(smooth=3.0)
    for shape in ((40, 50), (41, 53)):
        mask = np.zeros(shape, bool)
        mask[1:-1, 1:-1] = True
        mask[0, 20] = mask[20, 0] = mask[-1, 20] = mask[20, -1] = True
        pad = MARGIN
        content = image[60 - pad : 60 + shape[0] + pad, 70 - pad : 70 + shape[1] + pad]
        blended = blend(image, content, mask, 70, 60, "poisson")
        difference = np.abs(blended[mask].astype(int) - image[60 : 60 + shape[0], 70 : 70 + shape[1]][mask])
        assert difference.mean() < 1


def test_masks_hold_what_is_visible():
    """Masks never overlap, every region shows, and the last copy shows as a whole."""
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


def test_later_regions_cover_earlier_ones():
    """Pixels of a later region are no longer visible ones of an earlier region."""
    image = Composition(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.int16), [(0, 0, 20, 20)], 4, 99)
    image.add_region(2, 3, np.ones((4, 5), bool))
    image.add_region(5, 3, np.ones((4, 5), bool))  # covers two of five columns
    assert image.sizes == [0, 20, 20] and image.visible == [0, 12, 20]
    assert (image.owner == 1).sum() == 12 and (image.owner == 2).sum() == 20
    assert image.covered(0, 0, np.ones((20, 20), bool)).tolist() == [0, 12, 20]


def test_every_source_and_copy_stays_visible(monkeypatch):
    """At least 60 % of every region show in the end, although some are covered, and the counts are right."""
    made = []

    class Kept(Composition):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("forgery.forge.Composition", Kept)
    image = textured(120, 120)
    for seed in range(40):
        forged(image, SynthesisSettings(min_copy_pixels=30), seed, panels=[textured(120, 120, 1)])
    for composition in made:
        owner = np.bincount(composition.owner.ravel(), minlength=len(composition.sizes))
        assert composition.visible[1:] == owner[1:].tolist()
        assert (np.array(composition.visible) >= 0.6 * np.array(composition.sizes)).all()
    assert len(made) == 40 and any(composition.visible != composition.sizes for composition in made)


def test_feathered_copies_fade():
    """The weight of a feathered copy grows with the depth within its outline."""
    image = np.full((60, 60, 3), 50, np.uint8)
    content = np.full((30 + 2 * MARGIN, 40 + 2 * MARGIN, 3), 250, np.uint8)
    blended = blend(image, content, np.ones((30, 40), bool), 10, 15, "feathered")[15, :, 0]
    # Weight: depth in pixels (1 for the outermost) over 1 + 30 / 12 = 3.5.
    assert blended[:5].tolist() == [round(50 + 200 * min(1, depth / 3.5)) for depth in (1, 2, 3, 4, 5)]
    assert blended.tolist() == blended[::-1].tolist()


@pytest.mark.parametrize("degradations", [(), ("resize",)])
def test_sizes_keep_their_limits(degradations):
    """Sources and copies keep the limits of their side in the finished image, also after a resize."""
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


def test_resize_moves_the_record_along():
    """Boxes, masks and matrices are those of the resized image."""
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


def test_cells_are_cut_along_outlines():
    """A copied cell is the whole cell with its soft edge, pasted on background."""
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


def test_figures_use_no_pixel_twice():
    """No piece of an image is shown in two panels."""
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


def test_panels_are_copied_in_figures():
    """A copied panel, or part of one, equals its source where both show."""
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


def test_authentic_twin_is_treated_alike():
    """Without copies the same draws are made: away from the copies, both images are equal."""
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


def test_degradation_of_grey_images():
    """Noise and blur leave grey images grey, and are as strong as recorded."""
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
def test_small_and_long_images(size):
    """Most images from 32 px on can be forged."""
    image = textured(*size, smooth=1.5)
    made = [forged(image, SynthesisSettings(), seed, panels=[textured(50, 50, 9)]) for seed in range(12)]
    assert all(forgery.masks.shape[1:] == forgery.image.shape[:2] for forgery in made)
    assert sum(len(forgery.masks) > 0 for forgery in made) >= 10


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_come_back_authentic(level):
    """Nothing can be copied so that it shows in an image of one grey level."""
    for seed in range(5):
        forgery = forged(np.full((90, 120, 3), level, np.uint8), SynthesisSettings(), seed)
        assert len(forgery.masks) == 0 and forgery.record["forged"] is False


def test_copies_show():
    """A copy differs from the even ground that it covers."""
    image, _ = discs()
    for seed in range(15):
        forgery = forged(image, PLAIN, seed)
        mask, box, copy = only(forgery)
        pasted = inside(mask, copy["box"])
        assert np.abs(forgery.image[pasted].astype(int) - image[pasted]).mean() >= 2
        assert image[inside(mask, box)].std() > 3


def test_same_generator_same_forgery():
    """Equal states of the generator give equal images, masks and records."""
    image, panels = textured(), [textured(seed=1), textured(seed=2)]
    for seed in range(6):
        first, second = (forged(image, SynthesisSettings(), seed, panels=panels) for _ in range(2))
        assert np.array_equal(first.image, second.image) and np.array_equal(first.masks, second.masks)
        assert first.record == second.record
    assert not np.array_equal(forged(image, PLAIN, 0).image, forged(image, PLAIN, 1).image)


def test_input_unchanged_record_is_json():
    """The images that are given stay as they are, and the record consists of JSON types."""
    image, panel = textured(), textured(seed=1)
    kept = image.copy(), panel.copy()
    for seed in range(8):
        forgery = forged(image, SynthesisSettings(), seed, panels=[panel])
        assert json.loads(json.dumps(forgery.record)) == forgery.record
    assert np.array_equal(image, kept[0]) and np.array_equal(panel, kept[1])


@pytest.mark.slow
def test_amounts_follow_the_data_set():
    """Number and area of the contents are distributed as in Recod.ai/LUC."""
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
def test_unusable_images_are_refused(image, words):
    """Too small, not (H, W, 3), not uint8."""
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
def test_bad_settings_are_refused(wrong):
    """The error names the setting."""
    with pytest.raises(InputError, match=next(iter(wrong)).split("_")[-1].rstrip("s")[:5]):
        forged(textured(), replace(SynthesisSettings(), **wrong), 0)
