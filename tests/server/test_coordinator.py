"""What becomes of a run whose disk is full."""

import errno
import os
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from fedgraft.core.errors import RunFailed
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.coordinator import Coordinator
from fedgraft.server.sender import Grid


def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_what_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    directory.checkpoints.save(Checkpoint(0, 1, {"a": np.ones(2, np.float32)}, []), "abc")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedgraft.core.files.os.fsync", full)
    coordinator = Coordinator.__new__(Coordinator)
    coordinator.directory = directory
    coordinator._run = lambda grid: directory.checkpoints.save(  # type: ignore[method-assign]
        Checkpoint(0, 2, {"a": np.zeros(2, np.float32)}, []), "abc"
    )
    with pytest.raises(RunFailed, match="stopped: No space left on device"):
        coordinator.run(cast(Grid, None))
    newest = directory.checkpoints.newest(0, "abc")
    assert newest is not None
    assert (newest.round, newest.arrays["a"].tolist()) == (1, [1.0, 1.0])
    assert [path.suffix for path in (tmp_path / "checkpoints").iterdir()] == [".safetensors"]
