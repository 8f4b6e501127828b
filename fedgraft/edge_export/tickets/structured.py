"""Structured removal of heads and MLP units, which changes nothing outside their layer.

A head is its rows of q, k and v and its columns of the output projection; an MLP unit is its row of fc1 and its
column of fc2. The residual stream keeps its width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedgraft.backbones.vision_tower import TowerLayer, VisionTower


@torch.no_grad()
def remove(tower: VisionTower, heads: Sequence[Tensor], units: Sequence[Tensor]) -> VisionTower:
    """A smaller tower.

    Args:
        heads: for each layer the positions of the heads to keep, ascending, at least one.
        units: for each layer the positions of the MLP units to keep, ascending, at least one.
    """
    shape = replace(tower.shape, heads=tuple(map(len, heads)), units=tuple(map(len, units)))
    small = VisionTower(shape)
    weights = {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith("layers.")}
    for number, (layer, stay, hidden) in enumerate(zip(tower.blocks, heads, units, strict=True)):
        for name, tensor in _smaller(layer, head_channels(stay, shape.head_width), hidden).items():
            weights[f"layers.{number}.{name}"] = tensor
    small.load_state_dict(weights)
    return small.eval().requires_grad_(False)


def head_channels(heads: Tensor, head_width: int) -> Tensor:
    """The channels of some heads: head h owns h x head_width to (h + 1) x head_width - 1."""
    return (heads[:, None] * head_width + torch.arange(head_width, device=heads.device)).flatten()


def _smaller(layer: TowerLayer, channels: Tensor, units: Tensor) -> dict[str, Tensor]:
    attention, mlp = layer.self_attn, layer.mlp
    rows: dict[str, tuple[nn.Linear, Tensor]] = {
        "self_attn.q_proj": (attention.q_proj, channels),
        "self_attn.k_proj": (attention.k_proj, channels),
        "self_attn.v_proj": (attention.v_proj, channels),
        "mlp.fc1": (mlp.fc1, units),
    }
    columns: dict[str, tuple[nn.Linear, Tensor]] = {
        "self_attn.out_proj": (attention.out_proj, channels),
        "mlp.fc2": (mlp.fc2, units),
    }
    weights = {name: tensor for name, tensor in layer.state_dict().items() if "layer_norm" in name}
    for name, (linear, stay) in rows.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = linear.weight[stay], linear.bias[stay]
    for name, (linear, stay) in columns.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = linear.weight[:, stay], linear.bias
    return weights
