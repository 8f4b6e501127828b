"""The examples run in their smallest form as a reader runs them, and each says what it shows and how long it takes."""

import ast
import runpy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.simulation.engine import Engine

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
LINES = {"photographs": "linear-probe: ", "deployment": "Accuracy at the sites", "to_a_device": "other labels: "}
DOMAINS, CLASSES = ("amazon", "caltech", "dslr", "webcam"), ("backpack", "bike", "mug")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six images of each of three classes in each of four domains: a colour for a class, a brightness for a domain."""
    rng = np.random.default_rng(0)
    for number, domain in enumerate(DOMAINS):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "office" / domain / name
            folder.mkdir(parents=True)
            for image in range(6):
                pixels = 60 + 30 * number + 80 * np.eye(3)[label] + rng.normal(0, 10, (24, 24, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    return tmp_path / "office"


@pytest.fixture
def run(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], str]:
    """What an example prints with --smoke; simulations run without worker processes."""
    for module in ("simulate", "comparison"):
        monkeypatch.setattr(f"fedgraft.simulation.{module}.open_engine", lambda resources: nullcontext(engine))

    def call(name: str) -> str:
        path = EXAMPLES[0].with_name(f"{name}.py")
        words = ["--smoke", "--out", str(tmp_path / "out")]
        words += ["--data", str(photographs)] if "required=True" in path.read_text() else []
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_it_runs_in_its_smallest_form(name: str, run: Callable[[str], str]) -> None:
    printed = run(name)
    assert printed
    assert LINES.get(name, "") in printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_its_head_says_what_it_shows_and_how_long_it_takes(path: Path) -> None:
    head = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert "Shows: " in head
    assert "Takes: " in head
    assert f"python examples/{path.name}" in head
    assert len(path.read_text().splitlines()) <= 70
    assert path.name in path.with_name("README.md").read_text()
