"""What an image tower says about itself so that tickets can be drawn from it: its matrices, and what leaves as a whole.

Pruning is written once against this interface, see `fedgraft.edge_export.tickets`; a transformer has heads and MLP
units, a network of convolutions has the hidden channels of its blocks.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

PartKind = Literal["heads", "units"]
"""Attention heads, or what stands between two maps of a layer: MLP units, or the hidden channels of a block."""


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates of Adam.

    Attributes:
        whole: of a tower that nothing was cut from yet, such as when it is made robust.
        cut: of a tower that was cut, which is far from the plain one and takes longer steps.
    """

    whole: float = 3e-4
    cut: float = 1e-3


@dataclass(frozen=True)
class Part:
    """Groups of one layer that can be removed whole without a change anywhere else.

    Group g owns the positions g x width to (g + 1) x width - 1 of each of these parameters.

    Attributes:
        layer: counted from 0.
        kind: what they are.
        what: the same in words, plural.
        place: the layer in words.
        count: of the groups.
        width: positions that a group owns.
        rows: parameters of at least two dimensions that lose positions of the first.
        columns: parameters that lose positions of the second dimension; what reads the groups.
        vectors: parameters of one dimension, such as biases, that lose positions.
    """

    layer: int
    kind: PartKind
    what: str
    place: str
    count: int
    width: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    vectors: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique in the tower."""
        return f"{self.layer}.{self.kind}"


class PrunableTower(nn.Module, ABC):
    """Pixels (B, 3, height, width) to embeddings (B, dim) of unit norm in float32; its layers may differ in size.

    Attributes:
        family: the registered backbone family that rebuilds an empty tower from the JSON of `shape`.
        shape: a dataclass of all sizes.
        learning_rates: of the training that draws tickets.
    """

    family: ClassVar[str]
    learning_rates: ClassVar[LearningRates] = LearningRates()
    shape: Any

    @abstractmethod
    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """What single weights, neighbours and rows are removed from: (rows, columns) each, by parameter name."""

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """What can be removed whole, layer after layer."""

    @abstractmethod
    def resized(self, counts: Mapping[str, int]) -> Self:
        """An empty tower of the same kind in which each part of the given name has so many groups."""

    def counts(self, kind: PartKind) -> list[int] | None:
        """The number of groups of a kind in each layer that has any, None where no layer has."""
        return [part.count for part in self.parts() if part.kind == kind] or None

    def digest(self) -> str:
        """SHA-256 over the layers' sizes and the weights, in hexadecimal."""
        digest = hashlib.sha256(json.dumps(asdict(self.shape), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            plain = tensor.float().cpu().contiguous()
            digest.update(f"{name}{tuple(plain.shape)}".encode())
            digest.update(memoryview(plain.flatten().numpy()).cast("B"))
        return digest.hexdigest()
