"""The ticket commands: what they print, and mistakes told in one sentence with exit code 2."""

import json
import sys
from pathlib import Path

import pytest

from fedgraft.cli.main import main
from fedgraft.cli.ticket import _print_evaluation

NO_TRAINING = ("--distillation-steps", "0")


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["fedgraft", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.slow
def test_a_ticket_is_drawn_and_evaluated_beside_its_dense_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "ticket")
    assert _run(monkeypatch, "ticket", "draw", "--sparsity", "0.25", *NO_TRAINING, "--out", out, "--json") == 0
    drawn = json.loads(capfd.readouterr().out)
    assert drawn["parameters"] == 805104
    assert drawn["spec"]["pattern"] == "structured"
    words = ("--data", "digits", "--attacked", "32", "--attack-steps", "2", "--json")
    assert _run(monkeypatch, "ticket", "evaluate", out, *words) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["fingerprint"] == drawn["fingerprint"]
    assert set(result["ticket"]["accuracy"]) == {"base", "novel", "attacked"}
    assert result["dense"]["parameters"] == 1054944
    assert result["dense"]["accuracy"]["base"] > result["ticket"]["accuracy"]["base"] > 30
    assert result["dense"]["accuracy"]["attacked"] < result["dense"]["accuracy"]["base"]
    _print_evaluation(result, "digits")
    assert "25% removed" in capfd.readouterr().out.replace("\n", " ")


def test_training_reports_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, random_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--backbone", str(random_clip_folder), "--distillation-steps", "20", "--images", "32", "--seed", "7")
    assert _run(monkeypatch, "ticket", "draw", *words, "--out", str(tmp_path / "ticket")) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "images: 32/32"
    assert [line for line in lines if line.startswith("distillation")][-1] == "distillation: 20/20"
    assert len(lines) == 1 + 10 + 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sparsity", "1"), "at least 0 and less than 1, not 1.0"),
        (("--sparsity", "0.9"), "remove all 4 heads of layer 0; give at most 0.75"),
        (("--pattern", "blocks"), "no ticket pattern 'blocks'"),
        (("--scheme", "imq"), "Did you mean 'imp'?"),
        (("--kind", "robustt"), "Did you mean 'robust'?"),
        (("--data", "shape"), "Did you mean 'shapes'?"),
        (("--backbone", "/no/such"), "no backbone '/no/such'"),
        (("--resume",), "no ticket to resume"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_no_ticket(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "ticket"
    assert _run(monkeypatch, "ticket", "draw", *words, "--out", str(out)) == 2
    printed = capfd.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not out.exists()


def test_a_folder_without_a_ticket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "ticket", "evaluate", str(tmp_path)) == 2
    assert "(no ticket.json)" in capfd.readouterr().err
    assert _run(monkeypatch, "edge-report", str(tmp_path)) == 2
    assert "holds no run (config.toml) and no rows (tickets.jsonl)" in capfd.readouterr().err
