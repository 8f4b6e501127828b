"""A server or a site as a service: it runs until it fails, until Ctrl-C, or until the service manager stops it."""

import logging
import signal
import sys
import time
from collections.abc import Callable

from fedgraft.core.logs import log_for_people, log_lines_to
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite

_log = logging.getLogger("fedgraft.deployment")


def log_to_folder(running: RunningServer | RunningSite) -> None:
    """Log as plain lines to standard error, and as JSON lines to the folder's logs/service.log."""
    log_for_people()
    log_lines_to(running.folder.path / "logs" / "service.log", "service")


def run_until_ended(
    running: RunningServer | RunningSite,
    metrics_port: int | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Start a server or a site and keep it running; whatever ends it, at the start too, stops all of its processes.

    Args:
        metrics_port: where to serve Prometheus metrics on loopback; None for nowhere.
        on_ready: called once it has started.

    Raises:
        RunFailed: it does not start, or cannot continue.
        UserError: it cannot be started, or the metrics cannot be served.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))
    try:
        running.start()
        on_ready()
        if metrics_port is not None:
            from fedgraft.deployment.prometheus import serve_metrics

            serve_metrics(running.folder, metrics_port)
        _log.info("Running.")
        while True:
            running.supervise()
            time.sleep(1)
    except Exception as error:
        _log.error("Stopped: %s", error)
        raise
    finally:
        running.stop()
