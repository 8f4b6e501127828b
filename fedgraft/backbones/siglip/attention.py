"""Attention of a single query to many states without their keys and values, for what a tower pools.

A score q . (W x + b) is (q W) . x and a term that is the same for all states, which the softmax does not see; the mean
of the values W x + b is W times the mean of the states, and b. So keys and values, which cost two products with every
state, are never computed: what is left is two products with the query. The result is that of plain attention.
"""

import torch
from torch import Tensor, nn

from fedgraft.backbones.deltas import Changed, Delta


def attend_once(
    queries: Tensor, states: Tensor, keys: Tensor, values: Tensor, value_bias: Tensor, heads: int
) -> Tensor:
    """Attention of one query for each set of states.

    Args:
        queries: (N, C, width), projected.
        states: (N, C, T, width), before their projection.
        keys, values: the projections' weights, (N or 1, width, width).
        value_bias: (width,).

    Returns:
        (N, C, width), before the output projection.
    """
    width = queries.shape[-1]
    size = width // heads
    per_head = (queries * size**-0.5).view(*queries.shape[:-1], heads, size).transpose(1, 2)
    looked_for = per_head @ keys.view(-1, heads, size, width)
    weights = (looked_for.transpose(1, 2) @ states.mT).softmax(-1)
    mean = (weights @ states).transpose(1, 2)
    mixed = mean @ values.view(-1, heads, size, width).mT
    out: Tensor = mixed.transpose(1, 2).flatten(-2) + value_bias
    return out


def whole_weight(module: nn.Linear, changed: Changed) -> Tensor:
    """A map's weight with its change, (N or 1, out, in)."""
    delta = changed.get(module)
    if delta is None:
        return module.weight[None]
    assert isinstance(delta, Delta), "a branch belongs to a layer"
    dtype = module.weight.dtype
    weight = module.weight if delta.weight is None else delta.weight.to(dtype)
    whole = torch.baddbmm(weight.expand(len(delta.A), -1, -1), delta.B.to(dtype), delta.A.to(dtype))
    return whole if delta.scale is None else whole * delta.scale.to(dtype)[:, :, None]
