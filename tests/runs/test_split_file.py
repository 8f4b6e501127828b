"""What a resumed run and its worker processes would lose: the split exactly as it was, or a clear refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.config.registry import PROTOCOLS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.split import Split
from fedgraft.methods.plan import Plan
from fedgraft.runs.split_file import read_split, write_split
from tests.data.test_protocols import suited

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIMULATED = [protocol.name for protocol in PROTOCOLS if not protocol.deployed]


def _split(examples_of: Any, protocol: str = "base-to-novel") -> Split:
    return Plan.of(RunConfig(protocol=protocol, sites=3, shots=3)).split(
        suited(protocol, examples_of(classes=10, domains=3))
    )


def assert_same(read: Split, written: Split) -> None:
    """Field by field."""
    np.testing.assert_array_equal(read.keys, written.keys)
    np.testing.assert_array_equal(read.labels, written.labels)
    assert read.class_names == written.class_names
    assert (read.templates, read.class_templates) == (written.templates, written.class_templates)
    for fold, known in zip(read.folds, written.folds, strict=True):
        assert (fold.name, fold.train_classes, fold.scopes) == (known.name, known.train_classes, known.scopes)
        for share, before in zip(fold.sites, known.sites, strict=True):
            np.testing.assert_array_equal(share.train, before.train)
            assert share.classes == before.classes
            assert share.tests.keys() == before.tests.keys()
            for scope, positions in share.tests.items():
                np.testing.assert_array_equal(positions, before.tests[scope])
    np.testing.assert_array_equal(read.used, written.used)
    np.testing.assert_array_equal(read.trained, written.trained)


@pytest.mark.parametrize("protocol", SIMULATED)
def test_what_is_read_is_what_was_written(protocol: str, tmp_path: Path, examples_of: Any) -> None:
    written = _split(examples_of, protocol)
    write_split(tmp_path / "split.safetensors", written)
    assert_same(read_split(tmp_path / "split.safetensors"), written)


@pytest.mark.parametrize("protocol", SIMULATED)
def test_used_is_what_some_site_trains_or_tests_on(protocol: str, examples_of: Any) -> None:
    """Nothing more passes the image tower, and nothing less."""
    split = _split(examples_of, protocol)
    shares = [share for fold in split.folds for share in fold.sites]
    trained = {int(position) for share in shares for position in share.train}
    tested = {int(position) for share in shares for test in share.tests.values() for position in test}
    assert split.trained.tolist() == sorted(trained)
    assert split.used.tolist() == sorted(trained | tested)


def test_test_images_that_all_sites_share_are_written_once(tmp_path: Path, examples_of: Any) -> None:
    """Otherwise a run of a thousand sites would write a thousand copies of the novel test images."""
    write_split(tmp_path / "split.safetensors", _split(examples_of))
    novel = [share.tests["novel"] for share in read_split(tmp_path / "split.safetensors").folds[0].sites]
    assert all(positions is novel[0] for positions in novel)


def test_nothing_but_the_whole_file_is_left_behind(tmp_path: Path, examples_of: Any) -> None:
    for _ in range(2):
        write_split(tmp_path / "split.safetensors", _split(examples_of))
    assert len(list(tmp_path.iterdir())) == 1


@UNTIMED
@given(data=st.data())
def test_a_truncated_file_is_named(tmp_path_factory: pytest.TempPathFactory, examples_of: Any, data: Any) -> None:
    path = tmp_path_factory.mktemp("run") / "split.safetensors"
    write_split(path, _split(examples_of))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    with pytest.raises(UserError) as error:
        read_split(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_split(tmp_path / "run" / "split.safetensors")
    assert str(tmp_path / "run") in str(error.value)
