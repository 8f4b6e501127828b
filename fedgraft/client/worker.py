"""The resident worker of a deployed site: backbone, features and state stay loaded between messages.

`fedgraft site start` runs it as `python -m fedgraft.client.worker DIR SOCKET` and starts it again when it ends.
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
from fedgraft.backbones import Backbone, best_device, load_backbone
from fedgraft.backbones.base import Precision
from fedgraft.client import tasks
from fedgraft.client.busy import busy, start_pulse
from fedgraft.client.folder import SiteFolder
from fedgraft.client.relay import KINDS, OPTIONS, SERVICE, from_bytes, to_bytes
from fedgraft.client.workplace import OwnPlace, Workplace
from fedgraft.config import RunConfig
from fedgraft.data.folder import open_own
from fedgraft.errors import UserError, reason_of
from fedgraft.messages import CLASS_COUNTS, FAILURES, HELLO, JOB, Job

_RUN_NAME = re.compile(r"\w[\w.-]{0,99}")
_log = logging.getLogger("fedgraft.worker")


class Worker:
    """Answers one message at a time, and a training that comes again with the answer that it got before.

    Args:
        room: the folder of the worker's socket, where it tells what it is at.
    """

    def __init__(self, site: SiteFolder, room: Path) -> None:
        self._site, self._room = site, room
        self._last: tuple[str, bytes, bytes] | None = None
        self._lock = threading.Lock()
        self._place = lru_cache(maxsize=1)(self._new_place)
        self._backbone = lru_cache(maxsize=1)(_loaded)
        self._tasks: dict[str, Callable[[RecordDict], RecordDict]] = {
            "hello": self._hello,
            "train": lambda content: tasks.train(content, self._place_of),
            "evaluate": lambda content: tasks.evaluate(content, self._place_of),
        }

    def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        """The answer to one message; a refusal goes back as a sentence."""
        with self._lock, busy(self._room, kind):
            try:
                if self._last is not None and self._last[:2] == (kind, data):
                    return self._last[2]
                content = self._tasks[kind](from_bytes(data))
                answer = to_bytes(content)
                if kind == "train" and not content.config_records[FAILURES]:
                    self._last = kind, data, answer
                return answer
            except Exception as error:
                if not isinstance(error, UserError):
                    _log.exception("%s failed", kind)
                else:
                    _log.warning("%s: %s", kind, error)
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason_of(error))
                raise AssertionError("abort raises") from error

    def _hello(self, content: RecordDict) -> RecordDict:
        """Who this is and what it holds; numbers of images only if the site's configuration lets them go out.

        Raises:
            UserError: server and site do not fit together.
        """
        job = Job.from_record(content.config_records[JOB])
        place = self._place_of(job)
        if place.backbone.fingerprint != job.fingerprint:
            raise UserError(
                f"the server's backbone has the fingerprint {job.fingerprint[:16]}..., this site's "
                f"{place.backbone.fingerprint[:16]}...; both need the same backbone"
            )
        fingerprint = place.backbone.fingerprint
        hello = {"name": self._site.settings.name, "version": __version__, "fingerprint": fingerprint}
        answer = RecordDict({HELLO: ConfigRecord({**hello})})
        if self._site.settings.share_counts:
            names = place.data.deal.class_names
            counts = Counter(names[label] for label in place.data.deal.labels)
            answer[CLASS_COUNTS] = MetricRecord(dict(sorted(counts.items())))
        return answer

    def _place_of(self, job: Job) -> Workplace:
        if job.version.split(".")[0] != __version__.split(".")[0]:
            raise UserError(f"the server runs fedgraft {job.version}, this site {__version__}; upgrade the older one")
        return self._place(job.config.model_dump_json(), job.run)

    def _new_place(self, config_json: str, run: str) -> OwnPlace:
        config = RunConfig.model_validate_json(config_json)
        settings = self._site.settings
        backbone = self._backbone(settings.backbone or config.backbone, config.precision)
        examples = open_own(self._site.data, config.class_names, settings.labels)
        return OwnPlace(
            config,
            backbone,
            examples,
            self._site.state / _checked_name(run),
            self._site.cache,
        )


def _checked_name(run: str) -> str:
    """The run's name, which is a folder's name at the site.

    Raises:
        UserError: it could lead out of the site's folder.
    """
    if not _RUN_NAME.fullmatch(run):
        raise UserError(f"the server calls the run {run!r}; letters, digits and . - _ make a run's name")
    return run


def _loaded(name: str, precision: Precision) -> Backbone:
    return load_backbone(name, precision, best_device())


def serve_on(server: grpc.Server, worker: Worker, address: str) -> grpc.Server:
    """Answer at a socket that only its owner may use, "unix:PATH", from now on."""

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
    """The process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker: %(message)s", stream=sys.stderr)
    folder, address = sys.argv[1:]
    room = Path(address.removeprefix("unix:")).parent
    start_pulse(room)
    serve(make(SiteFolder.open(Path(folder)), room), address)


if __name__ == "__main__":
    main()
