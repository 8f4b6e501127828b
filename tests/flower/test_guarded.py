"""What a server's processes leave behind where fedgraft's own code has not begun."""

import io
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedgraft.core.errors import RunFailed
from fedgraft.flower import guarded, internals
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


# --- a process that cannot be confined -----------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What Flower's runtime installs in this process, in which the kernel refuses to confine anything."""
    (tmp_path / "submitted").mkdir()
    for name in (guarded.READABLE, guarded.WRITABLE):
        monkeypatch.setenv(name, "[]")
    monkeypatch.setenv(guarded.SUBMITTED, str(tmp_path / "submitted"))
    monkeypatch.setattr("sys.argv", ["flwr-serverapp"])
    monkeypatch.setattr("sys.stdin", io.StringIO("token\n"))
    monkeypatch.setattr(guarded, "landlock_version", lambda: 4)
    monkeypatch.setattr(guarded, "_check_app", lambda content: None)

    def refused(*paths: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(guarded, "confine", refused)
    found: list[bytes] = []
    for module in internals.RUNTIMES.values():
        monkeypatch.setattr(import_module(module), "install_from_fab", lambda content: found.append(content))
    runtime = import_module(internals.RUNTIMES["flwr-serverapp"])
    for name in ("run_from_proto", "get_fab_metadata", "get_project_config", "get_fused_config_from_dir", "run_"):
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    monkeypatch.setattr(runtime, "run_from_proto", lambda proto: SimpleNamespace(override_config=proto))
    return found


def _begun(given: dict[str, Any]) -> None:
    """What Flower's runtime does with a run."""
    runtime: Any = import_module(internals.RUNTIMES["flwr-serverapp"])
    runtime.run_from_proto(given)
    runtime.install_from_fab(b"the app")


def test_a_server_app_that_cannot_be_confined_runs_nothing_and_leaves_its_reason(
    installed: list[bytes], given: dict[str, Any], tmp_path: Path
) -> None:
    guarded._app("flwr-serverapp")
    with pytest.raises(RunFailed):
        _begun(given)
    reason = "The process of the run cannot be confined, so nothing was run: Operation not permitted"
    assert RunState(tmp_path).ended == Ended(Outcome.FAILED, "abc", 0, reason, "RunFailed")
    assert installed == []


def test_settings_of_another_run_that_cannot_be_read_are_the_reason(
    installed: list[bytes], given: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "submitted" / "settings-1.toml").write_text("out = ")
    guarded._app("flwr-serverapp")
    with pytest.raises(RunFailed, match="cannot be confined, so nothing was run: TOMLDecodeError: Invalid value"):
        _begun(given)


def test_a_process_for_a_message_that_cannot_be_confined_ends_at_once(
    installed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["flwr-clientapp", "--runtime-api-address", "127.0.0.1:1"])
    with pytest.raises(PermissionError):
        guarded._app("flwr-clientapp")


def test_a_confined_server_app_is_installed(
    installed: list[bytes], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "confine", lambda *paths: None)
    guarded._app("flwr-serverapp")
    _begun(given)
    assert installed == [b"the app"]
