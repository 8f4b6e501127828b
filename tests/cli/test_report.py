"""What a user of `fedgraft report` would lose: formats that compose, and tables on standard output."""

import json
import sys
from pathlib import Path

import pytest

from fedgraft.cli import main as command
from tests.reports.test_study import write_comparison


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedgraft", "report", *words])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    return int(stopped.value.code or 0)


@pytest.fixture
def comparison(tmp_path: Path) -> str:
    """The directory of a comparison."""
    return str(write_comparison(tmp_path / "c", {"zeroshot": [60.0, 61], "fedpgp": [64.0, 65]}))


def test_formats_compose_and_are_told_as_json(
    comparison: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, comparison, "--format", "md,latex", "--format", "csv", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] is None
    names = [Path(path).name for path in told["files"]]
    assert names == ["tables.md", "results.csv", "differences.csv", "cost.csv", "seeds.csv", "tables.tex"]
    assert all(Path(path).is_file() for path in told["files"])


def test_a_table_can_be_printed(
    comparison: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, comparison, "--format", "csv", "--out", "-") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].startswith("zeroshot,62.5,0.5,")
    assert _run(monkeypatch, comparison, "--format", "md", "--out", "-", "--against", "fedpgp") == 0
    assert "points above fedpgp" in capsys.readouterr().out
    assert not (Path(comparison) / "tables").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "word"], "There is no format 'word'"),
        (["--format", ","], "--format names no format"),
        (["--format", "md,csv", "--out", "-"], "--out - prints one format of tables"),
        (["--format", "html", "--out", "-"], "There is no format 'html'"),
        (["--against", "fedavg"], "There is no method of these comparisons 'fedavg'"),
    ],
)
def test_mistakes_are_one_sentence(
    comparison: str,
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(monkeypatch, comparison, *words) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
