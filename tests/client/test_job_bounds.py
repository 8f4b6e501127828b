"""What no server can do to a site: a job is a stranger's data, and names nothing of the site's disk."""

import os
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

from fedgraft import UserError, __version__
from fedgraft.core.refusals import code_of
from fedgraft.flower.messages import (
    JOB,
    SHARED,
    Job,
    for_sites,
    to_array_record,
)
from fedgraft.runs.site_folder import SiteFolder
from tests.client.conftest import Ask, AskSite, Content, WithPolicy, answer_of, changed_job, entries_of, refusal_of

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
    asked = changed_job(job, backbone=names[how])
    probed: list[str] = []
    monkeypatch.setattr("os.stat", _noting(os.stat, probed))
    monkeypatch.setattr("fedgraft.client.worker.open_site_images", lambda *given: None)
    with watch.looking() as seen:
        reason = refusal_of(ask, "hello", RecordDict({JOB: asked.to_record()}))
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
    asked = changed_job(job, backbone="openai/clip-vit-base-patch16")
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
    reason = refusal_of(ask, "hello", RecordDict({JOB: changed_job(job, **settings).to_record()}))
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
    reason = refusal_of(ask, "train", content(replace(job, **changed)))
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
    reason = refusal_of(ask, "hello", RecordDict({JOB: changed_job(job, **settings).to_record()}))
    assert said in reason
    assert code_of(reason) == "bounds"


@pytest.mark.parametrize("sites", [[], [2, 3], [-1], [4], list(range(1000))])
def test_a_message_is_for_one_site_of_the_run(sites: list[int], ask: Ask, job: Job, content: Content) -> None:
    with pytest.raises(UserError, match=rf"it addresses {len(sites)} sites, not one of 0 to 3 \(bounds\)$"):
        ask("train", for_sites(content(job), sites))


def test_a_message_without_a_readable_job_is_refused(ask: Ask) -> None:
    assert code_of(refusal_of(ask, "hello", RecordDict())) == "configuration"


def test_a_stranger_cannot_write_lines_of_his_own_into_the_log(
    ask: Ask, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    record = job.to_record()
    record["version"] = "9.9\nworker: all is well\x1b[2J"
    assert refusal_of(ask, "hello", RecordDict({JOB: record})).startswith("the server runs fedgraft 9.9workerall")
    record = job.to_record()
    record["config"] = job.config.model_dump_json().replace('"adam"', '"adam\\nworker: all is well\\u001b[2J"')
    assert code_of(refusal_of(ask, "hello", RecordDict({JOB: record}))) == "configuration"
    assert len(caplog.messages) == 2
    assert all(message.isprintable() for message in caplog.messages)


def test_a_message_of_many_arrays_is_refused(ask: Ask, job: Job, content: Content) -> None:
    message = content(job)
    message[SHARED] = to_array_record({f"{number}": np.zeros(1, np.float32) for number in range(10_001)})
    assert "its number of arrays is 10001" in refusal_of(ask, "train", message)


def test_a_server_that_counts_its_attempts_to_the_bound_does_not_lock_out_a_later_honest_one(
    ask: Ask, job: Job, content: Content, site: SiteFolder
) -> None:
    answer_of(ask, "train", content(replace(job, attempt=10_000, round=25)))
    states = list(site.state.glob("run/000/*"))
    honest = content(replace(job, attempt=2, round=1))
    assert code_of(refusal_of(ask, "train", honest)) == "stale"
    for path in states:
        os.utime(path, (time.time() - 3700,) * 2)
    answer_of(ask, "train", honest)
    assert [path.name for path in site.state.glob("run/000/*")] == ["round-000001.safetensors"]
    answer_of(ask, "train", content(replace(job, attempt=2, round=2)))


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
            assert code_of(refusal_of(ask, "hello", message)) == "too-many-runs"
    size = site.audit_log.stat().st_size
    assert code_of(refusal_of(ask_site(site), "hello", message)) == "too-many-runs"
    assert site.audit_log.stat().st_size < size + 1000
    answer_of(ask, "train", content(replace(job, run="run-0")))
    assert [path.name for path in site.state.iterdir()] == ["run-0"]
    assert len(entries_of(site, "asked")) == 3
