"""A site decides: what its policy refuses, what waits for its operator, and what no server can do to it."""

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from PIL import Image

from fedgraft import RunConfig, UserError, __version__
from fedgraft.client import tasks
from fedgraft.client.run_in_words import in_words
from fedgraft.core.errors import RunFailed
from fedgraft.core.refusals import SENTENCES, WAITS, code_of
from fedgraft.flower.messages import (
    CLASS_COUNTS,
    COUNTS,
    JOB,
    METRICS,
    SHARED,
    Job,
    for_sites,
    from_array_record,
    to_array_record,
    unpack,
)
from fedgraft.runs.asked_runs import AskedRun, AskedRuns
from fedgraft.runs.audit_log import AuditLog, Entry
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.testing.in_process import InProcessGrid, run_to_the_end

Ask = Callable[[str, RecordDict], RecordDict]
AskSite = Callable[[SiteFolder], Ask]
WithPolicy = Callable[..., SiteFolder]
Content = Callable[[Job], RecordDict]
FEW = {"rounds": 2}


def _changed(job: Job, **settings: Any) -> Job:
    """The job with other settings."""
    return replace(job, config=RunConfig.model_validate({**job.config.model_dump(), **settings}))


def _refusal(ask: Ask, kind: str, message: RecordDict) -> str:
    """What the server is told, whether the whole message is refused or the one site in it."""
    try:
        answer = unpack(ask(kind, message))[2]
    except UserError as error:
        return str(error)
    assert isinstance(answer, str)
    return answer


def _answer(ask: Ask, kind: str, message: RecordDict) -> RecordDict:
    answer = unpack(ask(kind, message))[2]
    assert isinstance(answer, RecordDict)
    return answer


def _entries(site: SiteFolder, event: str) -> list[Entry]:
    return [entry for entry in AuditLog(site.audit_log).verified() if entry["event"] == event]


def _only_run(site: SiteFolder) -> AskedRun:
    (run,) = AskedRuns(AuditLog(site.audit_log).fresh())
    return run


# --- the policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        ({"methods": ["local", "promptfl"]}, {}, "does not accept the method 'fedpgp'"),
        ({"strategies": ["median"]}, {"strategy": "fedavg"}, "does not accept the strategy 'fedavg'"),
        ({"backbones": ["0" * 64]}, {}, "does not accept the backbone with the fingerprint"),
        ({"max_rounds": 24}, {}, "accepts at most 24 rounds, not 25"),
        ({"max_local_epochs": 1}, {"local_epochs": 2}, "accepts at most 1 local epochs, not 2"),
        ({"max_views": 1}, {"views": 3}, "accepts at most 1 views, not 3"),
        ({"max_measurements": 9}, {"eval_every": 3}, "accepts at most 9 evaluations, not 10"),
        ({}, {"test_fraction": 0.01}, "accepts a test fraction from 0.1 to 0.9, not 0.01"),
    ],
)
@pytest.mark.parametrize("kind", ["hello", "train", "evaluate"])
def test_the_policy_refuses_before_an_image_is_read_or_a_backbone_loaded(
    policy: dict, settings: dict, said: str, kind: str, ask_site: AskSite, with_policy: WithPolicy, job: Job,
    content: Content, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loaded: list[str] = []
    monkeypatch.setattr("fedgraft.client.worker.open_site_images", lambda *given: loaded.append("images"))
    monkeypatch.setattr("fedgraft.methods.plan.load_backbone", lambda *given: loaded.append("backbone"))
    site = with_policy(**policy)
    reason = _refusal(ask_site(site), kind, content(_changed(job, **settings)))
    assert reason.startswith(f"the site's policy {said}")
    assert code_of(reason) == "policy"
    assert loaded == []
    assert [entry["reason"] for entry in _entries(site, "declined")] == [reason]
    assert _only_run(site).state(needs_approval=False) == "refused"


def test_a_policy_that_accepts_the_run_by_name_lets_it_train(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy(methods=["fedpgp"], strategies=["median"], backbones=[job.fingerprint], max_rounds=25)
    _answer(ask_site(site), "train", content(_changed(job, strategy="median")))


def test_a_run_goes_on_without_the_site_whose_policy_forbids_it(images: Path, tmp_path: Path, job: Job) -> None:
    sites = [SiteFolder.create(tmp_path / name, name, images) for name in ("north", "south", "west")]
    strict = SiteFolder.open(sites[2].path)
    text = (strict.path / "site.toml").read_text()
    (strict.path / "site.toml").write_text(text.replace("max_rounds = 1000", "max_rounds = 1"))
    sites[2] = SiteFolder.open(strict.path)
    config = RunConfig.model_validate({**job.config.model_dump(), "rounds": 2, "sites": 3})
    with InProcessGrid(sites, 0, {}) as grid:
        summary = run_to_the_end(config, tmp_path / "run", grid)
    trained = [row["sites"] for row in RunDirectory(tmp_path / "run").rows() if row["scope"] == "train"]
    assert trained == [[0, 1], [0, 1]]
    assert summary["rounds"] == 2
    assert not (strict.state / "run").exists()


def test_a_run_whose_sites_all_refuse_ends_with_a_sentence(
    images: Path, tmp_path: Path, job: Job, site: SiteFolder
) -> None:
    text = (site.path / "site.toml").read_text()
    (site.path / "site.toml").write_text(text.replace("methods = []", 'methods = ["zeroshot"]'))
    config = RunConfig.model_validate({**job.config.model_dump(), "rounds": 1, "sites": 1})
    with InProcessGrid([SiteFolder.open(site.path)], 0, {}) as grid, pytest.raises(RunFailed) as raised:
        run_to_the_end(config, tmp_path / "run", grid)
    assert "\n" not in str(raised.value)


# --- approval --------------------------------------------------------------------------------------


def _decide(site: SiteFolder, decision: str) -> None:
    run = AskedRuns(AuditLog(site.audit_log).fresh()).named("run")
    AuditLog(site.audit_log).append(decision, {"run": run.name, "configuration": run.configuration, "by": "someone"})


def test_a_run_waits_until_the_operator_approves_this_configuration_and_no_other(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy(approve=True)
    ask = ask_site(site)
    for _ in range(2):
        assert code_of(_refusal(ask, "hello", RecordDict({JOB: job.to_record()}))) == WAITS
    assert code_of(_refusal(ask, "train", content(job))) == WAITS
    assert _only_run(site).state(needs_approval=True) == "waiting"
    assert not (site.state / "run").exists()
    _decide(site, "approved")
    ask("hello", RecordDict({JOB: job.to_record()}))
    _answer(ask, "train", content(job))
    assert _only_run(site).state(needs_approval=True) == "approved"
    assert code_of(_refusal(ask, "train", content(_changed(job, local_epochs=2)))) == WAITS
    assert code_of(_refusal(ask, "train", content(_changed(job, lr=0.5)))) == WAITS
    assert code_of(_refusal(ask_site(site), "train", content(_changed(job, lr=0.5)))) == WAITS
    _answer(ask_site(site), "train", content(replace(job, round=2)))


def test_an_operator_refuses_a_run_that_the_site_has_begun(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy()
    ask = ask_site(site)
    _answer(ask, "train", content(job))
    _decide(site, "refused")
    for message in (job, replace(job, round=2)):  # the first of them has an answer that the worker still knows
        assert (
            _refusal(ask, "train", content(message)) == "the site's operator has refused this run (refused-by-operator)"
        )
    assert _only_run(site).state(needs_approval=False) == "refused"


def test_the_operator_reads_the_whole_configuration_before_anything_is_trained(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedgraft.worker")
    site = with_policy(approve=True)
    asked = _changed(job, method_options={"ctx_init": "\x1b[2Jred\nline"}, data="folder:\u202eevil")
    _refusal(ask_site(site), "hello", RecordDict({JOB: asked.to_record()}))
    text = "\n".join(in_words(_only_run(site)))
    for key in RunConfig.model_fields:
        assert f"  {key} = " in text
        assert f"  {key} = " in caplog.text
    assert "25 rounds with 4 sites" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\nline" not in text


# --- nothing of the site's disk can be named ----------------------------------------------------------


class Watch:
    """What this process opens, lists and connects to while it is on."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo"):
            self.seen.append(f"{event} {arguments[0]}")

    @contextmanager
    def looking(self) -> Iterator[list[str]]:
        self.on, self.seen = True, []
        try:
            yield self.seen
        finally:
            self.on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    """Hears of every file and connection that Python opens."""
    return Watch()


@pytest.mark.parametrize("how", ["a folder that exists", "one that does not", "an ID", "a word"])
def test_a_server_cannot_make_a_site_look_for_a_backbone(
    how: str, ask: Ask, job: Job, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}")
    names = {
        "a folder that exists": str(tmp_path / "there"),
        "one that does not": str(tmp_path / "nowhere"),
        "an ID": "openai/clip-vit-base-patch16",
        "a word": "xyzzy",
    }
    ask("hello", RecordDict({JOB: job.to_record()}))  # what Python imports when it is first used
    asked = _changed(job, backbone=names[how])
    probed: list[str] = []
    monkeypatch.setattr("os.stat", _noting(os.stat, probed))
    monkeypatch.setattr("fedgraft.client.worker.open_site_images", lambda *given: None)
    with watch.looking() as seen:
        reason = _refusal(ask, "hello", RecordDict({JOB: asked.to_record()}))
    assert reason == "the site has no backbone under the name that the run gives (backbone)"
    assert not [line for line in [*seen, *probed] if names[how] in line or line.startswith("socket")]
    assert not [line for line in seen if "huggingface" in line]


def _noting(function: Callable[..., Any], noted: list[str]) -> Callable[..., Any]:
    def called(path: Any, *arguments: Any, **more: Any) -> Any:
        noted.append(str(path))
        return function(path, *arguments, **more)

    return called


def test_a_watch_would_see_a_file_and_a_connection(tmp_path: Path, watch: Watch) -> None:
    with watch.looking() as seen:
        (tmp_path / "file").write_text("x")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 1), 1)
    assert f"open {tmp_path / 'file'}" in seen
    assert any(line.startswith("socket.connect") for line in seen)


def test_a_site_maps_a_servers_name_to_a_backbone_of_its_own(site: SiteFolder, ask_site: AskSite, job: Job) -> None:
    settings = site.settings.model_copy(update={"backbones": {"openai/clip-vit-base-patch16": "mini"}})
    asked = _changed(job, backbone="openai/clip-vit-base-patch16")
    ask_site(replace(site, settings=settings))("hello", RecordDict({JOB: asked.to_record()}))


@pytest.mark.parametrize(
    "settings",
    [
        {"method_options": {"ctx_init": "/etc/passwd"}},
        {"method_options": {"ctx_init": "../keys/site"}},
        {"method_options": {"ctx_init": "~root"}},
        {"method_options": {"ctx_init": "https://host"}},
        {"method_options": {"ctx_init": "C:\\keys"}},
        {"strategy": "trimmed-mean(fraction='/etc/passwd')"},
        {"backbone_options": {"weights": "/etc/passwd"}},
        {"protocol_options": {"class_names": ["a", "b"], "labels": "/etc/passwd"}},
        {"protocol_options": {"class_names": ["a", "b"], "labels": ["/etc/passwd"]}},
    ],
)
def test_no_option_may_name_a_file_or_an_address(settings: dict, ask: Ask, job: Job) -> None:
    reason = _refusal(ask, "hello", RecordDict({JOB: _changed(job, **settings).to_record()}))
    assert "could name a file or an address" in reason
    assert code_of(reason) == "bounds"


# --- a job is data from a stranger --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"round": 26}, "its round is 26, not one from 0 to 25"),
        ({"round": -1}, "its round is -1"),
        ({"attempt": 10**18}, "its attempt is 1000000000000000000"),
        ({"attempt": -1}, "its attempt is -1"),
        ({"fold": 1}, "its fold is 1, but the run has 1"),
        ({"fold": -1}, "its fold is -1"),
        ({"version": f"{__version__}.{'1' * 10**6}"}, "a name in it has more than 200 characters"),
        ({"fingerprint": "f" * 10**6}, "its fingerprint is not 64 hexadecimal digits"),
    ],
)
def test_numbers_and_names_have_bounds(changed: dict, said: str, ask: Ask, job: Job, content: Content) -> None:
    reason = _refusal(ask, "train", content(replace(job, **changed)))
    assert said in reason
    assert code_of(reason) == "bounds"
    assert len(reason) < 300


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method_options": {"n_ctx": 10**9}}, "the option 'n_ctx' is larger than 4096"),
        ({"method_options": {"n_ctx": 2000, "rank": 2000}}, "the product of its options is larger than 1048576"),
        ({"method_options": {"ctx_init": "a " * 500}}, "the option 'ctx_init' has a text of more than 200 characters"),
        ({"method_options": {f"o{number}": 1 for number in range(101)}}, "it has 101 options"),
        ({"protocol_options": {"class_names": ["a", "b" * 201]}}, "a text of more than 200 characters"),
        ({"protocol_options": {"class_names": [f"{n}" for n in range(10_001)]}}, "more than 10000 values"),
        ({"protocol_options": {"class_names": ["a" * 300_000, "b"]}}, "its configuration has more than"),
        ({"strategy": "median" + " " * 5000}, "its strategy has more than 2000 characters"),
        ({"sites": 10**7}, "its number of sites is 10000000"),
    ],
)
def test_a_configuration_has_bounds(settings: dict, said: str, ask: Ask, job: Job) -> None:
    reason = _refusal(ask, "hello", RecordDict({JOB: _changed(job, **settings).to_record()}))
    assert said in reason
    assert code_of(reason) == "bounds"


@pytest.mark.parametrize("sites", [[], [2, 3], [-1], [4], list(range(1000))])
def test_a_message_is_for_one_site_of_the_run(sites: list[int], ask: Ask, job: Job, content: Content) -> None:
    with pytest.raises(UserError, match=rf"it addresses {len(sites)} sites, not one of 0 to 3 \(bounds\)$"):
        ask("train", for_sites(content(job), sites))


def test_a_message_without_a_readable_job_is_refused(ask: Ask) -> None:
    assert code_of(_refusal(ask, "hello", RecordDict())) == "configuration"


def test_a_stranger_cannot_write_lines_of_his_own_into_the_log(
    ask: Ask, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    record = job.to_record()
    record["version"] = "9.9\nworker: all is well\x1b[2J"
    assert _refusal(ask, "hello", RecordDict({JOB: record})).startswith("the server runs fedgraft 9.9workerall")
    record = job.to_record()
    record["config"] = job.config.model_dump_json().replace('"adam"', '"adam\\nworker: all is well\\u001b[2J"')
    assert code_of(_refusal(ask, "hello", RecordDict({JOB: record}))) == "configuration"
    assert len(caplog.messages) == 2
    assert all(message.isprintable() for message in caplog.messages)


def test_a_message_of_many_arrays_is_refused(ask: Ask, job: Job, content: Content) -> None:
    message = content(job)
    message[SHARED] = to_array_record({f"{number}": np.zeros(1, np.float32) for number in range(10_001)})
    assert "its number of arrays is 10001" in _refusal(ask, "train", message)


def test_a_server_that_counts_its_attempts_to_the_bound_does_not_lock_out_a_later_honest_one(
    ask: Ask, job: Job, content: Content, site: SiteFolder
) -> None:
    _answer(ask, "train", content(replace(job, attempt=10_000, round=25)))
    states = list(site.state.glob("run/000/*"))
    honest = content(replace(job, attempt=2, round=1))
    assert code_of(_refusal(ask, "train", honest)) == "stale"
    for path in states:
        os.utime(path, (time.time() - 3700,) * 2)
    _answer(ask, "train", honest)
    assert [path.name for path in site.state.glob("run/000/*")] == ["round-000001.safetensors"]
    _answer(ask, "train", content(replace(job, attempt=2, round=2)))


def test_only_so_many_new_runs_are_considered_in_a_day_and_those_known_go_on(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy(new_runs_per_day=3)
    ask = ask_site(site)
    for number in range(50):
        message = RecordDict({JOB: replace(job, run=f"run-{number}").to_record()})
        if number < 3:
            ask("hello", message)
        else:
            assert code_of(_refusal(ask, "hello", message)) == "too-many-runs"
    size = site.audit_log.stat().st_size
    assert code_of(_refusal(ask_site(site), "hello", message)) == "too-many-runs"
    assert site.audit_log.stat().st_size < size + 1000
    _answer(ask, "train", content(replace(job, run="run-0")))
    assert [path.name for path in site.state.iterdir()] == ["run-0"]
    assert len(_entries(site, "asked")) == 3


# --- what a run may cost --------------------------------------------------------------------------------


def _variant(message: RecordDict, number: int) -> RecordDict:
    """The message with other parameters, drawn from the number; those of 0 are its own."""
    rng = np.random.default_rng(number)
    arrays = from_array_record(message.array_records[SHARED])
    arrays = {name: (a + number * rng.normal(size=a.shape)).astype(np.float32) for name, a in arrays.items()}
    return RecordDict({**message, SHARED: to_array_record(arrays)})


@pytest.mark.parametrize(("kind", "most"), [("train", 4), ("evaluate", 8)])
def test_a_server_cannot_ask_for_much_more_than_the_run_needs(
    kind: str, most: int, ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy()
    message = content(_changed(replace(job, round=1), **FEW))
    for number in range(most):
        _answer(ask_site(site), kind, _variant(message, number))
    assert f"accepts at most {most} different messages to {kind}" in _refusal(
        ask_site(site), kind, _variant(message, most)
    )
    _answer(ask_site(site), kind, _variant(message, 0))  # what was answered before is answered again
    _decide(site, "approved")
    _answer(ask_site(site), kind, _variant(message, most))


def test_a_training_that_also_measures_counts_as_a_measurement(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy(max_measurements=3)
    ask = ask_site(site)
    base = _changed(replace(job, round=2), rounds=2, eval_every=2)
    for number in range(3):
        _answer(ask, "evaluate", _variant(content(base), number))
    measuring = content(replace(base, measure=True))
    assert "accepts at most 3 different messages to evaluate" in _refusal(ask, "train", measuring)
    _answer(ask, "train", content(base))


def test_bytes_and_seconds_of_a_run_have_bounds(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy()
    _answer(ask_site(site), "train", content(job))
    run = _only_run(site)
    assert run.seconds > 0
    (size,) = run.sent.values()
    ask = ask_site(with_policy(round_bytes=size + 10))
    assert f"lets at most {size + 10} bytes leave per round" in _refusal(ask, "train", content(job))
    _answer(ask, "train", content(replace(job, round=2)))
    ask = ask_site(with_policy(run_bytes=3 * size - 10))
    assert "bytes leave per run" in _refusal(ask, "train", content(replace(job, round=3)))
    ask = ask_site(with_policy(run_seconds=run.seconds / 2))
    assert "seconds of work per run" in _refusal(ask, "train", content(replace(job, round=4)))


def test_work_over_which_a_worker_was_killed_counts(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = with_policy()

    def killed(*arguments: object) -> RecordDict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            ask_site(site)("train", content(job))
    lines = site.audit_log.read_text()
    assert _only_run(site).open_since in lines
    ask_site(site)
    (interrupted,) = _entries(site, "interrupted")
    assert 0 <= interrupted["seconds"] <= site.settings.task_seconds
    assert _only_run(site).open_since == ""


# --- what leaves the site --------------------------------------------------------------------------------


def _mislabel(site: SiteFolder, count: int) -> None:
    """Copy red images to the blue ones, so that some are classified wrongly."""
    folder = Path(site.settings.data)
    for number in range(count):
        copy = folder / "blue_circle" / f"red-{number}.png"
        with Image.open(folder / "red_triangle" / f"{number}.png") as image:
            image.rotate(180).save(copy)


def test_confusion_counts_leave_in_the_last_round_only_whatever_the_server_asks(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy()
    ask = ask_site(site)
    job = _changed(job, **FEW)
    for server_round in (0, 1):
        early = _answer(ask, "evaluate", content(replace(job, round=server_round, detailed=True)))
        assert set(early) == {METRICS}
    last = content(replace(job, round=2, detailed=True))
    table = from_array_record(_answer(ask, "evaluate", last).array_records[COUNTS])["personal"]
    assert table.sum() == 12
    again = _answer(ask_site(site), "evaluate", last)
    assert np.array_equal(from_array_record(again.array_records[COUNTS])["personal"], table)
    _mislabel(site, 8)
    other = _answer(ask_site(site), "evaluate", last)
    assert other.metric_records[METRICS]["personal"] != [12, 12]
    assert set(other) == {METRICS}
    assert _only_run(site).state(needs_approval=False) == "finished"


def test_counts_below_the_smallest_group_do_not_leave(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content, site: SiteFolder
) -> None:
    _mislabel(site, 8)
    last = content(replace(_changed(job, **FEW), round=2, detailed=True))
    whole = _answer(ask_site(with_policy()), "evaluate", last)
    table = from_array_record(whole.array_records[COUNTS])["personal"]
    assert 0 < table[table > 0].min() < 4 <= table.max()
    for smallest in (3, 4):
        other = content(replace(_changed(job, **FEW), round=2, detailed=True, run=f"run-{smallest}"))
        coarse = _answer(ask_site(with_policy(smallest_group=smallest)), "evaluate", other)
        told = from_array_record(coarse.array_records[COUNTS])["personal"]
        assert np.array_equal(told, np.where(table < smallest, 0, table))
        assert coarse.metric_records[METRICS]["personal"] == whole.metric_records[METRICS]["personal"]
    tiny = content(replace(_changed(job, **FEW), round=1, run="run-20"))
    assert _answer(ask_site(with_policy(smallest_group=20)), "evaluate", tiny).metric_records[METRICS]["personal"] == [
        0,
        0,
    ]
    hello = RecordDict({JOB: job.to_record()})
    assert dict(ask_site(with_policy(smallest_group=12))("hello", hello).metric_records[CLASS_COUNTS]) == {
        "blue circle": 20,
        "green square": 12,
        "red triangle": 12,
    }
    some = ask_site(with_policy(smallest_group=13))("hello", hello)
    assert dict(some.metric_records[CLASS_COUNTS]) == {"blue circle": 20}
    assert CLASS_COUNTS not in ask_site(with_policy(smallest_group=21))("hello", hello)


def test_a_site_that_shares_no_counts_sends_none_in_the_last_round_and_the_run_ends_well(
    images: Path, tmp_path: Path, job: Job
) -> None:
    sites = [SiteFolder.create(tmp_path / name, name, images) for name in ("north", "south")]
    text = (sites[1].path / "site.toml").read_text()
    (sites[1].path / "site.toml").write_text(text.replace("share_counts = true", "share_counts = false"))
    config = RunConfig.model_validate({**job.config.model_dump(), "rounds": 1, "sites": 2})
    with InProcessGrid([sites[0], SiteFolder.open(sites[1].path)], 0, {}) as grid:
        run_to_the_end(config, tmp_path / "run", grid)
    table = json.loads((tmp_path / "run" / "confusion.json").read_text())["scopes"]["personal"]["counts"]
    assert np.sum(table) == 12
    known = json.loads((tmp_path / "run" / "sites.json").read_text())
    assert "images" in known["north"]
    assert "images" not in known["south"]


def test_the_audit_log_tells_what_left_the_site(ask: Ask, job: Job, content: Content, site: SiteFolder) -> None:
    message = content(replace(job, round=3, attempt=2))
    answer = _answer(ask, "train", message)
    (sent,) = _entries(site, "sent")
    array = answer.array_records[SHARED]["sigma"]
    change = array.numpy() - message.array_records[SHARED]["sigma"].numpy()
    assert sent["arrays"]["sigma"]["sha256"] == hashlib.sha256(array.data).hexdigest()
    assert sent["arrays"]["sigma"]["bytes"] == len(array.data)
    assert sent["update_norm"] == pytest.approx(float(np.linalg.norm(change)), rel=1e-5)
    assert sent["update_norm"] > 0
    assert sent["numbers"][METRICS]["num-examples"] == 24
    assert (sent["round"], sent["attempt"], sent["kind"]) == (3, 2, "train")
    assert sent["bytes"] > len(array.data)


# --- what a refusal tells ----------------------------------------------------------------------------------


def _with_corrupt_image(site: SiteFolder) -> None:
    (Path(site.settings.data) / "blue_circle" / "Doe_Jane_1961.png").write_bytes(b"no image")


def _with_foreign_class(site: SiteFolder) -> None:
    folder = Path(site.settings.data)
    (folder / "Ward_7_Doe").mkdir()
    shutil.copy(folder / "blue_circle" / "0.png", folder / "Ward_7_Doe" / "0.png")


def _without_images(site: SiteFolder) -> None:
    shutil.rmtree(site.settings.data)


def _with_damaged_state(site: SiteFolder) -> None:
    folder = site.state / "run" / "000"
    folder.mkdir(parents=True)
    (folder / "round-000000.safetensors").write_bytes(b"damaged")


def _with_a_file_in_the_caches_place(site: SiteFolder) -> None:
    site.cache.rmdir()
    site.cache.write_text("")


@pytest.mark.parametrize(
    ("spoil", "code", "logged"),
    [
        (_with_corrupt_image, "images", "Doe_Jane_1961.png"),
        (_with_foreign_class, "classes", "Ward_7_Doe"),
        (_without_images, "images", "does not exist"),
        (_with_damaged_state, "state", "round-000000.safetensors"),
        (_with_a_file_in_the_caches_place, "disk", "cache"),
    ],
)
def test_a_refusal_tells_a_code_and_its_sentence_and_the_log_has_the_rest(
    spoil: Callable[[SiteFolder], None], code: str, logged: str, ask: Ask, job: Job, content: Content,
    site: SiteFolder, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    spoil(site)
    assert _refusal(ask, "train", content(job)) == f"{SENTENCES[code]} ({code})"
    assert logged in caplog.text


def test_an_unexpected_error_tells_nothing_of_itself(
    ask: Ask, job: Job, content: Content, site: SiteFolder, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def broken(*arguments: object) -> None:
        raise RuntimeError("/data/patients/Doe_Jane_1961.png")

    monkeypatch.setattr(tasks, "train_sites", broken)
    assert _refusal(ask, "train", content(job)) == "an unexpected error at the site (internal)"
    assert "Doe_Jane_1961" in caplog.text
    assert "Doe_Jane_1961" in _entries(site, "declined")[0]["detail"]


def test_a_site_whose_folder_names_no_images_refuses_without_naming_its_folder(
    tmp_path: Path, ask_site: AskSite, job: Job
) -> None:
    site = SiteFolder.create(tmp_path / "empty", "north")
    assert _refusal(ask_site(site), "hello", RecordDict({JOB: job.to_record()})) == f"{SENTENCES['images']} (images)"
