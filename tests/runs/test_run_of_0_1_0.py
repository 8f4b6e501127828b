"""A run that fedgraft 0.1.0 wrote is still a run: read, reported and recognized as finished."""

import shutil
from pathlib import Path

import pytest

from fedgraft import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.reports import write_report
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

WRITTEN = Path(__file__).parent / "written_by_0_1_0"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A copy of the run: promptfl, dirichlet with the iid partition, two sites, one round."""
    return RunDirectory(Path(shutil.copytree(WRITTEN, tmp_path / "run")))


def test_its_configuration_has_the_options_where_they_are_today(run: RunDirectory) -> None:
    config = run.config()
    assert config.protocol_options == {"partition": "iid", "alpha": 2.0, "classes_per_site": 2}
    assert config.data_options == {"domains": False}
    assert config.method_options == {"n_ctx": 1}
    assert (config.sites, config.rounds, config.shots) == (2, 1, 4)


def test_its_split_is_read_from_the_file_that_0_1_0_called_a_deal(run: RunDirectory) -> None:
    split = run.split
    assert split.class_names == ("blue circle", "green square", "red triangle")
    assert (split.keys.shape, len(split.labels)) == ((24, 32), 24)
    (fold,) = split.folds
    assert fold.name is None
    assert [(len(share.train), len(share.tests["personal"])) for share in fold.sites] == [(10, 2), (8, 4)]


def test_its_shared_parameters_are_those_of_its_last_round(run: RunDirectory) -> None:
    checkpoint = run.checkpoints.newest(0, run.summary()["fingerprint"])
    assert checkpoint is not None
    assert checkpoint.round == 1
    assert {name: array.shape for name, array in checkpoint.arrays.items()} == {"context": (1, 1, 128)}


def test_it_is_finished_when_it_is_resumed_and_its_report_can_be_written(run: RunDirectory, engine: Engine) -> None:
    summary = run.summary()
    assert simulate_on(engine, run.config(), run.path, True, Observer()) == summary
    assert "100.00" in write_report(run.path).read_text()


def test_its_configuration_written_again_is_a_configuration_of_today(run: RunDirectory) -> None:
    run.create(config := run.config())
    assert RunConfig.build(config.model_dump()) == config == RunDirectory(run.path).config()
