"""What travels between server and sites arrives as it was sent, and versions that do not fit say so."""

import json
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedgraft import RunConfig, UserError, __version__
from fedgraft.flower import messages
from fedgraft.flower.messages import (
    METRICS,
    Job,
    for_sites,
    from_array_record,
    pack,
    sites_of,
    to_array_record,
    unpack,
    wire_size,
)

JOB = Job(
    RunConfig(protocol="dirichlet", protocol_options={"alpha": 0.3}), "a run", "f" * 64, fold=2, round=7,
    detailed=True, measure=True, attempt=3,
)  # fmt: skip


def test_a_job_arrives_as_it_was_sent() -> None:
    assert Job.from_record(JOB.to_record()) == JOB


@pytest.mark.parametrize(
    ("server", "site", "fits"),
    [
        ("0.2.0", "0.2.7", True),
        ("0.2.0.dev0", "0.2.0", True),
        ("0.1.0", "0.2.0", False),
        ("0.3.0", "0.2.0", False),
        ("1.0.0", "0.9.0", False),
        ("1.4.0", "1.0.2", True),
        ("2.0.0", "1.9.0", False),
    ],
)
def test_versions_fit_by_the_major_number_and_before_1_0_by_the_minor_as_well(
    server: str, site: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "__version__", site)
    record = replace(JOB, version=server).to_record()
    if fits:
        assert Job.from_record(record).version == server
    else:
        with pytest.raises(UserError, match=rf"the server runs fedgraft {server}, this site {site}; upgrade the older"):
            Job.from_record(record)


def _from_a_later_patch(**settings: Any) -> ConfigRecord:
    """A job as a server of a later version of the series sends it: with records' keys and settings of its own."""
    record = replace(JOB, version=f"{__version__.rsplit('.', 1)[0]}.99").to_record()
    record["config"] = json.dumps({**json.loads(str(record["config"])), **settings})
    record["priority"] = 3
    return record


def test_a_site_that_is_a_little_older_than_its_server_takes_a_run_that_needs_nothing_new() -> None:
    job = Job.from_record(_from_a_later_patch())
    assert (job.config, job.round) == (JOB.config, JOB.round)


def test_a_site_that_is_a_little_older_refuses_what_it_does_not_know_by_name() -> None:
    with pytest.raises(UserError, match=r"the run sets 'warmup', which fedgraft .* does not know; upgrade the site to"):
        Job.from_record(_from_a_later_patch(warmup=2))


def test_a_site_that_is_a_little_newer_than_its_server_misses_nothing() -> None:
    record = JOB.to_record()
    for key in ("detailed", "measure", "attempt"):
        del record[key]
    assert Job.from_record(record) == replace(JOB, detailed=False, measure=False, attempt=0)


def test_settings_at_their_defaults_do_not_travel() -> None:
    assert set(json.loads(str(JOB.to_record()["config"]))) == {"protocol", "protocol_options"}


def test_a_job_of_a_server_of_the_same_version_is_taken() -> None:
    assert Job.from_record(replace(JOB, version=__version__).to_record()).version == __version__


def test_arrays_arrive_in_sorted_order_with_every_bit() -> None:
    arrays = {"b": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)), "a": np.float32([np.pi])}
    received = from_array_record(to_array_record(arrays))
    assert list(received) == ["a", "b"]
    assert all(received[name].tobytes() == np.ascontiguousarray(arrays[name]).tobytes() for name in arrays)


def test_what_is_packed_comes_out() -> None:
    answers: dict[int, Any] = {3: RecordDict({METRICS: MetricRecord({"loss": 0.5})}), 12: "no space"}
    out = unpack(pack(answers))
    assert out[12] == "no space"
    assert cast(RecordDict, out[3]).metric_records[METRICS]["loss"] == 0.5


def test_a_content_for_some_sites_keeps_what_is_in_it_and_names_them() -> None:
    content = for_sites(RecordDict({METRICS: MetricRecord({"loss": 0.5})}), [4, 2])
    assert sites_of(content) == [4, 2]
    assert content.metric_records[METRICS]["loss"] == 0.5


def test_the_size_of_a_content_is_that_of_its_arrays_and_an_envelope() -> None:
    small, large = (RecordDict({"shared": to_array_record({"a": np.zeros(n, np.float32)})}) for n in (10, 1010))
    assert 4000 <= wire_size(large) - wire_size(small) < 4016
