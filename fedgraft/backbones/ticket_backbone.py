"""A ticket's folder, and the backbone made from it: the ticket's image tower with its source's text tower.

The folder holds `ticket.safetensors`, the weights, and `ticket.json`: a description of the ticket, the name and
fingerprint of its source, and the size of every layer, without which towers of uneven layers cannot be rebuilt.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.deltas import LinearMap, Tower
from fedgraft.backbones.family import Family, Request
from fedgraft.backbones.loading import MINI, KnownFolder, load_backbone, located
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes, write_text

FORMAT = 2
"""The first had towers of CLIP alone, and so named no family."""
_FIRST_FAMILY = "clip"
_DESCRIPTION, _WEIGHTS = "ticket.json", "ticket.safetensors"


@dataclass(frozen=True)
class TicketFile:
    """The content of a ticket's folder.

    Attributes:
        source: the dense backbone as the user named it.
        spec: how the ticket was made, plain JSON with at least `source_fingerprint`.
        tower: the image tower.
    """

    source: str
    spec: dict[str, Any]
    tower: PrunableTower

    @property
    def fingerprint(self) -> str:
        """SHA-256 over spec, layer sizes and weights, in hexadecimal."""
        return hashlib.sha256((json.dumps(self.spec, sort_keys=True) + self.tower.digest()).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the weights, then the description; a folder without the latter is not a ticket."""
        weights = {name: tensor.float().cpu().contiguous() for name, tensor in self.tower.state_dict().items()}
        description = {
            "format": FORMAT,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "spec": self.spec,
            "family": self.tower.family,
            "tower": asdict(self.tower.shape),
        }
        write_bytes(folder / _WEIGHTS, save(weights))
        write_text(folder / _DESCRIPTION, json.dumps(description, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a ticket's folder; raises UserError if it is not a ticket, of a newer format, damaged or changed."""
        if not is_ticket(folder):
            raise UserError(
                f"The folder {folder} is not a ticket (no {_DESCRIPTION}); `fedgraft ticket draw` makes one."
            )
        try:
            description = json.loads((folder / _DESCRIPTION).read_text())
            if description["format"] > FORMAT:
                raise UserError(
                    f"The ticket {folder} has format {description['format']}; this fedgraft reads up to {FORMAT}."
                )
            tower = _empty_tower(str(description.get("family", _FIRST_FAMILY)), description["tower"])
            tower.load_state_dict(load((folder / _WEIGHTS).read_bytes()))
            file = cls(str(description["source"]), dict(description["spec"]), tower.eval().requires_grad_(False))
            expected = description["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"The ticket {folder} cannot be read: {reason}") from error
        if file.fingerprint != expected:
            raise UserError(f"The ticket {folder} was changed after it was written: its fingerprint does not match.")
        return file


class PrunedBackbone(Backbone):
    """A backbone whose image tower is a ticket's; everything else is its source's."""

    def __init__(self, name: str, source: Backbone, ticket: TicketFile) -> None:
        """Combine the two; raises UserError if the ticket was drawn from another backbone."""
        check_source_fingerprint(name, ticket, source)
        self.name, self.fingerprint = name, ticket.fingerprint
        self.preprocessing, self.precision, self.device = source.preprocessing, source.precision, source.device
        self.dim, self.logit_scale, self.text = source.dim, source.logit_scale, source.text
        self._source = source
        self._tower = deepcopy(ticket.tower).to(self.device, getattr(torch, self.precision))

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """The source's preprocessing."""
        return self._source.preprocess(images)

    def preprocessor_config(self) -> dict[str, Any]:
        """The source's configuration."""
        return self._source.preprocessor_config()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Features of the ticket's tower."""
        features: Tensor = self._tower(pixels.to(self.device))
        return features

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """The source's text maps; a ticket's own matrices take no deltas, which would fill in its zeros."""
        return self._source.linear_maps(tower) if tower == "text" else {}

    def map_names(self, tower: Tower) -> Mapping[str, str]:
        """The source's names."""
        return self._source.map_names(tower)

    def image_encoder(self, weights: Mapping[str, Tensor] | None = None, prompts: Tensor | None = None) -> nn.Module:
        """A copy of the ticket's tower."""
        if prompts is not None:
            raise UserError(f"The backbone {self.name!r} takes no visual prompts.")
        return self.vision_tower(weights)

    def vision_tower(self, weights: Mapping[str, Tensor] | None = None) -> PrunableTower:
        """A copy of the ticket's tower in float32 on the CPU; nothing can be merged into it."""
        return deepcopy(self._tower).float().cpu()


def _empty_tower(family: str, shape: dict[str, Any]) -> PrunableTower:
    """Raises UserError or ValueError if this fedgraft has no such towers."""
    if (build := BACKBONES.load(family).prunable) is None:
        raise ValueError(f"the backbone family {family!r} has no towers that are pruned")
    return build(shape)


def is_ticket(folder: Path) -> bool:
    """Whether a folder holds a ticket."""
    return (folder / _DESCRIPTION).is_file()


def check_source_fingerprint(name: str, ticket: TicketFile, source: Backbone) -> None:
    """Raise UserError if a ticket was drawn from another backbone."""
    expected = str(ticket.spec.get("source_fingerprint"))
    if expected != source.fingerprint:
        raise UserError(
            f"The ticket {name} was drawn from a backbone with the fingerprint {expected[:16]}..., but {source.name!r} "
            f"has {source.fingerprint[:16]}...; give the backbone that it was drawn from ({ticket.source!r})."
        )


def load_ticket(request: Request) -> PrunedBackbone:
    """The ticket in a folder with its source's text tower; raises UserError if they cannot be read or do not match."""
    ticket = TicketFile.read(request.folder)
    source = load_backbone(ticket.source, request.precision, request.device)
    return PrunedBackbone(request.name, source, ticket)


def ticket_source(folder: Path) -> KnownFolder:
    """The backbone that a ticket was drawn from, by its name; raises UserError if there is none."""
    try:
        return located(str(json.loads((folder / _DESCRIPTION).read_text())["source"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The ticket {folder} cannot be read: {error}") from error


def ticket_sizes(folder: Path) -> Sizes:
    """The sizes of its source, which pruning keeps: what leaves is inside the layers."""
    return ticket_source(folder).sizes()


def ticket_abilities(folder: Path) -> Abilities:
    """The text tower of its source, with what a ticket's own image tower can do."""
    source = ticket_source(folder).abilities()
    return replace(source, image=replace(FAMILY.abilities.image, merges=source.image.merges))


def write_sample(folder: Path) -> None:
    """The whole image tower of `mini` as a ticket."""
    source = load_backbone(MINI)
    TicketFile(MINI, {"source_fingerprint": source.fingerprint}, source.vision_tower()).write(folder)


FAMILY = Family(
    "ticket",
    "a folder of `fedgraft ticket draw`: a smaller image tower with its source's text tower",
    is_ticket,
    load_ticket,
    abilities=Abilities(
        TextAbilities(
            causal=True, placements=("before", "middle", "behind"), deep_prompts=True, low_rank=True, branches=True
        ),
        ImageAbilities(prunes=True, merges=True),
    ),
    sizes=ticket_sizes,
    narrowed=ticket_abilities,
    sample=write_sample,
)
