"""TIFF: every compression, layout and depth, and which images a file holds."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from images.inputs import ImageSource
from images.read import read_image
from runtime.errors import InputError
from tests.made_files import noise
from tests.prediction import lines_of, predict_in

COLOUR = noise(96, 128)
GREY = COLOUR[..., 0]


def images_of(path, max_pages=100):
    """Name and pixels of each image of a file."""
    parts = ImageSource(str(path)).parts(max_pages)
    return [(source.part, source.read(200.0)) for source in parts.images]


def shown(grey):
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("tile", [None, (32, 48)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    "compression",
    [None, "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg2000", "jpegxl", "webp", "png", "jpegxr", "lerc", "jpeg"],
)
def test_every_compression(tmp_path, compression, planar, tile):
    """Lossless ones come back to the bit, JPEG nearly; planar or not, in strips or tiles, and twice the same."""
    if planar == "separate" and compression in ("webp",):
        pytest.skip("WebP holds colours only together")
    path = tmp_path / "x.tif"
    options = {"compressionargs": {"lossless": True}} if compression in ("webp", "jpegxl") else {}
    if compression == "jpegxr":
        options = {"compressionargs": {"level": 1.0}}
    tifffile.imwrite(
        path,
        COLOUR if planar == "contig" else np.moveaxis(COLOUR, 2, 0),
        photometric="rgb",
        planarconfig=planar,
        tile=tile,
        compression=compression,
        **options,
    )
    read = read_image(path)
    assert np.abs(read.astype(int) - COLOUR).max() <= (60 if compression == "jpeg" else 0)
    assert (read == read_image(path)).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 10, 12, 14, 16, 24, 32, 64])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_every_depth(tmp_path, bits, photometric):
    """Unsigned integers of 1 to 64 bits use the full range; where white is zero, they are turned round."""
    largest = 2**bits - 1
    dtype = next(d for d in (np.uint8, np.uint16, np.uint32, np.uint64) if np.iinfo(d).bits >= bits)
    steps = (GREY.astype(object) * largest // 255).astype(dtype)
    steps[:2, :4] = [[0] * 4, [largest] * 4]
    packed = {} if bits in (8, 16, 32, 64) else {"bitspersample": bits}
    if bits == 1:
        steps, packed = steps.astype(bool), {}
    try:
        tifffile.imwrite(tmp_path / "x.tif", steps, photometric=photometric, **packed)
    except (ValueError, NotImplementedError):
        pytest.skip(f"tifffile writes no {bits} bits")
    expected = np.rint(steps.astype(np.float64) / largest * 255)
    expected = 255 - expected if photometric == "miniswhite" else expected
    assert np.abs(read_image(tmp_path / "x.tif")[..., 0] - expected).max() <= 1


def test_white_is_zero_at_any_depth(tmp_path):
    """8 and 16 bits are read alike."""
    for dtype, factor in ((np.uint8, 1), (np.uint16, 257)):
        tifffile.imwrite(tmp_path / f"{factor}.tif", GREY.astype(dtype) * dtype(factor), photometric="miniswhite")
        assert (read_image(tmp_path / f"{factor}.tif") == shown(255 - GREY)).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(tmp_path, bits):
    """Indices become their colours."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 2**bits)).astype(np.uint16)
    indices = GREY.astype(f"uint{bits}") * (1 if bits == 8 else 200)
    tifffile.imwrite(tmp_path / "x.tif", indices, photometric="palette", colormap=colours * 257)
    assert (read_image(tmp_path / "x.tif") == colours.T[indices]).all()


def test_inks_and_other_colours(tmp_path):
    """CMYK as Pillow shows it; YCbCr without JPEG, L*a*b* and big-endian 16 bits."""
    inks = np.dstack([COLOUR, GREY[::-1]])
    tifffile.imwrite(tmp_path / "cmyk.tif", inks, photometric="separated")
    assert (read_image(tmp_path / "cmyk.tif") == np.asarray(Image.open(tmp_path / "cmyk.tif").convert("RGB"))).all()
    Image.fromarray(COLOUR).convert("YCbCr").save(tmp_path / "ycbcr.tif", compression="tiff_lzw")
    assert np.abs(read_image(tmp_path / "ycbcr.tif").astype(int) - COLOUR).max() <= 4
    lab = np.zeros((8, 8, 3), np.uint8)
    lab[:, 4:, 0] = 255
    tifffile.imwrite(tmp_path / "lab.tif", lab, photometric="cielab")
    assert np.abs(read_image(tmp_path / "lab.tif")[0, [0, 7]] - [[0.0] * 3, [255] * 3]).max() <= 1
    tifffile.imwrite(
        tmp_path / "big.tif", COLOUR.astype(np.uint16) * 257, photometric="rgb", byteorder=">", bigtiff=True
    )
    assert (read_image(tmp_path / "big.tif") == COLOUR).all()


@pytest.mark.parametrize("kind, expected", [("unassalpha", 0), ("assocalpha", 1)])
def test_alpha_over_white(tmp_path, kind, expected):
    """Grey and colour with alpha; associated alpha is in the colours already."""
    alpha = np.linspace(0, 255, GREY.size).astype(np.uint8).reshape(GREY.shape)
    colour = COLOUR if kind == "unassalpha" else (COLOUR * (alpha[..., None] / 255)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", np.dstack([colour, alpha]), photometric="rgb", extrasamples=[kind])
    wanted = COLOUR * (alpha[..., None] / 255) + (255 - alpha[..., None])
    assert np.abs(read_image(tmp_path / "x.tif") - wanted).max() <= 1.01
    tifffile.imwrite(
        tmp_path / "g.tif", np.dstack([colour[..., 0], alpha]), photometric="minisblack", planarconfig="contig",
        extrasamples=[kind],
    )  # fmt: skip
    assert np.abs(read_image(tmp_path / "g.tif")[..., 1] - wanted[..., 0]).max() <= 1.01


# Which images there are ---------------------------------------------------------------------------------------------


def test_pages_are_images(tmp_path):
    """Pages of one size or of several."""
    pages = [noise(60, 70, k) for k in range(3)]
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for page in (*pages, noise(40, 40, 9)):
            file.write(page, photometric="rgb")
    found = images_of(tmp_path / "x.tif")
    assert [part for part, _ in found] == [f"page {k} of 4" for k in (1, 2, 3, 4)]
    assert all((pixels == page).all() for (_, pixels), page in zip(found, pages, strict=False))


def test_channels_planes_and_times(tmp_path):
    """OME: every channel, plane and time point is an image with its name; the channel's name is its caption."""
    values = np.stack([GREY // (k + 1) for k in range(12)]).reshape(2, 3, 2, *GREY.shape)  # T C Z
    tifffile.imwrite(
        tmp_path / "x.ome.tif", values, metadata={"axes": "TCZYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}}
    )
    found = images_of(tmp_path / "x.ome.tif")
    assert len(found) == 12 and found[7][0] == "channel 1 of 3, plane 2 of 2, time point 2 of 2"
    assert (found[7][1] == shown(GREY // 8)).all()
    captions = [source.caption for source in ImageSource(str(tmp_path / "x.ome.tif")).parts().images]
    assert captions[:6] == ["DAPI", "DAPI", "GFP", "GFP", "RFP", "RFP"]
    tifffile.imwrite(tmp_path / "ij.tif", values[0].swapaxes(0, 1), imagej=True, metadata={"axes": "ZCYX"})
    found = images_of(tmp_path / "ij.tif")
    assert [part for part, _ in found][:2] == ["channel 1 of 3, plane 1 of 2", "channel 2 of 3, plane 1 of 2"]
    assert (found[4][1] == shown(values[0, 1, 1])).all()


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_samples_that_are_channels(tmp_path, planar):
    """Five samples of grey are five images, whether they lie together or apart."""
    values = np.stack([np.roll(GREY, k) for k in range(5)])
    stored = np.moveaxis(values, 0, 2) if planar == "contig" else values
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="minisblack", planarconfig=planar)
    found = images_of(tmp_path / "x.tif")
    assert [part for part, _ in found] == [f"channel {k} of 5" for k in range(1, 6)]
    assert all((pixels == shown(value)).all() for (_, pixels), value in zip(found, values, strict=True))


def test_pyramid_counts_once(tmp_path):
    """Smaller levels, in SubIFDs or behind, are not examined again."""
    with tifffile.TiffWriter(tmp_path / "x.tif", bigtiff=True) as file:
        file.write(COLOUR, subifds=2, photometric="rgb", tile=(32, 32))
        for step in (2, 4):
            file.write(np.ascontiguousarray(COLOUR[::step, ::step]), subfiletype=1, photometric="rgb", tile=(32, 32))
        file.write(np.ascontiguousarray(COLOUR[::8, ::8]), subfiletype=1, photometric="rgb")
    ((part, pixels),) = images_of(tmp_path / "x.tif")
    assert part is None and (pixels == COLOUR).all()


def test_pages_over_the_limit_are_told(tmp_path):
    """The first ones are examined; the others have a line, a row on the page, and a status of their own."""
    tifffile.imwrite(tmp_path / "x.tif", np.stack([GREY] * 5), photometric="minisblack")
    assert predict_in(tmp_path / "out", tmp_path / "x.tif", max_pages=2) == 6
    first, second, rest = sorted(lines_of(tmp_path / "out"), key=lambda line: line.get("part", "z"))
    assert (first["verdict"], first["part"], second["part"]) == ("clean", "page 1 of 5", "page 2 of 5")
    assert (rest["verdict"], rest["count"], rest["reason"]) == (
        "not examined",
        3,
        "images 3 to 5 of 5: over --max-pages",
    )
    assert "images 3 to 5 of 5: over --max-pages" in (tmp_path / "out/report/index.html").read_text()
    assert predict_in(tmp_path / "out", tmp_path / "x.tif", max_pages=2, resume=True) == 6
    assert len(lines_of(tmp_path / "out")) == 3


def test_first_frame_of_an_animation(tmp_path):
    """The other frames of a GIF are told."""
    frames = [Image.fromarray(noise(60, 70, k)).quantize(64) for k in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    parts = ImageSource(str(tmp_path / "x.gif")).parts()
    (source,), (rest,) = parts.images, parts.not_examined
    assert (source.read(200.0) == np.asarray(frames[0].convert("RGB"))).all() and source.part == "frame 1 of 3"
    assert (rest.what, rest.count) == ("frame", 2) and "only the first" in rest.reason


# Damage -------------------------------------------------------------------------------------------------------------


def test_missing_strips_are_refused(tmp_path):
    """What the file does not hold is not taken from whatever the memory held."""
    tifffile.imwrite(tmp_path / "x.tif", COLOUR, photometric="rgb", compression="zlib", rowsperstrip=16)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        tags = [file.pages[0].tags[name].offset for name in ("StripOffsets", "StripByteCounts")]
    for tag in tags:
        data[tag + 4 : tag + 8] = (3).to_bytes(4, "little")  # three of six strips
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tif"):
        read_image(tmp_path / "x.tif")


def test_circle_of_pages_is_refused(tmp_path):
    """A page whose successor is itself."""
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="minisblack", metadata=None)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    start = int.from_bytes(data[4:8], "little")
    following = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[following : following + 4] = data[4:8]
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(InputError, match="in a circle"):
        ImageSource(str(tmp_path / "x.tif")).parts()


def test_missing_pages_are_told(tmp_path):
    """A file that points to a page behind its end."""
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="minisblack")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    start = int.from_bytes(data[4:8], "little")
    following = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[following : following + 4] = (10**6).to_bytes(4, "little")
    (tmp_path / "x.tif").write_bytes(data)
    parts = ImageSource(str(tmp_path / "x.tif")).parts()
    assert len(parts.images) == 1 and parts.not_examined[0].reason.startswith("damaged")


def test_sensor_data_and_numbers_are_refused(tmp_path):
    """Raw data of a camera and complex numbers are no pictures."""
    tifffile.imwrite(tmp_path / "raw.tif", GREY, photometric="cfa")
    with pytest.raises(InputError, match="raw data of a camera"):
        read_image(tmp_path / "raw.tif")
    tifffile.imwrite(tmp_path / "complex.tif", GREY.astype(np.complex64))
    with pytest.raises(InputError, match="complex numbers"):
        read_image(tmp_path / "complex.tif")


def test_oversized_tiles_are_refused(tmp_path):
    """A small image in one huge tile would take the memory of the tile."""
    tifffile.imwrite(tmp_path / "x.tif", GREY, tile=(4096, 4096), photometric="minisblack", compression="zlib")
    with pytest.raises(InputError, match="count as"):
        read_image(tmp_path / "x.tif", 1.0)
    assert imagecodecs.__version__ and (read_image(tmp_path / "x.tif", 200.0) == shown(GREY)).all()
