"""A small network behind the frozen image tower: what methods that adapt image features share.

Final features are cached, and the network alone runs in every step. An export carries it at the end of the image tower,
so that the device needs the same two parts as without it: an encoder and a class bank.
"""

import copy
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.prunable import PrunableTower
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter


class AdaptedEncoder(nn.Module):
    """An image tower and what follows it: pixels (B, 3, height, width) to embeddings (B, dim) of unit norm."""

    def __init__(self, tower: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pixels: Tensor) -> Tensor:
        """The adapted features at unit norm."""
        return F.normalize(self.head(self.tower(pixels)), dim=-1)


class FeatureAdapter(Adapter):
    """A method whose image features are those of `head`, which all sites share; classes are the written templates."""

    head: nn.Module
    """Maps features (B, dim) to features (B, dim) of any norm."""

    def build(self, generator: torch.Generator) -> None:
        """The network, drawn as torch draws its layers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.head = self.network(self.vocabulary.backbone.dim)

    @abstractmethod
    def network(self, dim: int) -> nn.Module:
        """The network for features of a size."""

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The hand-written templates, computed once."""
        return self.vocabulary.zero_shot[list(classes)]

    def image_features(self, images: Tensor) -> Tensor:
        """The adapted features at unit norm."""
        return F.normalize(self.head(images), dim=-1)

    def image_encoder(self) -> nn.Module:
        """The image tower with the network behind it."""
        head = copy.deepcopy(self.head).cpu().eval().requires_grad_(False)
        return AdaptedEncoder(self.vocabulary.backbone.image_encoder(), head).eval()

    def vision_tower(self) -> PrunableTower:
        """Raises UserError: a tower that can be pruned ends with its projection."""
        raise UserError("An image tower with an adapter behind it cannot be pruned; export it dense.")
