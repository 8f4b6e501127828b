"""The resident worker of a deployed site: backbone, features and state stay loaded between messages.

`fedgraft site start` runs it as `python -m fedgraft.client.worker DIR SOCKET` and restarts it when it ends.
"""

import logging
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import grpc
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedgraft import __version__
from fedgraft.backbones import Backbone
from fedgraft.client import tasks
from fedgraft.client.loaded_run import DeployedRun
from fedgraft.client.relay import KINDS, OPTIONS, SERVICE
from fedgraft.client.secure_answers import answer_stage
from fedgraft.client.site import require_fingerprint
from fedgraft.client.worker_status import report_task, start_pulse
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError, reason_of
from fedgraft.data.sources.folder import open_site_images
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import CLASS_COUNTS, FAILURES, HELLO, JOB, Job
from fedgraft.methods.plan import Plan
from fedgraft.runs.site_folder import SiteFolder

_ANSWERED_ONCE = ("train", "secagg")
_RUN_NAME = re.compile(r"\w[\w.-]{0,99}")
_log = logging.getLogger("fedgraft.worker")


class Worker:
    """Answers one message at a time; a repeated message of the current round gets the same answer again.

    Args:
        status: the folder of the worker's socket, where it reports what it is doing.
    """

    def __init__(self, site: SiteFolder, status: Path) -> None:
        self._site, self._status = site, status
        self._answers: dict[tuple[str, bytes], bytes] = {}
        self._lock = threading.Lock()
        self._run = lru_cache(maxsize=1)(self._new_run)
        self._known: tuple[object, Backbone] | None = None
        self._tasks: dict[str, Callable[[RecordDict], RecordDict]] = {
            "hello": self._hello,
            "train": lambda content: tasks.train(content, self._run_of),
            "evaluate": lambda content: tasks.evaluate(content, self._run_of),
            "secagg": lambda content: answer_stage(content, self._run_of),
        }

    def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        """The answer to one message; a refusal is returned as a sentence."""
        with self._lock, report_task(self._status, kind):
            try:
                if (known := self._answers.get((kind, data))) is not None:
                    return known
                content = self._tasks[kind](record_from_bytes(data))
                answer = record_bytes(content)
                self._remember(kind, data, answer, content)
                return answer
            except Exception as error:
                if not isinstance(error, UserError):
                    _log.exception("%s failed", kind)
                else:
                    _log.warning("%s: %s", kind, error)
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason_of(error))
                raise AssertionError("abort raises") from error

    def _remember(self, kind: str, data: bytes, answer: bytes, content: RecordDict) -> None:
        """Keep what may not be computed twice, a training and the stages after it, until the next training."""
        if kind not in _ANSWERED_ONCE or content.config_records[FAILURES]:
            return
        if kind == "train":
            self._answers.clear()
        self._answers[kind, data] = answer

    def _hello(self, content: RecordDict) -> RecordDict:
        """The site's name and what it holds, with image counts only if its configuration allows.

        Raises:
            UserError: server and site are incompatible.
        """
        job = Job.from_record(content.config_records[JOB])
        run = self._run_of(job)
        require_fingerprint(run, job)
        hello = {"name": self._site.settings.name, "version": __version__, "fingerprint": run.backbone.fingerprint}
        answer = RecordDict({HELLO: ConfigRecord({**hello})})
        if self._site.settings.share_counts:
            counts = Counter(run.split.class_names[label] for label in run.split.labels)
            answer[CLASS_COUNTS] = MetricRecord(dict(sorted(counts.items())))
        return answer

    def _run_of(self, job: Job) -> DeployedRun:
        return self._run(job.config.model_dump_json(), job.run)

    def _new_run(self, config_json: str, run: str) -> DeployedRun:
        plan = Plan.of(RunConfig.model_validate_json(config_json))
        if not plan.protocol.deployed:
            raise UserError(f"the protocol {plan.protocol.name!r} is for simulations, but this is a deployed site")
        name = self._site.settings.backbone or plan.config.backbone
        examples = open_site_images(self._site.data, plan.announced.class_names, self._site.settings.labels)
        state = self._site.state / _checked_name(run)
        settings = self._site.settings
        return DeployedRun(plan, self._loaded(name, plan), examples, state, self._site.cache, settings.smallest_sum)

    def _loaded(self, name: str, plan: Plan) -> Backbone:
        """The backbone, reused by consecutive runs that need the same one."""
        wanted = (name, plan.config.precision, tuple(sorted(plan.config.backbone_options.items())))
        if self._known is None or self._known[0] != wanted:
            self._known = wanted, plan.load_backbone(name)
        return self._known[1]


def _checked_name(run: str) -> str:
    """The run's name, which names a folder at the site; raises UserError if it could lead out of the site's folder."""
    if not _RUN_NAME.fullmatch(run):
        raise UserError(f"the server calls the run {run!r}; a run's name has only letters, digits and . - _")
    return run


def serve_on(server: grpc.Server, worker: Worker, address: str) -> grpc.Server:
    """Start answering at a socket "unix:PATH" that only its owner may use."""

    def handler(kind: str) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda data, context: worker.answer(kind, data, context))

    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {kind: handler(kind) for kind in KINDS}),)
    )
    server.add_insecure_port(address)
    Path(address.removeprefix("unix:")).chmod(0o600)
    server.start()
    return server


def serve(worker: Worker, address: str) -> None:
    """Answer until a signal asks to stop."""
    server = serve_on(grpc.server(ThreadPoolExecutor(max_workers=4), options=OPTIONS), worker, address)
    _log.info("ready")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.set())
    stop.wait()
    server.stop(grace=1).wait()


def main(make: Callable[[SiteFolder, Path], Worker] = Worker) -> None:
    """The main function of the worker process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker: %(message)s", stream=sys.stderr)
    folder, address = sys.argv[1:]
    status = Path(address.removeprefix("unix:")).parent
    start_pulse(status)
    serve(make(SiteFolder.open(Path(folder)), status), address)


if __name__ == "__main__":
    main()
