"""A site decides: what its policy refuses, what waits for its operator, and what a run may cost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from fedgraft import RunConfig
from fedgraft.client import tasks
from fedgraft.client.run_in_words import in_words
from fedgraft.core.errors import RunFailed
from fedgraft.core.refusals import WAITS, code_of
from fedgraft.flower.messages import (
    JOB,
    SHARED,
    Job,
    from_array_record,
    to_array_record,
)
from fedgraft.runs.asked_runs import AskedRuns
from fedgraft.runs.audit_log import AuditLog
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.testing.in_process import InProcessGrid, run_to_the_end
from tests.client.conftest import AskSite, Content, WithPolicy, answer_of, changed_job, entries_of, only_run, refusal_of

FEW = {"rounds": 2}


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
    reason = refusal_of(ask_site(site), kind, content(changed_job(job, **settings)))
    assert reason.startswith(f"the site's policy {said}")
    assert code_of(reason) == "policy"
    assert loaded == []
    assert [entry["reason"] for entry in entries_of(site, "declined")] == [reason]
    assert only_run(site).state(needs_approval=False) == "refused"


def test_a_policy_that_accepts_the_run_by_name_lets_it_train(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy(methods=["fedpgp"], strategies=["median"], backbones=[job.fingerprint], max_rounds=25)
    answer_of(ask_site(site), "train", content(changed_job(job, strategy="median")))


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
        assert code_of(refusal_of(ask, "hello", RecordDict({JOB: job.to_record()}))) == WAITS
    assert code_of(refusal_of(ask, "train", content(job))) == WAITS
    assert only_run(site).state(needs_approval=True) == "waiting"
    assert not (site.state / "run").exists()
    _decide(site, "approved")
    ask("hello", RecordDict({JOB: job.to_record()}))
    answer_of(ask, "train", content(job))
    assert only_run(site).state(needs_approval=True) == "approved"
    assert code_of(refusal_of(ask, "train", content(changed_job(job, local_epochs=2)))) == WAITS
    assert code_of(refusal_of(ask, "train", content(changed_job(job, lr=0.5)))) == WAITS
    assert code_of(refusal_of(ask_site(site), "train", content(changed_job(job, lr=0.5)))) == WAITS
    answer_of(ask_site(site), "train", content(replace(job, round=2)))


def test_an_operator_refuses_a_run_that_the_site_has_begun(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy()
    ask = ask_site(site)
    answer_of(ask, "train", content(job))
    _decide(site, "refused")
    for message in (job, replace(job, round=2)):  # the first of them has an answer that the worker still knows
        said = "the site's operator has refused this run (refused-by-operator)"
        assert refusal_of(ask, "train", content(message)) == said
    assert only_run(site).state(needs_approval=False) == "refused"


def test_the_operator_reads_the_whole_configuration_before_anything_is_trained(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedgraft.worker")
    site = with_policy(approve=True)
    asked = changed_job(job, method_options={"ctx_init": "\x1b[2Jred\nline"}, data="folder:\u202eevil")
    refusal_of(ask_site(site), "hello", RecordDict({JOB: asked.to_record()}))
    text = "\n".join(in_words(only_run(site)))
    for key in RunConfig.model_fields:
        assert f"  {key} = " in text
        assert f"  {key} = " in caplog.text
    assert "25 rounds with 4 sites" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\nline" not in text


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
    message = content(changed_job(replace(job, round=1), **FEW))
    for number in range(most):
        answer_of(ask_site(site), kind, _variant(message, number))
    assert f"accepts at most {most} different messages to {kind}" in refusal_of(
        ask_site(site), kind, _variant(message, most)
    )
    answer_of(ask_site(site), kind, _variant(message, 0))  # what was answered before is answered again
    _decide(site, "approved")
    answer_of(ask_site(site), kind, _variant(message, most))


def test_a_training_that_also_measures_counts_as_a_measurement(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy(max_measurements=3)
    ask = ask_site(site)
    base = changed_job(replace(job, round=2), rounds=2, eval_every=2)
    for number in range(3):
        answer_of(ask, "evaluate", _variant(content(base), number))
    measuring = content(replace(base, measure=True))
    assert "accepts at most 3 different messages to evaluate" in refusal_of(ask, "train", measuring)
    answer_of(ask, "train", content(base))


def test_bytes_and_seconds_of_a_run_have_bounds(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content
) -> None:
    site = with_policy()
    answer_of(ask_site(site), "train", content(job))
    run = only_run(site)
    assert run.seconds > 0
    (size,) = run.sent.values()
    ask = ask_site(with_policy(round_bytes=size + 10))
    assert f"lets at most {size + 10} bytes leave per round" in refusal_of(ask, "train", content(job))
    answer_of(ask, "train", content(replace(job, round=2)))
    ask = ask_site(with_policy(run_bytes=3 * size - 10))
    assert "bytes leave per run" in refusal_of(ask, "train", content(replace(job, round=3)))
    ask = ask_site(with_policy(run_seconds=run.seconds / 2))
    assert "seconds of work per run" in refusal_of(ask, "train", content(replace(job, round=4)))


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
    assert only_run(site).open_since in lines
    ask_site(site)
    (interrupted,) = entries_of(site, "interrupted")
    assert 0 <= interrupted["seconds"] <= site.settings.task_seconds
    assert only_run(site).open_since == ""
