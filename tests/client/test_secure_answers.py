"""What a deployed site answers to the stages of secure aggregation, and what a server cannot get out of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedgraft import RunConfig
from fedgraft.backbones import Backbone
from fedgraft.client.open_rounds import OpenRound, RoundsInFolder
from fedgraft.client.worker import Worker
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import JOB, METRICS, SHARED, Job, for_sites, to_array_record, unpack
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.keys import SiteSecrets
from fedgraft.strategies.secagg.protocol import Terms, sealed_shares
from fedgraft.testing.in_process import ask

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="promptfl", data="folder:own", protocol="own-data", sites=4, local_epochs=1, strategy="secagg",
    protocol_options={"class_names": NAMES}, method_options={"n_ctx": 2},
)  # fmt: skip
SITE, OTHERS = 2, (0, 1, 3)


class _Server:
    """A server with one real site and three that it invents."""

    def __init__(self, folder: SiteFolder, scratch: Path, mini: Backbone) -> None:
        self._folder, self._scratch = folder, scratch
        self.job = Job(CONFIG, "run", mini.fingerprint, 0, 1, attempt=1)
        plan = Plan.of(CONFIG)
        adapter = plan.adapter(Vocabulary(mini, NAMES, plan.announced.templates))
        self._shared = {name: value.numpy() for name, value in adapter.shared().items()}
        self.others = {site: SiteSecrets() for site in OTHERS}
        self.restart()

    def restart(self) -> None:
        """Another worker for the site."""
        self._worker = Worker(self._folder, self._scratch)

    def ask(self, kind: str, content: RecordDict) -> RecordDict | str:
        """The site's answer, or why there is none."""
        message = for_sites(RecordDict({JOB: self.job.to_record(), **content}), [SITE])
        return unpack(record_from_bytes(ask(self._worker, kind, record_bytes(message))))[SITE]

    def train(self) -> RecordDict | str:
        """Its answer to a training."""
        return self.ask("train", RecordDict({SHARED: to_array_record(self._shared)}))

    def stage(self, request: ConfigRecord, **own: ConfigRecord) -> RecordDict | str:
        """Its answer to a stage."""
        single = {f"{SITE}/{name}": record for name, record in own.items()}
        return self.ask("secagg", RecordDict({records.SECAGG: request, **single}))

    def begin(self) -> dict[int, bytes]:
        """Train, ask for shares, and return what the site would receive from everyone."""
        trained = self.train()
        assert isinstance(trained, RecordDict)
        assert set(trained) == {records.SECAGG, METRICS}
        assert set(trained.metric_records[METRICS]) == {"seconds"}
        own = records.public_keys_of(trained.config_records[records.SECAGG])
        keys = {**{site: secrets.public() for site, secrets in self.others.items()}, SITE: own}
        shared = self.stage(records.shares_request(keys))
        assert isinstance(shared, RecordDict)
        terms = Terms(self.job.place.encode(), 0.66, 64, 3)
        sealed = {site: sealed_shares(site, own, keys, terms)[SITE] for site, own in self.others.items()}
        return {**sealed, SITE: records.sealed_of(shared.config_records[records.SECAGG])[SITE]}


@pytest.fixture
def server(tmp_path: Path, images: Path, mini: Backbone) -> _Server:
    """A server and its site."""
    shutil.copytree(images, tmp_path / "own")
    return _Server(SiteFolder.create(tmp_path / "site", "north", tmp_path / "own"), tmp_path, mini)


Unmask = Callable[[list[int], list[int]], RecordDict | str]


@pytest.fixture
def unmask(server: _Server) -> Unmask:
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


def test_a_second_vector_with_other_masks_is_refused(server: _Server) -> None:
    received = server.begin()
    sealed = records.sealed_record(received)
    first = server.stage(records.masked_request([0, 1, 2, 3]), sealed=sealed)
    assert server.stage(records.masked_request([0, 1, 2, 3]), sealed=sealed) == first
    assert "'unmask' is next" in str(server.stage(records.masked_request([0, 1, 2]), sealed=sealed))


def test_a_stage_out_of_order_is_refused(server: _Server) -> None:
    server.train()
    assert "'shares' is next" in str(server.stage(records.unmask_request([0, 1, 2], [3])))


def test_a_worker_that_was_started_again_has_dropped_out_of_the_round_and_is_back_in_the_next(server: _Server) -> None:
    received = server.begin()
    server.restart()
    answer = server.stage(records.masked_request([0, 1, 2, 3]), sealed=records.sealed_record(received))
    assert "keeps nothing of round 1" in str(answer)
    server.job = replace(server.job, round=2)
    assert set(server.begin()) == {0, 1, 2, 3}


def test_a_late_copy_from_a_server_that_has_ended_does_not_disturb_the_round(server: _Server) -> None:
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
