"""A package of somebody else's adds something behind every door, without a change to fedgraft."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "extension"
PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds the package installed."""
    target = tmp_path_factory.mktemp("site-packages")
    source = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "extension")  # pip builds in it
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def _fedgraft(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "fedgraft", *words]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("door", ["methods", "strategies", "data", "protocols", "backbones"])
def test_what_the_package_adds_is_listed_behind_its_door(door: str, environment: dict[str, str]) -> None:
    listed = json.loads(_fedgraft(environment, door, "--json"))
    names = [entry["name"] for entry in listed]
    assert any(name.startswith("example-") for name in names)
    assert any(not name.startswith("example-") for name in names)


def test_the_shipped_contract_tests_pass_over_it(environment: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        "fedgraft.testing",
        "-q",
        "-k",
        "example",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=environment["PYTHONPATH"])
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 50


def test_all_of_it_runs_together_and_its_metrics_have_their_names(environment: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = "simulate --method example-offset --strategy example-geometric-median --data example-stripes"
    more = ["--protocol", "example-halves", "--sites", "4", "--rounds", "2", "--set", "images=8", "--out", str(run)]
    summary = json.loads(_fedgraft(environment, *words.split(), *more, "--json"))
    assert set(summary["metrics"]) == {"first", "second", "halves"}
    assert "First half" in (run / "report.html").read_text()


def test_the_page_about_extending_shows_the_files_as_they_are() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    files = {path.read_text() for path in (PACKAGE / "fedgraft_example").glob("*.py")}
    assert len(blocks) == 5
    assert all(block in files for block in blocks)
