"""A command as a user types it, with all that it prints."""

import sys
from collections.abc import Callable

import pytest

from fedgraft.cli.main import main

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
