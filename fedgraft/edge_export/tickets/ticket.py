"""A ticket: an image tower drawn from a backbone by pruning, with a record of how it was drawn."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.ticket_backbone import TicketFile, check_source_fingerprint
from fedgraft.core.errors import UserError
from fedgraft.edge_export.tickets.ticket_config import Induction, Kind, PatternName, Scheme


@dataclass(frozen=True)
class TicketSpec:
    """How a ticket was drawn; plain JSON values.

    Attributes:
        kind: "robust" if drawn from weights that were made robust first.
        induction: how they were made robust.
        scheme: one-shot magnitude, iterative magnitude, or learnt masks.
        pattern: what is removed: single weights, weights in groups of four, rows of matrices, or heads and MLP units.
        sparsity: the fraction removed, of each layer.
        source_fingerprint: of the dense backbone.
        seed: of every random draw.
        induction_steps: optimizer steps of the induction.
        scheme_steps: optimizer steps between the cuts of "imp", or of learning the masks of "lmp".
        distillation_steps: optimizer steps of the distillation to the dense backbone's features.
        epsilon: radius of the attack or standard deviation of the noise, for pixels from 0 to 1.
        data: the unlabelled images.
    """

    kind: Kind
    induction: Induction
    scheme: Scheme
    pattern: PatternName
    sparsity: float
    source_fingerprint: str
    seed: int
    induction_steps: int = 0
    scheme_steps: int = 0
    distillation_steps: int = 0
    epsilon: float = 0.0
    data: str = ""


@dataclass(frozen=True)
class Ticket:
    """An image tower with its provenance.

    Attributes:
        spec: how it was drawn.
        vision: pixels (B, 3, side, side) to embeddings (B, dim) of unit norm in float32.
        source: the dense backbone as the user named it.
    """

    spec: TicketSpec
    vision: PrunableTower
    source: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over spec and weights, in hexadecimal; also the fingerprint of the ticket as a backbone."""
        return self._file().fingerprint

    @property
    def parameters(self) -> int:
        """Number of weights in the image tower, zeros included."""
        return sum(parameter.numel() for parameter in self.vision.parameters())

    @property
    def nonzero(self) -> int:
        """Number of nonzero weights in the image tower."""
        return sum(int(parameter.count_nonzero()) for parameter in self.vision.parameters())

    def save(self, folder: Path) -> None:
        """Write ticket.safetensors and ticket.json."""
        self._file().write(folder)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a ticket of any backbone; raises UserError if it cannot be read."""
        return cls._of(TicketFile.read(folder), folder)

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> Self:
        """Read a ticket of a backbone; raises UserError if it cannot be read, or it was drawn from another backbone."""
        file = TicketFile.read(folder)
        check_source_fingerprint(str(folder), file, backbone)
        return cls._of(file, folder)

    @classmethod
    def _of(cls, file: TicketFile, folder: Path) -> Self:
        try:
            return cls(TicketSpec(**file.spec), file.tower, file.source)
        except TypeError as error:
            raise UserError(f"The ticket {folder} has invalid metadata: {error}.") from error

    def _file(self) -> TicketFile:
        return TicketFile(self.source, asdict(self.spec), self.vision)


def dense_ticket(backbone: Backbone, vision: PrunableTower | None = None) -> Ticket:
    """The whole image tower as a ticket of sparsity 0, for exports without pruning.

    Args:
        vision: the tower if it is not the backbone's own, such as one with low-rank adapters merged.
    """
    return Ticket(dense_spec(backbone), vision or backbone.vision_tower(), backbone.name)


def dense_spec(backbone: Backbone) -> TicketSpec:
    """That nothing was cut from a backbone's tower."""
    return TicketSpec("natural", "none", "omp", "structured", 0.0, backbone.fingerprint, 0)
