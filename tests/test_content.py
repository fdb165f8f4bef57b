"""What an image is made of, and that copies are sought in recorded content only."""

import cv2
import numpy as np
import pytest

from config import PIXEL_KINDS, MatchingSettings
from copymove import content
from copymove.detect import detect_copies
from forgery.blots import make_gel
from forgery.drawings import chart

PHOTO, DRAWING = PIXEL_KINDS.index("photo"), PIXEL_KINDS.index("drawing")


def grain(seed, height, width):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.2)


def kinds_of(monkeypatch, kinds, even=1.0):
    """Let the network be sure of these kinds of the pixels; what is drawn is even to this share."""
    cells = kinds[content.CELL // 2 :: content.CELL, content.CELL // 2 :: content.CELL]
    probabilities = np.stack([cells == k for k in range(len(PIXEL_KINDS))]).astype(np.float32)
    found = content.Content(probabilities, np.where(cells == PHOTO, 0.1, even).astype(np.float32))
    monkeypatch.setattr(content, "examine_content", lambda image: found)


def test_specks_count_on_neither_side(monkeypatch):
    """A recorded panel has a least size, and so has a drawing over it; a drawing of some size stays out."""
    kinds = np.full((200, 300), DRAWING, np.uint8)
    kinds[20:180, 20:160] = PHOTO
    kinds[50:54, 50:54] = DRAWING  # a speck in the panel
    kinds[90:130, 60:100] = DRAWING  # a label over it
    kinds[50:60, 250:260] = PHOTO  # a speck in the drawing
    kinds_of(monkeypatch, kinds)
    mask = content.recorded_mask(np.zeros((200, 300, 3), np.uint8))
    assert mask[52, 52] and not mask[110, 80] and not mask[55, 255]
    assert abs(int(mask.sum()) - (160 * 140 - 40 * 40)) < 400


def test_recorded_images_have_no_mask(monkeypatch):
    """Where next to nothing is drawn, all of the image is searched as it was without the network."""
    kinds = np.full((100, 100), PHOTO, np.uint8)
    kinds[:10, :12] = DRAWING
    kinds_of(monkeypatch, kinds)
    assert content.recorded_mask(np.zeros((100, 100, 3), np.uint8)) is None


def test_uneven_drawings_are_searched(monkeypatch):
    """What the network takes for a drawing is left out only where it is even as well, as drawings are."""
    kinds_of(monkeypatch, np.full((100, 100), DRAWING, np.uint8), even=0.2)
    assert content.recorded_mask(np.zeros((100, 100, 3), np.uint8)) is None


@pytest.fixture
def figure():
    """Grain in which a square stands twice on the left, twice the same even drawing on the right; and what is what."""
    image = np.full((240, 520, 3), 255, np.uint8)
    image[:, :240] = grain(0, 240, 240)
    image[130:190, 140:200] = image[30:90, 30:90]
    drawing = grain(1, 80, 120)
    image[20:100, 300:420] = image[140:220, 350:470] = drawing
    kinds = np.full(image.shape[:2], DRAWING, np.uint8)
    kinds[:, :240] = PHOTO
    return image, kinds


def test_drawings_are_not_searched(figure, monkeypatch):
    """The copy in the photograph is found, the repeated drawing only where all content is asked for."""
    image, kinds = figure
    kinds_of(monkeypatch, kinds)
    found = detect_copies(image, MatchingSettings())
    assert len(found.instances) == 1 and not found.instances[0].mask[:, 240:].any()
    assert found.searched == pytest.approx(240 / 520, abs=0.01)
    everything = detect_copies(image, MatchingSettings(content="all"))
    assert any(instance.mask[:, 240:].any() for instance in everything.instances) and everything.searched == 1


def test_pure_drawings_are_told(monkeypatch):
    """Nothing is sought in an image that is drawn all over, and the result says so."""
    image = chart(300, 240, np.random.default_rng(0))
    kinds_of(monkeypatch, np.full(image.shape[:2], DRAWING, np.uint8))
    found = detect_copies(image, MatchingSettings())
    assert found.instances == () and found.searched == 0


def test_shipped_network_tells_kinds():
    """It knows grain and a gel beside charts and text on white ground, at the image's own size."""
    rng = np.random.default_rng(3)
    image = np.full((500, 720, 3), 255, np.uint8)
    image[20:220, 20:320] = grain(0, 200, 300)
    drawn = chart(330, 220, rng)[:220, :330]
    image[20 : 20 + drawn.shape[0], 370 : 370 + drawn.shape[1]] = drawn
    image[260:480, 20:340] = make_gel((220, 320), 8, rng).image
    recorded = content.recorded_mask(image)
    assert recorded.shape == image.shape[:2]
    assert recorded[30:210, 30:310].mean() > 0.97 and recorded[270:470, 30:330].mean() > 0.97
    assert recorded[:, 380:].mean() < 0.03


def test_missing_network_is_told(monkeypatch, tmp_path):
    """One sentence says how to make it."""
    monkeypatch.setattr(content, "NETWORK", tmp_path / "none.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx; make it with benchmark\.py train-content"):
        content.examine_content(np.zeros((64, 64, 3), np.uint8))
