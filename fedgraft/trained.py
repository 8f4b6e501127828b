"""The adapter that a run has trained, of a site or the server's own, and a low-rank one in a folder for PEFT."""

from pathlib import Path
from typing import Any

import torch

from fedgraft.adapters.base import Adapter, Seat, Vocabulary
from fedgraft.adapters.lora import LoraAdapter
from fedgraft.adapters.peft_folder import save_as_peft
from fedgraft.backbones import load_backbone
from fedgraft.client.state import PersonalState
from fedgraft.config import RunConfig, read_toml
from fedgraft.data.dealt import read_dealt
from fedgraft.data.protocols import Deal, named_deal
from fedgraft.errors import UserError
from fedgraft.methods import load_method
from fedgraft.server.run_directory import RunDirectory


def trained_adapter(run: Path, site: int | None, fold: str | None = None) -> Adapter:
    """The adapter after the newest round.

    Args:
        run: the run directory.
        site: a site of a simulation; None for what all sites share.
        fold: the domain that was left out, where the run has several.

    Raises:
        UserError: there is no such run, fold, site, or it has not trained.
    """
    config = RunConfig.build(read_toml(run / "config.toml"))
    method = load_method(config.method)
    if site is not None and not 0 <= site < config.sites:
        raise UserError(f"The run in {run} has the sites 0 to {config.sites - 1}, and no site {site}.")
    deal = named_deal(config.class_names) if config.protocol == "own-data" else read_dealt(run).deal
    number = _fold_number(deal, fold)
    backbone = load_backbone(config.backbone, config.precision)
    checkpoint = RunDirectory(run).newest_checkpoint(number, backbone.fingerprint)
    if checkpoint is None:
        raise UserError(f"The run in {run} has trained nothing.")
    seat = Seat(config.seed, number, site, checkpoint.round)
    vocabulary = Vocabulary(backbone, deal.class_names, deal.templates)
    adapter = method.adapter(vocabulary, method.parse_options(config.method_options), torch.Generator(), seat)
    adapter.load({name: torch.from_numpy(array) for name, array in checkpoint.arrays.items()})
    if adapter.personal_names:
        folder = run / "sites" / f"{number:03d}" / f"{site or 0:06d}"
        identity = {"method": config.method, "fingerprint": backbone.fingerprint}
        personal = None if site is None else PersonalState(folder, identity).load(checkpoint.round)
        if personal is None:
            who = "the server has no adapter of its own" if site is None else f"site {site} has none in {folder}"
            raise UserError(f"A part of each adapter of {config.method!r} stays at its site, and {who}.")
        adapter.load(personal)
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


def _fold_number(deal: Deal, fold: str | None) -> int:
    names = [each.name for each in deal.folds]
    if fold is None and len(names) == 1:
        return 0
    if fold not in names:
        raise UserError(f"Give --fold, one of {', '.join(map(str, names))}: the run has a federation for each.")
    return names.index(fold)
