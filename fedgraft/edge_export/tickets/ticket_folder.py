"""Drawing a ticket into a folder, so that a kill costs no more than the last few steps."""

import json
import shutil
from pathlib import Path

from fedgraft.backbones import load_backbone
from fedgraft.backbones.ticket_backbone import is_ticket
from fedgraft.edge_export.tickets.draw import TicketConfig, draw_ticket, images_of, pool_of
from fedgraft.edge_export.tickets.patterns import checked_pattern
from fedgraft.edge_export.tickets.ticket import Ticket
from fedgraft.edge_export.tickets.training import StageProgress, Workplace
from fedgraft.core.errors import UserError
from fedgraft.core.files import write_text

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
        backbone: mini, a Hugging Face folder or id, or another ticket's folder.
        config: how.
        resume: go on with a drawing that was stopped, to the ticket that it would have become.
        work: keeps the finished stages, so that a second ticket need not be made robust again; a folder in `out`,
            deleted at the end, unless given.
        progress: told of every step.

    Raises:
        UserError: the folder holds something else, or what `draw_ticket` raises; nothing was written.
    """
    words = {"backbone": backbone, **config.model_dump()}
    _check(out, words, resume)
    dense = load_backbone(backbone)
    if is_ticket(out):
        return Ticket.load(out, dense)
    checked_pattern(config.pattern, dense.vision_tower(), config.sparsity)
    images = images_of(config) if config.needs_images else None
    write_text(out / _DRAWN, json.dumps(words, indent=2) + "\n")
    place = Workplace(work or out / "work", progress)
    pool = None if images is None else pool_of(dense, images, place)
    ticket = draw_ticket(dense, config, pool=pool, place=place)
    ticket.save(out)
    if work is None:
        shutil.rmtree(out / "work", ignore_errors=True)
    return ticket


def _check(out: Path, words: dict[str, object], resume: bool) -> None:
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
        raise UserError(f"The directory {out} holds a ticket; add --resume to go on with it or give another --out.")
    try:
        known = json.loads(begun.read_text())
    except ValueError as error:
        raise UserError(f"{begun} is damaged: {error}. Give another --out.") from error
    if different := [key for key in words if known.get(key) != words[key]]:
        key = different[0]
        raise UserError(
            f"The ticket in {out} has {key} = {known.get(key)!r}, not {words[key]!r}; resume it as it was begun."
        )
