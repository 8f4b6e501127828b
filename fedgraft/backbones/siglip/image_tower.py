"""The image tower of a `SiglipModel` (Zhai et al. 2023) in two parts: below a layer, and from that layer on.

There is no class token: a learnt query attends to all patches after the last layer (attention pooling), and since it is
a single query, keys and values are not computed. The features equal those of the plain forward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones.deltas import Changed, Deltas, linear, mlp
from fedgraft.backbones.siglip.attention import attend_once


class SiglipImageTower:
    """The image half of a `SiglipModel`; reads the modules' own weights and holds no copy of them."""

    def __init__(self, model: Any) -> None:
        config = model.config.vision_config
        self._heads = int(config.num_attention_heads)
        self._tower: Any = model.vision_model
        self._modules = {f"vision_model.{name}": module for name, module in model.vision_model.named_modules()}
        self.depth = int(config.num_hidden_layers)
        self.states_shape = ((int(config.image_size) // int(config.patch_size)) ** 2, int(config.hidden_size))

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, patches, width) in float32, from pixel values (B, 3, height, width)."""
        hidden: Tensor = self._tower.embeddings(pixels)
        for index in range(layer):
            hidden = self._layer(self._tower.encoder.layers[index], hidden, {})
        return hidden.float()

    def features(self, states: Tensor, layer: int, deltas: Deltas) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer, differentiable in the deltas."""
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(self._tower.post_layernorm.weight.dtype)
        for index in range(layer, self.depth):
            hidden = self._layer(self._tower.encoder.layers[index], hidden, changed)
        return F.normalize(self.pooled(self._tower.post_layernorm(hidden)).float(), dim=-1)

    def pooled(self, states: Tensor) -> Tensor:
        """(B, patches, width) to (B, dim)."""
        head = self._tower.head
        to_query, to_keys, to_values = head.attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = head.attention.in_proj_bias.chunk(3)
        query = F.linear(head.probe, to_query, query_bias).expand(1, len(states), -1)
        mixed = attend_once(query, states[None], to_keys[None], to_values[None], value_bias, self._heads)[0]
        out: Tensor = head.attention.out_proj(mixed)
        return out + mlp(head.mlp, head.layernorm(out), {})

    def _layer(self, layer: Any, states: Tensor, changed: Changed) -> Tensor:
        attention = layer.self_attn
        normed = layer.layer_norm1(states)
        queries, keys, values = (
            self._split(linear(project, normed, changed))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(-3, -2).flatten(-2)
        out: Tensor = states + linear(attention.out_proj, mixed, changed)
        return out + mlp(layer.mlp, layer.layer_norm2(out), changed)

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, width / heads)."""
        return states.unflatten(-1, (self._heads, -1)).transpose(-3, -2)
