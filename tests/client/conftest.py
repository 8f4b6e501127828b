"""A deployed site with images of its own, its worker, and a server's messages to it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import RecordDict

from fedgraft import RunConfig, UserError
from fedgraft.backbones import Backbone
from fedgraft.client.worker import Worker, serve_on
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import JOB, SHARED, Job, for_sites, to_array_record, unpack
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.asked_runs import AskedRun, AskedRuns
from fedgraft.runs.audit_log import AuditLog, Entry
from fedgraft.runs.site_folder import SiteFolder, SiteSettings
from fedgraft.testing.in_process import ask as ask_directly

Ask = Callable[[str, RecordDict], RecordDict]
AskSite = Callable[[SiteFolder], Ask]
WithPolicy = Callable[..., SiteFolder]
Content = Callable[[Job], RecordDict]
NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="fedpgp", data="folder:own", protocol="own-data", sites=4, local_epochs=1,
    protocol_options={"class_names": NAMES}, method_options={"n_ctx": 2, "rank": 2},
)  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, images: Path) -> SiteFolder:
    """A site with its own copy of the images."""
    shutil.copytree(images, tmp_path / "own")
    return SiteFolder.create(tmp_path / "site", "north", tmp_path / "own")


@pytest.fixture
def address(site: SiteFolder) -> Iterator[str]:
    """Where its worker answers."""
    with tempfile.TemporaryDirectory() as folder:
        server = serve_on(grpc.server(ThreadPoolExecutor(2)), Worker(site, Path(folder)), f"unix:{folder}/worker")
        yield f"unix:{folder}/worker"
        server.stop(None)


@pytest.fixture
def ask_site(tmp_path: Path) -> AskSite:
    """Asks a new worker of a site without a socket."""

    def asking(site: SiteFolder) -> Ask:
        worker = Worker(site, tmp_path)
        return lambda kind, content: record_from_bytes(ask_directly(worker, kind, record_bytes(content)))

    return asking


@pytest.fixture
def ask(site: SiteFolder, ask_site: AskSite) -> Ask:
    """Asks the site's worker without a socket."""
    return ask_site(site)


@pytest.fixture
def with_policy(site: SiteFolder) -> Callable[..., SiteFolder]:
    """The site with other keys in its policy: `with_policy(approve=True)`."""

    def changed(**policy: object) -> SiteFolder:
        settings = SiteSettings.model_validate({**site.settings.model_dump(), "policy": policy})
        return replace(site, settings=settings)

    return changed


@pytest.fixture
def job(mini: Backbone) -> Job:
    """What the server asks."""
    return Job(CONFIG, "run", mini.fingerprint, 0, 1)


@pytest.fixture
def content(mini: Backbone) -> Callable[[Job], RecordDict]:
    """A message for site 2 with the server's first parameters."""
    plan = Plan.of(CONFIG)
    adapter = plan.adapter(Vocabulary(mini, NAMES, plan.announced.templates))
    shared = {name: value.numpy() for name, value in adapter.shared().items()}
    return lambda job: for_sites(RecordDict({JOB: job.to_record(), SHARED: to_array_record(shared)}), [2])


def changed_job(job: Job, **settings: Any) -> Job:
    """The job with other settings."""
    return replace(job, config=RunConfig.model_validate({**job.config.model_dump(), **settings}))


def refusal_of(ask: Ask, kind: str, message: RecordDict) -> str:
    """What the server is told, whether the whole message is refused or the one site in it."""
    try:
        answer = unpack(ask(kind, message))[2]
    except UserError as error:
        return str(error)
    assert isinstance(answer, str)
    return answer


def answer_of(ask: Ask, kind: str, message: RecordDict) -> RecordDict:
    """What the one site in a message answers."""
    answer = unpack(ask(kind, message))[2]
    assert isinstance(answer, RecordDict)
    return answer


def entries_of(site: SiteFolder, event: str) -> list[Entry]:
    """What the audit log has of an event."""
    return [entry for entry in AuditLog(site.audit_log).verified() if entry["event"] == event]


def only_run(site: SiteFolder) -> AskedRun:
    """The one run that the site was asked for."""
    (run,) = AskedRuns(AuditLog(site.audit_log).fresh())
    return run
