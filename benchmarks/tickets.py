"""Robust against natural tickets of the embedded backbone: `python -m benchmarks.tickets --out runs/tickets`.

For every seed the plain tower and the towers that were made robust are cut by every pattern and sparsity, distilled
with the same budget on the same unlabelled images, and asked the same questions: zero-shot accuracy on base and novel
classes of `shapes` as base-to-novel deals them, on each style that the backbone never saw, and on attacked images.
A row is appended as soon as it is there; what is there is not computed again, and a killed training goes on where it
was. `--table` prints the table of the rows and draws them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.data.sources import open_source
from fedgraft.edge_export.report import TICKETS, markdown, read_rows, ticket_table, write_edge_report
from fedgraft.edge_export.tickets.attack import Attack
from fedgraft.edge_export.tickets.draw import TicketConfig, draw_ticket, images_of, make_robust, pool_of
from fedgraft.edge_export.tickets.evaluation import Exam, base_and_novel
from fedgraft.edge_export.tickets.training import Workplace

CUTS = [("unstructured", s) for s in (0.5, 0.7, 0.8, 0.9)] + [("structured", s) for s in (0.25, 0.5, 0.75)]
ATTACK, ATTACKED = Attack(4 / 255, 5), 240


def plan(args: argparse.Namespace) -> Iterator[TicketConfig]:
    """Every ticket: the natural and the attacked ones of every seed first."""
    steps = {"induction_steps": args.induction_steps, "distillation_steps": args.distillation_steps}
    more: dict[str, Any] = {"data": "procedural", "images": args.images, "scheme": args.scheme, **steps}
    for inductions in (("none", "pgd"), ("smoothing",)):
        for seed in args.seeds:
            for pattern, sparsity in CUTS:
                for induction in inductions:
                    kind = {"kind": "natural"} if induction == "none" else {"kind": "robust", "induction": induction}
                    yield TicketConfig.build({**more, **kind, "pattern": pattern, "sparsity": sparsity, "seed": seed})


class Bench:
    """One seed: its images, its questions, and the rows that it adds."""

    def __init__(self, backbone: Backbone, seed: int, images: int, out: Path) -> None:
        self.backbone, self.seed = backbone, seed
        examples = open_source("shapes", seed)
        self.exam = Exam(backbone, examples, base_and_novel(examples, seed))
        self.place = Workplace(out / "work", _log)
        config = TicketConfig(seed=seed, images=images)
        self.pool = pool_of(backbone, images_of(config), self.place)

    def dense(self, config: TicketConfig) -> dict[str, Any]:
        """The row of a tower that nothing was cut from."""
        tower = self.backbone.vision_tower()
        if config.kind == "robust":
            tower = make_robust(tower, config, self.pool, self.place)
        return {**self._row(config), "pattern": "dense", "sparsity": 0.0, "distillation_steps": 0, **self._asked(tower)}

    def ticket(self, config: TicketConfig) -> dict[str, Any]:
        """The row of a ticket."""
        began = time.monotonic()
        ticket = draw_ticket(self.backbone, config, pool=self.pool, place=self.place)
        seconds = time.monotonic() - began
        sizes = {"parameters": ticket.parameters, "nonzero": ticket.nonzero, "seconds": round(seconds, 1)}
        return {**self._row(config), **sizes, **self._asked(ticket.vision)}

    def _row(self, config: TicketConfig) -> dict[str, Any]:
        row = config.model_dump(include={"kind", "scheme", "pattern", "sparsity", "seed", "images"})
        steps = {"induction_steps": config.induction_steps if config.kind == "robust" else 0}
        tested = sum(len(question.positions) for question in self.exam.questions if question.name in ("base", "novel"))
        return {
            **row,
            "induction": config.induced,
            "epsilon": config.radius,
            **steps,
            "distillation_steps": config.distillation_steps,
            "test_images": tested,
            "attacked_images": ATTACKED,
        }

    def _asked(self, tower: torch.nn.Module) -> dict[str, float]:
        attacked = self.exam.attacked(tower, ATTACK, self.seed, ATTACKED)
        return {name: round(value, 2) for name, value in (*self.exam.clean(tower).items(), ("attacked", attacked))}


def run(args: argparse.Namespace) -> None:
    """Add the rows that are missing."""
    path = args.out / TICKETS
    args.out.mkdir(parents=True, exist_ok=True)
    done = {_key(row) for row in read_rows(path)}
    backbone, bench = load_backbone("mini"), None
    for config in plan(args):
        for dense in (True, False):
            key = ("dense", 0.0) if dense else (config.pattern, config.sparsity)
            if (config.seed, config.induced, *key) in done:
                continue
            if bench is None or bench.seed != config.seed:
                bench = Bench(backbone, config.seed, args.images, args.out)
            row = bench.dense(config) if dense else bench.ticket(config)
            done.add(_key(row))
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["seed"], row["induction"], row["pattern"], row["sparsity"]


def _log(stage: str, done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tickets"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scheme", default="omp")
    parser.add_argument("--images", type=int, default=4096, help="unlabelled images")
    parser.add_argument("--induction-steps", type=int, default=300)
    parser.add_argument("--distillation-steps", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="only print and draw the rows that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        run(args)
    print(markdown(*ticket_table(read_rows(args.out / TICKETS))))
    print(f"Drawn in {write_edge_report(args.out)}")


if __name__ == "__main__":
    main()
