"""What a recipe is: the setting of a paper, what it needs, and published figures with where each comes from."""

import re
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from fedgraft.config.notation import parse_terms
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import unknown

SMOKE = {"backbone": "mini", "rounds": 2, "local_epochs": 1, "shots": 2, "eval_every": 2}
"""The settings of a smoke run, on a mock of the data."""


class Published(BaseModel):
    """Published figures of a method.

    Attributes:
        method: as the paper calls it.
        dataset: the last part of the path or ID of their data; empty for a mean over several data sets.
        metrics: in percent, under the keys of summary.json that are measured in the same way.
        source: paper and table.
        copied_from: who measured or reported them, where those are not the method's authors.
        checked: the public page that they were compared with; empty if they are only as copied.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    dataset: str = ""
    metrics: dict[str, float]
    source: str
    copied_from: str = ""
    checked: str = ""


class Mock(BaseModel):
    """The images that stand in for the data in a smoke run.

    Attributes:
        layout: how the real data lie on disk, so that a smoke run reads them in the same way: folders of classes or
            domains, CoOp's split file, DomainNet's lists, or a Hugging Face dataset as Parquet files.
        names: of the folders of the data sets, as their authors call them.
        columns: of images and labels of a Hugging Face dataset.
        per_class: images of a class in each domain and split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["folder", "coop", "lists", "hf"] = "folder"
    names: tuple[str, ...] = Field(default=("data",), min_length=1)
    columns: tuple[str, str] = ("image", "label")
    classes: int = Field(ge=2)
    per_class: int = Field(default=4, ge=1)
    domains: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)


class Recipe(BaseModel):
    """A named setting.

    Attributes:
        name: of the file.
        paper: whose setting it is.
        setting: what it is, in one sentence, with what differs from the authors' code.
        data: which data it needs.
        data_from: where they come from, and how they are named with --data.
        backbone_from: where the backbone comes from.
        methods: as `fedgraft compare --methods` takes them; some may not be in this version.
        seeds: of the runs.
        settings: of all runs, as a configuration file has them.
        published: figures to stand beside ours.
        mock: what stands in for the data in a smoke run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    paper: str
    setting: str
    data: str
    data_from: str
    backbone_from: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    settings: dict[str, Any]
    published: tuple[Published, ...] = ()
    mock: Mock

    @classmethod
    def load(cls, name: str) -> Self:
        """The recipe of a given name; raises UserError if there is none."""
        if name not in names():
            raise unknown("recipe", name, names())
        content = tomllib.loads((_folder() / f"{name}.toml").read_text(encoding="utf-8"))
        return cls.model_validate({"name": name, **content})

    @property
    def needs(self) -> str:
        """Which data and backbone it needs, and where they come from, in one sentence."""
        return (
            f"The recipe {self.name!r} needs {self.data} ({self.data_from}) and the backbone "
            f"{self.settings['backbone']} ({self.backbone_from}); --smoke runs it on a mock of the data."
        )

    @property
    def runnable(self) -> tuple[str, ...]:
        """Those of its methods that are registered."""
        return tuple(text for text in self.methods if _method_name(text) in METHODS.names())

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of its methods that are not registered, as the published figures call them."""
        published = {_bare(row.method): row.method for row in self.published}
        absent = [_method_name(text) for text in self.methods if text not in self.runnable]
        return tuple(published.get(_bare(name), name) for name in absent)

    def smoke_settings(self) -> dict[str, Any]:
        """The settings of a smoke run, without the data."""
        return {**self.settings, **SMOKE, **self.mock.settings}

    def figures_for(self, data: str) -> tuple[Published, ...]:
        """The published figures of the data set that a data source names, and those that are means over several."""
        named = {Path(piece).name for piece in re.split("[:@+]", data)}  # in hf:ID@REVISION:CONFIG the ID
        return tuple(row for row in self.published if row.dataset in {"", *named})


def names() -> tuple[str, ...]:
    """The names of all recipes, sorted."""
    return tuple(sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.suffix == ".toml"))


def all_recipes() -> Sequence[Recipe]:
    """All recipes, sorted by name."""
    return [Recipe.load(name) for name in names()]


def missing_sentence(method: str) -> str:
    """What is said of a method of a recipe that is not registered."""
    return f"{method} is not a method of this version, so the recipe runs without it."


def _method_name(text: str) -> str:
    return parse_terms(text)[0].name


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace(" ", "")


def _folder() -> Path:
    return Path(str(files("fedgraft.recipes")))
