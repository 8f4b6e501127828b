"""Which image tower is exported: the dense one, a ticket from disk, or one that is drawn now and kept for next time."""

from dataclasses import dataclass
from pathlib import Path

from fedgraft.methods.adapter import Adapter
from fedgraft.backbones.ticket_backbone import TicketFile, is_ticket
from fedgraft.edge_export.trained_run import Source
from fedgraft.edge_export.tickets.draw import TicketConfig, draw_ticket
from fedgraft.edge_export.tickets.ticket import Ticket, TicketSpec, dense_ticket
from fedgraft.edge_export.tickets.training import StageProgress, Workplace
from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root
from fedgraft.core.observer import Observer

KINDS = ("natural", "robust")


@dataclass(frozen=True)
class TicketChoice:
    """What the user asked for.

    Attributes:
        name: "natural" or "robust" to draw one, or the folder of a ticket.
        sparsity: of one that is drawn; 0 exports the dense tower, robust where that is asked for.
        pattern: of one that is drawn.
        seed: of one that is drawn.
        distillation_steps: of one that is drawn; as `fedgraft ticket draw` does it unless given.
    """

    name: str = "natural"
    sparsity: float = 0.0
    pattern: str = "structured"
    seed: int = 0
    distillation_steps: int | None = None


def chosen_ticket(source: Source, adapter: Adapter, choice: TicketChoice, observer: Observer) -> Ticket:
    """The ticket of a choice.

    Raises:
        UserError: there is no such ticket, it is of another backbone, or it cannot be as sparse as that.
    """
    backbone = source.backbone
    if choice.name not in KINDS:
        if choice.sparsity:
            raise UserError(f"The ticket {choice.name} has a sparsity of its own; leave --sparsity out.")
        return Ticket.load(Path(choice.name), backbone)
    if choice.sparsity == 0 and choice.name == "natural":
        own = Path(source.config.backbone)
        if is_ticket(own):  # the run's backbone is a ticket already
            file = TicketFile.read(own)
            return Ticket(TicketSpec(**file.spec), file.tower, file.source)
        return dense_ticket(backbone, adapter.vision_tower())
    observer.on_notice(f"Drawing a {choice.name} ticket, {choice.pattern}, sparsity {choice.sparsity:g}.")
    settings = {"kind": choice.name, "pattern": choice.pattern, "sparsity": choice.sparsity, "seed": choice.seed}
    if choice.distillation_steps is not None:
        settings["distillation_steps"] = choice.distillation_steps
    place = Workplace(cache_root() / "tickets", _tenths(observer))
    return draw_ticket(backbone, TicketConfig.build(settings), adapter.vision_tower(), place=place)


def _tenths(observer: Observer) -> StageProgress:
    """A sentence at every tenth of a stage."""

    def tell(stage: str, done: int, total: int) -> None:
        if done == total or done * 10 // total != (done - 1) * 10 // total:
            observer.on_notice(f"{stage}: {done}/{total}")

    return tell
