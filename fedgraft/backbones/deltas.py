"""Low-rank changes of frozen linear maps (Hu et al., LoRA, 2022), applied during the forward pass.

A backbone serves all sites and runs of its process, so no module is ever changed. Instead, the changes are arguments of
a pass through a tower, and several sites can share one pass, each with its own changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

Tower = Literal["text", "image"]


class LinearMap(NamedTuple):
    """A linear map of a tower that can be adapted: the number of its layer, from 0, and its weight (out, in)."""

    layer: int
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Delta:
    """x W^T + bias becomes (x W^T + (x A^T) B^T) scale + bias.

    Attributes:
        A: (N, rank, in), one for each of the N rows of a batch, or N = 1 for all.
        B: (N, out, rank), any scaling included.
        weight: (out, in), replaces the frozen W; None to keep it.
        scale: (N, out), of the map's rows (Liu et al., DoRA, 2024); None for 1.
    """

    A: Tensor
    B: Tensor
    weight: Tensor | None = None
    scale: Tensor | None = None


Deltas = Mapping[str, Delta]
"""Changes by the name of the map, as in `Backbone.linear_maps` and in the Hugging Face model."""
Changed = Mapping[nn.Module, Delta]
"""The same, by the map itself."""


def linear(module: nn.Linear, states: Tensor, changed: Changed) -> Tensor:
    """The map's output for states (N, ..., in), with its change if it has one."""
    delta = changed.get(module)
    if delta is None:
        unchanged: Tensor = module(states)
        return unchanged
    dtype = module.weight.dtype
    weight = module.weight if delta.weight is None else delta.weight.to(dtype)
    low_rank = (states @ delta.A.to(dtype).mT) @ delta.B.to(dtype).mT
    if delta.scale is None:
        return F.linear(states, weight, module.bias) + low_rank
    scaled = (F.linear(states, weight) + low_rank) * delta.scale.to(dtype)[:, None]
    return scaled if module.bias is None else scaled + module.bias


def mlp(module: nn.Module, states: Tensor, changed: Changed) -> Tensor:
    """A CLIP layer's two-layer perceptron."""
    hidden: Tensor = module.activation_fn(linear(module.fc1, states, changed))  # type: ignore[operator, arg-type]
    return linear(module.fc2, hidden, changed)  # type: ignore[arg-type]
