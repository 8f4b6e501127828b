"""A server or a site as a service: it runs until it fails, until Ctrl-C, or until the service manager stops it."""

import signal
import sys
import time

from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite


def supervise_until_ended(running: RunningServer | RunningSite) -> None:
    """Keep a server or a site running; raises RunFailed if it cannot continue."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))
    try:
        while True:
            running.supervise()
            time.sleep(1)
    finally:
        running.stop()
