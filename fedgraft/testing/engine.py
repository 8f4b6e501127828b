"""A simulation without processes: an engine whose sites work in the process that asks them."""

from typing import Any

from flwr.app import Context, Message, RecordDict

from fedgraft.client.app import app
from fedgraft.flower.internals import SUPERLINK_NODE_ID, identify
from fedgraft.server.coordinator import Coordinator
from fedgraft.simulation.engine import node_count
from fedgraft.testing.grids import RUN, FakeGrid, Said


class InProcessEngine:
    """Runs coordinators with the metrics of every other engine, and nothing to start or to end."""

    def run(self, coordinator: Coordinator) -> None:
        """Run a coordinator on a grid of nodes, to its end."""
        coordinator.run(_SimulatedNodes(node_count(coordinator.config.sites)))


class _SimulatedNodes(FakeGrid):
    """Nodes 1 to `count`, each with its share of the sites, behind the ClientApp of a simulation."""

    def __init__(self, count: int) -> None:
        super().__init__(range(1, count + 1))

    def said(self, message: Message) -> Said:
        """What the ClientApp answers as the message's node."""
        node = message.metadata.dst_node_id
        place: dict[str, Any] = {"partition-id": node - 1, "num-partitions": len(self.nodes)}
        identify(RUN, node)
        try:
            reply = app(message, Context(RUN, node, place, RecordDict(), {}))
        finally:
            identify(RUN, SUPERLINK_NODE_ID)
        return reply.error if reply.has_error() else reply.content
