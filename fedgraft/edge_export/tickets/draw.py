"""Draw a ticket: make the weights robust or not, choose what stays, remove the rest, distil."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.backbones.base import Backbone
from fedgraft.backbones.tower import VisionTower
from fedgraft.edge_export.tickets.patterns import checked_pattern
from fedgraft.edge_export.tickets.ticket import Kind, Scheme, Ticket, TicketSpec
from fedgraft.errors import UserError


class TicketConfig(BaseModel):
    """Everything that decides a ticket, but for the backbone and the images."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Kind = "natural"
    induction: Literal["pgd", "smoothing"] = Field(default="pgd", description="of a robust ticket")
    scheme: Scheme = "omp"
    pattern: str = "structured"
    sparsity: float = 0.5
    seed: int = Field(default=0, ge=0)
    induction_steps: int = Field(default=0, ge=0, description="optimizer steps of a robust ticket's induction")
    scheme_steps: int = Field(default=0, ge=0, description="optimizer steps of the schemes imp and lmp")
    distillation_steps: int = Field(default=0, ge=0, description="optimizer steps behind the cut")

    @classmethod
    def build(cls, settings: dict[str, Any]) -> Self:
        """Check settings.

        Raises:
            UserError: an unknown key, or a value of the wrong type or out of range.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"The ticket's option {place!r} has the value {first['input']!r}: {first['msg']}."
            ) from error


def draw_ticket(backbone: Backbone, config: TicketConfig, vision: VisionTower | None = None) -> Ticket:
    """Draw a ticket.

    Args:
        backbone: the dense one, whose features the ticket is measured by.
        config: how.
        vision: the tower to draw from where it is not the backbone's own: with low-rank adapters merged into it.

    Raises:
        UserError: a pattern or sparsity that cannot be.
    """
    tower = vision or backbone.vision_tower()
    pattern = checked_pattern(config.pattern, tower, config.sparsity)
    kept = pattern.kept(pattern.magnitudes(tower), config.sparsity)
    return Ticket(_spec(backbone, config), pattern.cut(tower, kept), backbone.name)


def _spec(backbone: Backbone, config: TicketConfig) -> TicketSpec:
    return TicketSpec(
        kind=config.kind,
        induction=config.induction if config.kind == "robust" else "none",
        scheme=config.scheme,
        pattern=config.pattern,  # type: ignore[arg-type]
        sparsity=config.sparsity,
        source_fingerprint=backbone.fingerprint,
        seed=config.seed,
    )
