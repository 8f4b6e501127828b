"""Drawing a ticket: make the weights robust or not, choose what stays, remove the rest, distil what is left."""

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.edge_export.tickets.attack import Disturbance, Nothing
from fedgraft.edge_export.tickets.image_pool import ImagePool, ServerImages, open_images
from fedgraft.edge_export.tickets.objective import Matching
from fedgraft.edge_export.tickets.patterns import checked_pattern
from fedgraft.edge_export.tickets.schemes import SCHEMES, Choice
from fedgraft.edge_export.tickets.ticket import Ticket, TicketSpec
from fedgraft.edge_export.tickets.ticket_config import STEPLESS, TicketConfig
from fedgraft.edge_export.tickets.training import Stage, StageStore
from fedgraft.edge_export.tickets.tuning import INDUCTIONS, described, tune


def draw_ticket(
    backbone: Backbone,
    config: TicketConfig,
    vision: PrunableTower | None = None,
    pool: ImagePool | None = None,
    store: StageStore | None = None,
) -> Ticket:
    """Draw a ticket.

    Args:
        backbone: the dense one, whose features the ticket is distilled to.
        config: how to draw it.
        vision: the tower to draw from if it is not the backbone's own, such as one with low-rank adapters merged.
        pool: the unlabelled images, if opened already; those of `config.data` by default.
        store: keeps checkpoints, so that finished stages are not computed again.

    Raises:
        UserError: an impossible pattern or sparsity, or no such images.
    """
    store = store or StageStore()
    tower = vision or backbone.vision_tower()
    pattern = checked_pattern(config.pattern, tower, config.sparsity)
    if pool is None and config.needs_images:
        pool = pool_of(backbone, images_of(config), store)
    if pool is not None and config.kind == "robust":
        tower = make_robust(tower, config, pool, store)
    kept = SCHEMES[config.scheme](tower, Choice(config, pattern, pool, disturbance_of(config), store))
    cut = pattern.cut(tower, kept)
    if pool is not None and config.distillation_steps:
        decided_by = described(cut, pool, batch_size=config.batch_size)
        stage = Stage("distillation", config.distillation_steps, config.seed, cut.learning_rates.cut, decided_by)
        cut = tune(cut, Matching(pool, Nothing(), config.batch_size), stage, store, pattern.held(tower, kept))
    return Ticket(_spec(backbone, config, pool), cut, backbone.name)


def images_of(config: TicketConfig) -> ServerImages:
    """The unlabelled images of a configuration; raises UserError if there are none."""
    return open_images(config.data, config.seed, config.images)


def pool_of(backbone: Backbone, images: ServerImages, store: StageStore) -> ImagePool:
    """Unlabelled images with the backbone's features of them."""
    return ImagePool(backbone, images, lambda done, total: store.progress("images", done, total))


def disturbance_of(config: TicketConfig) -> Disturbance:
    """What robust training does to images; nothing for a natural ticket."""
    return INDUCTIONS[config.induced](config.radius, config.attack_steps)


def make_robust(tower: PrunableTower, config: TicketConfig, pool: ImagePool, store: StageStore) -> PrunableTower:
    """A copy of a tower whose features of disturbed images are close to the plain backbone's of the clean ones."""
    disturbance = disturbance_of(config)
    decided_by = described(tower, pool, disturbance=repr(disturbance), batch_size=config.batch_size)
    stage = Stage("induction", config.induction_steps, config.seed, tower.learning_rates.whole, decided_by)
    return tune(tower, Matching(pool, disturbance, config.batch_size), stage, store)


def _spec(backbone: Backbone, config: TicketConfig, pool: ImagePool | None) -> TicketSpec:
    return TicketSpec(
        kind=config.kind,
        induction=config.induced,
        scheme=config.scheme,
        pattern=config.pattern,
        sparsity=config.sparsity,
        source_fingerprint=backbone.fingerprint,
        seed=config.seed,
        induction_steps=config.induction_steps if config.kind == "robust" else 0,
        scheme_steps=0 if config.scheme in STEPLESS else config.scheme_steps,
        distillation_steps=config.distillation_steps,
        epsilon=config.radius,
        data=pool.name if pool else "",
    )
