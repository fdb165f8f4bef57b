"""The one inference path: embeddings, masks, and the modes of a detection."""

import numpy as np
import pytest

import detector as detector_module
from config import MatchingSettings
from copymove.copies import SearchResult
from detector import Detector, draw, regions_to_search
from images.folders import find_images
from images.letterbox import Letterbox
from images.read import read_image
from tests.scripts import launch

MODES = ("embedding", "matching", "both")


@pytest.fixture(scope="module")
def images(data):
    """All images of the small data set."""
    return [read_image(image_file.image) for image_file in find_images(data)]


@pytest.fixture(scope="module")
def both(trained):
    """Detector of both paths; the search knows identical blocks only, which is fast."""
    return Detector.load(trained / "best.pt", matching=MatchingSettings(matching_kinds=("exact",)))


@pytest.fixture(scope="module")
def embedding(both):
    """Detector of the embedding alone."""
    return both.alone("embedding")


def test_masks_have_the_images_size(embedding, images):
    """Instances of the grid do not overlap at full resolution, and the best one's score is the image's."""
    found_any = False
    for image in images:
        found = embedding.detect(image)
        assert found.masks.shape == (len(found.instances), *image.shape[:2]) and found.masks.dtype == bool
        assert found.masks.sum(axis=0).max(initial=0) <= 1
        assert found.score == max((i.score for i in found.instances), default=0.0) and 0 <= found.score <= 1
        found_any |= len(found.instances) > 0
    assert found_any


def test_batches_do_not_change_detections(embedding, images):
    """An image gives the same result alone and in a batch with others."""
    for together, image in zip(embedding.detect_batch(images), images, strict=True):
        alone = embedding.detect(image)
        assert (alone.masks == together.masks).all() and alone.reason == together.reason


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (300, 7), (112, 112)])
def test_odd_sizes(embedding, shape):
    """Images of one pixel and long thin ones are detected at their own size."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert embedding.detect(image).masks.shape[1:] == shape


def test_padding_reaches_no_clustering(embedding):
    """112 px wide and 56 px of the 112 high, in cells of 14 px: 4 x 8 cells are embedded."""
    (embedded,) = embedding.embed([np.zeros((50, 100, 3), np.uint8)])
    assert embedded.grid.shape == (4, 8)


def test_drawing_at_full_resolution():
    """56 px wide in the input: 8 x 4 cells, each of 25 x 25 px of the image."""
    box = Letterbox.fit((200, 100), 112)
    grid = np.arange(32).reshape(8, 4)
    assert (draw(grid, box) == np.kron(grid, np.ones((25, 25), int))).all()


@pytest.mark.slow
def test_modes_equal_separate_detectors(both, images):
    """What one pass gives for each mode is what a detector of that mode finds by itself."""
    separate = {"embedding": both.alone("embedding"), "matching": both.alone("matching"), "both": both}
    for image in images[-2:]:  # forged ones
        for mode, found in both.detect_in_modes(image, MODES).items():
            alone = separate[mode].detect(image)
            assert (found.masks == alone.masks).all() and found.score == alone.score
            assert found.complete == alone.complete and found.reason == alone.reason and found.seconds > 0
            assert (found.grid is None) is (mode == "matching")


def test_modes_come_from_one_pass(both, images, monkeypatch):
    """Each image is embedded once, and searched twice only where the embedding proposes regions to search."""
    searches, embedded, embed = [], [], Detector.embed

    def search(image, settings, regions):
        searches.append(len(regions))
        return SearchResult((), True)

    monkeypatch.setattr(detector_module, "detect_copies", search)
    monkeypatch.setattr(Detector, "embed", lambda self, images: embedded.append(len(images)) or embed(self, images))
    seen = set()
    for image in [*images, np.zeros((10, 10, 3), np.uint8)]:  # the last has a single cell, in which nothing is found
        searches.clear(), embedded.clear()
        detections = both.detect_in_modes(image, MODES)
        regions = len(regions_to_search(detections["embedding"]))
        assert tuple(detections) == MODES and embedded == [1]
        assert searches == ([0, regions] if regions else [0])
        seen.add(regions > 0)
    assert seen == {False, True}
    searches.clear(), embedded.clear()
    both.detect_in_modes(images[0], ("matching",))
    assert (searches, embedded) == ([0], [])
    both.detect_in_modes(images[0], ("embedding",))
    assert (searches, embedded) == ([0], [1])


def test_evidence_alone_needs_no_torch():
    """A detector without a model does not import torch."""
    code = (
        "import sys, numpy as np; from detector import Detector\n"
        "found = Detector.load().detect(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))\n"
        "assert not found.instances and 'torch' not in sys.modules"
    )
    done = launch("-c", code)
    assert done.returncode == 0, done.stderr
