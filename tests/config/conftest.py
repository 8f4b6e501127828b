"""Packages as a user has installed them: a module, and metadata with an entry point."""

from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package: `install("a-package", "fedgraft.methods", "mine = module:METHOD", module="METHOD = 3")`."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def make(package: str, group: str, point: str, **modules: str) -> None:
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{point}\n")

    return make
