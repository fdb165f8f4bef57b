"""The cache of letterboxed images, and the cache of arrays that it is built on."""

import multiprocessing
import os

import numpy as np
import pytest

from images.cache import DiskCache, ImageCache, MemoryCache, content_key, read_letterboxed
from images.folders import ImageFile, find_images
from runtime.errors import InputError
from tests.made_files import block, data_settings, noise, plain_folder, save, save_npy

# Images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def forged(tmp_path):
    """A forged image of 60 x 90 px with two instances."""
    image = save(tmp_path / "p.png", noise(60, 90))
    masks = np.stack([block(60, 90, 0, 0, 20), block(60, 90, 30, 40, 25)])
    return ImageFile("p", image, save_npy(tmp_path / "p.npy", masks), "p", True)


def same(a, b):
    return (
        (a.image.shape == b.image.shape and (a.image == b.image).all())
        and (a.coverage.shape == b.coverage.shape and (a.coverage == b.coverage).all())
        and (a.height, a.width) == (b.height, b.width)
    )


def test_cache_equals_decoding(tmp_path, forged, monkeypatch):
    """The cache returns what decoding returns, without decoding, also to another process; per input size."""
    config, cache = data_settings(tmp_path), ImageCache(tmp_path / "cache", 1, 112)
    fresh = read_letterboxed(forged, 112, config)
    assert fresh.image.shape == (75, 112, 3) and fresh.coverage.shape == (2, 75, 112)
    assert (fresh.height, fresh.width) == (60, 90)
    assert same(read_letterboxed(forged, 112, config, cache), fresh)
    monkeypatch.setattr("images.pairs.read_image", lambda *_: pytest.fail("decoded again"))
    assert same(read_letterboxed(forged, 112, config, cache), fresh)
    assert same(read_letterboxed(forged, 112, config, ImageCache(tmp_path / "cache", 1, 112)), fresh)  # later
    with pytest.raises(pytest.fail.Exception):
        read_letterboxed(forged, 56, config, ImageCache(tmp_path / "cache", 1, 56))  # another size


@pytest.mark.parametrize("which", ["image", "mask", "mask with the same size"])
def test_changed_files_are_read_again(tmp_path, forged, which):
    """A change of image or mask, even one that leaves the size as it is, replaces the entry."""
    config, cache = data_settings(tmp_path), ImageCache(tmp_path / "cache", 1, 112)
    before = read_letterboxed(forged, 112, config, cache)
    if which == "image":
        save(forged.image, noise(60, 90, 1))
    else:
        count = 1 if which == "mask" else 2
        save_npy(forged.mask, np.stack([block(60, 90, 10, 10, 40)] * count))
    os.utime(forged.image if which == "image" else forged.mask, ns=(1, 1))
    after = read_letterboxed(forged, 112, config, cache)
    assert not same(before, after) and same(after, read_letterboxed(forged, 112, config))
    assert len(list((tmp_path / "cache").glob("*.arrays"))) == 1  # the old one has been replaced


@pytest.mark.parametrize("fault", ["cut", "empty", "flipped", "zeros", "foreign"])
def test_damaged_cache_file_is_replaced(tmp_path, forged, fault):
    """A file of the cache that is damaged in any part counts as missing."""
    config, cache = data_settings(tmp_path), ImageCache(tmp_path / "cache", 1, 112)
    fresh = read_letterboxed(forged, 112, config, cache)
    (path,) = (tmp_path / "cache").glob("*.arrays")
    data = bytearray(path.read_bytes())
    damaged = {
        "cut": data[:-7],
        "empty": b"",
        "flipped": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "zeros": data[:4000] + bytes(len(data) - 4000),  # a file whose end was not yet on the disk at a power cut
        "foreign": b"[1, 2]\n" + data,
    }
    path.write_bytes(damaged[fault])
    assert same(read_letterboxed(forged, 112, config, cache), fresh)
    assert path.read_bytes() == data


def test_cache_keeps_to_its_limit(tmp_path):
    """What would exceed the limit is decoded each time."""
    root = plain_folder(tmp_path / "data", 6)
    image_files, config = find_images(root), data_settings(root)
    one = 75 * 112 * 3  # bytes of an authentic image, header not counted
    cache = ImageCache(tmp_path / "cache", 4 * (one + 9000) / 1e9, 112)
    contents = [read_letterboxed(image_file, 112, config, cache) for image_file in image_files]
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.arrays"))
    assert one < size <= 4 * (one + 9000)
    assert 1 < len(list((tmp_path / "cache").glob("*.arrays"))) < 12
    for image_file, content in zip(image_files, contents, strict=True):
        assert same(read_letterboxed(image_file, 112, config, cache), content)
    assert int((tmp_path / "cache" / "total").read_text()) == size


def test_unfinished_cache_files_are_removed(tmp_path, forged):
    """Files that a killed process did not finish are deleted, and the total is counted anew."""
    cache = ImageCache(tmp_path / "cache", 1, 112)
    fresh = read_letterboxed(forged, 112, data_settings(tmp_path), cache)
    (tmp_path / "cache" / ".0123.arrays.7.tmp").write_bytes(b"half")
    (tmp_path / "cache" / "total").write_text("")  # killed between cutting it off and writing the sum
    cache = ImageCache(tmp_path / "cache", 1, 112)
    (path,) = (tmp_path / "cache").glob("*.arrays")
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {path.name, "total"}
    assert int((tmp_path / "cache" / "total").read_text()) == path.stat().st_size
    assert same(cache.get(forged, lambda: pytest.fail("it is there")), fresh)


def hammer(cache_folder, root, seed, answers):
    config, image_files = data_settings(root), find_images(root)
    cache = ImageCache(cache_folder, 200_000 / 1e9, 112)
    order = np.random.default_rng(seed).integers(0, len(image_files), 60)
    wrong = sum(
        not same(read_letterboxed(image_files[i], 112, config, cache), read_letterboxed(image_files[i], 112, config))
        for i in order
    )
    answers.put(wrong)


def test_cache_shared_by_processes(tmp_path):
    """Four processes that read and write at once get right images and keep the limit."""
    root = plain_folder(tmp_path / "data", 4)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=hammer, args=(tmp_path / "cache", root, n, answers)) for n in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [0] * 4
    for process in processes:
        process.join()
    files = list((tmp_path / "cache").glob("*.arrays"))
    assert 0 < sum(path.stat().st_size for path in files) <= 200_000
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([p.name for p in files] + ["total"])


def test_full_disk_is_one_line(tmp_path, forged, monkeypatch):
    """The error names the cache and says what to do."""
    cache = ImageCache(tmp_path / "cache", 1, 112)

    def full(path, write, lasting):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("images.cache.atomic_write", full)
    with pytest.raises(InputError, match=r"cannot write to the cache .*No space left.*--cache-gb"):
        read_letterboxed(forged, 112, data_settings(tmp_path), cache)


# Arrays -----------------------------------------------------------------------------------------------------------


ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([], bool), np.array(7), np.array([-1, 2])]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_arrays_are_made_once(tmp_path, kind):
    """Arrays of any type and shape come back as they were made, for the same inputs only."""
    cache = MemoryCache() if kind == "memory" else DiskCache(tmp_path)
    image = np.zeros((3, 4), np.uint8)
    assert cache.load(content_key("a", image)) is None
    for arrays in (cache.get(("a", image), lambda: ARRAYS), cache.get(("a", image), lambda: pytest.fail("made again"))):
        for array, expected in zip(arrays, ARRAYS, strict=True):
            assert array.dtype == expected.dtype and array.shape == expected.shape and (array == expected).all()
    for inputs in (("b", image), ("a", image + 1), ("a", image.reshape(4, 3)), ("a", image.astype(bool)), ("a",)):
        assert len(cache.get(inputs, lambda: ARRAYS[:1])) == 1
    if kind == "memory":
        assert len(cache) == 6


def test_keys_depend_on_every_part():
    """Neither the border between two texts nor the order of the parts may be lost."""
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"), (), ("",), ("\udcff",)]
    assert len({content_key(*part) for part in parts}) == len(parts)
