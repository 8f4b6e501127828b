"""What is installed from a wheel is what lies in the repository: no module, page, schema or weight is left behind."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fedgraft"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of an earlier build gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    shutil.copytree(PACKAGE, source / "fedgraft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True, capture_output=True, text=True)
    (built,) = out.glob("fedgraft-*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == there


def test_it_runs_from_an_empty_folder_with_its_own_pages_and_weights(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import json, fedgraft\n"
        "from fedgraft.backbones import load_backbone\n"
        "from fedgraft.doctor.versions import tested_versions\n"
        "from fedgraft.recipes.recipe import Recipe\n"
        "Recipe.load('fedpgp-office-caltech10')\n"
        "print(json.dumps([fedgraft.__file__, load_backbone('mini').dim, len(tested_versions())]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "FEDGRAFT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    where, width, packages = json.loads(done.stdout)
    assert Path(where).is_relative_to(unpacked)
    assert width > 0
    assert packages > 100


def test_it_says_which_pythons_and_extras_it_has(unpacked: Path) -> None:
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    page = (ROOT / "docs" / "install.md").read_text()
    assert "Requires-Python: >=3.11" in lines
    for extra in (line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")):
        assert f"| `{extra}` |" in page, f"docs/install.md does not name the extra {extra}"
