"""Flower's simulation engine on Ray: on this machine alone, or on a Ray cluster that already runs."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import ray
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedgraft.client.app import app as client_app
from fedgraft.errors import UserError
from fedgraft.server.coordinator import Coordinator

_NODES, _SITES_A_NODE = 32, 16
"""Up to so many sites each is a node; of more, a node holds several, but no more than so many. Only the number of
sites decides, so that the result does not depend on the number of workers."""
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_ANSWER_SECONDS = 5.0


class Engine:
    """Where the sites of a simulation run.

    Args:
        workers: Ray actors on this machine; as many as there are CPUs unless given.
        cpus_per_worker: CPUs and torch threads of each.
        gpus_per_worker: GPUs of each, or a part of one; where this machine has any, one unless given.
        ray_address: HOST:PORT of a cluster, or "auto" for the one that this machine belongs to; it has as many
            workers as its CPUs and GPUs allow.

    Raises:
        UserError: the numbers do not go together, or nothing answers at the address.
    """

    def __init__(
        self, workers: int | None, cpus_per_worker: int, gpus_per_worker: float | None, ray_address: str | None
    ) -> None:
        if (workers is not None and workers < 1) or cpus_per_worker < 1:
            raise UserError(f"Workers and CPUs a worker are at least 1, not {workers} and {cpus_per_worker}.")
        here = torch.cuda.device_count()
        gpus = min(here, 1) if gpus_per_worker is None else gpus_per_worker
        if gpus < 0 or (ray_address is None and gpus > here):
            raise UserError(f"A worker cannot have {gpus} GPUs; this machine has {here}.")
        if ray_address is not None:
            if workers is not None:
                raise UserError("A Ray cluster has as many workers as its CPUs allow; give --workers or --ray-address.")
            _require_answer(ray_address)
        self._address = ray_address
        at_most = int(here / gpus) if gpus else os.cpu_count() or 1
        self._workers = workers or at_most
        self._cpus, self._gpus = cpus_per_worker, gpus

    def run(self, coordinator: Coordinator) -> None:
        """Run a coordinator on a grid of simulated nodes.

        Raises:
            UserError: the cluster cannot be joined.
        """
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            coordinator.run(grid)

        if not os.environ.get("FEDGRAFT_DEBUG"):
            logging.getLogger("flwr").setLevel(logging.CRITICAL)
        if self._address is not None:
            self._join(self._address)
        with interrupt_calls(coordinator.stop):
            run_simulation(
                server_app=server_app,
                client_app=client_app,
                num_supernodes=node_count(coordinator.config.sites),
                backend_config={
                    "client_resources": {"num_cpus": self._cpus, "num_gpus": float(self._gpus)},
                    "init_args": {
                        "address": "local",
                        "num_cpus": self._workers * self._cpus,
                        "object_store_memory": _OBJECT_STORE_BYTES,
                        "include_dashboard": False,
                        "logging_level": logging.ERROR,
                        "log_to_driver": False,
                    },
                },
            )

    def _join(self, address: str) -> None:
        """Connect to the cluster; Flower's engine uses the connection that it finds, and closes it."""
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:
            raise UserError(f"The Ray cluster at {address} cannot be joined: {error}") from error
        if ray.cluster_resources().get("CPU", 0) < self._cpus:
            ray.shutdown()
            raise UserError(f"The Ray cluster at {address} has no node with {self._cpus} CPUs for a worker.")


def node_count(sites: int) -> int:
    """How many nodes hold the sites of a simulation."""
    return max(min(sites, _NODES), -(-sites // _SITES_A_NODE))


def _require_answer(address: str) -> None:
    """Ask before anything is computed; Ray itself tries for ever."""
    if address == "auto":
        return
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit()):
        raise UserError(f'--ray-address takes HOST:PORT, as `ray start --head` prints it, or "auto", not {address!r}.')
    if os.environ.get("RAY_USE_TLS") == "1":  # then only Ray knows the certificates
        return
    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(_ANSWER_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise UserError(f"No Ray cluster answers at {address} within {_ANSWER_SECONDS:.0f} seconds.") from error
    finally:
        channel.close()


@contextmanager
def interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C stops the server, and with it the engine; raised inside Flower's engine, it would wait for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda signum, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
