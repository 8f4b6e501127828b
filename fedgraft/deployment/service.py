"""A server or a site as a service: it runs until it fails, until Ctrl-C, or until the service manager stops it."""

import logging
import signal
import sys
import time

from fedgraft.core.logs import log_lines_to
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite

_log = logging.getLogger("fedgraft.deployment")


def log_to_folder(running: RunningServer | RunningSite) -> None:
    """Log as plain lines to standard error, and as JSON lines to the folder's logs/service.log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log_lines_to(running.folder.path / "logs" / "service.log", "service")


def supervise_until_ended(running: RunningServer | RunningSite, metrics_port: int | None = None) -> None:
    """Keep a server or a site running; raises RunFailed if it cannot continue.

    Args:
        metrics_port: where to serve Prometheus metrics on loopback; None for nowhere.

    Raises:
        RunFailed: it cannot continue.
        UserError: the metrics cannot be served.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))
    try:
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
