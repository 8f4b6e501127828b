"""Where the sites of a simulation run: processes of this machine, or Flower's engine on Ray."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from fedgraft.core.errors import UserError
from fedgraft.server.coordinator import Coordinator

_NODES, _SITES_PER_NODE = 32, 16
"""Up to 32 sites, each is a node of its own; beyond that, a node holds several, at most 16. This depends only on the
number of sites, so that the result does not depend on the number of workers."""


class Engine(Protocol):
    """Runs coordinators one after another; a coordinator has the same metrics on every engine."""

    def run(self, coordinator: Coordinator) -> None:
        """Run a coordinator to its end on a grid of nodes."""
        ...


@dataclass(frozen=True)
class Resources:
    """What a simulation may use; none of it changes any result.

    Attributes:
        workers: number of worker processes; by default as many as there are GPUs, or else CPUs.
        cpus_per_worker: CPUs and torch threads of each.
        gpus_per_worker: GPUs of each, possibly a fraction; fractions require Ray.
        ray_address: HOST:PORT of a running Ray cluster, or "auto" for the one on this machine. It stays up afterwards.
            All its nodes must see the run directory and the data under the same paths.
    """

    workers: int | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError unless there is at least one worker with at least one CPU."""
        if (self.workers is not None and self.workers < 1) or self.cpus_per_worker < 1:
            found = f"{self.workers} and {self.cpus_per_worker}"
            raise UserError(f"Workers and CPUs per worker must be at least 1, not {found}.")

    def cpu_workers(self) -> int:
        """How many workers the CPUs of this machine allow."""
        return max(1, (os.cpu_count() or 1) // self.cpus_per_worker)


@contextmanager
def open_engine(resources: Resources) -> Iterator[Engine]:
    """The engine for the given resources, until the end of the block.

    Raises:
        UserError: the numbers are inconsistent, or nothing answers at the address.
    """
    if resources.ray_address is None and resources.gpus_per_worker is None:
        from fedgraft.simulation.local_engine import LocalEngine

        with LocalEngine(resources) as engine:
            yield engine
    else:
        from fedgraft.simulation.ray_engine import RayEngine

        yield RayEngine(resources)


def node_count(sites: int) -> int:
    """How many nodes hold the sites of a simulation."""
    return max(min(sites, _NODES), -(-sites // _SITES_PER_NODE))


@contextmanager
def interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C stop the server, and with it the engine; raised inside Flower's engine, it would block for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda signum, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
