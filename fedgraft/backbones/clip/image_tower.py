"""The image tower of a `CLIPModel` (Radford et al. 2021) in two parts: below a layer, and from that layer on.

Everything below the first adapted layer is frozen and computed once for each image. Of the last layer only the class
token's output is used, so only that row is computed. The features equal those of the plain forward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from fedgraft.backbones.deltas import Changed, Deltas, linear, mlp


class ClipImageTower:
    """The image half of a `CLIPModel`; reads the modules' own weights and holds no copy of them."""

    def __init__(self, model: CLIPModel) -> None:
        config = model.config.vision_config
        self._heads = int(config.num_attention_heads)
        self._tower = model.vision_model
        self._projection = model.visual_projection
        self._modules = {f"vision_model.{name}": module for name, module in model.vision_model.named_modules()}
        self.depth = int(config.num_hidden_layers)
        self.states_shape = ((int(config.image_size) // int(config.patch_size)) ** 2 + 1, int(config.hidden_size))

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, tokens, width) in float32, from pixel values (B, 3, height, width)."""
        hidden: Tensor = self._tower.pre_layrnorm(self._tower.embeddings(pixels))
        for index in range(layer):
            hidden = self._layer(self._tower.encoder.layers[index], hidden, hidden, {})
        return hidden.float()

    def features(self, states: Tensor, layer: int, deltas: Deltas) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer, differentiable in the deltas."""
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(self._projection.weight.dtype)
        for index in range(layer, self.depth):
            rows = hidden if index < self.depth - 1 else hidden[:, :1]
            hidden = self._layer(self._tower.encoder.layers[index], rows, hidden, changed)
        return F.normalize(self._projection(self._tower.post_layernorm(hidden[:, 0])).float(), dim=-1)

    def _layer(self, layer: Any, rows: Tensor, states: Tensor, changed: Changed) -> Tensor:
        """A layer's output for some rows (B, R, width) of its input (B, T, width)."""
        attention = layer.self_attn
        normed = layer.layer_norm1(states)
        queries = linear(attention.q_proj, normed[:, : rows.shape[1]], changed)
        keys, values = linear(attention.k_proj, normed, changed), linear(attention.v_proj, normed, changed)
        mixed = F.scaled_dot_product_attention(self._split(queries), self._split(keys), self._split(values))
        out: Tensor = rows + linear(attention.out_proj, mixed.transpose(-3, -2).flatten(-2), changed)
        return out + mlp(layer.mlp, layer.layer_norm2(out), changed)

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, width / heads)."""
        return states.view(*states.shape[:-1], self._heads, -1).transpose(-3, -2)
