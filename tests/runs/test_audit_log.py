"""The audit log: what was written stays, and a change of it is seen."""

import json
import stat
import threading
from pathlib import Path

import pytest

from fedgraft import UserError
from fedgraft.core.errors import RunFailed
from fedgraft.runs.asked_runs import AskedRuns
from fedgraft.runs.audit_log import START, AuditLog


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log with five entries."""
    made = AuditLog(tmp_path / "audit.jsonl")
    for number in range(5):
        made.append("sent", {"bytes": number})
    return made


def test_entries_are_numbered_and_chained(log: AuditLog) -> None:
    entries = log.verified()
    assert [(entry["number"], entry["bytes"]) for entry in entries] == [(n + 1, n) for n in range(5)]
    assert [entry["previous"] for entry in entries] == [START, *(entry["hash"] for entry in entries[:-1])]
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace('"bytes": 1', '"bytes": 7'), *lines[2:]], 2),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:3], "no JSON", *lines[3:]], 4),
        (lambda lines: [*lines[:3], "[]", *lines[3:]], 4),
    ],
)
def test_a_line_that_was_changed_moved_or_taken_out_is_found(change, line: int, log: AuditLog) -> None:
    log.path.write_text("\n".join([*change(log.path.read_text().splitlines()), ""]))
    with pytest.raises(RunFailed, match=f"Line {line} of .* was changed, or a line before it is missing"):
        log.verified()


def test_a_line_torn_by_a_kill_is_replaced_by_the_next(log: AuditLog) -> None:
    with log.path.open("a") as file:
        file.write('{"number": 6, "ti')
    assert len(list(AuditLog(log.path).fresh())) == 5
    log.append("sent", {"bytes": 5})
    assert [entry["bytes"] for entry in log.verified()] == list(range(6))


def test_a_first_line_torn_by_a_kill_is_replaced(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.path.write_text('{"num')
    log.append("sent", {"bytes": "x" * 200_000})
    log.append("sent", {"bytes": 1})
    assert [entry["number"] for entry in log.verified()] == [1, 2]


def test_each_reader_hears_of_each_entry_once(log: AuditLog) -> None:
    reader = AuditLog(log.path)
    assert len(list(reader.fresh())) == 5
    log.append("approved", {})
    assert [entry["event"] for entry in reader.fresh()] == ["approved"]
    assert list(reader.fresh()) == []


def test_entries_of_several_processes_form_one_chain(log: AuditLog) -> None:
    def write() -> None:
        for _ in range(20):
            AuditLog(log.path).append("sent", {})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.verified()) == 85


def test_a_damaged_log_is_one_sentence(log: AuditLog) -> None:
    with log.path.open("a") as file:
        file.write("no JSON\n")
    with pytest.raises(RunFailed, match="is damaged"):
        list(AuditLog(log.path).fresh())
    with pytest.raises(RunFailed, match="is damaged"):
        log.append("sent", {})
    with pytest.raises(RunFailed, match="cannot be read"):
        AskedRuns([{"event": "asked", "configuration": "0", "run": "a"}])


def _asked(name: str, configuration: str) -> dict:
    settings = {"method": "fedpgp"}
    return {
        "event": "asked", "run": name, "configuration": configuration, "time": "2026-01-01T00:00:00+00:00",
        "settings": settings, "fingerprint": "0", "last_round": 3, "version": "0.2.0",
    }  # fmt: skip


def test_a_run_that_was_asked_with_two_configurations_is_decided_by_its_hash() -> None:
    runs = AskedRuns([_asked("a", "11aa"), _asked("a", "22bb"), _asked("b", "11aa")])
    assert runs.named("b").configuration == "11aa"
    assert runs.named("a", "22").configuration == "22bb"
    with pytest.raises(UserError, match="asked with 2 configurations; add --configuration: 11aa, 22bb"):
        runs.named("a")
    with pytest.raises(UserError, match=r"not asked for a run 'c'\. Known: a, b"):
        runs.named("c")
    assert json.dumps(runs.named("b").settings) == '{"method": "fedpgp"}'
