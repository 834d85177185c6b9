"""A picture of a report's page for the docs, by headless Chromium.

python -m benchmarks.screenshot runs/fidelity/sqs-0/report.html docs/images/report.png [--height 2200] [--top 0]
"""

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import parsed

_BROWSERS = ("chromium", "google-chrome", "chromium-browser")


def chromium() -> Any:
    """Headless Chromium, driven by Selenium, which keeps what pages log and ask for; None where it is not installed."""
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    for flag in ("--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)):
        options.add_argument(flag)
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def resize(browser: Any, width: int, height: int) -> None:
    """Gives the page this many pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def opened(browser: Any, page: Path | str) -> None:
    """Opens a report, a file or its address, and waits until it has drawn itself."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page if isinstance(page, str) else page.absolute().as_uri())
    ready = "return document.documentElement.dataset.ready === 'yes'"
    WebDriverWait(browser, 30).until(lambda browser: browser.execute_script(ready))


def main(
    page: Path,
    picture: Path,
    /,
    width: int = 1200,
    height: int = 2200,
    top: int = 0,
) -> None:
    """Takes the picture.

    Args:
        page: A report.html.
        picture: The .png to write.
        width: Of the window, in pixels.
        height: Of the picture.
        top: Where on the page it begins.
    """
    browser = chromium()
    if browser is None:
        raise SystemExit("error: Chromium and ChromeDriver are needed")
    try:
        resize(browser, width, top + height)
        opened(browser, page)
        browser.execute_script("return new Promise((done) => setTimeout(done, 1000))")
        with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as whole:
            whole.crop((0, top, width, top + height)).save(picture)
    finally:
        browser.quit()


if __name__ == "__main__":
    parsed(main)
