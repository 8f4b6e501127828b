"""Choosing the image tower of an export: the dense one, a ticket from disk, or one drawn now and kept in the cache."""

from dataclasses import dataclass
from pathlib import Path

from fedgraft.backbones.ticket_backbone import is_ticket
from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root
from fedgraft.core.observer import Observer
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.training import StageStore, at_tenths
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.methods.adapter import Adapter

_DRAWN = ("natural", "robust")


@dataclass(frozen=True)
class TicketChoice:
    """The user's choice.

    Attributes:
        name: "natural" or "robust" to draw a ticket, or a ticket's folder.
        sparsity: of a drawn ticket; 0 exports the dense tower, made robust for "robust".
        pattern: of a drawn ticket.
        seed: of a drawn ticket.
        distillation_steps: of a drawn ticket; by default those of `fedgraft ticket draw`.
    """

    name: str = "natural"
    sparsity: float = 0.0
    pattern: str = "structured"
    seed: int = 0
    distillation_steps: int | None = None


def chosen_ticket(trained: TrainedRun, adapter: Adapter, choice: TicketChoice, observer: Observer) -> Ticket:
    """The ticket of a choice.

    Raises:
        UserError: there is no such ticket, it is of another backbone, or it cannot be that sparse.
    """
    backbone = trained.backbone
    if choice.name not in _DRAWN:
        if choice.sparsity:
            raise UserError(f"The ticket {choice.name} has its own sparsity; leave --sparsity out.")
        return Ticket.load(Path(choice.name), backbone)
    if choice.sparsity == 0 and choice.name == "natural":
        folder = Path(trained.plan.config.backbone).expanduser()
        return Ticket.read(folder) if is_ticket(folder) else dense_ticket(backbone, adapter.vision_tower())
    observer.on_notice(f"Drawing a {choice.name} ticket, {choice.pattern}, sparsity {choice.sparsity:g}.")
    settings = {"kind": choice.name, "pattern": choice.pattern, "sparsity": choice.sparsity, "seed": choice.seed}
    if choice.distillation_steps is not None:
        settings["distillation_steps"] = choice.distillation_steps
    store = StageStore(cache_root() / "tickets", at_tenths(observer.on_notice))
    return draw_ticket(backbone, TicketConfig.build(settings), adapter.vision_tower(), store=store)
