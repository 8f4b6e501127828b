"""Everything that decides a ticket, except the backbone. Imports no torch: command-line options are made of it."""

from typing import Any, Literal, Self, get_args, get_origin

from pydantic import Field

from fedgraft.config.options import Options, parse_options
from fedgraft.core.errors import unknown

Kind = Literal["natural", "robust"]
Induction = Literal["none", "pgd", "smoothing"]
Scheme = Literal["omp", "imp", "lmp"]
PatternName = Literal["unstructured", "n:m", "rows", "structured"]
PROCEDURAL = "procedural"
STEPLESS = frozenset({"omp"})
"""Schemes that take no optimizer steps."""
_EPSILON = {"pgd": 4 / 255, "smoothing": 0.12}


class TicketConfig(Options):
    """How a ticket is drawn."""

    kind: Kind = Field("natural", description="whether the weights are made adversarially robust first")
    induction: Literal["pgd", "smoothing"] = Field("pgd", description="how weights are made robust")
    scheme: Scheme = Field("omp", description="how weights are chosen: magnitude, iterative magnitude, learnt masks")
    pattern: PatternName = Field("structured", description="what is removed; structured makes every device faster")
    sparsity: float = Field(0.5, description="fraction of each layer to remove")
    seed: int = Field(0, ge=0, description="seed of every random draw")
    data: str = Field(PROCEDURAL, description="unlabelled images: procedural, or a data source")
    images: int = Field(4096, ge=2, description="the most unlabelled images to use")
    induction_steps: int = Field(400, ge=1, description="optimizer steps that make the weights robust")
    scheme_steps: int = Field(200, ge=1, description="optimizer steps of the schemes imp and lmp")
    distillation_steps: int = Field(200, ge=0, description="optimizer steps after the cut")
    epsilon: float | None = Field(
        None, gt=0, description="radius of pgd or standard deviation of smoothing, for pixels from 0 to 1"
    )
    batch_size: int = Field(64, ge=1, description="images of an optimizer step")
    attack_steps: int = Field(2, ge=1, description="gradient steps of pgd")

    @property
    def induced(self) -> Induction:
        """How the weights are made robust; "none" for a natural ticket."""
        return self.induction if self.kind == "robust" else "none"

    @property
    def radius(self) -> float:
        """The epsilon that applies; 0 for a natural ticket."""
        return (self.epsilon or _EPSILON[self.induction]) if self.kind == "robust" else 0.0

    @property
    def needs_images(self) -> bool:
        """Whether anything is trained."""
        return self.kind == "robust" or self.scheme not in STEPLESS or self.distillation_steps > 0

    @classmethod
    def build(cls, settings: dict[str, Any]) -> Self:
        """Check settings.

        Raises:
            UserError: an unknown option, or a value that is unknown, of the wrong type or out of range.
        """
        for key, field in cls.model_fields.items():
            names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            if key in settings and names and settings[key] not in names:
                raise unknown(f"ticket {key}", str(settings[key]), names)
        return parse_options(cls, settings, "command", "ticket draw")
