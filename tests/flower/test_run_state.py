"""Why a run ended comes from a file with fields, even on a full disk."""

import errno
import os
from pathlib import Path

import pytest

from fedgraft.flower.run_state import Ended, Outcome, RunState, Wanted


def test_what_was_wanted_and_how_it_ended_are_read_back(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    assert (state.wanted, state.ended) == (Wanted.GO_ON, None)
    state.want(Wanted.PAUSE)
    ended = Ended(Outcome.FAILED, "abc", 3, 'a "reason" with\nlines', "RunFailed")
    state.end(ended)
    assert (state.wanted, state.ended) == (Wanted.PAUSE, ended)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"wanted": 3}', '{"outcome": "failed"}', '{"outcome": [], "round": {}}']
)
def test_a_damaged_file_says_nothing(text: str, tmp_path: Path) -> None:
    for name in ("control.json", "ended.json"):
        (tmp_path / name).write_text(text)
    assert (RunState(tmp_path).wanted, RunState(tmp_path).ended) == (Wanted.GO_ON, None)


def test_a_full_disk_has_room_for_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = RunState(tmp_path)
    state.end(Ended(Outcome.RUNNING, "abc"))

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedgraft.core.files.os.fsync", full)
    size = (tmp_path / "ended.json").stat().st_size
    for reason in ("No space left on device", "x" * 100_000):
        state.end(Ended(Outcome.FAILED, "abc", 2, reason, "RunFailed"))
        assert (tmp_path / "ended.json").stat().st_size == size
        assert state.ended is not None
        assert (state.ended.outcome, state.ended.round) == (Outcome.FAILED, 2)
        assert reason.startswith(state.ended.reason)
