"""Draw a ticket: make the weights robust or not, choose what stays, remove the rest, distil what is left."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.edge_export.tickets.attack import Disturbance, Nothing
from fedgraft.edge_export.tickets.image_pool import PROCEDURAL, ImagePool, ServerImages, open_images
from fedgraft.edge_export.tickets.objective import Matching
from fedgraft.edge_export.tickets.patterns import PATTERNS, checked_pattern
from fedgraft.edge_export.tickets.schemes import SCHEMES, STEPLESS, Choice
from fedgraft.edge_export.tickets.ticket import Induction, Kind, PatternName, Scheme, Ticket, TicketSpec
from fedgraft.edge_export.tickets.training import Stage, Workplace
from fedgraft.edge_export.tickets.tuning import DISTILLATION_LR, INDUCTIONS, LR, described, tune
from fedgraft.core.errors import UserError, unknown

_EPSILON = {"pgd": 4 / 255, "smoothing": 0.12}


class TicketConfig(BaseModel):
    """Everything that decides a ticket, but for the backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Kind = "natural"
    induction: Literal["pgd", "smoothing"] = Field(default="pgd", description="of a robust ticket")
    scheme: Scheme = "omp"
    pattern: PatternName = "structured"
    sparsity: float = Field(default=0.5, description="the share of each layer that is removed")
    seed: int = Field(default=0, ge=0)
    data: str = Field(default=PROCEDURAL, description="unlabelled images: procedural, or a data source")
    images: int = Field(default=4096, ge=2, description="how many of them at most")
    induction_steps: int = Field(default=400, ge=1, description="optimizer steps that make a ticket robust")
    scheme_steps: int = Field(default=200, ge=1, description="optimizer steps of the schemes imp and lmp")
    distillation_steps: int = Field(default=200, ge=0, description="optimizer steps behind the cut")
    epsilon: float | None = Field(
        default=None, gt=0, description="radius of pgd, or standard deviation of smoothing, of pixels from 0 to 1"
    )
    attack_steps: int = Field(default=2, ge=1, description="gradient steps of pgd")

    @property
    def disturbance(self) -> Disturbance:
        """What the images of robust training undergo; nothing for a natural ticket."""
        return INDUCTIONS[self.induced](self.radius, self.attack_steps)

    @property
    def induced(self) -> Induction:
        """How the weights are made robust."""
        return self.induction if self.kind == "robust" else "none"

    @property
    def radius(self) -> float:
        """The epsilon that applies, 0 for a natural ticket."""
        return (self.epsilon or _EPSILON[self.induction]) if self.kind == "robust" else 0.0

    @property
    def needs_images(self) -> bool:
        """Whether there is anything to train."""
        return self.kind == "robust" or self.scheme not in STEPLESS or self.distillation_steps > 0

    @classmethod
    def build(cls, settings: dict[str, Any]) -> Self:
        """Check settings.

        Raises:
            UserError: an unknown key, pattern or scheme, or a value of the wrong type or out of range.
        """
        for key, what, table in (("pattern", "sparsity pattern", PATTERNS), ("scheme", "ticket scheme", SCHEMES)):
            if (name := str(settings.get(key, next(iter(table))))) not in table:
                raise unknown(what, name, table)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            found = f"The ticket's option {place!r} has the value {first['input']!r}: {first['msg']}."
            raise UserError(found) from error


def draw_ticket(
    backbone: Backbone,
    config: TicketConfig,
    vision: VisionTower | None = None,
    pool: ImagePool | None = None,
    place: Workplace | None = None,
) -> Ticket:
    """Draw a ticket.

    Args:
        backbone: the dense one, whose features the ticket is measured by.
        config: how.
        vision: the tower to draw from where it is not the backbone's own: with low-rank adapters merged into it.
        pool: the unlabelled images, where they are open already; of `config.data` otherwise.
        place: where checkpoints go; what was finished there is not computed again.

    Raises:
        UserError: a pattern or sparsity that cannot be, or no such images.
    """
    place = place or Workplace()
    tower = vision or backbone.vision_tower()
    pattern = checked_pattern(config.pattern, tower, config.sparsity)
    if pool is None and config.needs_images:
        pool = pool_of(backbone, images_of(config), place)
    if pool is not None and config.kind == "robust":
        tower = make_robust(tower, config, pool, place)
    choice = Choice(pattern, config.sparsity, config.scheme_steps, config.seed, pool, config.disturbance, place)
    kept = SCHEMES[config.scheme](tower, choice)
    cut = pattern.cut(tower, kept)
    if pool is not None and config.distillation_steps:
        stage = Stage("distillation", config.distillation_steps, config.seed, DISTILLATION_LR, described(cut, pool))
        cut = tune(cut, Matching(pool, Nothing()), stage, place, pattern.held(tower, kept))
    return Ticket(_spec(backbone, config, pool), cut, backbone.name)


def images_of(config: TicketConfig) -> ServerImages:
    """The unlabelled images of a configuration.

    Raises:
        UserError: there are none.
    """
    return open_images(config.data, config.seed, config.images)


def pool_of(backbone: Backbone, images: ServerImages, place: Workplace) -> ImagePool:
    """Unlabelled images with the backbone's features of them."""
    return ImagePool(backbone, images, lambda done, total: place.progress("images", done, total))


def make_robust(tower: VisionTower, config: TicketConfig, pool: ImagePool, place: Workplace) -> VisionTower:
    """A copy of a tower whose features of disturbed images are near the plain backbone's of the clean ones."""
    words = described(tower, pool, disturbance=repr(config.disturbance))
    stage = Stage("induction", config.induction_steps, config.seed, LR, words)
    return tune(tower, Matching(pool, config.disturbance), stage, place)


def _stages_of(config: TicketConfig) -> dict[str, int]:
    """The stages that a ticket takes, with their optimizer steps."""
    stages = {"induction": config.induction_steps} if config.kind == "robust" else {}
    if config.scheme not in STEPLESS:
        stages["scheme"] = config.scheme_steps
    return {**stages, "distillation": config.distillation_steps}


def _spec(backbone: Backbone, config: TicketConfig, pool: ImagePool | None) -> TicketSpec:
    stages = _stages_of(config)
    return TicketSpec(
        kind=config.kind,
        induction=config.induced,
        scheme=config.scheme,
        pattern=config.pattern,
        sparsity=config.sparsity,
        source_fingerprint=backbone.fingerprint,
        seed=config.seed,
        induction_steps=stages.get("induction", 0),
        scheme_steps=stages.get("scheme", 0),
        distillation_steps=stages["distillation"],
        epsilon=config.radius,
        data=pool.name if pool else "",
    )
