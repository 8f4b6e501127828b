"""The adapter that a run has trained, of a site or what all sites share, and a low-rank one in a folder for PEFT."""

from pathlib import Path
from typing import Any

from fedgraft.methods.adapter import Adapter
from fedgraft.methods.lora import LoraAdapter
from fedgraft.methods.peft_folder import save_as_peft
from fedgraft.edge_export.trained_run import GLOBAL, adapter_of, open_run
from fedgraft.core.errors import UserError


def trained_adapter(run: Path, site: int | None, fold: str | None = None) -> Adapter:
    """The adapter after the newest round.

    Args:
        run: the run directory.
        site: a site of a simulation; None for what all sites share.
        fold: the domain that was left out, where the run has several.

    Raises:
        UserError: there is no such run, fold or site, it has not trained, or a part of every adapter stays at its site.
    """
    source = open_run(run, GLOBAL if site is None else str(site), fold)
    adapter = adapter_of(source, source.deal.class_names)
    if site is None and adapter.personal_names:
        raise UserError(
            f"A part of each adapter of {source.config.method!r} stays at its site, and the server has no adapter of "
            "its own; give the number of a site."
        )
    return adapter


def save_adapter(run: Path, out: Path, site: int | None = None, fold: str | None = None) -> dict[str, Any]:
    """Write a trained low-rank adapter as PEFT saves one.

    Returns:
        Folder, rank and adapted maps.

    Raises:
        UserError: there is nothing to save, or the folder holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; give another --out.")
    adapter = trained_adapter(run, site, fold)
    if not isinstance(adapter, LoraAdapter):
        raise UserError(f"The run in {run} has trained no low-rank adapter, which is what PEFT opens.")
    rank = save_as_peft(adapter, out, adapter.vocabulary.backbone.name)
    return {"adapter": str(out), "rank": rank, "maps": list(adapter.factors)}
