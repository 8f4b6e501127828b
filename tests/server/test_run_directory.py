"""The run directory keeps what resume needs and refuses what does not belong to the run."""

from pathlib import Path

import numpy as np
import pytest

from fedgraft.errors import UserError
from fedgraft.server.run_directory import Checkpoint, RunDirectory

FINGERPRINT = "a" * 64


def _checkpoint(server_round: int, fold: int = 0) -> Checkpoint:
    arrays = {"sigma": np.full((1, 2, 3), server_round, np.float32)}
    return Checkpoint(fold, server_round, arrays, [{"round": server_round, "fold": None, "scope": "train"}])


def test_the_newest_and_every_tenth_checkpoint_stay(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for server_round in range(1, 24):
        directory.save_checkpoint(_checkpoint(server_round), FINGERPRINT)
    names = sorted(path.stem for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["fold-000-round-000010", "fold-000-round-000020", "fold-000-round-000023"]


def test_a_fold_resumes_from_its_own_newest_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for server_round, fold in ((1, 0), (2, 0), (1, 1)):
        directory.save_checkpoint(_checkpoint(server_round, fold), FINGERPRINT)
    newest = directory.newest_checkpoint(0, FINGERPRINT)
    assert newest is not None
    assert (newest.round, newest.rows[0]["round"], float(newest.arrays["sigma"][0, 0, 0])) == (2, 2, 2.0)
    assert directory.newest_checkpoint(2, FINGERPRINT) is None


def test_a_checkpoint_of_another_backbone_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.save_checkpoint(_checkpoint(3), FINGERPRINT)
    with pytest.raises(UserError, match=r"aaaaaaaaaaaaaaaa.*bbbbbbbbbbbbbbbb"):
        directory.newest_checkpoint(0, "b" * 64)


def test_a_row_torn_by_a_kill_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append([{"round": 1, "scope": "train"}, {"round": 1, "scope": "local"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "sco')
    assert [row["scope"] for row in directory.rows()] == ["train", "local"]
