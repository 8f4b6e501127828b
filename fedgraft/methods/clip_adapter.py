"""CLIP-Adapter (Gao et al., IJCV 2024), averaged: a bottleneck behind the image tower, mixed with what it adapts.

    x' = ratio ReLU(W_2 ReLU(W_1 x)) + (1 - ratio) x,    CE(x' / |x'|, hand-written templates)

Only the visual adapter is here, as in the authors' code; the paper has one for text features beside it. The authors
feed features of any norm, ours have unit norm. The network has no bias and scales with its input, so x' / |x'| is the
same.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.config.options import Options
from fedgraft.methods.feature_adapter import FeatureAdapter
from fedgraft.methods.method import Method


class ClipAdapterOptions(Options):
    """Size and weight of the bottleneck."""

    ratio: float = Field(0.2, ge=0, le=1, description="weight of the adapted features", examples=[0.6])
    reduction: int = Field(4, ge=1, description="how many times narrower the bottleneck is", examples=[2])


class Bottleneck(nn.Module):
    """The adapted features (B, dim) mixed with the given ones."""

    def __init__(self, dim: int, options: ClipAdapterOptions) -> None:
        super().__init__()
        width = max(1, dim // options.reduction)
        self.down, self.up = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)
        self._ratio = options.ratio

    def forward(self, features: Tensor) -> Tensor:
        """Of any norm."""
        adapted = F.relu(self.up(F.relu(self.down(features))))
        return self._ratio * adapted + (1 - self._ratio) * features


class ClipAdapter(FeatureAdapter):
    """The bottleneck, shared."""

    options: ClipAdapterOptions

    def network(self, dim: int) -> nn.Module:
        """The bottleneck."""
        return Bottleneck(dim, self.options)


METHOD = Method(
    "clip-adapter",
    "a bottleneck behind the image tower, mixed with its features",
    ClipAdapter,
    options=ClipAdapterOptions,
    paper="Gao et al., IJCV 2024",
    shared="the bottleneck",
    towers=(),
)
