"""What a server's processes leave behind where fedgraft's own code has not begun."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedgraft.flower import guarded
from fedgraft.flower.run_state import Ended, Outcome, RunState


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """The settings of a submitted run."""
    return {"out": str(tmp_path), "settings": json.dumps({"submission": "abc"})}


@pytest.mark.parametrize(
    "earlier",
    [None, Ended(Outcome.FAILED, "an earlier one", 3, "The disk is full."), Ended(Outcome.RUNNING, "abc")],
    ids=["nothing", "an earlier submission", "it runs"],
)
def test_why_a_server_app_cannot_begin_is_the_reason_of_its_run(
    earlier: Ended | None, given: dict[str, Any], tmp_path: Path
) -> None:
    if earlier is not None:
        RunState(tmp_path).end(earlier)
    guarded._record_failure(given, ImportError("no module named graft"))
    begun = 0 if earlier is None else earlier.round
    failed = Ended(Outcome.FAILED, "abc", begun, "ImportError: no module named graft", "ImportError")
    assert RunState(tmp_path).ended == failed


def test_the_reason_that_the_run_itself_has_given_stays(given: dict[str, Any], tmp_path: Path) -> None:
    own = Ended(Outcome.FAILED, "abc", 2, "Round 3 has 1 valid answers of 4.", "RunFailed")
    RunState(tmp_path).end(own)
    guarded._record_failure(given, RuntimeError("Round 3"))
    assert RunState(tmp_path).ended == own


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), ImportError("flwr run without settings")])
def test_a_lost_server_and_a_run_of_another_kind_leave_nothing(
    error: Exception, given: dict[str, Any], tmp_path: Path
) -> None:
    guarded._record_failure(given if isinstance(error, httpx.HTTPError) else {}, error)
    assert not list(tmp_path.iterdir())
