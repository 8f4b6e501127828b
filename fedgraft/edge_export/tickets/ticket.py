"""A ticket: an image tower drawn from a backbone by pruning, and how it came about."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.ticket_backbone import TicketFile, check_source_fingerprint
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.core.errors import UserError

Kind = Literal["natural", "robust"]
Induction = Literal["none", "pgd", "smoothing"]
Scheme = Literal["omp", "imp", "lmp"]
PatternName = Literal["unstructured", "n:m", "rows", "structured"]


@dataclass(frozen=True)
class TicketSpec:
    """How a ticket came about; plain JSON values.

    Attributes:
        kind: "robust" when drawn from weights that were made robust first.
        induction: how they were made robust.
        scheme: one-shot magnitude, iterative magnitude, or learnt masks.
        pattern: what is removed: single weights, weights in groups of four, rows of matrices, or heads and MLP units.
        sparsity: the share that is removed, of each layer.
        source_fingerprint: of the dense backbone.
        seed: of every random draw.
        induction_steps: optimizer steps of the induction.
        scheme_steps: optimizer steps between the cuts of "imp", or of learning the masks of "lmp".
        distillation_steps: optimizer steps of the distillation to the dense backbone's features.
        epsilon: radius of the attack in a pixel's range of 0 to 1, or the standard deviation of the noise.
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
        spec: how it came about.
        vision: pixels (B, 3, side, side) to embeddings (B, dim) of unit norm in float32.
        source: the dense backbone as the user named it.
    """

    spec: TicketSpec
    vision: VisionTower
    source: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over spec and weights, in hexadecimal; a run on the ticket has it as its backbone's."""
        return self._file().fingerprint

    @property
    def parameters(self) -> int:
        """Weights of the image tower, zeros included."""
        return sum(parameter.numel() for parameter in self.vision.parameters())

    @property
    def nonzero(self) -> int:
        """Weights of the image tower that are not zero."""
        return sum(int(parameter.count_nonzero()) for parameter in self.vision.parameters())

    def save(self, folder: Path) -> None:
        """Write ticket.safetensors and ticket.json."""
        self._file().write(folder)

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> Self:
        """Read a ticket.

        Raises:
            UserError: it cannot be read, or it was drawn from another backbone.
        """
        file = TicketFile.read(folder)
        check_source_fingerprint(str(folder), file, backbone)
        return cls(_spec(file.spec, folder), file.tower, file.source)

    def _file(self) -> TicketFile:
        return TicketFile(self.source, asdict(self.spec), self.vision)


def dense_ticket(backbone: Backbone, vision: VisionTower | None = None) -> Ticket:
    """The whole image tower as a ticket of sparsity 0, for what is exported without pruning.

    Args:
        vision: the tower, where it is not the backbone's own: with low-rank adapters merged into it.
    """
    spec = TicketSpec("natural", "none", "omp", "structured", 0.0, backbone.fingerprint, 0)
    return Ticket(spec, vision or backbone.vision_tower(), backbone.name)


def _spec(values: dict[str, Any], folder: Path) -> TicketSpec:
    try:
        return TicketSpec(**values)
    except TypeError as error:
        raise UserError(f"The ticket {folder} has a strange description: {error}.") from error
