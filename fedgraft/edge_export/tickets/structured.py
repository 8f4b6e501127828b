"""Structured removal of heads, MLP units or hidden channels, which changes nothing outside their layer.

A group leaves with its rows of what computes it and its columns of what reads it, as the tower's parts list them. The
residual stream keeps its width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedgraft.backbones.prunable import PrunableTower


@torch.no_grad()
def remove(tower: PrunableTower, kept: Mapping[str, Tensor]) -> PrunableTower:
    """A smaller tower.

    Args:
        kept: for each part, by its name, the positions of the groups to keep, ascending, at least one.
    """
    small = tower.resized({name: len(stays) for name, stays in kept.items()})
    weights = tower.state_dict()
    for part in tower.parts():
        stays = positions(kept[part.name], part.width)
        for dimension, names in ((0, (*part.rows, *part.vectors)), (1, part.columns)):
            weights |= {name: weights[name].index_select(dimension, stays) for name in names}
    small.load_state_dict(weights)
    return small.eval().requires_grad_(False)


def positions(groups: Tensor, width: int) -> Tensor:
    """The positions of some groups: group g owns g x width to (g + 1) x width - 1."""
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()
