"""Many tickets of one backbone, natural and robust, measured alike: a row a ticket, written as soon as it is there."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.config.run_config import RunConfig, read_toml
from fedgraft.data.sources.source import open_source
from fedgraft.reports.edge import TICKETS, read_rows
from fedgraft.edge_export.tickets.attack import Attack
from fedgraft.edge_export.tickets.draw import TicketConfig, draw_ticket, images_of, make_robust, pool_of
from fedgraft.edge_export.tickets.evaluation import Exam, base_and_novel
from fedgraft.edge_export.tickets.training import StageProgress, Workplace
from fedgraft.core.errors import UserError

ATTACK = Attack(4 / 255, 5)
CUTS = (
    *(("unstructured", sparsity) for sparsity in (0.5, 0.7, 0.9)),
    ("n:m", 0.5),
    ("rows", 0.5),
    *(("structured", sparsity) for sparsity in (0.25, 0.5, 0.75)),
)
"""The cuts of a run's report."""


@dataclass(frozen=True)
class Sweep:
    """What is drawn and what it is asked.

    Attributes:
        backbone: mini, a Hugging Face folder or id, or a ticket's folder.
        data: of the questions, zero-shot; the dense tower of every kind is asked as well.
        seeds: each its own questions, unlabelled images and draws.
        cuts: patterns with sparsities.
        inductions: "none" for natural tickets, "pgd", "smoothing"; "smoothing" comes last, behind all seeds.
        settings: further ones of `TicketConfig`.
        attacked: images that are attacked.
    """

    backbone: str
    data: str
    seeds: tuple[int, ...]
    cuts: tuple[tuple[str, float], ...]
    inductions: tuple[str, ...]
    settings: dict[str, Any]
    attacked: int = 240

    def configs(self) -> Iterator[TicketConfig]:
        """Every ticket.

        Raises:
            UserError: a setting that cannot be.
        """
        first = tuple(name for name in self.inductions if name != "smoothing")
        for inductions in (first, tuple(name for name in self.inductions if name == "smoothing")):
            for seed in self.seeds:
                for pattern, sparsity in self.cuts:
                    for induction in inductions:
                        robust = {} if induction == "none" else {"kind": "robust", "induction": induction}
                        cut = {"pattern": pattern, "sparsity": sparsity, "seed": seed}
                        yield TicketConfig.build({**self.settings, **robust, **cut})


def measure(sweep: Sweep, out: Path, progress: StageProgress) -> None:
    """Add the rows that a folder's `tickets.jsonl` lacks; a killed training goes on where it was."""
    path = out / TICKETS
    out.mkdir(parents=True, exist_ok=True)
    done = {_key(row) for row in read_rows(path)}
    backbone, desk = load_backbone(sweep.backbone), None
    for config in list(sweep.configs()):
        for dense in (True, False):
            cut = ("dense", 0.0) if dense else (config.pattern, config.sparsity)
            if (config.seed, config.induced, *cut) in done:
                continue
            if desk is None or desk.seed != config.seed:
                desk = _Desk(backbone, sweep, config, Workplace(out / "work", progress))
            row = desk.dense(config) if dense else desk.ticket(config)
            done.add(_key(row))
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def sweep_of_run(run: Path, settings: dict[str, Any]) -> Sweep:
    """The sweep over the backbone, the data and the seed of a federated run.

    Raises:
        UserError: there is no run, or its images are at its sites.
    """
    if not (run / "config.toml").is_file():
        raise UserError(f"The folder {run} holds no run (config.toml) and no rows ({TICKETS}) to report.")
    config = RunConfig.build(read_toml(run / "config.toml"))
    if config.protocol == "own-data":
        raise UserError(f"The images of the run {run} are at its sites; there is nothing here to measure tickets on.")
    return Sweep(config.backbone, config.data, (config.seed,), CUTS, ("none", "pgd"), settings)


class _Desk:
    """One seed: its images, its questions, and the rows that it makes."""

    def __init__(self, backbone: Backbone, sweep: Sweep, config: TicketConfig, place: Workplace) -> None:
        self.seed = config.seed
        self._backbone, self._place, self._attacked = backbone, place, sweep.attacked
        examples = open_source(sweep.data, self.seed)
        self._exam = Exam(backbone, examples, base_and_novel(examples, self.seed))
        self._pool = pool_of(backbone, images_of(config), place)

    def dense(self, config: TicketConfig) -> dict[str, Any]:
        """The row of a tower that nothing was cut from."""
        tower = self._backbone.vision_tower()
        if config.kind == "robust":
            tower = make_robust(tower, config, self._pool, self._place)
        whole = {"pattern": "dense", "sparsity": 0.0, "distillation_steps": 0}
        return {**self._row(config), **whole, **self._asked(tower)}

    def ticket(self, config: TicketConfig) -> dict[str, Any]:
        """The row of a ticket."""
        began = time.monotonic()
        ticket = draw_ticket(self._backbone, config, pool=self._pool, place=self._place)
        seconds = time.monotonic() - began
        sizes = {"parameters": ticket.parameters, "nonzero": ticket.nonzero, "seconds": round(seconds, 1)}
        return {**self._row(config), **sizes, **self._asked(ticket.vision)}

    def _row(self, config: TicketConfig) -> dict[str, Any]:
        asked = [question for question in self._exam.questions if question.name in ("base", "novel", "all")]
        return {
            **config.model_dump(include={"kind", "scheme", "pattern", "sparsity", "seed", "images"}),
            "induction": config.induced,
            "epsilon": config.radius,
            "induction_steps": config.induction_steps if config.kind == "robust" else 0,
            "distillation_steps": config.distillation_steps,
            "test_images": sum(len(question.positions) for question in asked),
            "attacked_images": self._attacked,
        }

    def _asked(self, tower: VisionTower) -> dict[str, float]:
        attacked = self._exam.attacked(tower, ATTACK, self.seed, self._attacked)
        return {name: round(value, 2) for name, value in (*self._exam.clean(tower).items(), ("attacked", attacked))}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["seed"], row["induction"], row["pattern"], row["sparsity"]
