"""A dense image tower of any family as an export takes it: what a ticket is for towers that can be pruned."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fedgraft.edge_export.merged_tower import ReducedTower
from fedgraft.edge_export.tickets.ticket import Ticket, TicketSpec


@dataclass(frozen=True)
class DenseTower:
    """An image tower that nothing was cut from.

    Attributes:
        spec: that of a dense ticket.
        vision: pixels (B, 3, height, width) to embeddings (B, dim) of unit norm in float32.
    """

    spec: TicketSpec
    vision: nn.Module

    @property
    def fingerprint(self) -> str:
        """SHA-256 over spec and weights, in hexadecimal."""
        digest = hashlib.sha256(json.dumps(asdict(self.spec), sort_keys=True).encode())
        for name, tensor in sorted(self.vision.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            values: Any = tensor.contiguous().flatten().numpy()
            digest.update(memoryview(values).cast("B"))
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """Number of weights, zeros included."""
        return sum(parameter.numel() for parameter in self.vision.parameters())

    @property
    def nonzero(self) -> int:
        """Number of nonzero weights."""
        return sum(int(parameter.count_nonzero()) for parameter in self.vision.parameters())


ExportedTower = Ticket | DenseTower | ReducedTower
"""What an export can be made of."""
