"""The image tower of a `CLIPModel` (Radford et al. 2021) in two parts: below a layer, and from that layer on.

Everything below the first adapted or prompted layer is frozen and computed once for each image. Of the last layer only
the class token's output is used, so only that row is computed. The features equal those of the plain forward pass.
Visual prompts before the first layer pass the tower's first layer norm with the other tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from fedgraft.backbones.deltas import Changed, Deltas, branched, linear, mlp
from fedgraft.backbones.prompted_layers import PromptedLayers


class ClipImageTower(PromptedLayers):
    """The image half of a `CLIPModel`; reads the modules' own weights and holds no copy of them."""

    def __init__(self, model: CLIPModel) -> None:
        config = model.config.vision_config
        self._heads = int(config.num_attention_heads)
        self._tower = model.vision_model
        self._layers = model.vision_model.encoder.layers
        self._projection = model.visual_projection
        self._modules = {f"vision_model.{name}": module for name, module in model.vision_model.named_modules()}
        self.depth = int(config.num_hidden_layers)
        self.states_shape = ((int(config.image_size) // int(config.patch_size)) ** 2 + 1, int(config.hidden_size))

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, tokens, width) in float32, from pixel values (B, 3, height, width)."""
        return self._below(self._tower.pre_layrnorm(self._tower.embeddings(pixels)), layer).float()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor) -> Tensor:
        """Unit-norm features of the class token and every patch, (B, tokens, dim) in float32."""
        hidden = self._tower(pixel_values=pixels).last_hidden_state
        return F.normalize(self._projection(self._tower.post_layernorm(hidden)).float(), dim=-1)

    @torch.no_grad()
    def exits(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """The class token after some numbers of layers and after all, behind the last norm, (B, exits + 1, width)."""
        hidden, found = self._tower.pre_layrnorm(self._tower.embeddings(pixels)), {}
        for count, layer in enumerate(self._layers, 1):
            hidden = self._layer(layer, hidden, hidden.shape[1], {})
            found[count] = self._tower.post_layernorm(hidden[:, 0]).float()
        return torch.stack([found[count] for count in (*layers, self.depth)], dim=1)

    def projection(self) -> Tensor:
        """The weights of the visual projection, (dim, width), a copy in float32 on the CPU."""
        weight: Tensor = self._projection.weight
        return weight.detach().float().cpu().clone()

    def projected(self, tokens: Tensor) -> Tensor:
        """Unit-norm features (B, dim) of class tokens (B, width) behind the last norm."""
        return F.normalize(self._projection(tokens.to(self._projection.weight.dtype)).float(), dim=-1)

    def features(self, states: Tensor, layer: int, deltas: Deltas, prompts: Tensor | None = None) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer, differentiable in deltas and prompts.

        Args:
            prompts: (B or 1, depth, n, width), as in `Backbone.finish_images`.

        Raises:
            UserError: there are prompts for more layers than follow.
        """
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(self._projection.weight.dtype)
        return self.projected(self._tower.post_layernorm(self._above(hidden, layer, changed, prompts, 1)[:, 0]))

    def advance(self, states: Tensor, layer: int, end: int, prompts: Tensor) -> Tensor:
        """The input of layer `end` from that of `layer`, with prompts (B or 1, end - layer, n, width) between."""
        return self._between(states.to(self._projection.weight.dtype), layer, end, prompts).float()

    def _normed_prompts(self, prompts: Tensor) -> Tensor:
        normed: Tensor = self._tower.pre_layrnorm(prompts)
        return normed

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
