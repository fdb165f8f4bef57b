"""The evidence page in a real headless Chromium, used as a person would use it."""

import base64
import json
import shutil
import time
from dataclasses import replace

import cv2
import numpy as np
import pypdfium2
import pytest
from selenium.webdriver import Keys

from copymove.copies import Copy, Instance
from copymove.regions import Region
from detector import Detection
from report.entries import error_entry, read_entry, unique_name, write_entry
from report.page import write_page
from tests.chromium import (
    CHROMIUM,
    DRIVER,
    button,
    cards,
    choose,
    css,
    every,
    open_image,
    press,
    resize,
    start_chromium,
    texts,
    visibility,
    wait,
)

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
)

HOSTILE = "<img src=x onerror=alert(1)>.png"
FOUND = 4  # images with one finding each, scores 0.6, 0.7, 0.8, 0.9
QUIET = 70  # images without


def make_image(i: int) -> tuple[np.ndarray, Detection]:
    """An image in which a square of 30 pixels stands twice, the second time 60 px to the right and 40 px down."""
    rng = np.random.default_rng(i)
    image = cv2.GaussianBlur(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8), (0, 0), 1)
    image[60:90, 80:110] = image[20:50, 20:50]
    square, mask = np.ones((30, 30), bool), np.zeros((120, 160), bool)
    mask[20:50, 20:50] = mask[60:90, 80:110] = True
    score = 0.6 + 0.1 * i
    affine = np.array([[1.0, 0, 60], [0, 1, 40]])
    copy = Copy("exact", affine, 600, 1.0, score, Region(20, 20, square), Region(80, 60, square))
    grid = np.zeros((3, 4), np.int64)
    grid[0, 0] = 1
    anomaly = rng.random((3, 4)).astype(np.float32)
    return image, Detection((120, 160), score, (Instance(mask, score, (copy,)),), 0.4, True, grid, anomaly, "")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report on disk: images with findings (one has a hostile name), without, and one that could not be read."""
    folder = tmp_path_factory.mktemp("report")
    names = []
    for i in range(FOUND):
        path = f"/figures/{HOSTILE if i == 2 else f'found{i}.png'}"
        names.append(unique_name(path))
        write_entry(folder, names[-1], path, *make_image(i))
    plain = np.full((90, 120, 3), 180, np.uint8)
    for i in range(QUIET):
        path = f"/figures/quiet{i}.png"
        names.append(unique_name(path))
        write_entry(folder, names[-1], path, plain, Detection((90, 120), 0.0, (), 0.1, reason="all alike"))

    def entries():
        yield from (read_entry(folder, name) for name in names)
        yield error_entry("broken", "/figures/broken.png", "cut off")

    return write_page(folder, entries, title="A paper's figures", run="run1")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser with an empty profile."""
    driver = start_chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page just opened, at 1280 px, with nothing reviewed yet; nothing may have gone wrong when a test ends."""
    resize(chromium, 1280, 900)
    chromium.get(page.as_uri())
    chromium.execute_script("localStorage.clear()")
    chromium.get("about:blank")
    chromium.get(page.as_uri())
    chromium.get_log("browser")
    yield chromium
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


# Gallery ----------------------------------------------------------------------------------------------------------


def test_summary_comes_first(browser):
    """The heading is followed by what was found, in a sentence and in numbers."""
    assert css(browser, "h1").text == "A paper's figures"
    assert css(browser, "#headline").text == "4 of 74 images have findings: regions that appear more than once."
    assert dict(zip(texts(browser, ".counts dt"), texts(browser, ".counts dd"), strict=True)) == {
        "images examined": "74",
        "images with findings": "4",
        "findings": "4",
        "could not be examined": "1",
        "findings reviewed": "0 of 4",
    }


def test_hostile_names_stay_text(browser):
    """Markup in a path or a note is shown as text and never becomes an element."""
    assert cards(browser)[1] == HOSTILE
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    open_image(browser, HOSTILE)
    button(browser, "Confirm").click()
    css(browser, ".note").send_keys("<b>bold</b>")
    browser.refresh()
    assert css(browser, ".note").get_attribute("value") == "<b>bold</b>"
    assert every(browser, "#image-view b") == []


def test_filter_by_name(browser):
    """A part of the path chooses images; where none is left the page says so."""
    css(browser, "#query").send_keys("found1")
    assert cards(browser) == ["found1.png"]
    assert css(browser, "#shown").text == "1 of 75 images shown"
    css(browser, "#query").clear()
    css(browser, "#query").send_keys("no such name")
    assert cards(browser) == [] and "No image passes" in css(browser, "#gallery").text


def test_filter_by_verdict_and_score(browser):
    """The list shows images of one verdict, or from a score upwards."""
    choose(browser, "show", "with findings")
    assert len(cards(browser)) == 4
    choose(browser, "show", "could not be examined")
    assert cards(browser) == ["broken.png"] and "cut off" in css(browser, ".card").text
    choose(browser, "show", "all images")
    slider = css(browser, "#threshold")
    slider.click()  # in the middle: 0.45
    assert cards(browser) == ["found3.png", HOSTILE, "found1.png", "found0.png"]
    for _ in range(30):
        press(browser, Keys.ARROW_RIGHT)  # 0.01 more
    assert float(css(browser, "#threshold-value").text) == pytest.approx(0.75, abs=0.02)
    assert cards(browser) == ["found3.png", HOSTILE]


def test_order(browser):
    """By score first; by name as people count, 2 before 10."""
    assert cards(browser)[:4] == ["found3.png", HOSTILE, "found1.png", "found0.png"]
    choose(browser, "sort", "name")
    assert cards(browser)[:4] == [HOSTILE, "broken.png", "found0.png", "found1.png"]
    choose(browser, "show", "nothing found")
    assert cards(browser)[:3] == ["quiet0.png", "quiet1.png", "quiet2.png"]  # 2 before 10


def test_scrolling_draws_more_images(browser):
    """60 cards at first, the others when one scrolls; images load only when they are needed."""
    assert len(cards(browser)) == 60
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait(lambda: len(cards(browser)) == 75)
    images = browser.execute_script(
        "return [...document.querySelectorAll('.thumb img')].every((i) => i.loading === 'lazy')"
    )
    assert images


# One image ------------------------------------------------------------------------------------------------------


def test_image_shows_the_evidence(browser):
    """An open image shows sentence, aligned cut-outs, labels and measurements."""
    open_image(browser, "found3.png")
    assert css(browser, ".verdict-line").text == "1 finding · score 0.90 out of 1"
    assert css(browser, ".sentence").text == (
        "1a → 1b This region appears again 60 px to the right and 40 px down, neither rotated nor scaled; "
        "correlation 1.00 over 900 px."
    )
    assert "Inside the regions all pixels are identical." in css(browser, ".tiles").text
    loaded = "[...document.querySelectorAll('#image-view img:not([hidden])')].every((i) => i.naturalWidth > 0)"
    wait(lambda: browser.execute_script(f"return {loaded}"))
    assert texts(browser, ".tag") == ["1a", "1b"]
    css(browser, ".measures summary").click()
    assert "600 pixels in identical blocks" in css(browser, ".measures").text


def test_switches_and_space_key(browser):
    """Overlay, lines, maps and zoom react to their buttons, the overlay to the space key too."""
    open_image(browser, "found3.png")
    assert visibility(browser, ".canvas .outlines") == "visible"
    press(browser, " ")
    assert visibility(browser, ".canvas .outlines") == "hidden"
    assert button(browser, "Overlay").get_attribute("aria-pressed") == "false"
    press(browser, " ")
    assert visibility(browser, ".canvas .outlines") == "visible"
    button(browser, "Lines").click()
    assert visibility(browser, ".canvas line") == "hidden" and visibility(browser, ".canvas .tint") == "visible"
    grid, anomaly = css(browser, ".canvas .map.grid"), css(browser, ".canvas .map.anomaly")
    assert not grid.is_displayed() and not anomaly.is_displayed()
    button(browser, "Model grid").click()
    assert grid.is_displayed()
    button(browser, "Anomaly map").click()
    assert anomaly.is_displayed() and "Cosine distance" in css(browser, ".legend").text
    before = css(browser, ".canvas").size["width"]
    button(browser, "2×").click()
    assert css(browser, ".canvas").size["width"] == pytest.approx(2 * before, rel=0.05)  # less a scroll bar


def test_no_maps_without_a_model(browser):
    """The buttons of the model's maps are disabled where there was no model; the reason is shown."""
    choose(browser, "show", "nothing found")
    open_image(browser, "quiet0.png")
    assert not button(browser, "Model grid").is_enabled() and "all alike" in css(browser, ".reason").text


def test_keys_follow_the_filters(browser):
    """Arrow keys go through the images that the filters let through; Escape leads back to the card."""
    choose(browser, "show", "with findings")
    open_image(browser, "found3.png")
    assert not button(browser, "← Previous").is_enabled()
    for name in (HOSTILE, "found1.png", "found0.png"):
        press(browser, Keys.ARROW_RIGHT)
        wait(lambda name=name: css(browser, "#image-title").text == name)
    press(browser, Keys.ARROW_RIGHT)  # the last one stays
    assert css(browser, ".crumbs nav span").text == "4 of 4"
    press(browser, Keys.ARROW_LEFT)
    wait(lambda: css(browser, "#image-title").text == "found1.png")
    press(browser, Keys.ESCAPE)
    wait(lambda: css(browser, "#gallery-view").is_displayed())
    assert "found1.png" in browser.switch_to.active_element.text  # back on the card one came from
    browser.back()
    wait(lambda: css(browser, "#image-title").text == "found1.png")


def test_typing_is_no_command(browser):
    """Arrow and space keys inside a note change only the note."""
    open_image(browser, "found3.png")
    css(browser, ".note").send_keys("a b", Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert css(browser, "#image-title").text == "found3.png" and visibility(browser, ".canvas .outlines") == "visible"


def test_comparison_slides_and_flickers(browser):
    """The slider moves the border between source and copy; Flicker shows them in turn until pressed again."""
    open_image(browser, "found3.png")
    slider = css(browser, ".compare-tools input")
    slider.send_keys(Keys.HOME)
    over = css(browser, ".compare .over")
    assert "0%" in over.value_of_css_property("clip-path")
    button(browser, "Flicker").click()
    states = set()
    end = time.monotonic() + 3
    while len(states) < 2 and time.monotonic() < end:
        states.add(over.value_of_css_property("visibility"))
        time.sleep(0.1)
    assert states == {"visible", "hidden"}
    button(browser, "Flicker").click()
    assert button(browser, "Flicker").get_attribute("aria-pressed") == "false"


def test_locate_enlarges_the_region(browser):
    """Locate zooms in and scrolls the region into sight."""
    open_image(browser, "found3.png")
    button(browser, "Locate").click()
    assert button(browser, "2×").get_attribute("aria-pressed") == "true"
    stage, tag = css(browser, ".stage").rect, css(browser, ".tag").rect
    assert (
        stage["x"] <= tag["x"] <= stage["x"] + stage["width"]
        and stage["y"] <= tag["y"] + tag["height"] <= stage["y"] + stage["height"]
    )


# Verdicts ---------------------------------------------------------------------------------------------------------


def test_verdicts_survive_and_travel(browser, tmp_path):
    """Verdicts and notes survive a restart, filter the list, and come back from an exported file."""
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    open_image(browser, "found3.png")
    button(browser, "Confirm").click()
    css(browser, ".note").send_keys("Same blot, see 3b")
    press(browser, Keys.ESCAPE, Keys.ESCAPE)  # out of the note, back to all images
    wait(lambda: css(browser, "#gallery-view").is_displayed())
    open_image(browser, "found1.png")
    button(browser, "Dismiss").click()
    page = browser.current_url
    browser.get("about:blank")
    browser.get(page)
    assert button(browser, "Dismiss").get_attribute("aria-pressed") == "true"
    button(browser, "Dismiss").click()  # taken back
    button(browser, "Dismiss").click()
    css(browser, ".crumbs a").click()
    wait(lambda: css(browser, "#gallery-view").is_displayed())
    assert "2 of 4" in css(browser, "#counts").text
    choose(browser, "review", "confirmed")
    assert cards(browser) == ["found3.png"]
    choose(browser, "review", "still to review")
    assert cards(browser) == [HOSTILE, "found0.png"]

    button(browser, "Export verdicts").click()
    file = tmp_path / "verdicts-run1.json"
    wait(file.exists)
    content = json.loads(file.read_text())
    assert content["run"] == "run1"
    given = {f["path"]: (f["verdict"], f["note"]) for f in content["findings"]}
    assert given == {
        "/figures/found3.png": ("confirmed", "Same blot, see 3b"),
        "/figures/found1.png": ("dismissed", ""),
    }
    assert content["findings"][0]["evidence"][0].startswith("This region appears again 60 px")

    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert "0 of 4" in css(browser, "#counts").text
    css(browser, "#import-file").send_keys(str(file))
    wait(lambda: "2 of 4" in css(browser, "#counts").text)
    assert css(browser, "#message").text == "Imported 2 of 2 verdicts."


def test_wrong_import_is_refused(browser, tmp_path):
    """A file without verdicts is refused with a sentence."""
    (tmp_path / "other.json").write_text("[1]")
    css(browser, "#import-file").send_keys(str(tmp_path / "other.json"))
    wait(lambda: "does not hold verdicts" in css(browser, "#message").text)


# Truth ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored_page(tmp_path_factory):
    """A report with truth: a missed instance beside a found one, a false one, and one that only the model proposes."""
    folder = tmp_path_factory.mktemp("scored")
    elsewhere = np.zeros((120, 160), bool)
    elsewhere[100:115, 5:20] = True
    entries = []
    for i, name in enumerate(("partly", "false", "model")):
        image, found = make_image(i)
        mask = found.instances[0].mask
        truth = {"partly": [mask, elsewhere], "false": [], "model": [mask]}[name]
        if name == "model":
            found = replace(found, instances=(Instance(mask, found.score, ()),))
        truth = np.array(truth, bool).reshape(-1, 120, 160)
        entries.append(write_entry(folder, name, f"/figures/{name}.png", image, found, truth=truth))
    return write_page(folder, lambda: entries, title="Scored", run="run2", table=[["", "both"], ["oF1", "0.500"]])


@pytest.fixture
def scored(chromium, scored_page):
    """The page with truth just opened; nothing may have gone wrong when a test ends."""
    resize(chromium, 1280, 900)
    chromium.get(scored_page.as_uri())
    yield chromium
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def test_truth_orders_and_filters(scored):
    """With truth, the worst image comes first, and missed and false instances can be chosen."""
    assert cards(scored) == ["false.png", "partly.png", "model.png"]
    assert texts(scored, ".card .state:not(.open)") == ["oF1 0.00, 1 false", "oF1 0.50, 1 missed", "oF1 1.00"]
    numbers = dict(zip(texts(scored, ".counts dt"), texts(scored, ".counts dd"), strict=True))
    assert (numbers["mean oF1"], numbers["instances missed"], numbers["false instances"]) == ("0.500", "1", "1")
    assert numbers["findings by the model only"] == "1"
    choose(scored, "show", "with missed instances")
    assert cards(scored) == ["partly.png"]
    choose(scored, "show", "with false instances")
    assert cards(scored) == ["false.png"]


def test_truth_is_drawn(scored):
    """True instances are dashed over the image; a finding of the model alone says that nothing confirms it."""
    open_image(scored, "partly.png")
    assert len(every(scored, ".canvas .truth")) == 2 and len(every(scored, ".canvas .truth.missed")) == 1
    css(scored, ".crumbs a").click()
    open_image(scored, "model.png")
    assert "1 finding, by the model only" in css(scored, ".verdict-line").text.lower()
    assert "no aligned copy that confirms it" in css(scored, ".sentence").text


# Widths, paper, offline -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_width(browser, width):
    """On a phone and on a desk, nothing is wider than the window."""
    resize(browser, width, 844)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    open_image(browser, "found3.png")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_print_holds_all_evidence(browser, tmp_path):
    """The printed page has the summary, the cut-outs and the verdict of each finding, then the other names."""
    open_image(browser, "found3.png")
    button(browser, "Confirm").click()
    press(browser, Keys.ESCAPE)
    wait(lambda: css(browser, "#gallery-view").is_displayed())
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    with pypdfium2.PdfDocument(base64.b64decode(printed["data"])) as document:
        texts = [" ".join(page.get_textpage().get_text_range().split()) for page in document]
        images = [len(list(page.get_objects(filter=[3]))) for page in document]
    everything = " ".join(texts)
    assert "4 of 74 images have findings" in texts[0]
    assert everything.count("This region appears again") == FOUND
    assert "Reviewer: confirmed." in everything and everything.count("no verdict yet") == FOUND - 1
    assert HOSTILE in everything and "quiet69.png" in everything and "Export verdicts" not in everything
    assert sum(images) >= 4 * FOUND  # the image, source, copy and difference of each


def test_nothing_is_fetched(browser):
    """The page loads nothing from a network and may not do so."""
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter((e) => /^https?:/.test(e.name)).length"
        )
        == 0
    )
    blocked = browser.execute_async_script(
        "fetch('https://example.org').then(() => arguments[0]('got'), () => arguments[0]('no'))"
    )
    assert blocked == "no"
    browser.get_log("browser")  # the refusal is logged


def test_five_hundred_images(chromium, page, tmp_path):
    """A large page with its images beside it opens in time and filters quickly."""
    folder = tmp_path / "report"
    shutil.copytree(page.parent / "images", folder / "images")
    known = [json.loads(file.read_text()) for file in sorted(folder.glob("images/*/entry.json"))]

    def entries():
        for i in range(500):
            entry = json.loads(json.dumps(known[i % FOUND]))
            yield entry | {"path": f"/many/{i}.png"}

    large = write_page(folder, entries, title="Many", run="many", embed_bytes=1_000_000)
    assert "data:image" not in large.read_text()
    start = time.monotonic()
    chromium.get(large.as_uri())
    wait(lambda: len(cards(chromium)) == 60)
    assert time.monotonic() - start < 10
    wait(lambda: chromium.execute_script("return document.querySelector('.thumb img').naturalWidth") == 160)
    css(chromium, "#query").send_keys("499")
    assert cards(chromium) == ["499.png"]
    assert [e["message"] for e in chromium.get_log("browser")] == []
