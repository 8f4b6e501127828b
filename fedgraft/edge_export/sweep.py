"""Measuring many tickets of one backbone alike, natural and robust; each row is written as soon as it is known."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.loading import require_backbone
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.core.errors import UserError
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.tickets.attack import Attack
from fedgraft.edge_export.tickets.draw import draw_ticket, images_of, make_robust, pool_of
from fedgraft.edge_export.tickets.evaluation import ZeroShotEvaluator, zero_shot_tasks
from fedgraft.edge_export.tickets.ticket_config import Induction, TicketConfig
from fedgraft.edge_export.tickets.training import StageProgress, StageStore
from fedgraft.methods.plan import Plan
from fedgraft.reports.edge import TICKETS, read_rows
from fedgraft.runs.run_directory import RunDirectory

ATTACK = Attack(4 / 255, 5)
CUTS = (
    *(("unstructured", sparsity) for sparsity in (0.5, 0.7, 0.9)),
    ("n:m", 0.5),
    ("rows", 0.5),
    *(("structured", sparsity) for sparsity in (0.25, 0.5, 0.75)),
)
"""The cuts in a run's report."""


@dataclass(frozen=True)
class Sweep:
    """What is drawn, and what it is measured on.

    Attributes:
        backbone: mini, a Hugging Face folder or ID, or a ticket's folder.
        data: of the zero-shot tasks, on which the dense tower of every kind is measured as well.
        seeds: each with its own tasks, unlabelled images and draws.
        cuts: patterns with sparsities.
        inductions: "none" for natural tickets; "smoothing" is drawn last, after all seeds.
        settings: others of `TicketConfig`.
        data_options: of the data source.
        attacked: number of attacked images.
    """

    backbone: str
    data: str
    seeds: tuple[int, ...]
    cuts: tuple[tuple[str, float], ...]
    inductions: tuple[Induction, ...]
    settings: dict[str, Any]
    data_options: dict[str, Any] = field(default_factory=dict)
    attacked: int = 240

    def configs(self) -> Iterator[TicketConfig]:
        """Every ticket; raises UserError for an invalid setting."""
        first = tuple(name for name in self.inductions if name != "smoothing")
        for inductions in (first, tuple(name for name in self.inductions if name == "smoothing")):
            for seed in self.seeds:
                for pattern, sparsity in self.cuts:
                    for induction in inductions:
                        robust = {} if induction == "none" else {"kind": "robust", "induction": induction}
                        cut = {"pattern": pattern, "sparsity": sparsity, "seed": seed}
                        yield TicketConfig.build({**self.settings, **robust, **cut})


def measure(sweep: Sweep, out: Path, progress: StageProgress) -> None:
    """Add the rows that a folder's `tickets.jsonl` lacks; an interrupted training continues where it stopped."""
    path = out / TICKETS
    out.mkdir(parents=True, exist_ok=True)
    done = {_key(row) for row in read_rows(path)}
    require_backbone(sweep.backbone, Needs(prunes=True))
    backbone, bench = load_backbone(sweep.backbone), None
    for config in list(sweep.configs()):
        for dense in (True, False):
            cut = ("dense", 0.0) if dense else (config.pattern, config.sparsity)
            if (config.seed, config.induced, *cut) in done:
                continue
            if bench is None or bench.seed != config.seed:
                bench = _Bench(backbone, sweep, config, StageStore(out / "work", progress))
            row = bench.dense(config) if dense else bench.ticket(config)
            done.add(_key(row))
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def sweep_of_run(run: Path, settings: dict[str, Any]) -> Sweep:
    """The sweep over the backbone, the data and the seed of a federated run.

    Raises:
        UserError: there is no run, or its images are at its sites.
    """
    directory = RunDirectory(run)
    if not directory.begun:
        raise UserError(f"The folder {run} holds no run (config.toml) and no rows ({TICKETS}) to report.")
    config = directory.config()
    if Plan.of(config).protocol.deployed:
        raise UserError(f"The images of the run {run} are at its sites; there are none here to measure tickets on.")
    return Sweep(config.backbone, config.data, (config.seed,), CUTS, ("none", "pgd"), settings, config.data_options)


class _Bench:
    """The images and tasks of one seed, and the rows they give."""

    def __init__(self, backbone: Backbone, sweep: Sweep, config: TicketConfig, store: StageStore) -> None:
        self.seed = config.seed
        self._backbone, self._store, self._attacked = backbone, store, sweep.attacked
        examples = open_source(sweep.data, self.seed, sweep.data_options)
        self._evaluator = ZeroShotEvaluator(backbone, examples, zero_shot_tasks(examples, self.seed))
        self._pool = pool_of(backbone, images_of(config), store)

    def dense(self, config: TicketConfig) -> dict[str, Any]:
        """The row of a tower that nothing was cut from."""
        tower = self._backbone.vision_tower()
        if config.kind == "robust":
            tower = make_robust(tower, config, self._pool, self._store)
        whole = {"pattern": "dense", "sparsity": 0.0, "distillation_steps": 0}
        return {**self._row(config), **whole, **self._accuracies(tower)}

    def ticket(self, config: TicketConfig) -> dict[str, Any]:
        """The row of a ticket."""
        began = time.monotonic()
        ticket = draw_ticket(self._backbone, config, pool=self._pool, store=self._store)
        seconds = time.monotonic() - began
        sizes = {"parameters": ticket.parameters, "nonzero": ticket.nonzero, "seconds": round(seconds, 1)}
        return {**self._row(config), **sizes, **self._accuracies(ticket.vision)}

    def _row(self, config: TicketConfig) -> dict[str, Any]:
        return {
            **config.model_dump(include={"kind", "scheme", "pattern", "sparsity", "seed", "images"}),
            "induction": config.induced,
            "epsilon": config.radius,
            "induction_steps": config.induction_steps if config.kind == "robust" else 0,
            "distillation_steps": config.distillation_steps,
            "test_images": len(self._evaluator),
            "attacked_images": self._attacked,
        }

    def _accuracies(self, tower: PrunableTower) -> dict[str, float]:
        attacked = self._evaluator.attacked(tower, ATTACK, self.seed, self._attacked)
        return {
            name: round(value, 2) for name, value in (*self._evaluator.clean(tower).items(), ("attacked", attacked))
        }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["seed"], row["induction"], row["pattern"], row["sparsity"]
