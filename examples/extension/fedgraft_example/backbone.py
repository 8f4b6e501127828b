"""A family of its own: CLIP's text tower beside an image tower that looks at the mean colour alone.

It classifies nothing well; it shows what a family must give. `config.json` in its folder names the CLIP folder whose
text tower it takes, and `colours.safetensors` holds the projection (dim, 3).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.deltas import LinearMap, Tower
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.loading import load_backbone, located

TYPE = "example-colours"


class ColourBackbone(Backbone):
    """Everything but the image features is its source's."""

    def __init__(self, name: str, source: Backbone, weight: Tensor) -> None:
        self.name, self._source, self._weight = name, source, weight.to(source.device)
        self.text, self.dim, self.logit_scale = source.text, source.dim, source.logit_scale
        self.precision, self.device = source.precision, source.device
        digest = hashlib.sha256(source.fingerprint.encode() + weight.numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self.preprocessing = hashlib.sha256(b"mean colour").hexdigest()

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, 3, 1, 1): the mean colour, centred."""
        means = [np.asarray(image, np.float32).mean(axis=(0, 1)) / 255 - 0.5 for image in images]
        return torch.from_numpy(np.stack(means))[:, :, None, None]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """The colour, projected and normalized."""
        return F.normalize(pixels.to(self.device).flatten(1) @ self._weight.T, dim=-1)

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """Those of the text tower."""
        return self._source.linear_maps(tower) if tower == "text" else {}


def load(request: Request) -> ColourBackbone:
    """Read a folder of the family."""
    config: dict[str, Any] = json.loads((request.folder / "config.json").read_text())
    source = load_backbone(config["text"], request.precision, request.device)
    return ColourBackbone(request.name, source, load_file(request.folder / "colours.safetensors")["weight"])


def sizes(folder: Path) -> Sizes:
    """Those of the text tower's folder, and one pixel."""
    text = located(json.loads((folder / "config.json").read_text())["text"]).sizes()
    return replace(text, image_size=1, image_layers=None, image_width=None, patches=None)


def write_sample(folder: Path) -> None:
    """A random projection beside the embedded text tower."""
    weight = torch.randn(load_backbone("mini").dim, 3, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, folder / "colours.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": TYPE, "text": "mini"}))


FAMILY = Family(
    name=TYPE,
    summary="the mean colour of an image beside CLIP's text tower",
    recognizes=lambda folder: model_type(folder) == TYPE,
    load=load,
    sample=write_sample,
    abilities=Abilities(
        TextAbilities(causal=True, placements=("before", "behind"), deep_prompts=True, low_rank=True),
        ImageAbilities(exports=False),
        crops=False,
    ),
    sizes=sizes,
)
