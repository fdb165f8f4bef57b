"""A headless Chromium for the tests of the page, and what a person does with a page."""

import shutil
import time

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.support.ui import Select

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


def start_chromium(profile):
    """A browser with an empty profile in this folder, which keeps the log of its console."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def resize(driver, width, height):
    """Set the window's size in CSS pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def css(driver, selector):
    """The first element that a CSS selector finds."""
    return driver.find_element("css selector", selector)


def every(driver, selector):
    """All elements that a CSS selector finds."""
    return driver.find_elements("css selector", selector)


def texts(driver, selector):
    """Texts of all elements in one call, which is much faster than one call for each."""
    return driver.execute_script(f"return [...document.querySelectorAll('{selector}')].map((e) => e.innerText)")


def button(driver, text):
    """The first button with this text."""
    return driver.find_element("xpath", f"//button[normalize-space()='{text}']")


def press(driver, *keys):
    """Press keys, whatever has the focus."""
    ActionChains(driver).send_keys(*keys).perform()


def choose(driver, id, text):
    """Choose an option of a select element by its text."""
    Select(css(driver, f"#{id}")).select_by_visible_text(text)


def cards(driver):
    """File names on the cards, in order."""
    return texts(driver, ".card .name")


def open_image(driver, name):
    """Click on an image's card and wait until the image is open."""
    every(driver, ".card a")[cards(driver).index(name)].click()
    wait(lambda: css(driver, "#image-title").text == name)


def wait(condition, seconds=5.0):
    """Until the condition holds; what it looks for may not be on the page yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def visibility(driver, selector):
    """Computed value of the CSS property visibility."""
    return css(driver, selector).value_of_css_property("visibility")
