"""The page in headless Chromium: on a desk and on a phone, in the light and in the dark, by keyboard alone."""

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from fedgraft.watch.app import application
from fedgraft.watch.found import open_source
from tests.chromium import MISSING, PATIENCE, chromium
from tests.watch.conftest import WrittenRun, write_comparison

needs_browser = pytest.mark.skipif(MISSING, reason="no Chromium, and this is not CI")
Page = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    with chromium(tmp_path_factory.mktemp("profile"), 1280, 1000) as driver:
        yield driver


@pytest.fixture
def opened(browser: Any) -> Iterator[Page]:
    """Opens the page of a directory at a width, in the dark or not, and waits for what it shows."""
    servers = []

    def open_page(path: Path, width: int = 1280, dark: bool = False) -> Any:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        ended = threading.Event()
        app = application(open_source(path), tick=0.05, ended=ended.is_set)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        servers.append((server, thread, ended))
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        _until(browser, "return document.body.dataset.state")
        return browser

    yield open_page
    browser.get("about:blank")
    for server, thread, ended in servers:
        ended.set()
        server.should_exit = True
        thread.join(PATIENCE)
    faults = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not faults, "neither an error nor a refusal by the page's own policy"


def _until(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE, poll_frequency=0.05).until(lambda driver: driver.execute_script(script))


def _text(browser: Any, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))


def _press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


@needs_browser
@pytest.mark.slow
def test_a_run_fills_the_page_while_it_goes_on(opened: Page, run: WrittenRun) -> None:
    run.directory.path.mkdir()
    page = opened(run.directory.path)
    assert "No run has begun here yet" in _text(page, "#empty")
    run.begin()
    for number in range(3):
        run.round(number)
    _until(page, "return document.getElementById('round').textContent === 'Round 2 of 4'")
    assert _text(page, "#title") == "fedpgp on digits"
    assert "8.19 kB" in _text(page, "#cards")
    assert page.execute_script("return document.querySelectorAll('#accuracy canvas, #plane canvas').length") == 2
    assert _text(page, "#live") == "live"


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desk", "phone in the dark"])
def test_a_comparison_fits_the_screen_in_light_and_dark(opened: Page, tmp_path: Path, width: int, dark: bool) -> None:
    page = opened(write_comparison(tmp_path), width, dark)
    wide = page.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, "nothing makes the page itself scroll sideways"
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == dark
    assert len(re.findall("finished", _text(page, "#runs"))) == 4
    assert "promptfl(n_ctx=4)" in _text(page, "#entries-chart .legend")
    small = page.execute_script(
        "return [...document.querySelectorAll('main canvas')].filter(c => c.clientWidth > innerWidth).length"
    )
    assert small == 0


@needs_browser
@pytest.mark.slow
def test_everything_is_reached_and_read_by_keyboard(opened: Page, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    page = opened(write_comparison(tmp_path))
    _press(page, Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the figures"
    page.execute_script("document.querySelector('#accuracy .chart').focus()")
    _press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    _until(page, "return document.querySelector('#accuracy .legend').textContent.includes('Round 1')")
    page.execute_script("document.querySelector('#heat .heat').focus()")
    _press(page, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert re.match(r"Site 0, round 3: [\d.]+ %", _text(page, ".readout"))
    page.execute_script("document.querySelector('.pick[data-key=promptfl-seed0]').focus()")
    _press(page, Keys.ENTER)
    _until(page, "return document.getElementById('run-head').textContent === 'promptfl-seed0'")
    assert page.execute_script("return document.activeElement.dataset.key") == "promptfl-seed0", "the focus stays"
    page.execute_script("document.querySelector('#accuracy summary').focus()")
    _press(page, Keys.ENTER)
    _until(page, "return document.querySelectorAll('#accuracy details tbody tr').length === 5")


@needs_browser
@pytest.mark.slow
def test_hundreds_of_hostile_sites_are_sorted_and_filtered_as_text(opened: Page, tmp_path: Path) -> None:
    run = WrittenRun(tmp_path, sites=300, rounds=6).begin().finish()
    page = opened(run.directory.path)
    assert _text(page, "#shown") == "300 sites"
    page.find_element("id", "only-out").click()
    _until(page, "return document.getElementById('shown').textContent === '43 of 300 sites'")
    assert "onerror=" in _text(page, "#out")
    assert page.execute_script("return document.querySelectorAll('main img, main script').length") == 0
    page.find_element("id", "only-out").click()
    page.find_element("css selector", "#site-table button[data-key=accuracy]").click()
    column = "[...document.querySelectorAll('#site-table tbody tr td:nth-child(2)')]"
    shown = page.execute_script(f"return {column}.map(cell => parseFloat(cell.textContent))")
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == 300
    page.find_element("id", "find").send_keys("site 299")
    _until(page, "return document.getElementById('shown').textContent === '1 of 300 sites'")


def test_what_others_made_is_what_the_notice_says() -> None:
    page = files("fedgraft.watch") / "page"
    rows = re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (page / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 3
    for name, sha256 in rows:
        assert hashlib.sha256((page / name).read_bytes()).hexdigest() == sha256
