"""The resident worker, over its socket and without: what it answers, what it tells of itself, what it refuses."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedgraft import UserError, __version__
from fedgraft.client.relay import OPTIONS, ask_worker
from fedgraft.client.worker import Worker, serve_on
from fedgraft.core.errors import RunFailed
from fedgraft.data.sources import file_keys
from fedgraft.flower.internals import record_bytes
from fedgraft.flower.messages import (
    CLASS_COUNTS,
    HELLO,
    JOB,
    MEASURED,
    METRICS,
    NUM_EXAMPLES,
    SHARED,
    Job,
    to_array_record,
    unpack,
)
from fedgraft.runs.personal_state import PersonalState
from fedgraft.runs.site_folder import SiteFolder

Ask = Callable[[str, RecordDict], RecordDict]
NAMES = ["blue circle", "green square", "red triangle"]


def test_a_site_trains_and_is_measured_on_its_own_images(
    address: str, job: Job, content: Callable[[Job], RecordDict], site: SiteFolder
) -> None:
    answer = unpack(ask_worker(address, "train", content(job)))[2]
    assert isinstance(answer, RecordDict)
    assert answer.metric_records[METRICS][NUM_EXAMPLES] == 3 * 8
    assert set(answer.array_records[SHARED]) == {"sigma"}
    measured = unpack(ask_worker(address, "evaluate", content(job)))[2]
    assert isinstance(measured, RecordDict)
    right, total = measured.metric_records[METRICS]["personal"]
    assert 0 <= right <= total == 3 * 4
    assert len(list(site.state.glob("*/000/round-000001.safetensors"))) == 1


def test_a_site_leaves_out_damaged_images_and_names_them_in_its_own_log_alone(
    site: SiteFolder, ask_site: Callable[[SiteFolder], Ask], job: Job, content: Callable[[Job], RecordDict],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = next(path for path in sorted(site.data.iterdir()) if path.is_dir())
    (folder / "Doe_Jane_1961.png").write_bytes(b"\x89PNG cut off")
    lenient = replace(site, settings=site.settings.model_copy(update={"on_bad_image": "skip"}))
    hello = ask_site(lenient)("hello", RecordDict({JOB: job.to_record()}))
    answer = unpack(ask_site(lenient)("train", content(job)))[2]
    assert isinstance(answer, RecordDict)
    assert answer.metric_records[METRICS][NUM_EXAMPLES] == 3 * 8
    assert "Doe_Jane_1961.png" in caplog.text
    assert not any(b"Doe" in record_bytes(sent) for sent in (hello, answer))


def test_a_second_start_of_a_site_reads_no_image(
    site: SiteFolder, ask_site: Callable[[SiteFolder], Ask], job: Job, content: Callable[[Job], RecordDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(file_keys, "SETTLED_NS", -(10**12))  # files count as settled at once
    opened: list[str] = []
    plain = os.open

    def observed(path: Any, *arguments: Any, **more: Any) -> int:
        opened.extend([str(path)] if str(path).endswith(".png") else [])
        return plain(path, *arguments, **more)

    monkeypatch.setattr(os, "open", observed)
    ask_site(site)("train", content(job))
    assert len(opened) == 36
    opened.clear()
    ask_site(site)("train", content(replace(job, round=2)))
    assert opened == []
    assert list((site.cache / "keys").iterdir())


def test_a_training_that_also_measures_says_what_an_evaluation_would_have_said(
    ask: Ask, job: Job, content: Callable[[Job], RecordDict]
) -> None:
    plain = unpack(ask("train", content(job)))[2]
    evaluated = unpack(ask("evaluate", content(job)))[2]
    both = unpack(ask("train", content(replace(job, round=2, measure=True))))[2]
    second = unpack(ask("train", content(replace(job, round=2))))[2]
    assert MEASURED not in plain
    assert dict(both.metric_records[MEASURED]) == dict(evaluated.metric_records[METRICS])
    assert np.array_equal(*(answer.array_records[SHARED]["sigma"].numpy() for answer in (both, second)))


def test_only_its_owner_may_use_the_socket(address: str) -> None:
    assert stat.S_IMODE(Path(address.removeprefix("unix:")).stat().st_mode) == 0o600


def test_a_message_that_comes_twice_gets_the_same_answer(
    address: str, job: Job, content: Callable[[Job], RecordDict]
) -> None:
    one, two = (unpack(ask_worker(address, "train", content(job)))[2] for _ in range(2))
    assert isinstance(one, RecordDict)
    assert isinstance(two, RecordDict)
    assert np.array_equal(one.array_records[SHARED]["sigma"].numpy(), two.array_records[SHARED]["sigma"].numpy())


def test_a_hello_tells_counts_only_where_the_site_lets_it(
    ask: Ask, ask_site: Callable[[SiteFolder], Ask], with_policy: Callable[..., SiteFolder], job: Job
) -> None:
    hello = ask("hello", RecordDict({JOB: job.to_record()}))
    assert dict(hello.config_records[HELLO]) == {
        "name": "north",
        "version": __version__,
        "fingerprint": job.fingerprint,
        "images": 36,
    }
    assert dict(hello.metric_records[CLASS_COUNTS]) == dict.fromkeys(NAMES, 12)
    hello = ask_site(with_policy(share_counts=False))("hello", RecordDict({JOB: job.to_record()}))
    assert CLASS_COUNTS not in hello
    assert "images" not in hello.config_records[HELLO]


@pytest.mark.parametrize("kind", ["hello", "train"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fingerprint": "0" * 64}, "both need the same backbone"),
        ({"version": "7.0.0"}, "the server runs fedgraft 7.0.0"),
        ({"classes": NAMES[:2]}, r"^the site holds a class that the federation does not know \(classes\)$"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_with_a_sentence(
    kind: str, changed: dict, said: str, ask: Ask, job: Job, content: Callable[[Job], RecordDict]
) -> None:
    if "classes" in changed:
        options = {"class_names": changed["classes"]}
        changed = {"config": job.config.model_copy(update={"protocol_options": options})}
    with pytest.raises(UserError, match=said):
        ask(kind, content(replace(job, **changed)))


def test_an_update_for_another_shape_is_refused(ask: Ask, job: Job, content: Callable[[Job], RecordDict]) -> None:
    message = content(job)
    message[SHARED] = to_array_record({"sigma": np.zeros((1, 5, 128), np.float32)})
    reason = unpack(ask("train", message))[2]
    assert reason == "the server's parameters do not have the names and shapes that the method needs (parameters)"


def test_a_damaged_state_falls_back_to_the_round_before(
    ask: Ask, job: Job, content: Callable[[Job], RecordDict], site: SiteFolder
) -> None:
    for server_round in (1, 2):
        ask("train", content(replace(job, round=server_round)))
    (newest,) = site.state.glob("*/000/round-000002.safetensors")
    newest.write_bytes(newest.read_bytes()[:100])
    answer = unpack(ask("train", content(replace(job, round=3))))[2]
    assert isinstance(answer, RecordDict)


def test_a_worker_that_ends_over_a_message_is_asked_again(site: SiteFolder, job: Job) -> None:
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/worker"
        servers = [grpc.server(ThreadPoolExecutor(2))]

        class Dying(Worker):
            def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
                sound = grpc.server(ThreadPoolExecutor(2))
                servers[0].stop(None)
                servers.append(serve_on(sound, Worker(site, Path(folder)), address))
                raise RuntimeError("killed")

        serve_on(servers[0], Dying(site, Path(folder)), address)
        hello = ask_worker(address, "hello", RecordDict({JOB: job.to_record()}))
        assert hello.config_records[HELLO]["name"] == "north"
        assert len(servers) == 2
        servers[1].stop(None)


def test_a_worker_that_ends_over_a_message_each_time_is_named(site: SiteFolder, job: Job) -> None:
    class Failing(Worker):
        def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            raise AssertionError

    with tempfile.TemporaryDirectory() as folder:
        server = serve_on(grpc.server(ThreadPoolExecutor(2)), Failing(site, Path(folder)), f"unix:{folder}/worker")
        with pytest.raises(RunFailed, match="ended 3 times while handling a message: Socket closed"):
            ask_worker(f"unix:{folder}/worker", "hello", RecordDict({JOB: job.to_record()}))
        server.stop(None)


def test_an_answer_of_100_MB_does_not_leave_the_site(site: SiteFolder, job: Job) -> None:  # noqa: N802
    class Talkative(Worker):
        def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
            return bytes(100 * 2**20)

    with tempfile.TemporaryDirectory() as folder:
        server = grpc.server(ThreadPoolExecutor(2), options=OPTIONS)
        serve_on(server, Talkative(site, Path(folder)), f"unix:{folder}/worker")
        with pytest.raises(UserError, match="exceeds 64 MB"):
            ask_worker(f"unix:{folder}/worker", "hello", RecordDict({JOB: job.to_record()}))
        server.stop(None)


def test_a_full_disk_leaves_the_site_out_with_a_sentence_and_the_state_as_it_was(
    ask: Ask, job: Job, content: Callable[[Job], RecordDict], site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("train", content(job))
    (kept,) = site.state.glob("*/000/*")
    before = kept.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("fedgraft.runs.personal_state.write_bytes", full)
        reason = unpack(ask("train", content(replace(job, round=2))))[2]
    assert reason == "the site's personal state cannot be read or written (state)"
    with monkeypatch.context() as disk:
        disk.setattr("fedgraft.core.files.os.fsync", full)
        with pytest.raises(UserError, match=r"^the site cannot read or write one of its files \(disk\)$"):
            ask("train", content(replace(job, round=3)))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert kept.read_bytes() == before
    assert isinstance(unpack(ask("train", content(replace(job, round=2))))[2], RecordDict)


def test_a_state_of_other_shapes_is_refused(
    ask: Ask, job: Job, content: Callable[[Job], RecordDict], site: SiteFolder, caplog: pytest.LogCaptureFixture
) -> None:
    ask("train", content(job))
    (folder,) = site.state.glob("*/000")
    state = PersonalState(folder, {"method": "fedpgp", "fingerprint": job.fingerprint})
    state.save(1, {"U": torch.zeros(1, 2, 3), "V": torch.zeros(1, 3, 128)})
    reason = unpack(ask("train", content(replace(job, round=2))))[2]
    assert reason == "the site's personal state cannot be read or written (state)"
    assert "have the shapes {'U': (1, 2, 3), 'V': (1, 3, 128)}" in caplog.text


@pytest.mark.parametrize("run", ["../escape", "/abs", "", ".hidden", "a/b"])
def test_a_run_whose_name_leads_out_of_the_sites_folder_is_refused(
    run: str, ask: Ask, job: Job, content: Callable[[Job], RecordDict]
) -> None:
    with pytest.raises(UserError, match="a run's name has only"):
        ask("train", content(replace(job, run=run)))


def test_a_message_of_a_round_that_is_over_is_refused(
    ask: Ask, job: Job, content: Callable[[Job], RecordDict], site: SiteFolder
) -> None:
    for server_round in (1, 2):
        ask("train", content(replace(job, round=server_round, attempt=3)))
    states = {path.name: path.read_bytes() for path in site.state.glob("*/000/*")}
    for late in (replace(job, round=1, attempt=3), replace(job, round=9, attempt=2)):
        assert "is stale" in str(unpack(ask("train", content(late)))[2])
    assert {path.name: path.read_bytes() for path in site.state.glob("*/000/*")} == states
    again = unpack(ask("train", content(replace(job, round=1, attempt=4))))[2]
    assert isinstance(again, RecordDict)


def test_a_worker_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgraft.client.relay._START_SECONDS", 0.5)
    with pytest.raises(RunFailed, match="did not start"):
        ask_worker("unix:/nowhere/worker", "hello", RecordDict())
