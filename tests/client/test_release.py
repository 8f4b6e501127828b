"""What leaves a deployed site, and when."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from PIL import Image

from fedgraft import RunConfig
from fedgraft.flower.messages import (
    CLASS_COUNTS,
    COUNTS,
    JOB,
    METRICS,
    SHARED,
    Job,
    from_array_record,
)
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.testing.in_process import InProcessGrid, run_to_the_end
from tests.client.conftest import Ask, AskSite, Content, WithPolicy, answer_of, changed_job, entries_of, only_run

FEW = {"rounds": 2}


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
    job = changed_job(job, **FEW)
    for server_round in (0, 1):
        early = answer_of(ask, "evaluate", content(replace(job, round=server_round, detailed=True)))
        assert set(early) == {METRICS}
    last = content(replace(job, round=2, detailed=True))
    table = from_array_record(answer_of(ask, "evaluate", last).array_records[COUNTS])["personal"]
    assert table.sum() == 12
    again = answer_of(ask_site(site), "evaluate", last)
    assert np.array_equal(from_array_record(again.array_records[COUNTS])["personal"], table)
    _mislabel(site, 8)
    other = answer_of(ask_site(site), "evaluate", last)
    assert other.metric_records[METRICS]["personal"] != [12, 12]
    assert set(other) == {METRICS}
    assert only_run(site).state(needs_approval=False) == "finished"


def test_counts_below_the_smallest_group_do_not_leave(
    ask_site: AskSite, with_policy: WithPolicy, job: Job, content: Content, site: SiteFolder
) -> None:
    _mislabel(site, 8)
    last = content(replace(changed_job(job, **FEW), round=2, detailed=True))
    whole = answer_of(ask_site(with_policy()), "evaluate", last)
    table = from_array_record(whole.array_records[COUNTS])["personal"]
    assert 0 < table[table > 0].min() < 4 <= table.max()
    for smallest in (3, 4):
        other = content(replace(changed_job(job, **FEW), round=2, detailed=True, run=f"run-{smallest}"))
        coarse = answer_of(ask_site(with_policy(smallest_group=smallest)), "evaluate", other)
        told = from_array_record(coarse.array_records[COUNTS])["personal"]
        assert np.array_equal(told, np.where(table < smallest, 0, table))
        assert coarse.metric_records[METRICS]["personal"] == whole.metric_records[METRICS]["personal"]
    tiny = content(replace(changed_job(job, **FEW), round=1, run="run-20"))
    suppressed = answer_of(ask_site(with_policy(smallest_group=20)), "evaluate", tiny)
    assert suppressed.metric_records[METRICS]["personal"] == [0, 0]
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
    answer = answer_of(ask, "train", message)
    (sent,) = entries_of(site, "sent")
    array = answer.array_records[SHARED]["sigma"]
    change = array.numpy() - message.array_records[SHARED]["sigma"].numpy()
    assert sent["arrays"]["sigma"]["sha256"] == hashlib.sha256(array.data).hexdigest()
    assert sent["arrays"]["sigma"]["bytes"] == len(array.data)
    assert sent["update_norm"] == pytest.approx(float(np.linalg.norm(change)), rel=1e-5)
    assert sent["update_norm"] > 0
    assert sent["numbers"][METRICS]["num-examples"] == 24
    assert (sent["round"], sent["attempt"], sent["kind"]) == (3, 2, "train")
    assert sent["bytes"] > len(array.data)
