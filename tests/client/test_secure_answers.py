"""What a deployed site answers to the stages of secure aggregation, and what a server cannot get out of it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from fedgraft.backbones import Backbone
from fedgraft.client.open_rounds import OpenRound, RoundsInFolder
from fedgraft.core.errors import UserError
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.keys import SiteSecrets
from tests.client.sum_server import CONFIG, SITE, SumServer


@pytest.fixture
def server(tmp_path: Path, site: SiteFolder, mini: Backbone) -> SumServer:
    """A server and its site."""
    return SumServer(site, tmp_path, mini)


Unmask = Callable[[list[int], list[int]], RecordDict | str]


@pytest.fixture
def unmask(server: SumServer) -> Unmask:
    """Asks the site to unmask, after it has sent its masked vector."""
    received = server.begin()
    vector = server.stage(records.masked_request([0, 1, 2, 3]), sealed=records.sealed_record(received))
    assert isinstance(vector, RecordDict)
    return lambda survivors, dropped: server.stage(records.unmask_request(survivors, dropped))


def test_a_site_unmasks_one_sum_and_repeats_its_answer_but_gives_no_second_one(unmask: Unmask) -> None:
    first = unmask([0, 1, 2], [3])
    assert isinstance(first, RecordDict)
    answer = records.revealed_of(first.config_records[records.SECAGG])
    assert (set(answer.seeds), set(answer.secrets)) == ({0, 1, 2}, {3})
    assert unmask([0, 1, 2], [3]) == first
    assert "keeps nothing of round 1" in str(unmask([0, 1, 2, 3], []))


@pytest.mark.parametrize(
    ("survivors", "dropped", "said"),
    [
        ([0, 1, 2, 3], [3], "both masks of site 3"),
        ([0, 2], [1, 3], "only 2 sites, and 3 are the least"),
        ([0, 1, 3], [2], "whose vector is not in the sum"),
        ([0, 1, 2], [], "not those that shared"),
        ([0, 0, 1, 2], [3], "no valid content"),
    ],
)
def test_a_request_that_would_show_more_than_the_sum_is_refused(
    survivors: list[int], dropped: list[int], said: str, unmask: Unmask
) -> None:
    assert said in str(unmask(survivors, dropped))


def test_a_second_vector_with_other_masks_is_refused(server: SumServer) -> None:
    received = server.begin()
    sealed = records.sealed_record(received)
    first = server.stage(records.masked_request([0, 1, 2, 3]), sealed=sealed)
    assert server.stage(records.masked_request([0, 1, 2, 3]), sealed=sealed) == first
    assert "'unmask' is next" in str(server.stage(records.masked_request([0, 1, 2]), sealed=sealed))


def test_a_stage_out_of_order_is_refused(server: SumServer) -> None:
    server.train()
    assert "'shares' is next" in str(server.stage(records.unmask_request([0, 1, 2], [3])))


@pytest.fixture
def many(tmp_path: Path, site: SiteFolder, mini: Backbone) -> Callable[[int], SumServer]:
    """A server of nine sites with some neighbours each, of which one wants to mask with four others at least."""
    policy = site.settings.policy.model_copy(update={"smallest_sum": 5})
    careful = replace(site, settings=site.settings.model_copy(update={"policy": policy}))

    def made(neighbours: int) -> SumServer:
        config = CONFIG.model_copy(update={"sites": 9, "strategy": f"secagg(neighbours={neighbours})"})
        return SumServer(careful, tmp_path, mini, config)

    return made


def test_a_run_in_which_a_site_masks_with_few_others_is_refused_before_training(
    many: Callable[[int], SumServer],
) -> None:
    with pytest.raises(
        UserError, match="lets a site mask with 2 others, and with itself this site's smallest_sum is 5"
    ):
        many(2).train()


@pytest.mark.parametrize(("threshold", "accepted"), [(0.51, False), (0.75, True)])
def test_a_run_in_which_few_sites_recover_anothers_secrets_is_refused_before_training(
    threshold: float, accepted: bool, tmp_path: Path, site: SiteFolder, mini: Backbone
) -> None:
    policy = site.settings.policy.model_copy(update={"smallest_threshold": 0.75})
    careful = replace(site, settings=site.settings.model_copy(update={"policy": policy}))
    server = SumServer(
        careful, tmp_path, mini, CONFIG.model_copy(update={"strategy": f"secagg(threshold={threshold})"})
    )
    expected = nullcontext() if accepted else pytest.raises(UserError, match=r"lets 0\.51 of a site's share holders")
    with expected:
        server.train()


def test_a_site_whose_neighbours_leave_sends_no_vector_though_the_sum_has_enough_sites(
    many: Callable[[int], SumServer],
) -> None:
    server = many(4)
    received = server.begin()
    sealed = records.sealed_record(received)
    left = [site for site in range(9) if site != next(one for one in received if one != SITE)]
    assert "4 sites would mask with each other" in str(server.stage(records.masked_request(left), sealed=sealed))


def test_a_worker_that_was_started_again_has_dropped_out_of_the_round_and_is_back_in_the_next(
    server: SumServer,
) -> None:
    received = server.begin()
    server.restart()
    answer = server.stage(records.masked_request([0, 1, 2, 3]), sealed=records.sealed_record(received))
    assert "keeps nothing of round 1" in str(answer)
    server.job = replace(server.job, round=2)
    assert set(server.begin()) == {0, 1, 2, 3}


def test_a_late_copy_from_a_server_that_has_ended_does_not_disturb_the_round(server: SumServer) -> None:
    server.job = replace(server.job, attempt=2)
    received = server.begin()
    server.job = replace(server.job, attempt=1)
    assert "ended since" in str(server.train())
    server.job = replace(server.job, attempt=2)
    answer = server.stage(records.masked_request([0, 1, 2, 3]), sealed=records.sealed_record(received))
    assert isinstance(answer, RecordDict)


def test_what_a_simulated_site_keeps_is_the_same_for_the_next_process(tmp_path: Path) -> None:
    rounds = RoundsInFolder(tmp_path / "open")
    secrets = SiteSecrets()
    kept = OpenRound(
        3, 0, secrets, np.arange(5, dtype=np.uint64), {1: secrets.public()}, (1, 4), {1: b"sealed"}, records.UNMASK
    )
    assert rounds.kept(0, 1) is None
    rounds.keep(0, 1, kept)
    again = RoundsInFolder(tmp_path / "open").kept(0, 1)
    assert again is not None
    assert np.array_equal(again.vector, kept.vector)
    assert replace(again, vector=kept.vector) == kept
    rounds.forget(0, 1)
    assert list((tmp_path / "open").iterdir()) == []
