"""A server of one round of secure aggregation that may lie, with one real site and the keys of the others."""

from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from fedgraft import RunConfig
from fedgraft.backbones import Backbone
from fedgraft.client.worker import Worker
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import JOB, METRICS, SHARED, Job, for_sites, to_array_record, unpack
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.keys import SiteSecrets
from fedgraft.strategies.secagg.protocol import sealed_shares
from fedgraft.strategies.secagg.statements import Statement
from fedgraft.testing.in_process import ask

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="promptfl", data="folder:own", protocol="own-data", sites=4, local_epochs=1, strategy="secagg",
    protocol_options={"class_names": NAMES}, method_options={"n_ctx": 2},
)  # fmt: skip
SITE = 2


class SumServer:
    """The server.

    Attributes:
        others: the secrets of the sites whose keys it passes on; by default it has invented them.
        statements: what it passes on as theirs.
    """

    def __init__(self, folder: SiteFolder, scratch: Path, mini: Backbone, config: RunConfig = CONFIG) -> None:
        self._folder, self._scratch = folder, scratch
        self.job = Job(config, "run", mini.fingerprint, 0, 1, attempt=1)
        self.plan = plan = Plan.of(config)
        adapter = plan.adapter(Vocabulary(mini, NAMES, plan.announced.templates))
        self._shared = {name: value.numpy() for name, value in adapter.shared().items()}
        self.others = {site: SiteSecrets() for site in range(config.sites) if site != SITE}
        self.statements: Mapping[int, Statement] = {}
        self.restart()

    @property
    def place(self) -> bytes:
        """The round, as keys and statements name it."""
        return self.job.place.encode()

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

    def shares(self) -> RecordDict | str:
        """Train, and ask for shares with everyone's keys and statements."""
        trained = self.train()
        assert isinstance(trained, RecordDict), trained
        assert set(trained) == {records.SECAGG, METRICS}
        assert set(trained.metric_records[METRICS]) == {"seconds"}
        published = trained.config_records[records.SECAGG]
        self.keys = {site: secrets.public() for site, secrets in self.others.items()}
        self.keys[SITE] = records.public_keys_of(published)
        self.said = records.statement_of(published)
        return self.stage(records.shares_request(self.keys, self.statements))

    def begin(self) -> dict[int, bytes]:
        """What the site would receive from everyone after `shares`."""
        shared = self.shares()
        assert isinstance(shared, RecordDict), shared
        rule = self.plan.composition.rule.summed()
        assert rule is not None
        terms = rule.terms(self.job.config.sites, self.job.place)
        sealed = {site: sealed_shares(site, own, self.keys, terms) for site, own in self.others.items()}
        sealed[SITE] = records.sealed_of(shared.config_records[records.SECAGG])
        return {site: each[SITE] for site, each in sealed.items() if SITE in each}
