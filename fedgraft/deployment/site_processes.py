"""The three processes of a site: how they are started, not yet running."""

import sys
from pathlib import Path

from fedgraft.core.files import free_port
from fedgraft.deployment.processes import (
    TASK_POLL_INTERVAL,
    Process,
    app_environment,
    clean_home,
    flower_environment,
    guarded,
)
from fedgraft.flower.guarded import CERTIFICATE, NODE_STATUS, PRIVATE_KEY
from fedgraft.runs.site_folder import SiteFolder

_TASK_SECONDS = 0.25
"""After which a SuperExec looks again for a message; each look costs some milliseconds."""


def site_processes(
    folder: SiteFolder, server: str, authority: Path, worker_module: str, worker_socket: Path, node_status: Path
) -> tuple[Process, Process, Process]:
    """The resident worker, Flower's SuperNode, and the SuperExec that starts a process for every message.

    Args:
        server: HOST:PORT.
        authority: the server's ca.pem.
        worker_module: the module that runs as the worker.
        worker_socket: on which the worker listens.
        node_status: the file in which the SuperNode says what it is doing.
    """
    home, address = clean_home(folder.path / "flwr"), f"unix:{worker_socket}"
    environment = flower_environment(home)
    name, logs, runtime, secret = folder.settings.name, folder.logs, free_port(), folder.write_secret()
    worker = Process(
        f"The worker of {name!r}",
        [sys.executable, "-m", worker_module, folder.path, address],
        {"OMP_NUM_THREADS": "1", **environment},
        logs / "worker.log",
    )
    supernode = Process(
        f"The SuperNode of {name!r}",
        [
            *guarded("flower-supernode"),
            "--superlink", server,
            "--root-certificates", authority,
            "--auth-supernode-private-key", folder.private_key,
            "--host", "127.0.0.1",
            "--port", str(runtime),
            "--isolation", "process",
            "--superexec-auth-secret-file", secret,
            "--node-config", f'worker="{address}"',
        ],
        {
            **environment,
            CERTIFICATE: str(folder.certificate),
            PRIVATE_KEY: str(folder.tls_key),
            NODE_STATUS: str(node_status),
        },
        logs / "supernode.log",
    )  # fmt: skip
    superexec = Process(
        f"The SuperExec of {name!r}",
        [
            *guarded("flower-superexec"),
            "--insecure",
            "--runtime-api-address", f"127.0.0.1:{runtime}",
            "--superexec-auth-secret-file", secret,
        ],
        {**environment, **app_environment(folder.app, home), TASK_POLL_INTERVAL: str(_TASK_SECONDS)},
        logs / "superexec.log",
    )  # fmt: skip
    return worker, supernode, superexec
