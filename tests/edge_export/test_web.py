"""The page in headless Chromium: it must predict what Python predicts."""

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.device import Predictor
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export import web
from tests.chromium import MISSING, chromium
from tests.edge_export.conftest import PAGE

pytestmark = pytest.mark.slow
needs_browser = pytest.mark.skipif(not PAGE or MISSING, reason="no Chromium or no npm, and this is not CI")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


@pytest.fixture(scope="module")
def site(exported_again: Path) -> Iterator[tuple[Path, str]]:
    """A bundle with a page, and the address of a plain file server that serves it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(exported_again)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield exported_again, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    with chromium(tmp_path_factory.mktemp("profile"), 900, 1100) as driver:
        yield driver


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sizes above, below and at the encoder's, upright, wide and turned by EXIF, losslessly kept."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate([(48, 48), (97, 61), (31, 200), (640, 480), (5, 3)]):
        coarse = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{number}.png")
        exif = image.getexif()
        exif[0x0112] = 6 if number == 1 else 1
        image.save(paths[-1], exif=exif)
    Image.open(paths[3]).convert("L").save(folder / "gray.png")
    return [*paths, folder / "gray.png"]


def _answer(browser: Any, path: Path) -> dict[str, float]:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script("document.getElementById('answer').hidden = true")
    browser.find_element(By.ID, "file").send_keys(str(path))
    WebDriverWait(browser, 60).until(
        lambda driver: (
            driver.find_element(By.ID, "answer").is_displayed() or driver.find_element(By.ID, "error").is_displayed()
        )
    )
    assert not browser.find_element(By.ID, "error").text
    rows = browser.execute_script("return [...document.querySelectorAll('#classes li')].map(row => ({...row.dataset}))")
    return {row["label"]: float(row["probability"]) for row in rows}


@needs_browser
def test_the_page_answers_as_python_does_on_the_same_files(
    site: tuple[Path, str], browser: Any, images: list[Path]
) -> None:
    bundle, address = site
    predictor = Predictor(bundle)
    browser.get(address)
    for path in images:
        expected = predictor.predict(path)
        found = _answer(browser, path)
        assert next(iter(found)) == expected.label
        for label, probability in found.items():
            assert probability == pytest.approx(expected.probabilities[label], abs=0.02)
        unknown = browser.execute_script("return !document.getElementById('unknown').hidden")
        assert unknown == expected.is_unknown


@needs_browser
@pytest.mark.parametrize(
    ("change", "levels"),
    [
        ({}, 0),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0),
        ({"include_top": True}, 0),
        # Pillow squeezes rows or columns first, whichever its version finds cheaper, and rounds to 8 bits in between.
        ({"size": {"height": 40, "width": 56}, "do_center_crop": False, "resample": 2, "do_normalize": False}, 6),
    ],
    ids=["own", "offset", "include_top", "no crop"],
)
def test_the_page_prepares_pixels_bit_for_bit_as_the_device_does(
    change: dict[str, Any], levels: int, site: tuple[Path, str], browser: Any, images: list[Path]
) -> None:
    bundle, address = site
    config = {**json.loads((bundle / "preprocessor_config.json").read_text()), **change}
    preprocessing = Preprocessing.from_config(config)
    browser.get(address)
    for path in images:
        script = """
            const [file, config, done] = arguments, bytes = Uint8Array.from(file);
            (async () => {
                const { decode, preprocess } = await import("/web/pixels.js");
                const image = await decode(new Blob([bytes]));
                done([...preprocess(image, config).values]);
            })().catch((error) => done(String(error)));
        """
        found = browser.execute_async_script(script, list(path.read_bytes()), config)
        expected = preprocessing.pixels(Image.open(path)).flatten()
        difference = np.abs(np.asarray(found, np.float32) - expected).max()
        assert difference <= levels / 255, path.name


@needs_browser
def test_a_broken_image_is_reported(site: tuple[Path, str], browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    (tmp_path / "broken.png").write_bytes(b"not an image")
    browser.get(site[1])
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "broken.png"))
    error = browser.find_element(By.ID, "error")
    WebDriverWait(browser, 60).until(lambda _: error.is_displayed())
    assert "broken.png cannot be decoded" in error.text


def test_the_page_asks_nothing_of_another_server() -> None:
    page = Path(web.__file__).parent / "page"
    for path in page.iterdir():
        assert "http" not in path.read_text(), path.name


def test_without_npm_the_page_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--web needs npm"):
        web.page_files()


def test_another_archive_than_the_expected_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nprintf changed > "$5/x.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="unexpected SHA-512"):
        web.page_files()
    assert json.dumps(sorted(map(str, tmp_path.glob("cache/**/*.wasm")))) == "[]"
