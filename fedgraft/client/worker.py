"""The resident worker of a deployed site: backbone, features and state stay loaded between messages.

`fedgraft site start` runs it as `python -m fedgraft.client.worker DIR SOCKET` and restarts it when it ends.
"""

import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import grpc
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedgraft import __version__
from fedgraft.backbones import Backbone
from fedgraft.backbones.loading import embedded_backbones
from fedgraft.client import tasks
from fedgraft.client.admission import Admission, Task
from fedgraft.client.loaded_run import DeployedRun
from fedgraft.client.relay import KINDS, OPTIONS, SERVICE
from fedgraft.client.release import class_counts
from fedgraft.client.secure_answers import answer_stage
from fedgraft.client.site import require_fingerprint
from fedgraft.client.worker_status import report_task, start_pulse
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.logs import log_lines_to_stderr
from fedgraft.core.refusals import Refusal, refusal_of, refusing
from fedgraft.data.sources.folder import open_site_images
from fedgraft.flower.internals import record_from_bytes
from fedgraft.flower.messages import CLASS_COUNTS, FAILURES, HELLO, IMAGES, JOB, Job
from fedgraft.methods.plan import Plan
from fedgraft.runs.site_folder import SiteFolder

_ANSWERED_ONCE = ("train", "secagg")
_log = logging.getLogger("fedgraft.worker")


class Worker:
    """Answers one message at a time; a repeated message of the current round gets the same answer again.

    Args:
        status: the folder of the worker's socket, where it reports what it is doing.
    """

    def __init__(self, site: SiteFolder, status: Path) -> None:
        self._site, self._status, self._admission = site, status, Admission(site)
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
        """The answer to one message; of a refusal the server learns the code and its sentence alone."""
        with self._lock, report_task(self._status, kind):
            task, began = None, time.monotonic()
            try:
                task = self._admission.admit(kind, record_from_bytes(data))
                return self._admitted(task, data, began)
            except Exception as error:
                refusal = refusal_of(error)
                _log.warning("%s: %s", kind, refusal, exc_info=None if isinstance(error, Refusal) else error)
                if task is not None:
                    self._admission.decline(task, refusal.public, str(refusal), time.monotonic() - began)
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal.public)
                raise AssertionError("abort raises") from error

    def _admitted(self, task: Task, data: bytes, began: float) -> bytes:
        if (known := self._answers.get((task.kind, data))) is not None:
            return self._admission.repeat(task, known)
        content = self._tasks[task.kind](task.content)
        answer = self._admission.release(task, content, time.monotonic() - began)
        self._remember(task.kind, data, answer, content)
        return answer

    def _remember(self, kind: str, data: bytes, answer: bytes, content: RecordDict) -> None:
        """Keep what may not be computed twice, a training and the stages after it, until the next training."""
        if kind not in _ANSWERED_ONCE or content.config_records[FAILURES]:
            return
        if kind == "train":
            self._answers.clear()
        self._answers[kind, data] = answer

    def _hello(self, content: RecordDict) -> RecordDict:
        """The site's name and what it holds, with image counts as far as its policy allows.

        Raises:
            Refusal: server and site are incompatible.
        """
        job = Job.from_record(content.config_records[JOB])
        run = self._run_of(job)
        require_fingerprint(run, job)
        hello = ConfigRecord(
            {"name": self._site.settings.name, "version": __version__, "fingerprint": run.backbone.fingerprint}
        )
        answer = RecordDict({HELLO: hello})
        counts = Counter(run.split.class_names[label] for label in run.split.labels)
        if told := class_counts(counts, self._site.settings.policy):
            answer[CLASS_COUNTS] = MetricRecord({**told})
        if told == counts:  # otherwise the total would tell the size of a class that is too small to be told
            hello[IMAGES] = counts.total()
        return answer

    def _run_of(self, job: Job) -> DeployedRun:
        return self._run(job.config.model_dump_json(), job.run)

    def _new_run(self, config_json: str, run: str) -> DeployedRun:
        plan = Plan.of(RunConfig.model_validate_json(config_json))
        name = self._own_backbone(plan.config.backbone)
        with refusing("backbone"):
            plan.require_backbone(name)
        with refusing("images"):
            examples = open_site_images(
                self._site.data,
                plan.announced.class_names,
                self._site.settings.labels,
                self._site.cache,
                self._site.settings.on_bad_image == "skip",
            )
        with refusing("backbone"):
            backbone = self._loaded(name, plan)
        for line in examples.skipped:
            _log.warning("left out: %s", line)
        with refusing("images"):
            return DeployedRun(plan, backbone, examples, self._site, run)

    def _own_backbone(self, asked: str) -> str:
        """Which backbone the site loads where a server names one; a name that site.toml does not have is not tried.

        Raises:
            Refusal: the site has none of that name.
        """
        settings = self._site.settings
        if settings.backbone:
            return settings.backbone
        if asked in settings.backbones:
            return settings.backbones[asked]
        if asked in embedded_backbones():
            return asked
        raise Refusal("backbone", detail=f"the run names the backbone {asked!r}, which site.toml does not")

    def _loaded(self, name: str, plan: Plan) -> Backbone:
        """The backbone, reused by consecutive runs that need the same one."""
        wanted = (name, plan.config.precision, tuple(sorted(plan.config.backbone_options.items())))
        if self._known is None or self._known[0] != wanted:
            self._known = wanted, plan.load_backbone(name)
        return self._known[1]


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
    log_lines_to_stderr("worker")
    folder, address = sys.argv[1:]
    status = Path(address.removeprefix("unix:")).parent
    start_pulse(status)
    try:
        worker = make(SiteFolder.open(Path(folder)), status)
    except (UserError, RunFailed) as error:
        _log.error("%s", error)
        sys.exit(1)
    serve(worker, address)


if __name__ == "__main__":
    main()
