"""A folder is run once at a time, and a start cleans what a killed process of the same folder has left, only that."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedgraft.core.errors import UserError
from fedgraft.deployment.folder_lock import FolderLock, running_pid


def test_a_folder_that_runs_is_not_run_again(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    with pytest.raises(UserError, match=rf"{tmp_path} is already running, as process {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()
    assert running_pid(tmp_path) is None
    FolderLock(tmp_path).release()


def test_what_a_killed_process_left_is_cleaned_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, sockets, other, important = (tmp_path / name for name in ("site", "fedgraft-own", "fedgraft-other", "home"))
    for path in (folder, sockets, other, important):
        path.mkdir()
    left_alone, own = _waiting_process({}), _waiting_process({"FLWR_HOME": f"{folder}/flwr"})
    left = {"pid": 1, "groups": [own.pid, left_alone.pid], "folders": [str(sockets), str(important)]}
    (folder / ".running").write_text(json.dumps(left))
    try:
        FolderLock(folder).release()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fedgraft-other", "home", "site"]
        if sys.platform == "linux":
            assert own.wait(60) == -9
        assert left_alone.poll() is None
    finally:
        for process in (own, left_alone):
            process.kill()
            process.communicate()


def _waiting_process(env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own that has started: until its program has run, Linux shows no environment."""
    process = subprocess.Popen(
        ["cat"], env={**os.environ, **env}, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"started\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"started\n"
    return process


def test_a_folder_whose_notes_are_damaged_can_be_run(tmp_path: Path) -> None:
    (tmp_path / ".running").write_text("{")
    FolderLock(tmp_path).release()
