"""report.py: the sentence, the aligned proof, the comparison with the truth, and what the page embeds and escapes."""

import base64
import json
import math
import re
import tracemalloc

import cv2
import numpy as np
import pytest

from copymove.copies import Copy, Instance
from copymove.regions import Region
from detector import Detection
from metrics import score_image
from report.crops import BLANK, CROP_SIDE, align_pair
from report.entries import PROOFS, _letter, illustrate, read_entry, unique_name
from report.page import _files, write_page
from report.plots import operating_points
from report.shapes import OUTLINE_POINTS, distinct_regions, svg_path
from report.training_page import CURVES, _panels, plot_training, write_run_page
from report.words import describe_copy


def make_copy(affine, source=None, target=None, correlation=0.99) -> Copy:
    square = Region(10, 20, np.ones((8, 10), bool))
    return Copy("keypoints", np.array(affine, float), 40, correlation, 0.9, source or square, target or square)


def turned(degrees: float, scale: float = 1.0, mirrored: bool = False, to=(0.0, 0.0)):
    """Affine map that turns counter-clockwise on the screen about the source's middle (14.5, 23.5), then moves it."""
    t = math.radians(degrees)
    linear = scale * np.array([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]])
    if mirrored:
        linear = linear @ np.diag([-1, 1])
    middle = np.array([14.5, 23.5])
    return np.hstack([linear, (middle + to - linear @ middle)[:, None]])


@pytest.mark.parametrize(
    "affine, words",
    [
        (turned(0, to=(312, 0)), "312 px to the right, neither rotated nor scaled"),
        (turned(0, to=(-4, 1200)), "4 px to the left and 1,200 px down, neither rotated nor scaled"),
        (turned(37, 1.1, True, (312, 0)), "312 px to the right, rotated 37 degrees counter-clockwise, "
                                           "mirrored left to right, scaled 1.10"),
        (turned(-90, to=(0, -50)), "50 px up, rotated 90 degrees clockwise"),
        (turned(1, to=(5, 0)), "5 px to the right, rotated 1 degree counter-clockwise"),
        (turned(180, to=(5, 0)), "5 px to the right, rotated 180 degrees"),
        (turned(180, mirrored=True, to=(5, 0)), "5 px to the right, mirrored top to bottom"),
        (turned(0, mirrored=True), "in the same place, mirrored left to right"),
    ],
)  # fmt: skip
def test_sentence(affine, words):
    assert describe_copy(make_copy(affine)) == f"This region appears again {words}; correlation 0.99 over 80 px."


def test_outline_goes_around_the_mask():
    mask = np.zeros((20, 30), bool)
    mask[5:10, 8:20] = True
    path = svg_path(mask, x=100, y=50)
    points = {tuple(map(float, p.split())) for p in re.split("[MLZ]", path) if p}
    # Through the middles of the corner pixels: columns 8 and 19, rows 5 and 9, moved by (100, 50).
    assert points == {(108.5, 55.5), (119.5, 55.5), (119.5, 59.5), (108.5, 59.5)}
    assert svg_path(np.zeros((4, 4), bool)) == ""


def test_outline_keeps_holes_and_stays_short():
    mask = np.ones((60, 60), bool)
    mask[20:40, 20:40] = False
    assert svg_path(mask).count("Z") == 2
    noise = np.random.default_rng(0).random((500, 500)) > 0.5
    assert svg_path(noise).count("L") <= 1.2 * OUTLINE_POINTS


def test_a_pasted_copy_is_aligned_to_the_bit():
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    image[70:90, 100:130] = image[20:40, 30:60]
    square = np.ones((20, 30), bool)
    copy = make_copy([[1, 0, 70], [0, 1, 50]], Region(30, 20, square), Region(100, 70, square))
    pair = align_pair(image, copy)
    assert pair.identical == 1.0 and pair.scale == 1.0 and pair.gain == pytest.approx(1) and pair.offset == 0
    assert pair.compared.sum() == 600 and (pair.difference[pair.compared] == 0).all()
    assert (pair.source[pair.compared] == pair.copy[pair.compared]).all()
    assert pair.difference[~pair.compared].mean() > 30  # what lies around is not alike


def test_quarter_turn_mirrored_and_recoloured_copy_is_brought_back():
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 200, (200, 200, 3), dtype=np.uint8), (0, 0), 1.5)
    patch = image[20:60, 30:80]  # (40, 50)
    image[100:150, 90:130] = np.clip(np.rot90(patch[:, ::-1]) * 1.2 + 10, 0, 255)
    # Source pixel (30 + i, 20 + j) -> mirrored column 49 - i -> a quarter turn: x = 90 + j, y = 100 + i.
    affine = [[0, 1, 70], [1, 0, 70]]
    pair = align_pair(
        image, make_copy(affine, Region(30, 20, np.ones((40, 50), bool)), Region(90, 100, np.ones((50, 40), bool)))
    )
    assert pair.compared.sum() == 2000
    assert np.median(pair.difference[pair.compared]) <= 1
    assert pair.gain == pytest.approx(1.2, abs=0.02)
    assert pair.offset == pytest.approx(patch.mean() * 0.2 + 10, abs=1)


def test_large_cut_outs_are_shrunk_and_stay_aligned():
    rng = np.random.default_rng(2)
    blurred = cv2.GaussianBlur(rng.random((1000, 2200, 3)), (0, 0), 6)
    image = np.clip(127 + 40 * (blurred - 0.5) / blurred.std(), 0, 255).astype(np.uint8)
    image[100:900, 1201:2101] = image[100:900, 100:1000][::-1, ::-1]
    square = np.ones((800, 900), bool)
    # Turned by 180 degrees: (100 + i, 100 + j) -> (2100 - i, 899 - j).
    copy = make_copy([[-1, 0, 2200], [0, -1, 999]], Region(100, 100, square), Region(1201, 100, square))
    pair = align_pair(image, copy)
    assert max(pair.source.shape) == CROP_SIDE and pair.source.shape == pair.copy.shape
    inside = cv2.erode(pair.compared.astype(np.uint8), np.ones((5, 5))) > 0
    assert np.median(pair.difference[inside]) <= 1


def test_a_copy_reaching_beyond_the_image_is_no_error():
    image = np.random.default_rng(3).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    source, target = Region(0, 0, np.ones((20, 20), bool)), Region(45, 40, np.ones((10, 15), bool))
    pair = align_pair(image, make_copy([[1, 0, 45], [0, 1, 40]], source, target))
    assert pair.compared.sum() == 150
    # The cut-out starts at (0, 0); the copy's place ends at (60 - 45, 50 - 40) in it.
    assert pair.within[:10, :15].all() and pair.within.sum() == 150
    assert (pair.copy[-1, -1] == BLANK).all()
    far = align_pair(image, make_copy([[1, 0, 5000], [0, 1, 5000]], source, target))
    assert not far.compared.any() and far.identical == 0.0


def test_copies_of_one_content_share_their_source():
    square = np.ones((10, 10), bool)
    a, nearly, b, c = Region(0, 0, square), Region(1, 0, square), Region(40, 0, square), Region(80, 0, square)
    instance = Instance(np.zeros((20, 100), bool), 0.9, tuple(
        Copy("exact", np.eye(2, 3), 1, 1.0, 1.0, s, t) for s, t in ((a, b), (nearly, c), (b, c))
    ))  # fmt: skip
    regions, pairs = distinct_regions(instance)
    assert len(regions) == 3 and pairs == [(0, 1), (0, 2), (1, 2)]


def test_what_joins_a_further_region_is_proven_first_and_the_rest_listed(tmp_path):
    image = np.random.default_rng(5).integers(0, 256, (40, 400, 3), dtype=np.uint8)
    square = np.ones((10, 10), bool)
    places = [Region(30 * i, 5, square) for i in range(12)]
    joined = [(1, 2), *((0, i) for i in range(1, 12))]  # region 0 is the hub; the first pair closes a triangle
    copies = tuple(
        Copy("exact", np.array([[1.0, 0, 30 * (j - i)], [0, 1, 0]]), 1, 1.0, 1.0, places[i], places[j])
        for i, j in joined
    )
    mask = np.any([place.full((40, 400)) for place in places], axis=0)
    detection = Detection((40, 400), 1.0, (Instance(mask, 1.0, copies),), 0.1)
    (instance,) = illustrate(tmp_path, "n", "a.png", image, detection)["instances"]
    # Regions are numbered as they come: places 1, 2, 0, 3, 4, ... The hub, place 0, is number 2.
    assert instance["lines"] == [[2, 0], [2, 1], *([2, i] for i in range(3, 12))]
    shown = [[copy["from"], copy["to"]] for copy in instance["copies"]]
    assert shown == instance["lines"][:PROOFS]
    assert [[copy["from"], copy["to"]] for copy in instance["others"]] == [*instance["lines"][PROOFS:], [0, 1]]
    assert len(list((tmp_path / "images/n").glob("*-source.webp"))) == PROOFS


def test_letters():
    assert [_letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


# Entries and truth ------------------------------------------------------------------------------------------------


@pytest.fixture
def scene():
    """Image with one found instance (a copied square), and its detection."""
    image = np.random.default_rng(4).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    image[50:62, 60:72] = image[10:22, 10:22]
    mask = np.zeros((80, 100), bool)
    mask[10:22, 10:22] = mask[50:62, 60:72] = True
    square = np.ones((12, 12), bool)
    copy = make_copy([[1, 0, 50], [0, 1, 40]], Region(10, 10, square), Region(60, 50, square), 1.0)
    grid, anomaly = np.zeros((4, 5), np.int64), np.full((4, 5), 0.1, np.float32)
    grid[0, 0] = 1
    return image, Detection((80, 100), 0.9, (Instance(mask, 0.9, (copy,)),), 1.5, True, grid, anomaly, "a reason")


def test_entry_holds_the_proof(tmp_path, scene):
    image, detection = scene
    entry = illustrate(tmp_path, "n", "/x/a.png", image, detection)
    assert entry == read_entry(tmp_path, "n")
    (instance,), (copy,) = entry["instances"], entry["instances"][0]["copies"]
    assert [region["label"] for region in instance["regions"]] == ["1a", "1b"]
    assert instance["regions"][1]["box"] == [60, 50, 12, 12] and instance["area"] == 288
    assert copy["identical"] == 1.0 and copy["displacement"] == [50, 40] and (copy["from"], copy["to"]) == (0, 1)
    folder = tmp_path / "images/n"
    assert all((folder / file).stat().st_size for file in _files(entry))
    source = cv2.imread(str(folder / copy["source"]))[..., ::-1]
    assert (source == image[4:28, 4:28]).all()  # 6 px around, kept to the bit
    grid = cv2.imread(str(folder / "grid.png"), cv2.IMREAD_UNCHANGED)  # BGRA; instance 1 has the first colour, #E69F00
    assert grid[0, 0].tolist() == [0x00, 0x9F, 0xE6, 150] and not grid[1:].any()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["n"]  # nothing temporary is left


def test_truth_names_missed_and_false_instances(tmp_path, scene):
    image, detection = scene
    found = detection.instances[0].mask
    elsewhere = np.zeros_like(found)
    elsewhere[70:78, 2:10] = True
    truth = np.stack([elsewhere, found])
    record = score_image("a", detection.masks, truth, 0.9, 1.5)
    entry = illustrate(tmp_path, "n", "a.png", image, detection, truth=truth, record=record)
    assert entry["truth"]["object_f1"] == 0.5  # one of two found
    assert [t["f1"] for t in entry["truth"]["instances"]] == [0.0, 1.0]
    assert [t["side"] for t in entry["truth"]["instances"]] == [8.0, 12.0]
    assert entry["instances"][0]["f1"] == 1.0
    authentic = illustrate(tmp_path, "n", "a.png", image, detection, truth=truth[:0])
    assert authentic["truth"] == {"object_f1": 0.0, "instances": []} and authentic["instances"][0]["f1"] == 0.0


def test_operating_points_by_hand():
    x, y = operating_points(np.array([0, 0, 0.6, 0]), np.array([0.9, 0.6, 0.3, 0]))
    assert x.tolist() == [0, 0, 0.25, 0.25] and y.tolist() == [0, 0.25, 0.5, 0.75]


# The page ---------------------------------------------------------------------------------------------------------

HOSTILE = "/in/<img src=x onerror=alert(1)></script><script>alert(2)</script>\u2028'\"&\udcff.png"


def read_data(page):
    text = page.read_text()
    block = re.search('<script type="application/json" id="images">(.*?)</script>', text, re.S)
    return text, json.loads(block.group(1))


def test_page_escapes_names_and_embeds_images(tmp_path, scene):
    image, detection = scene
    illustrate(tmp_path, "n", HOSTILE, image, detection)
    page = write_page(tmp_path, lambda: [read_entry(tmp_path, "n")], title=HOSTILE, run="r")
    text, (entry,) = read_data(page)
    assert entry["path"] == HOSTILE
    assert "<img src=x" not in text and "alert(2)</script>" not in text
    thumb = base64.b64decode(entry["thumb"].removeprefix("data:image/webp;base64,"))
    assert thumb == (tmp_path / "images/n/thumb.webp").read_bytes()
    assert entry["instances"][0]["copies"][0]["source"].startswith("data:image/webp;base64,")
    assert not re.search(r"(?:src|href)=[\"']?https?:", text)


def test_large_page_leaves_images_beside_it(tmp_path, scene):
    image, detection = scene
    illustrate(tmp_path, "n", "a.png", image, detection)
    page = write_page(tmp_path, lambda: [read_entry(tmp_path, "n")], title="t", run="r", embed_bytes=1000)
    text, (entry,) = read_data(page)
    assert entry["thumb"] == "images/n/thumb.webp" and (tmp_path / entry["thumb"]).exists()
    assert "data:image" not in text and "pass both on together" in text


def test_only_the_page_s_own_script_may_run(tmp_path):
    page = write_page(tmp_path, list, title="t", run="r")
    text = page.read_text()
    import hashlib

    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_memory_stays_flat_over_many_images(tmp_path, scene):
    image, detection = scene
    illustrate(tmp_path, "n", "a.png", image, detection)
    entry = read_entry(tmp_path, "n")

    def peak(count):
        tracemalloc.start()
        write_page(
            tmp_path, lambda: (json.loads(json.dumps(entry)) for _ in range(count)), title="t", run="r", embed_bytes=0
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10)
    assert peak(900) < peak(100) + 300_000


def test_names_are_safe_unique_and_stable():
    name = unique_name("/x/<img src=x> ü\n.png", 3, 2)
    assert re.fullmatch(r"[A-Za-z0-9._-]+-p3-f2-[0-9a-f]{12}", name)
    assert unique_name("/x/a.png") != unique_name("/y/a.png")
    assert unique_name("/x/a.png") == unique_name("/x/a.png")
    assert len(unique_name("/" + "a" * 300 + ".png", 12, 3)) <= 80
    assert re.fullmatch(r"[a-z0-9-]+", unique_name("/x/\udcff.png"))


# Curves -----------------------------------------------------------------------------------------------------------


def test_curves_and_run_page(tmp_path):
    log = [{"epoch": e, "loss": 2 / (e + 1), "of1": None if e % 2 else e / 10, "learning_rate": 1e-3} for e in range(6)]
    png = plot_training(log, tmp_path / "curves.png", x="epoch")
    assert cv2.imread(str(png)).shape[2] == 3
    panels = _panels(log, "epoch", CURVES)
    assert panels["validation oF1"] == {"of1": [(0, 0.0), (2, 0.2), (4, 0.4)]}
    page = write_run_page(
        tmp_path / "index.html",
        title="Run <a>",
        figures=[("Curves", png)],
        tables=[("Best", [["", "oF1"], ["a", 0.5]])],
    )
    text = page.read_text()
    assert "Run &lt;a&gt;" in text and base64.b64encode(png.read_bytes()).decode() in text and "<td>0.5</td>" in text
    with pytest.raises(ValueError, match="no row of the log"):
        plot_training([{"epoch": 1}], tmp_path / "nothing.png")
