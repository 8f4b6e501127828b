"""The tables of docs/backbones.md: published backbones, and what each family can do, from configurations alone.

`python -m benchmarks.backbone_table` prints them, `--write` puts them into the page. A row needs no weights: sizes and
abilities are what its family reads from the configuration, parameters are counted on the meta device.
"""

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.published_backbones import Published, published
from benchmarks.tables import written
from fedgraft.backbones.abilities import Abilities, Sizes
from fedgraft.backbones.checkpoints.dual_names import MODEL_TYPE
from fedgraft.backbones.checkpoints.quiet import quietly
from fedgraft.backbones.family import Family
from fedgraft.config.registry import BACKBONES

PAGE = Path("docs/backbones.md")
STEPS = Path(__file__).with_name("backbone_steps.json")
"""Seconds of a training step by Hugging Face ID, as `benchmarks.backbone_steps` has measured them."""
BEGIN, END = "<!-- python -m benchmarks.backbone_table --write -->", "<!-- end of the tables -->"
_HEAD = ["model", "Hugging Face ID", "way", "pixels", "positions", "dim", "image", "text", "memory", "step"]
_SHOWN = ("prompts", "visual prompts", "adapters", "exports", "text tower", "patch features", "losses", "preprocessing")


@dataclass(frozen=True)
class Row:
    """What is read from one published configuration."""

    published: Published
    family: str
    sizes: Sizes
    abilities: Abilities
    parameters: Counter[str]
    step_seconds: float | None

    def cells(self) -> list[str]:
        """The row of the table."""
        total = sum(self.parameters.values())
        image, text = self.parameters["image"], self.parameters["text"]
        figures = [self.sizes.image_size, self.sizes.positions, self.sizes.dim]
        millions = [f"{image / 1e6:.1f} M", f"{text / 1e6:.1f} M", f"{4 * total / 2**20:,.0f} MiB"]
        step = "" if self.step_seconds is None else f"{self.step_seconds:.2f} s"
        return [self.published.name, f"`{self.published.hub}`", self.published.way, *map(str, figures), *millions, step]


def rows() -> list[Row]:
    """A row for each published model that a family opens."""
    found = []
    same: dict[str, Counter[str]] = {}
    steps: dict[str, float] = json.loads(STEPS.read_text())
    for entry in published():
        content = json.dumps(entry.config)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "config.json").write_text(content)
            family = recognizing(folder)
            if family is None:
                continue
            if content not in same:
                same[content] = parameters(entry.config, folder)
            sizes, abilities = family.sizes(folder), family.abilities_of(folder)
            found.append(Row(entry, family.name, sizes, abilities, same[content], steps.get(entry.hub)))
    return found


def recognizing(folder: Path) -> Family | None:
    """The family that opens a folder."""
    return next((family for family in BACKBONES if family.recognizes(folder)), None)


def parameters(config: dict[str, Any], folder: Path) -> Counter[str]:
    """Parameters of the image tower, the text tower and the rest, projections with their towers."""
    with quietly(), torch.device("meta"):
        model = model_of(config, folder)
    counted: Counter[str] = Counter()
    for name, tensor in model.named_parameters():
        tower = {"v": "image", "t": "text"}.get(name[0], "rest")
        counted[tower] += tensor.numel()
    return counted


def model_of(config: dict[str, Any], folder: Path) -> nn.Module:
    """An empty or random model of a configuration, which is that of the folder."""
    if config["model_type"] == MODEL_TYPE:
        from fedgraft.backbones.dual.open_clip_model import OpenClipConfig, OpenClipModel

        return OpenClipModel(OpenClipConfig(folder))
    from transformers import AutoConfig, AutoModel

    settings = {key: value for key, value in config.items() if key != "model_type"}
    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **settings))
    return model


def tables(found: list[Row]) -> str:
    """What each family can do, then its models."""
    families = list(dict.fromkeys(row.family for row in found))
    parts = []
    for family in families:
        own = [row for row in found if row.family == family]
        parts += [
            f"### `{family}`",
            "",
            BACKBONES.load(family).summary[:1].upper() + BACKBONES.load(family).summary[1:] + ".",
        ]
        parts += [_abilities(own), ""]
        parts += ["| " + " | ".join(_HEAD) + " |", "|---|---|---|" + "--:|" * (len(_HEAD) - 3)]
        parts += ["| " + " | ".join(row.cells()) + " |" for row in own] + [""]
    return "\n".join(parts)


def _abilities(own: list[Row]) -> str:
    """The abilities that all models of a family share, and those in which they differ."""
    sentences = [""]
    for fact in _SHOWN:
        having: dict[str, list[str]] = {}
        for row in own:
            having.setdefault(row.abilities.facts()[fact], []).append(row.published.name)
        each = [value if len(having) == 1 else f"{value} ({', '.join(names)})" for value, names in having.items()]
        sentences.append(f"- {fact}: {' or '.join(each)}")
    return "\n".join(sentences)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {PAGE}")
    args = parser.parse_args()
    content = tables(rows())
    if args.write:
        PAGE.write_text(written(PAGE.read_text(), BEGIN, END, content))
    else:
        print(content)


if __name__ == "__main__":
    main()
