"""Choosing the image tower of an export: the dense one, a ticket from disk, or one drawn now and kept in the cache."""

from pathlib import Path

from torch import nn

from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.patch_tower import PatchTower
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.ticket_backbone import is_ticket
from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root
from fedgraft.core.observer import Observer
from fedgraft.edge_export.dense_tower import DenseTower, ExportedTower
from fedgraft.edge_export.merged_tower import MergedTower, ReducedTower
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.patch_steps import PatchStep, parse_steps
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.ticket import Ticket, dense_spec, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.training import StageStore, at_tenths
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.methods.adapter import Adapter

_DRAWN = ("natural", "robust")


def needs_of(options: BundleOptions) -> Needs:
    """What an export needs of the run's backbone, checked before anything is loaded."""
    cut = options.sparsity > 0 or options.ticket != "natural"
    merged = max((step.layer for step in parse_steps(options.keep_patches)), default=0)
    return Needs(exports=True, prunes=cut, merge_layer=merged)


def _require_unchanged(adapter: Adapter, tower: str) -> None:
    """Raise UserError if another tower would lose what the adapter changes about images."""
    if adapter.changes_images:
        raise UserError(
            f"The run's method changes the image tower, and {tower} has none of that; export its own tower, without "
            "--ticket."
        )


def chosen_tower(
    trained: TrainedRun, adapter: Adapter, options: BundleOptions, observer: Observer, own: nn.Module | None = None
) -> ExportedTower:
    """The dense image tower, or the ticket that the options name, with as many patches as they keep.

    Args:
        own: the dense image tower, if it is not the whole one of the adapter.

    Raises:
        UserError: there is no such ticket, it is of another backbone, it cannot be that sparse, the method changes
            the image tower and the ticket has none of that, or the tower's patches cannot be merged.
    """
    return with_patches(_whole(trained, adapter, options, observer, own), parse_steps(options.keep_patches))


def with_patches(tower: Ticket | DenseTower, steps: tuple[PatchStep, ...]) -> ExportedTower:
    """A tower whose patches are merged by some steps; without any, the same.

    Raises:
        UserError: it has no such layer, or no patches, or visual prompts beside them.
    """
    if not steps:
        return tower
    vision = tower.vision
    if not isinstance(vision, PatchTower) or vision.prompted:
        raise UserError(
            "--keep-patches merges the patches of an image tower, and cannot where visual prompts stand beside them or "
            "there are none; leave it out."
        )
    merged, written = MergedTower(vision, steps).eval(), ",".join(map(str, steps))
    return ReducedTower(tower.spec, merged, written, tower.fingerprint, tower.parameters, tower.nonzero)


def _whole(
    trained: TrainedRun, adapter: Adapter, options: BundleOptions, observer: Observer, own: nn.Module | None
) -> Ticket | DenseTower:
    backbone = trained.backbone
    if options.ticket not in _DRAWN:
        if options.sparsity:
            raise UserError(f"The ticket {options.ticket} has its own sparsity; leave --sparsity out.")
        _require_unchanged(adapter, f"the ticket {options.ticket}")
        return Ticket.load(Path(options.ticket), backbone)
    if options.sparsity == 0 and options.ticket == "natural":
        folder = Path(trained.plan.config.backbone).expanduser()
        if is_ticket(folder):
            _require_unchanged(adapter, f"the ticket {folder}, on which the run was trained,")
            return Ticket.read(folder)
        vision = adapter.image_encoder() if own is None else own
        if isinstance(vision, PrunableTower):
            return dense_ticket(backbone, vision)
        return DenseTower(dense_spec(backbone), vision)
    observer.on_notice(f"Drawing a {options.ticket} ticket, {options.pattern}, sparsity {options.sparsity:g}.")
    cut = {"pattern": options.pattern, "sparsity": options.sparsity, "seed": options.ticket_seed}
    steps = {} if options.distillation_steps is None else {"distillation_steps": options.distillation_steps}
    config = TicketConfig.build({"kind": options.ticket, **cut, **steps})
    store = StageStore(cache_root() / "tickets", at_tenths(observer.on_notice))
    return draw_ticket(backbone, config, adapter.vision_tower(), store=store)
