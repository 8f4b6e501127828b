"""Drawing a ticket into a folder, resumable after a kill."""

import json
import shutil
from pathlib import Path

from fedgraft.backbones import load_backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.loading import require_backbone
from fedgraft.backbones.ticket_backbone import is_ticket
from fedgraft.core.errors import UserError
from fedgraft.core.files import write_text
from fedgraft.edge_export.tickets.draw import draw_ticket, images_of, pool_of
from fedgraft.edge_export.tickets.patterns import checked_pattern
from fedgraft.edge_export.tickets.ticket import Ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.training import StageProgress, StageStore

_DRAWN = "draw.json"


def draw_into(
    out: Path,
    backbone: str,
    config: TicketConfig,
    *,
    resume: bool = False,
    work: Path | None = None,
    progress: StageProgress = lambda stage, done, total: None,
) -> Ticket:
    """Draw a ticket of a backbone and save it.

    Args:
        out: the ticket's folder; new or empty unless `resume`.
        backbone: mini, a Hugging Face folder or ID, or another ticket's folder.
        config: how to draw it.
        resume: continue an interrupted drawing; the ticket is the same.
        work: keeps finished stages for further tickets; by default a folder in `out` that is deleted at the end.
        progress: called after every step.

    Raises:
        UserError: the folder holds something else, or what `draw_ticket` raises; nothing was written.
    """
    settings = {"backbone": backbone, **config.model_dump()}
    _check(out, settings, resume)
    require_backbone(backbone, Needs(prunes=True))
    dense = load_backbone(backbone)
    if is_ticket(out):
        return Ticket.load(out, dense)
    checked_pattern(config.pattern, dense.vision_tower(), config.sparsity)
    images = images_of(config) if config.needs_images else None
    write_text(out / _DRAWN, json.dumps(settings, indent=2) + "\n")
    store = StageStore(work or out / "work", progress)
    pool = None if images is None else pool_of(dense, images, store)
    ticket = draw_ticket(dense, config, pool=pool, store=store)
    ticket.save(out)
    if work is None:
        shutil.rmtree(out / "work", ignore_errors=True)
    return ticket


def _check(out: Path, settings: dict[str, object], resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a directory.")
    begun = out / _DRAWN
    if not begun.is_file():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"The directory {out} is not empty and holds no ticket; give another --out.")
        if resume:
            raise UserError(f"There is no ticket to resume in {out}.")
        return
    if not resume:
        raise UserError(f"The directory {out} holds a ticket; add --resume to continue it, or give another --out.")
    try:
        known = json.loads(begun.read_text())
    except ValueError as error:
        raise UserError(f"{begun} is damaged: {error}. Give another --out.") from error
    if different := [key for key in settings if known.get(key) != settings[key]]:
        key = different[0]
        raise UserError(
            f"The ticket in {out} has {key} = {known.get(key)!r}, not {settings[key]!r}; resume with the same settings."
        )
