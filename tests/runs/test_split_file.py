"""What a resumed run and its worker processes would lose: the deal exactly as it was, or a clear refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.config.run_config import DEALT_PROTOCOLS, RunConfig
from fedgraft.runs.split_file import DealtData, read_dealt, write_dealt
from fedgraft.data.protocols.protocol import deal
from fedgraft.core.errors import UserError

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _dealt(examples_of: Any, protocol: str = "base-to-novel") -> DealtData:
    examples = examples_of(domains=3)
    config = RunConfig.build({"protocol": protocol, "sites": 3, "shots": 3})
    return DealtData(deal(examples, config), examples.keys)


@pytest.mark.parametrize("protocol", DEALT_PROTOCOLS)
def test_what_is_read_is_what_was_written(protocol: str, tmp_path: Path, examples_of: Any) -> None:
    written = _dealt(examples_of, protocol)
    write_dealt(tmp_path, written)
    read = read_dealt(tmp_path)
    np.testing.assert_array_equal(read.keys, written.keys)
    np.testing.assert_array_equal(read.deal.labels, written.deal.labels)
    assert read.deal.class_names == written.deal.class_names
    assert read.deal.templates == written.deal.templates
    for fold, known in zip(read.deal.folds, written.deal.folds, strict=True):
        assert (fold.name, fold.train_classes, fold.scopes) == (known.name, known.train_classes, known.scopes)
        for share, before in zip(fold.sites, known.sites, strict=True):
            np.testing.assert_array_equal(share.train, before.train)
            assert share.tests.keys() == before.tests.keys()
            for scope, positions in share.tests.items():
                np.testing.assert_array_equal(positions, before.tests[scope])
    np.testing.assert_array_equal(read.used, written.used)
    np.testing.assert_array_equal(read.training_positions(), written.training_positions())


@pytest.mark.parametrize("protocol", DEALT_PROTOCOLS)
def test_used_is_what_some_site_trains_or_tests_on(protocol: str, examples_of: Any) -> None:
    """Nothing more passes the image tower, and nothing less."""
    data = _dealt(examples_of, protocol)
    shares = [share for fold in data.deal.folds for share in fold.sites]
    trained = {int(position) for share in shares for position in share.train}
    tested = {int(position) for share in shares for test in share.tests.values() for position in test}
    assert data.training_positions().tolist() == sorted(trained)
    assert data.used.tolist() == sorted(trained | tested)


def test_test_images_that_all_sites_share_are_written_once(tmp_path: Path, examples_of: Any) -> None:
    """Otherwise a run of a thousand sites would write a thousand copies of the novel test images."""
    write_dealt(tmp_path, _dealt(examples_of))
    novel = [share.tests["novel"] for share in read_dealt(tmp_path).deal.folds[0].sites]
    assert all(positions is novel[0] for positions in novel)


def test_nothing_but_the_whole_file_is_left_behind(tmp_path: Path, examples_of: Any) -> None:
    for _ in range(2):
        write_dealt(tmp_path, _dealt(examples_of))
    assert len(list(tmp_path.iterdir())) == 1


@UNTIMED
@given(data=st.data())
def test_a_truncated_file_is_named(tmp_path_factory: pytest.TempPathFactory, examples_of: Any, data: Any) -> None:
    run = tmp_path_factory.mktemp("run")
    write_dealt(run, _dealt(examples_of))
    (path,) = run.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    with pytest.raises(UserError) as error:
        read_dealt(run)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_dealt(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)
