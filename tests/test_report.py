"""The report: sentences, aligned cut-outs, entries with their comparison with the truth, the pages and the plots."""

import base64
import hashlib
import itertools
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
from report.colours import FRAME_RGB
from report.crops import CROP_SIDE, align_pair
from report.entries import MAX_SHOWN_COPIES, entry_files, error_entry, read_entry, unique_name, write_entry
from report.page import write_page
from report.pairs import distinct_regions
from report.plots import roc_points
from report.sentences import describe_copy
from report.shapes import OUTLINE_POINTS, bounding_box, svg_path
from report.training_page import CURVES, plot_training, select_curves, write_run_page


def make_copy(affine, source=None, target=None, ncc=0.99) -> Copy:
    """A copy under a map (2, 3); without regions, of a square whose middle is (14.5, 23.5)."""
    square = Region(10, 20, np.ones((8, 10), bool))
    return Copy("keypoints", np.array(affine, float), 40, ncc, 0.9, source or square, target or square)


def turned(degrees: float, scale: float = 1.0, mirrored: bool = False, to=(0.0, 0.0)):
    """Map (2, 3) that turns counter-clockwise on the screen about the square's middle, then moves by `to`."""
    t = math.radians(degrees)
    linear = scale * np.array([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]])
    if mirrored:  # left to right, before the turn
        linear = linear @ np.diag([-1, 1])
    middle = np.array([14.5, 23.5])
    return np.hstack([linear, (middle + to - linear @ middle)[:, None]])


# Sentences and outlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "affine, words",
    [
        (turned(0, to=(312, 0)), "312 px to the right, neither rotated nor scaled"),
        (turned(0, to=(-4, 1200)), "4 px to the left and 1,200 px down, neither rotated nor scaled"),
        (turned(37, 1.1, True, (312, 0)), "312 px to the right, rotated 37 degrees counter-clockwise, "
                                           "mirrored left to right, scaled by 1.10"),
        (turned(-90, to=(0, -50)), "50 px up, rotated 90 degrees clockwise"),
        (turned(1, to=(5, 0)), "5 px to the right, rotated 1 degree counter-clockwise"),
        (turned(180, to=(5, 0)), "5 px to the right, rotated 180 degrees"),
        (turned(180, mirrored=True, to=(5, 0)), "5 px to the right, mirrored top to bottom"),
        (turned(0, mirrored=True), "in the same place, mirrored left to right"),
    ],
)  # fmt: skip
def test_sentence_tells_the_map(affine, words):
    """Every map is told in plain words: the move, the rotation, the mirroring, the scale."""
    assert describe_copy(make_copy(affine)) == f"This region appears again {words}; correlation 0.99 over 80 px."


def test_outline_follows_the_border_pixels():
    """A rectangle's outline has four corners, at the centres of its corner pixels, moved to its place."""
    mask = np.zeros((20, 30), bool)
    mask[5:10, 8:20] = True
    path = svg_path(mask, x=100, y=50)
    points = {tuple(map(float, p.split())) for p in re.split("[MLZ]", path) if p}
    # Columns 8 and 19, rows 5 and 9, moved by (100, 50).
    assert points == {(108.5, 55.5), (119.5, 55.5), (119.5, 59.5), (108.5, 59.5)}
    assert svg_path(np.zeros((4, 4), bool)) == ""


def test_outline_keeps_holes():
    """A square with a hole has two polygons; noise, which has very many corners, is drawn with few."""
    mask = np.ones((60, 60), bool)
    mask[20:40, 20:40] = False
    assert svg_path(mask).count("Z") == 2
    noise = np.random.default_rng(0).random((500, 500)) > 0.5
    assert svg_path(noise).count("L") <= 1.2 * OUTLINE_POINTS


def test_box_holds_the_set_pixels():
    """The box of a region is that of its pixels, and of the whole mask where none is set."""
    mask = np.zeros((10, 20), bool)
    assert bounding_box(Region(5, 7, mask)) == [5, 7, 20, 10]
    mask[2:5, 3:9] = True
    assert bounding_box(Region(5, 7, mask)) == [8, 9, 6, 3]


# Cut-outs ---------------------------------------------------------------------------------------------------------


def test_pasted_copy_aligns_exactly():
    """A copy moved by whole pixels is found identical, and only its surroundings differ."""
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    image[70:90, 100:130] = image[20:40, 30:60]
    square = np.ones((20, 30), bool)
    copy = make_copy([[1, 0, 70], [0, 1, 50]], Region(30, 20, square), Region(100, 70, square))
    pair = align_pair(image, copy)
    assert pair.identical == 1.0 and pair.scale == 1.0 and pair.gain == pytest.approx(1) and pair.offset == 0
    assert pair.compared.sum() == 600 and (pair.difference[pair.compared] == 0).all()
    assert (pair.source[pair.compared] == pair.copy[pair.compared]).all()
    assert pair.difference[~pair.compared].mean() > 30


def test_changed_copy_is_transformed_back():
    """A copy that was mirrored, turned by 90 degrees and recoloured lies on its source; the change is measured."""
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 200, (200, 200, 3), dtype=np.uint8), (0, 0), 1.5)
    patch = image[20:60, 30:80]  # (40, 50)
    image[100:150, 90:130] = np.clip(np.rot90(patch[:, ::-1]) * 1.2 + 10, 0, 255)
    # Source pixel (30 + i, 20 + j) -> mirrored column 49 - i -> a quarter turn: x = 90 + j, y = 100 + i.
    affine = [[0, 1, 70], [1, 0, 70]]
    source, target = Region(30, 20, np.ones((40, 50), bool)), Region(90, 100, np.ones((50, 40), bool))
    pair = align_pair(image, make_copy(affine, source, target))
    assert pair.compared.sum() == 2000
    assert np.median(pair.difference[pair.compared]) <= 1
    assert pair.gain == pytest.approx(1.2, abs=0.02)
    assert pair.offset == pytest.approx(patch.mean() * 0.2 + 10, abs=1)


def test_shrunk_cut_outs_stay_aligned():
    """Large regions are shrunk to CROP_SIDE, source and copy by the same factor."""
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


def test_copy_may_leave_the_image():
    """Only what lies in the image is compared, the rest of the cut-out is blank; a copy far outside is no error."""
    image = np.random.default_rng(3).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    source, target = Region(0, 0, np.ones((20, 20), bool)), Region(45, 40, np.ones((10, 15), bool))
    pair = align_pair(image, make_copy([[1, 0, 45], [0, 1, 40]], source, target))
    assert pair.compared.sum() == 150
    # The cut-out starts at (0, 0); the image ends at (60 - 45, 50 - 40) in it.
    assert pair.in_image[:10, :15].all() and pair.in_image.sum() == 150
    assert (pair.copy[-1, -1] == FRAME_RGB).all()
    far = align_pair(image, make_copy([[1, 0, 5000], [0, 1, 5000]], source, target))
    assert not far.compared.any() and far.identical == 0.0


# The regions and copies of an instance ----------------------------------------------------------------------------


def make_instance(places, joined) -> Instance:
    """An instance whose copies join pairs of places, all of them squares of 10 px."""
    regions = [Region(x, 5, np.ones((10, 10), bool)) for x in places]
    copies = [
        Copy("exact", np.array([[1.0, 0, places[j] - places[i]], [0, 1, 0]]), 1, 1.0, 1.0, regions[i], regions[j])
        for i, j in joined
    ]
    mask = np.any([region.full((40, max(places) + 20)) for region in regions], axis=0)
    return Instance(mask, 1.0, tuple(copies))


def write_instance(folder, instance):
    """The entry of an instance in an image of noise."""
    height, width = instance.mask.shape
    image = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    entry = write_entry(folder, "n", "a.png", image, Detection((height, width), 1.0, (instance,), 0.1))
    return entry["instances"][0]


def test_copies_share_their_source():
    """Sources that differ by a pixel are one region."""
    regions, pairs = distinct_regions(make_instance([0, 1, 40, 80], [(0, 2), (1, 3), (2, 3)]))
    assert len(regions) == 3 and pairs == [(0, 1), (0, 2), (1, 2)]


def test_connecting_copies_come_first(tmp_path):
    """Copies that connect a further region are shown before those that do not, up to a number; the rest is listed."""
    # Place 0 is the hub; the first pair closes a triangle.
    instance = write_instance(tmp_path, make_instance(range(0, 360, 30), [(1, 2), *((0, i) for i in range(1, 12))]))
    # Regions are numbered as they come: places 1, 2, 0, 3, 4, ... The hub, place 0, is number 2.
    assert instance["lines"] == [[2, 0], [2, 1], *([2, i] for i in range(3, 12))]
    shown = [[copy["from"], copy["to"]] for copy in instance["copies"]]
    assert shown == instance["lines"][:MAX_SHOWN_COPIES]
    others = [[copy["from"], copy["to"]] for copy in instance["others"]]
    assert others == [*instance["lines"][MAX_SHOWN_COPIES:], [0, 1]]
    assert len(list((tmp_path / "images/n").glob("*-source.webp"))) == MAX_SHOWN_COPIES


def test_labels_go_beyond_z(tmp_path):
    """The 26 letters are followed by aa, ab, ..."""
    instance = write_instance(tmp_path, make_instance(range(0, 840, 30), [(0, i) for i in range(1, 28)]))
    assert [instance["regions"][i]["label"] for i in (0, 25, 26, 27)] == ["1a", "1z", "1aa", "1ab"]


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


def test_entry_holds_the_evidence(tmp_path, scene):
    """The entry on disk tells verdict, regions and map; its files are complete and the cut-outs without loss."""
    image, detection = scene
    entry = write_entry(tmp_path, "n", "/x/a.png", image, detection)
    assert entry == read_entry(tmp_path, "n") and entry["verdict"] == "found"
    (instance,), (copy,) = entry["instances"], entry["instances"][0]["copies"]
    assert [region["label"] for region in instance["regions"]] == ["1a", "1b"]
    assert instance["regions"][1]["box"] == [60, 50, 12, 12] and instance["area"] == 288
    assert copy["identical"] == 1.0 and copy["displacement"] == [50, 40] and (copy["from"], copy["to"]) == (0, 1)
    assert (copy["support"], copy["ncc"]) == (40, 1.0)
    folder = tmp_path / "images/n"
    assert all((folder / file).stat().st_size for file in entry_files(entry))
    source = cv2.imread(str(folder / copy["source"]))[..., ::-1]
    assert (source == image[4:28, 4:28]).all()  # with a margin of 6 px
    grid = cv2.imread(str(folder / "grid.png"), cv2.IMREAD_UNCHANGED)  # BGRA; instance 1 has the first colour, #E69F00
    assert grid[0, 0].tolist() == [0x00, 0x9F, 0xE6, 150] and not grid[1:].any()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["n"]  # nothing temporary stays behind


def test_verdicts_of_other_entries(tmp_path):
    """An image without findings is clean; one that could not be examined has an error and the place in its PDF."""
    detection = Detection((20, 30), 0.0, (), 0.1)
    assert write_entry(tmp_path, "n", "a.png", np.zeros((20, 30, 3), np.uint8), detection)["verdict"] == "clean"
    entry = error_entry("n", "/x/a.pdf", "cut off", page=3, figure=2, box=(1, 2, 3, 4))
    assert (entry["verdict"], entry["error"], entry["page"], entry["box"]) == ("error", "cut off", 3, [1, 2, 3, 4])
    assert list(entry_files(entry)) == []


def test_truth_is_compared_with_findings(tmp_path, scene):
    """Each true and each found instance gets the F1 of its partner, 0 without one; authentic: all are false."""
    image, detection = scene
    found = detection.instances[0].mask
    elsewhere = np.zeros_like(found)
    elsewhere[70:78, 2:10] = True
    truth = np.stack([elsewhere, found])
    record = score_image("a", detection.masks, truth, 0.9, 1.5)
    entry = write_entry(tmp_path, "n", "a.png", image, detection, truth=truth, record=record)
    assert entry["truth"]["object_f1"] == 0.5  # one of two found
    assert [t["f1"] for t in entry["truth"]["instances"]] == [0.0, 1.0]
    assert [t["side"] for t in entry["truth"]["instances"]] == [8.0, 12.0]
    assert entry["instances"][0]["f1"] == 1.0
    authentic = write_entry(tmp_path, "n", "a.png", image, detection, truth=truth[:0])
    assert authentic["truth"] == {"object_f1": 0.0, "instances": []} and authentic["instances"][0]["f1"] == 0.0


def test_names_are_safe_and_stable():
    """Names hold safe characters only, tell equal file names apart, and are the same in every run."""
    name = unique_name("/x/<img src=x> ü\n.png", 3, 2)
    assert re.fullmatch(r"[A-Za-z0-9._-]+-p3-f2-[0-9a-f]{12}", name)
    assert unique_name("/x/a.png") != unique_name("/y/a.png")
    assert unique_name("/x/a.png") == unique_name("/x/a.png")
    assert len(unique_name("/" + "a" * 300 + ".png", 12, 3)) <= 80
    assert re.fullmatch(r"[a-z0-9-]+", unique_name("/x/\udcff.png"))


# The page ---------------------------------------------------------------------------------------------------------

HOSTILE = "/in/<img src=x onerror=alert(1)></script><script>alert(2)</script>\u2028'\"&\udcff.png"


def page_of(folder, scene, path="a.png", **options):
    """A page with one image on it: its path, its text, and its one entry as the script reads it."""
    write_entry(folder, "n", path, *scene)
    page = write_page(folder, lambda: [read_entry(folder, "n")], **({"title": "t", "run": "r"} | options))
    text = page.read_text()
    block = re.search('<script type="application/json" id="images">(.*?)</script>', text, re.S)
    (entry,) = json.loads(block.group(1))
    return text, entry


def test_hostile_names_are_escaped(tmp_path, scene):
    """No markup in a path or title reaches the page; the path itself arrives unchanged."""
    text, entry = page_of(tmp_path, scene, HOSTILE, title=HOSTILE)
    assert entry["path"] == HOSTILE
    assert "<img src=x" not in text and "alert(2)</script>" not in text


def test_small_page_contains_its_images(tmp_path, scene):
    """All images are data URIs, and nothing is loaded from elsewhere."""
    text, entry = page_of(tmp_path, scene)
    thumb = base64.b64decode(entry["thumb"].removeprefix("data:image/webp;base64,"))
    assert thumb == (tmp_path / "images/n/thumb.webp").read_bytes()
    assert entry["instances"][0]["copies"][0]["source"].startswith("data:image/webp;base64,")
    assert not re.search(r"(?:src|href)=[\"']?https?:", text)


def test_large_page_refers_to_images(tmp_path, scene):
    """Beyond a size, the page names the files beside it and says so."""
    text, entry = page_of(tmp_path, scene, embed_bytes=1000)
    assert entry["thumb"] == "images/n/thumb.webp" and (tmp_path / entry["thumb"]).exists()
    assert "data:image" not in text and "pass both on together" in text


def test_only_own_script_may_run(tmp_path):
    """The page has one script, and its Content-Security-Policy allows the script with that hash only."""
    text = write_page(tmp_path, list, title="t", run="r").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_memory_does_not_grow(tmp_path, scene):
    """A page of 220 images takes no more memory than one of 20: entries are streamed."""
    entry = write_entry(tmp_path, "n", "a.png", *scene)

    def peak(count):
        tracemalloc.start()
        copies = (json.loads(json.dumps(entry)) for _ in range(2 * count))  # the page reads all entries twice
        write_page(tmp_path, lambda: itertools.islice(copies, count), title="t", run="r", embed_bytes=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(5)
    assert peak(220) < peak(20) + 300_000


# Plots and the page of a training ---------------------------------------------------------------------------------


def test_roc_points_by_hand():
    """Four authentic and four forged images, three thresholds; a score of 0 passes none."""
    x, y = roc_points(np.array([0, 0, 0.6, 0]), np.array([0.9, 0.6, 0.3, 0]))
    assert x.tolist() == [0, 0, 0.25, 0.25] and y.tolist() == [0, 0.25, 0.5, 0.75]


def test_scored_page_holds_plots(tmp_path, scene):
    """Where the truth is known the page shows the three plots and the table."""
    image, detection = scene
    truth = np.stack([detection.instances[0].mask])
    entries = [write_entry(tmp_path, f"n{k}", "a.png", image, detection, truth=truth[:k]) for k in (0, 1)]
    text = write_page(tmp_path, lambda: entries, title="t", run="r", table=[["", "both"], ["oF1", "0.5"]]).read_text()
    assert text.count("data:image/svg+xml;base64,") == 3 and "<td>0.5</td>" in text
    assert all(name in text for name in ("F1 by size of the copies", "Scores of authentic and forged", "ROC curve"))


def test_curves_and_run_page(tmp_path):
    """Curves skip what was not measured; the page of a run embeds them and escapes its title."""
    log = [{"epoch": e, "loss": 2 / (e + 1), "of1": None if e % 2 else e / 10, "learning_rate": 1e-3} for e in range(6)]
    png = plot_training(log, tmp_path / "curves.png", x="epoch")
    assert cv2.imread(str(png)).shape[2] == 3
    panels = select_curves(log, "epoch", CURVES)
    assert panels["validation oF1"] == {"of1": [(0, 0.0), (2, 0.2), (4, 0.4)]}
    tables = [("Best", [["", "oF1"], ["a", 0.5]])]
    page = write_run_page(tmp_path / "index.html", title="Run <a>", figures=[("Curves", png)], tables=tables)
    text = page.read_text()
    assert "Run &lt;a&gt;" in text and base64.b64encode(png.read_bytes()).decode() in text and "<td>0.5</td>" in text
    with pytest.raises(ValueError, match="no row of the log"):
        plot_training([{"epoch": 1}], tmp_path / "nothing.png")
