"""Low-rank changes of frozen linear maps (Hu et al., LoRA, 2022), applied during the forward pass.

A backbone serves all sites and runs of its process, so no module is ever changed. Instead, the changes are arguments of
a pass through a tower, and several sites can share one pass, each with its own changes.
"""

from collections.abc import Callable, Mapping
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


Branch = Callable[[Tensor], Tensor]
"""What is added to the output of a layer, from its input after the layer's first norm, (N, ..., width)."""
Deltas = Mapping[str, Delta | Branch]
"""Changes by the name of the map, as in `Backbone.linear_maps` and in the Hugging Face model, or of a layer."""
Changed = Mapping[nn.Module, Delta | Branch]
"""The same, by the map or layer itself."""


def linear(module: nn.Linear, states: Tensor, changed: Changed) -> Tensor:
    """The map's output for states (N, ..., in), with its change if it has one."""
    delta = changed.get(module)
    if delta is None:
        unchanged: Tensor = module(states)
        return unchanged
    assert isinstance(delta, Delta), "a branch belongs to a layer"
    dtype = module.weight.dtype
    weight = module.weight if delta.weight is None else delta.weight.to(dtype)
    low_rank = (states @ delta.A.to(dtype).mT) @ delta.B.to(dtype).mT
    if delta.scale is None:
        return F.linear(states, weight, module.bias) + low_rank
    scaled = (F.linear(states, weight) + low_rank) * delta.scale.to(dtype)[:, None]
    return scaled if module.bias is None else scaled + module.bias


def branched(layer: nn.Module, out: Tensor, normed: Tensor, changed: Changed) -> Tensor:
    """A layer's output for some rows, with its branch of the same rows of its normed input added if it has one."""
    branch = changed.get(layer)
    if branch is None:
        return out
    assert not isinstance(branch, Delta), "a delta belongs to a linear map"
    return out + branch(normed)


def layer_names(maps: Mapping[str, LinearMap]) -> list[str]:
    """The names of a tower's layers in their order, from those of its linear maps."""
    names = {found.layer: name.partition(f".{found.layer}.")[0] for name, found in maps.items()}
    return [f"{names[layer]}.{layer}" for layer in sorted(names)]


def mlp(module: nn.Module, states: Tensor, changed: Changed) -> Tensor:
    """A CLIP layer's two-layer perceptron."""
    hidden: Tensor = module.activation_fn(linear(module.fc1, states, changed))  # type: ignore[operator, arg-type]
    return linear(module.fc2, hidden, changed)  # type: ignore[arg-type]
