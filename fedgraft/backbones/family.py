"""What a backbone family is: how its folders are recognized and loaded, and what its towers can do."""

import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedgraft.backbones.abilities import Abilities, Sizes
from fedgraft.backbones.backbone import Backbone, Precision
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.config.registry import Registered
from fedgraft.core.errors import UserError


@dataclass(frozen=True)
class Request:
    """Which backbone to load.

    Attributes:
        name: as the user wrote it.
        folder: of its files; for a Hugging Face ID, the cached snapshot, which may be incomplete.
        source: the argument for Hugging Face's loaders: the folder or the ID.
        precision: of the weights in memory.
        device: of the weights.
        options: of the family.
    """

    name: str
    folder: Path
    source: str
    precision: Precision
    device: torch.device
    options: Any


@dataclass(frozen=True)
class Family(Registered):
    """A registered family.

    Attributes:
        recognizes: whether a folder holds a backbone of the family.
        load: loads the backbone of a request.
        abilities: the most that a backbone of the family can do.
        sizes: reads the sizes of a folder from its configuration alone; raises UserError if it is malformed.
        narrowed: what the backbone in a folder can do, where folders differ; from its configuration alone.
        sample: writes a small backbone into a folder, for the contract tests.
        embedded: backbones that need no folder of the user's, by name; each returns its folder, and raises UserError
            if it cannot be had.
        prunable: an empty tower of a ticket from the JSON of its shape, where towers that tickets are drawn from name
            this family.
    """

    kind: ClassVar[str] = "backbone family"
    columns: ClassVar[tuple[str, ...]] = ("visual prompts", "exports")

    recognizes: Callable[[Path], bool]
    load: Callable[[Request], Backbone]
    _: KW_ONLY
    abilities: Abilities
    sizes: Callable[[Path], Sizes]
    narrowed: Callable[[Path], Abilities] | None = None
    sample: Callable[[Path], None] | None = None
    embedded: Mapping[str, Callable[[], Path]] = field(default_factory=dict)
    prunable: Callable[[dict[str, Any]], PrunableTower] | None = None

    def facts(self) -> dict[str, str]:
        """What its towers can do."""
        return self.abilities.facts()

    def abilities_of(self, folder: Path) -> Abilities:
        """What the backbone in a folder can do."""
        return self.abilities if self.narrowed is None else self.narrowed(folder)


def model_type(folder: Path) -> str | None:
    """The `model_type` in a folder's config.json, or None; raises UserError if the file is malformed."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a Hugging Face configuration: {error}.") from error
    return str(found)
