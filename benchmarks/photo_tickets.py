"""Robust against natural tickets of `photo` over a gap of domains, before and after a site's prompt is trained.

`python -m benchmarks.photo_tickets --data DIR --out OUT` draws tickets with the images of DIR/caltech101 and judges
them on every domain of DIR/office_caltech10 and DIR/pacs: the setting of Robust Tickets Can Transfer Better (Fu et al.
2023), a convolutional network with supervised weights that moves to other domains. A natural ticket is distilled for as
many more passes as making the tower robust takes, so both kinds cost the same number of forward and backward passes.
Each row is appended to OUT/rows.jsonl as soon as it is known; rows that are there are not computed again, and an
interrupted stage goes on from its last checkpoint. `--table` prints the table.
"""

import argparse
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.loading import located
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.client.training import TrainingData, train
from fedgraft.config.run_config import RunConfig
from fedgraft.core.randomness import generator
from fedgraft.data.examples import Examples
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.parity import accuracy, torch_embeddings
from fedgraft.edge_export.tickets.attack import Attack
from fedgraft.edge_export.tickets.draw import draw_ticket, images_of, pool_of
from fedgraft.edge_export.tickets.evaluation import ZeroShotEvaluator, ZeroShotTask
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.training import StageStore, at_tenths
from fedgraft.edge_export.trained_run import features_of
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary

JUDGED = ("office_caltech10", "pacs")
ROWS = "rows.jsonl"
KINDS = ("natural", "robust")


@dataclass(frozen=True)
class Site:
    """One domain: a few images to train a prompt on, and others to test it.

    Attributes:
        pixels: (n, 3, side, side), the training images first.
        labels: (n,).
        shots: the number of training images.
    """

    name: str
    examples: Examples
    pixels: Tensor
    labels: np.ndarray[Any, np.dtype[np.int64]]
    shots: int


def sites_of(data: Path, backbone: Backbone, seed: int, shots: int, tests: int) -> list[Site]:
    """Every domain of both folders, with so many training and test images of each class."""
    found = []
    for folder in JUDGED:
        examples = open_source(f"folder:{data / folder}", seed)
        for number, domain in enumerate(examples.domain_names):
            rng = generator(seed, "site", folder, domain)
            classes = [
                rng.permutation(np.flatnonzero((examples.domains == number) & (examples.labels == label)))
                for label in range(len(examples.class_names))
            ]
            training = np.concatenate([own[:shots] for own in classes])
            chosen = np.concatenate([training, *(own[shots : shots + tests] for own in classes)])
            pixels = backbone.preprocess([examples.load(int(position)) for position in chosen])
            found.append(Site(f"{folder}: {domain}", examples, pixels, examples.labels[chosen], len(training)))
    return found


class Judge:
    """The images of one seed, and the rows that towers give on them."""

    def __init__(self, args: argparse.Namespace, backbone: Backbone, seed: int) -> None:
        self._args, self._backbone, self._seed = args, backbone, seed
        self._sites = sites_of(args.data, backbone, seed, args.shots, args.tests)
        self._banks = {
            site.name: backbone.text.encode_classes(site.examples.class_names, site.examples.templates).numpy()
            for site in self._sites
        }
        source = open_source(f"folder:{args.data / 'caltech101'}", seed)
        attacked = generator(seed, "attacked source").permutation(len(source))[: args.attacked]
        task = ZeroShotTask("source", np.sort(attacked), tuple(range(len(source.class_names))))
        self._source = ZeroShotEvaluator(backbone, source, [task])

    def judged(self, tower: PrunableTower) -> dict[str, Any]:
        """Accuracies in percent: on the source, clean and attacked, and on each domain before and after training."""
        attack = Attack(self._args.epsilon, 2)
        before, after = {}, {}
        for site in self._sites:
            embeddings = torch_embeddings(tower, site.pixels.numpy())
            tested, labels = embeddings[site.shots :], site.labels[site.shots :]
            before[site.name] = accuracy(tested, self._banks[site.name], labels)
            after[site.name] = accuracy(tested, self._prompt(site, embeddings[: site.shots]), labels)
        return {
            "source": self._source.clean(tower)["source"],
            "attacked": self._source.attacked(tower, attack, self._seed, self._args.attacked),
            "before": before,
            "after": after,
            "tests": {site.name: len(site.labels) - site.shots for site in self._sites},
        }

    def _prompt(self, site: Site, embeddings: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        """The class bank of a prompt trained on a tower's features of a site's images."""
        names, templates = site.examples.class_names, site.examples.templates
        args, classes = self._args, tuple(range(len(names)))
        settings = {"method": "promptfl", "backbone": args.backbone, "seed": self._seed, "sites": 1}
        steps = {"local_epochs": args.epochs, "batch_size": 16, "lr": 0.005}
        context = {"method_options": {"ctx_init": "a photo of a"}}
        config = RunConfig.build({**settings, **steps, **context})
        adapter = Plan.of(config).adapter(Vocabulary(self._backbone, names, templates))
        data = TrainingData(torch.from_numpy(embeddings)[:, None], torch.from_numpy(site.labels[: site.shots]), classes)
        train(adapter, data, config, generator(self._seed, "prompt", site.name))
        return features_of(adapter, classes).numpy()


def resized(name: str, side: int, out: Path) -> Path:
    """A copy of a backbone's folder whose preprocessing crops `side` pixels, of a proportional size."""
    folder, copy = located(name).folder, out / f"backbone-{side}"
    if not copy.is_dir():
        shutil.copytree(folder, copy)
        path = copy / "preprocessor_config.json"
        values = json.loads(path.read_text())
        values["size"] = {
            "shortest_edge": round(values["size"]["shortest_edge"] * side / values["crop_size"]["height"])
        }
        values["crop_size"] = {"height": side, "width": side}
        path.write_text(json.dumps(values))
    return copy


def configured(args: argparse.Namespace, kind: str, sparsity: float, seed: int) -> TicketConfig:
    """A ticket; a natural one is distilled for the passes of the induction as well."""
    extra = args.induction_steps * (1 + args.attack_steps) if kind == "natural" else 0
    settings = {"data": f"folder:{args.data / 'caltech101'}", "images": args.images, "batch_size": args.batch_size}
    settings |= {"induction_steps": args.induction_steps, "distillation_steps": args.distillation_steps + extra}
    settings |= {"attack_steps": args.attack_steps, "pattern": args.pattern, "seed": seed, "sparsity": sparsity}
    return TicketConfig.build({**settings, "kind": kind, **({"epsilon": args.epsilon} if kind == "robust" else {})})


def measure(args: argparse.Namespace) -> None:
    """Append the rows that are missing, seed after seed."""
    path = args.out / ROWS
    args.out.mkdir(parents=True, exist_ok=True)
    done = {(row["seed"], row["kind"], row["sparsity"]) for row in read_rows(path)}
    backbone = load_backbone(str(resized(args.backbone, args.side, args.out)))
    store = StageStore(args.out / "work", at_tenths(lambda line: print(time.strftime("%H:%M:%S"), line, flush=True)))
    for seed in args.seeds:
        wanted = [("natural", 0.0), *((kind, sparsity) for sparsity in args.sparsities for kind in KINDS)]
        missing = [each for each in wanted if (seed, *each) not in done]
        if not missing:
            continue
        judge, pool = Judge(args, backbone, seed), None
        for kind, sparsity in missing:
            print(time.strftime("%H:%M:%S"), f"seed {seed}: {kind} {sparsity:g}", flush=True)
            tower, parameters = backbone.vision_tower(), None
            if sparsity:
                config = configured(args, kind, sparsity, seed)
                pool = pool or pool_of(backbone, images_of(config), store)
                ticket = draw_ticket(backbone, config, pool=pool, store=store)
                tower, parameters = ticket.vision, ticket.parameters
            row = {"seed": seed, "kind": kind, "sparsity": sparsity, "parameters": parameters, **judge.judged(tower)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are known."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _mean(row: dict[str, Any], when: str, folder: str) -> float:
    return statistics.mean(value for name, value in row[when].items() if name.startswith(folder))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Means over domains and seeds, ± the deviation over seeds, and by how much each seed's robust ticket is better."""
    columns = [(folder, when) for folder in JUDGED for when in ("before", "after")]
    titles = [f"{folder}, {when}" for folder, when in columns]
    lines = ["| removed | ticket | seeds | source | attacked | " + " | ".join(titles) + " |", "|" + "---|" * 9]
    values: dict[tuple[float, str], dict[int, list[float]]] = {}
    for row in rows:
        figures = [row["source"], row["attacked"], *(_mean(row, when, folder) for folder, when in columns)]
        values.setdefault((row["sparsity"], row["kind"]), {})[row["seed"]] = figures
    for (sparsity, kind), seeds in sorted(values.items()):
        means = [_spread(list(column)) for column in zip(*seeds.values(), strict=True)]
        name = kind if sparsity else "none (dense)"
        lines.append(f"| {100 * sparsity:.0f} % | {name} | {len(seeds)} | " + " | ".join(means) + " |")
    for sparsity in sorted({sparsity for sparsity, _ in values if sparsity}):
        natural, robust = (values.get((sparsity, kind), {}) for kind in KINDS)
        both = sorted(natural.keys() & robust.keys())
        pairs = [[b - a for a, b in zip(natural[seed], robust[seed], strict=True)] for seed in both]
        if pairs:
            gains = [" / ".join(f"{value:+.1f}" for value in column) for column in zip(*pairs, strict=True)]
            lines.append(
                f"| {100 * sparsity:.0f} % | robust - natural, per seed | {len(both)} | " + " | ".join(gains) + " |"
            )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the three folders of photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/photo-tickets"))
    parser.add_argument("--backbone", default="photo")
    parser.add_argument("--side", type=int, default=224, help="of the images in pixels; fewer cost less")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--pattern", default="structured")
    parser.add_argument("--images", type=int, default=1024, help="unlabelled images of the source")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--induction-steps", type=int, default=200)
    parser.add_argument("--attack-steps", type=int, default=1)
    parser.add_argument("--distillation-steps", type=int, default=200)
    parser.add_argument("--epsilon", type=float, default=1 / 255, help="of the attack, for pixels from 0 to 1")
    parser.add_argument("--attacked", type=int, default=64, help="images of the source that are attacked")
    parser.add_argument("--shots", type=int, default=4, help="images of a class that a site trains its prompt on")
    parser.add_argument("--tests", type=int, default=5, help="the most images of a class that a domain is tested on")
    parser.add_argument("--epochs", type=int, default=8, help="of a site's prompt")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        measure(args)
    print(markdown(read_rows(args.out / ROWS)))


if __name__ == "__main__":
    main()
