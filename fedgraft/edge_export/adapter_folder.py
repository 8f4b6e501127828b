"""The adapter that a run has trained, of one site or shared by all; a low-rank one also as a folder that PEFT opens."""

from pathlib import Path
from typing import Any

from fedgraft.core.errors import UserError
from fedgraft.edge_export.trained_run import GLOBAL, TrainedRun
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.lora import LoraAdapter
from fedgraft.methods.peft_folder import save_as_peft


def trained_adapter(run: Path, site: int | None, fold: str | None = None) -> Adapter:
    """The adapter after the last round.

    Args:
        run: the run directory.
        site: a site of a simulation; None for what all sites share.
        fold: the domain left out, for a run with several folds.

    Raises:
        UserError: there is no such run, fold or site, it has not trained, or a part of every adapter stays at its site.
    """
    trained = TrainedRun.open(run, GLOBAL if site is None else str(site), fold)
    adapter = trained.adapter()
    if site is None and adapter.personal_names:
        raise UserError(
            f"The method {trained.plan.config.method!r} keeps a part of each adapter at its site, so the server has no "
            "adapter of its own; give the number of a site."
        )
    return adapter


def save_adapter(run: Path, out: Path, site: int | None = None, fold: str | None = None) -> dict[str, Any]:
    """Write a trained low-rank adapter in PEFT's format.

    Returns:
        Folder, rank and adapted maps.

    Raises:
        UserError: there is no low-rank adapter, or the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; give another --out.")
    adapter = trained_adapter(run, site, fold)
    if not isinstance(adapter, LoraAdapter):
        raise UserError(f"The run in {run} has trained no low-rank adapter, the only kind that PEFT opens.")
    factors = adapter.as_peft()
    save_as_peft(factors, out, adapter.vocabulary.backbone.name)
    return {"adapter": str(out), "rank": factors.rank, "maps": list(adapter.factors)}
