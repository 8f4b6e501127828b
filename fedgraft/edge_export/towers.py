"""Choosing the image tower of an export: the dense one, a ticket from disk, or one drawn now and kept in the cache."""

from pathlib import Path

from fedgraft.backbones.ticket_backbone import is_ticket
from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root
from fedgraft.core.observer import Observer
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.training import StageStore, at_tenths
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.methods.adapter import Adapter

_DRAWN = ("natural", "robust")


def chosen_ticket(trained: TrainedRun, adapter: Adapter, options: BundleOptions, observer: Observer) -> Ticket:
    """The ticket that the options name.

    Raises:
        UserError: there is no such ticket, it is of another backbone, or it cannot be that sparse.
    """
    backbone = trained.backbone
    if options.ticket not in _DRAWN:
        if options.sparsity:
            raise UserError(f"The ticket {options.ticket} has its own sparsity; leave --sparsity out.")
        return Ticket.load(Path(options.ticket), backbone)
    if options.sparsity == 0 and options.ticket == "natural":
        folder = Path(trained.plan.config.backbone).expanduser()
        return Ticket.read(folder) if is_ticket(folder) else dense_ticket(backbone, adapter.vision_tower())
    observer.on_notice(f"Drawing a {options.ticket} ticket, {options.pattern}, sparsity {options.sparsity:g}.")
    cut = {"pattern": options.pattern, "sparsity": options.sparsity, "seed": options.ticket_seed}
    steps = {} if options.distillation_steps is None else {"distillation_steps": options.distillation_steps}
    config = TicketConfig.build({"kind": options.ticket, **cut, **steps})
    store = StageStore(cache_root() / "tickets", at_tenths(observer.on_notice))
    return draw_ticket(backbone, config, adapter.vision_tower(), store=store)
