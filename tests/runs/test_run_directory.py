"""The run directory keeps what resume needs and refuses what does not belong to the run."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from fedgraft.core.errors import UserError
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.run_directory import RunDirectory

FINGERPRINT = "a" * 64


def _checkpoint(server_round: int, fold: int = 0) -> Checkpoint:
    arrays = {"sigma": np.full((1, 2, 3), server_round, np.float32)}
    return Checkpoint(
        fold, server_round, arrays, [{"round": server_round, "fold": None, "scope": "train", "sites": []}]
    )


def test_the_newest_and_every_tenth_checkpoint_stay(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for server_round in range(1, 24):
        directory.checkpoints.save(_checkpoint(server_round), FINGERPRINT)
    names = sorted(path.stem for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["fold-000-round-000010", "fold-000-round-000020", "fold-000-round-000023"]


def test_a_fold_resumes_from_its_own_newest_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for server_round, fold in ((1, 0), (2, 0), (1, 1)):
        directory.checkpoints.save(_checkpoint(server_round, fold), FINGERPRINT)
    newest = directory.checkpoints.newest(0, FINGERPRINT)
    assert newest is not None
    assert (newest.round, newest.rows[0]["round"], float(newest.arrays["sigma"][0, 0, 0])) == (2, 2, 2.0)
    assert directory.checkpoints.newest(2, FINGERPRINT) is None


def test_a_checkpoint_of_another_backbone_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.checkpoints.save(_checkpoint(3), FINGERPRINT)
    with pytest.raises(UserError, match=r"aaaaaaaaaaaaaaaa.*bbbbbbbbbbbbbbbb"):
        directory.checkpoints.newest(0, "b" * 64)


def test_a_row_torn_by_a_kill_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append([{"round": 1, "scope": "train", "sites": [0]}, {"round": 1, "scope": "local", "accuracy": 50.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "sco')
    assert [row["scope"] for row in directory.rows()] == ["train", "local"]


def test_every_start_of_a_run_has_a_number_and_the_run_keeps_its_name(tmp_path: Path) -> None:
    starts = [RunDirectory(tmp_path / "a run").begin_attempt() for _ in range(3)]
    assert [number for _, number in starts] == [1, 2, 3]
    assert len({name for name, _ in starts}) == 1
    assert re.fullmatch(r"a_run-[0-9a-f]{8}", starts[0][0])
    assert RunDirectory(tmp_path / "other" / "a run").begin_attempt()[0] != starts[0][0]


def test_the_newest_round_is_that_of_a_complete_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.checkpoints.newest_round() == 0
    directory.checkpoints.save(_checkpoint(3), FINGERPRINT)
    (tmp_path / "checkpoints" / ".fold-000-round-000004.safetensors.77.tmp").write_bytes(b"")
    assert directory.checkpoints.newest_round() == 3


def test_a_locked_directory_is_seen_from_outside_and_waited_for(tmp_path: Path) -> None:
    one, other = RunDirectory(tmp_path), RunDirectory(tmp_path)
    assert not other.is_locked()
    one.lock()
    assert other.is_locked()
    with pytest.raises(UserError, match="Another process"):
        other.lock(0.3)
    threading.Timer(0.5, one.unlock).start()
    other.lock(30)
    assert one.is_locked()
    other.unlock()
