"""What becomes of a run whose sites come and go, that its operator pauses or stops, or whose disk is full."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import Message

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, RunPaused
from fedgraft.core.observer import Observer
from fedgraft.flower.run_state import RunState, Wanted
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.server.coordinator import Coordinator
from fedgraft.server.preparation import prepare
from fedgraft.server.sender import Grid
from fedgraft.testing.grids import Said
from fedgraft.testing.in_process import FIRST_NODE, InProcessGrid


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


# --- the life of a run ---------------------------------------------------------------------------------------------

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="fedpgp", data="folder:own", protocol="own-data", sites=2, rounds=4, local_epochs=1, quorum=0.5,
    answer_seconds=0.5, resend_seconds=60.0, protocol_options={"class_names": NAMES},
    method_options={"n_ctx": 2, "rank": 2},
)  # fmt: skip


class Told(Observer):
    """Collects notices, and calls a function after every round."""

    def __init__(self, after: Callable[[int], None] = lambda server_round: None) -> None:
        self.notices: list[str] = []
        self._after = after

    def on_notice(self, sentence: str) -> None:
        self.notices.append(sentence)

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        self._after(server_round)


@pytest.fixture
def sites(images: Path, tmp_path: Path) -> list[SiteFolder]:
    """Two sites with images of their own."""
    folders = []
    for number, name in enumerate(("north", "south")):
        for folder in images.iterdir():
            (tmp_path / name / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[number::2]:
                (tmp_path / name / folder.name / file.name).symlink_to(file)
        folders.append(SiteFolder.create(tmp_path / f"site-{name}", name, tmp_path / name))
    return folders


def _run(out: Path, grid: InProcessGrid, told: Told, config: RunConfig = CONFIG) -> RunDirectory:
    """Run until the end, or until something is raised."""
    directory = RunDirectory(out)
    coordinator = prepare(config, out, directory.begun, told)
    assert coordinator is not None
    try:
        coordinator.run(grid)
    finally:
        coordinator.directory.unlock()
    return directory


def _trained(directory: RunDirectory) -> dict[int, list[int]]:
    return {row["round"]: row["sites"] for row in directory.rows() if row["scope"] == "train"}


def test_a_site_that_comes_late_counts_from_then_on(sites: list[SiteFolder], tmp_path: Path) -> None:
    with InProcessGrid(sites, 0, {}) as grid:
        both = list(grid.nodes)
        grid.nodes = both[:1]
        told = Told(lambda server_round: setattr(grid, "nodes", both[: 1 + (server_round >= 1)]))
        directory = _run(tmp_path / "run", grid, told)
    trained = _trained(directory)
    assert (trained[1], trained[4]) == ([0], [0, 1])
    assert directory.read_json("sites.json")["south"]["number"] == 1
    assert [notice for notice in told.notices if "south" in notice] == ["Site 1 is 'south', from round 3 on."]


def test_a_site_that_is_dead_costs_its_time_once_and_counts_again_when_it_is_back(
    sites: list[SiteFolder], tmp_path: Path
) -> None:
    silent = [False]

    class Mute(InProcessGrid):
        def said(self, message: Message) -> Said:
            return None if silent[0] and message.metadata.dst_node_id == FIRST_NODE + 1 else super().said(message)

    with Mute(sites, 0, {}) as grid:

        def after(server_round: int) -> None:
            silent[0] = server_round == 0  # it is silent in round 2, whose message also measures round 1
            if server_round == 2:
                grid.nodes = [FIRST_NODE]
            if server_round == 3:
                grid.nodes = [FIRST_NODE, FIRST_NODE + 1]

        silent_rounds = CONFIG.model_copy(update={"rounds": 6})
        told = Told(after)
        directory = _run(tmp_path / "run", grid, told, silent_rounds)
    left_out = [(row["round"], row["reason"]) for row in directory.rows() if row["scope"] == "left_out"]
    assert [reason for _, reason in left_out].count("it did not answer in time") == 1
    assert "it has not come back since it did not answer in time" in [reason for _, reason in left_out]
    assert _trained(directory)[6] == [0, 1]
    assert [notice for notice in told.notices if "is back" in notice] == [
        "Site 1 is back and is asked again from round 5 on."
    ]
    assert "away" not in directory.read_json("sites.json")["south"]


def test_a_paused_run_goes_on_to_the_result_of_the_undisturbed_one(sites: list[SiteFolder], tmp_path: Path) -> None:
    out, state = tmp_path / "run", RunState(tmp_path / "run")
    with InProcessGrid(sites, 0, {}) as grid:
        whole = _run(tmp_path / "whole", grid, Told())
    with InProcessGrid(sites, 0, {}) as grid:
        with pytest.raises(RunPaused, match="paused after round 3"):
            _run(out, grid, Told(lambda server_round: state.want(Wanted.PAUSE) if server_round == 2 else None))
        assert RunDirectory(out).checkpoints.newest_round() == 3
        assert not RunDirectory(out).finished
        state.want(Wanted.GO_ON)
        resumed = _run(out, grid, Told())
    assert resumed.summary()["metrics"] == whole.summary()["metrics"]
    assert _trained(resumed) == _trained(whole)


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_a_stopped_run_is_summarized_as_it_is(participation: float, sites: list[SiteFolder], tmp_path: Path) -> None:
    config, state = CONFIG.model_copy(update={"participation": participation}), RunState(tmp_path / "run")
    stop = Told(lambda server_round: state.want(Wanted.STOP) if server_round == 2 else None)
    with InProcessGrid(sites, 0, {}) as grid:
        directory = _run(tmp_path / "run", grid, stop, config)
    summary, last = directory.summary(), 3 if participation == 1 else 2
    assert (summary["stopped_after"], summary["rounds"]) == (last, last)
    evaluated = [row["round"] for row in directory.rows() if row["scope"] == "personal"]
    assert evaluated == list(range(last + 1))
    assert (tmp_path / "run" / "confusion.json").exists()
    assert summary["metrics"].keys() == {"accuracy", "worst_site", "std"}
