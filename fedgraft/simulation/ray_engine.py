"""Flower's simulation engine on Ray: for fractions of GPUs, and for a Ray cluster that is already running."""

import logging
import os

import grpc
import ray
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedgraft.client.app import app as client_app
from fedgraft.core.errors import UserError
from fedgraft.server.coordinator import Coordinator
from fedgraft.simulation.engine import Resources, interrupt_calls, node_count

_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_ANSWER_SECONDS = 5.0


class RayEngine:
    """Runs each coordinator on its own Ray actors.

    Raises:
        UserError: the numbers are inconsistent, or nothing answers at the address.
    """

    def __init__(self, resources: Resources) -> None:
        here = torch.cuda.device_count()
        gpus = min(here, 1) if resources.gpus_per_worker is None else resources.gpus_per_worker
        if gpus < 0 or (resources.ray_address is None and gpus > here):
            raise UserError(f"A worker cannot have {gpus} GPUs; this machine has {here}.")
        if resources.ray_address is not None:
            if resources.workers is not None:
                raise UserError("A Ray cluster has as many workers as its CPUs allow; give --workers or --ray-address.")
            _require_answer(resources.ray_address)
        self._address, self._cpus, self._gpus = resources.ray_address, resources.cpus_per_worker, gpus
        self._workers = resources.workers or (int(here / gpus) if gpus else resources.cpu_workers())

    def run(self, coordinator: Coordinator) -> None:
        """Run a coordinator on a grid of simulated nodes; raises UserError if the cluster cannot be joined."""
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
        """Connect to the cluster; Flower's engine uses the existing connection and closes it."""
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:
            raise UserError(f"The Ray cluster at {address} cannot be joined: {error}") from error
        if ray.cluster_resources().get("CPU", 0) < self._cpus:
            ray.shutdown()
            raise UserError(f"The Ray cluster at {address} has no node with {self._cpus} CPUs for a worker.")


def _require_answer(address: str) -> None:
    """Check before anything is computed that the cluster answers; Ray itself retries for ever."""
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
