"""What a backbone family is: how its folders are recognized and loaded, and what its towers can do."""

import json
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedgraft.backbones.backbone import Backbone, Placement, Precision
from fedgraft.backbones.deltas import Tower
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
        sample: writes a small backbone into a folder, for the contract tests.
        placements: where a learnt context may stand.
        deep_prompts: whether prompts can be put before later layers of the text tower.
        adapts: the towers whose linear maps low-rank adapters can change.
        exports: whether `Backbone.vision_tower` returns a copy of its image tower, for bundles and tickets.
    """

    kind: ClassVar[str] = "backbone family"
    columns: ClassVar[tuple[str, ...]] = ("prompts", "adapters", "exports")

    recognizes: Callable[[Path], bool]
    load: Callable[[Request], Backbone]
    _: KW_ONLY
    sample: Callable[[Path], None] | None = None
    placements: tuple[Placement, ...] = ()
    deep_prompts: bool = False
    adapts: tuple[Tower, ...] = ()
    exports: bool = False

    def facts(self) -> dict[str, str]:
        """What its towers can do."""
        prompts = f"{', '.join(self.placements)} (of the class name)" if self.placements else "none"
        deep = ", deep" if self.deep_prompts else ""
        adapters = " and ".join(self.adapts) + " tower" if self.adapts else "none"
        return {"prompts": prompts + deep, "adapters": adapters, "exports": "yes" if self.exports else "no"}


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
