"""A command as a user types it, with all that it prints."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from fedgraft.cli.main import main
from fedgraft.simulation.engine import Engine

Refused = Callable[..., str]
Printed = Callable[..., tuple[str, str]]
"""From the words after `fedgraft`, and the exit status that they must have, to standard output and standard error."""


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a command prints, on a terminal that is wide enough, and what it says of faults."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == status
        said = capsys.readouterr()
        return said.out, said.err

    return run


@pytest.fixture
def no_federation(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """A mistake that is not found fails its test here, and not after a run; no process is started."""

    def run(*_: object) -> None:
        raise AssertionError("a federation began")

    monkeypatch.setattr("fedgraft.server.coordinator.Coordinator.run", run)
    for module in ("simulate", "comparison"):
        monkeypatch.setattr(f"fedgraft.simulation.{module}.open_engine", lambda resources: nullcontext(engine))


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail as bad input does, and returns its sentence."""

    def run(*arguments: str, command: str = "simulate") -> str:
        out = tmp_path / "out"
        before = _listing(out)
        monkeypatch.setattr(sys, "argv", ["fedgraft", command, "--out", str(out), *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capfd.readouterr()
        assert stopped.value.code == 2
        assert printed.err.startswith("fedgraft: ")
        assert printed.err.count("\n") == 1
        assert "Traceback" not in printed.err
        assert _listing(out) == before
        return printed.err

    return run


def _listing(folder: Path) -> list[tuple[str, bytes]] | None:
    if not folder.exists():
        return None
    return [(str(path), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]
