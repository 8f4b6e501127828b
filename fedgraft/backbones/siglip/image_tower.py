"""The image tower of a `SiglipModel` (Zhai et al. 2023) in two parts: below a layer, and from that layer on.

There is no class token: a learnt query attends to all patches after the last layer (attention pooling), and since it is
a single query, keys and values are not computed. The features equal those of the plain forward pass.

Visual prompts stand behind the patches and have no position. The pooling reads the patches only, as it does without
prompts, so that of the last layer only the patches are computed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones.deltas import Changed, Deltas, branched, linear, mlp
from fedgraft.backbones.prompted_layers import PromptedLayers
from fedgraft.backbones.siglip.attention import attend_once


class SiglipImageTower(PromptedLayers):
    """The image half of a `SiglipModel`; reads the modules' own weights and holds no copy of them."""

    def __init__(self, model: Any) -> None:
        config = model.config.vision_config
        self._heads = int(config.num_attention_heads)
        self._tower: Any = model.vision_model
        self._layers = list(model.vision_model.encoder.layers)
        self._modules = {f"vision_model.{name}": module for name, module in model.vision_model.named_modules()}
        self.depth = int(config.num_hidden_layers)
        self.states_shape = ((int(config.image_size) // int(config.patch_size)) ** 2, int(config.hidden_size))

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, patches, width) in float32, from pixel values (B, 3, height, width)."""
        return self._below(self._tower.embeddings(pixels), layer).float()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor) -> Tensor:
        """Unit-norm features of the image and of every patch, (B, 1 + patches, dim) in float32.

        A patch's feature is what the pooling makes of that patch alone.
        """
        normed = self._tower.post_layernorm(self.states(pixels, self.depth).to(pixels.dtype))
        _, _, to_values = self._tower.head.attention.in_proj_weight.chunk(3)
        _, _, value_bias = self._tower.head.attention.in_proj_bias.chunk(3)
        patches = self._projected(F.linear(normed, to_values, value_bias))
        return F.normalize(torch.cat([self._pooled(normed)[:, None], patches], dim=1).float(), dim=-1)

    def features(self, states: Tensor, layer: int, deltas: Deltas, prompts: Tensor | None = None) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer, differentiable in deltas and prompts.

        Args:
            prompts: (B or 1, depth, n, width), as in `Backbone.finish_images`.

        Raises:
            UserError: there are prompts for more layers than follow.
        """
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(self._tower.post_layernorm.weight.dtype)
        hidden = self._above(hidden, layer, changed, prompts, hidden.shape[1])
        return F.normalize(self._pooled(self._tower.post_layernorm(hidden)).float(), dim=-1)

    def advance(self, states: Tensor, layer: int, end: int, prompts: Tensor) -> Tensor:
        """The input of layer `end` from that of `layer`, with prompts (B or 1, end - layer, n, width) between."""
        hidden = states.to(self._tower.post_layernorm.weight.dtype)
        return self._between(hidden, layer, end, prompts).float()

    @torch.no_grad()
    def exits(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """What is pooled after some numbers of layers and after all, (B, exits + 1, dim) in float32."""
        hidden, found, wanted = self._tower.embeddings(pixels), {}, {*layers, self.depth}
        for count, layer in enumerate(self._layers, 1):
            hidden = self._layer(layer, hidden, hidden.shape[1], {})
            if count in wanted:
                found[count] = self._pooled(self._tower.post_layernorm(hidden)).float()
        return torch.stack([found[count] for count in (*layers, self.depth)], dim=1)

    def _pooled(self, states: Tensor) -> Tensor:
        """Attention of the learnt query to the patches, (B, patches, width) to (B, dim)."""
        head = self._tower.head
        to_query, to_keys, to_values = head.attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = head.attention.in_proj_bias.chunk(3)
        query = F.linear(head.probe, to_query, query_bias).expand(1, len(states), -1)
        mixed = attend_once(query, states[None], to_keys[None], to_values[None], value_bias, self._heads)
        return self._projected(mixed[0])

    def _projected(self, mixed: Tensor) -> Tensor:
        """What follows the attention in the pooling, (..., width) to (..., dim)."""
        head = self._tower.head
        out: Tensor = head.attention.out_proj(mixed)
        return out + mlp(head.mlp, head.layernorm(out), {})

    def _normed_prompts(self, prompts: Tensor) -> Tensor:
        return prompts  # nothing is normalized before the first layer

    def _layer(self, layer: Any, states: Tensor, rows: int, changed: Changed) -> Tensor:
        attention = layer.self_attn
        normed = layer.layer_norm1(states)
        queries = linear(attention.q_proj, normed[:, :rows], changed)
        keys, values = linear(attention.k_proj, normed, changed), linear(attention.v_proj, normed, changed)
        mixed = F.scaled_dot_product_attention(self._split(queries), self._split(keys), self._split(values))
        out: Tensor = states[:, :rows] + linear(attention.out_proj, mixed.transpose(-3, -2).flatten(-2), changed)
        out = out + mlp(layer.mlp, layer.layer_norm2(out), changed)
        return branched(layer, out, normed[:, :rows], changed)

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, width / heads)."""
        return states.view(*states.shape[:-1], self._heads, -1).transpose(-3, -2)
