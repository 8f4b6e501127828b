"""Headless Chromium for pictures: a page at a width, light or dark, whole or one element of it, as WebP."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

_SECONDS = 60
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


@contextmanager
def browser() -> Iterator[Any]:
    """A driver of headless Chromium; needs chromium and chromedriver on the PATH."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in _FLAGS:
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    )
    try:
        yield driver
    finally:
        driver.quit()


def shoot(
    driver: Any, address: str, path: Path, *, width: int, ready: str, height: int | None = None, dark: bool = False,
    element: str = "", scale: float = 1.5, margin: int = 24,
) -> Path:  # fmt: skip
    """Save a picture of a page.

    Args:
        ready: JavaScript that returns whether the page has all that it shows.
        height: of the picture in CSS pixels; that of the whole page or element, if None.
        element: a selector; the picture is of this element alone.
        scale: pixels for each CSS pixel.
        margin: CSS pixels of the page to show around an element.
    """
    from selenium.webdriver.support.ui import WebDriverWait

    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    _size(driver, width, 1000, scale)
    driver.get(address)
    whole = f"return document.fonts.status === 'loaded' && Boolean({ready})"
    WebDriverWait(driver, _SECONDS).until(lambda page: page.execute_script(whole))
    script = "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
    script += "return [box.x, box.y, box.width, box.height]"
    left, top, wide, high = driver.execute_script(script, element or "html")
    around = margin if element else 0
    clip = {"x": left - around, "y": top - around, "width": wide + 2 * around, "scale": 1}
    clip["height"] = min(high + 2 * around, height or high + 2 * around)
    _size(driver, width, int(top + clip["height"]) + 1, scale)
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB").save(path, quality=82, method=6)
    return path


def _size(driver: Any, width: int, height: int, scale: float) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
