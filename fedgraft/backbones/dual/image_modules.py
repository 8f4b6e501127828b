"""Hugging Face's image models as frozen modules from pixels to embeddings."""

from copy import deepcopy
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn


class PooledImageModel(nn.Module):
    """Pixels (B, 3, height, width) to embeddings (B, dim) of any norm: what a model pools, and a projection if any.

    Args:
        model: of Hugging Face, whose output has `pooler_output`.
        projection: from what is pooled to the joint space; None if it is that already.
    """

    def __init__(self, model: Any, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, pixels: Tensor) -> Tensor:
        """The embeddings."""
        pooled: Tensor = self.model(pixel_values=pixels).pooler_output
        return pooled if self.projection is None else self.projection(pooled)

    def for_export(self) -> Self:
        """A copy in float32 on the CPU with attention written out."""
        copy = deepcopy(self).float().cpu().eval().requires_grad_(False)
        copy.model.set_attn_implementation("eager")
        return copy


class UnitNorm(nn.Module):
    """A tower whose embeddings are divided by their norm."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, dim) in float32."""
        return F.normalize(self.tower(pixels).float(), dim=-1)
