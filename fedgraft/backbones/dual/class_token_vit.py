"""A vision transformer with a pooled class token (Dosovitskiy et al. 2021) in two parts: below a layer, and from it on.

Everything below the first adapted or prompted layer is frozen and computed once for each image, and of the last layer
only the class token's row is computed. The features equal those of the plain forward pass.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.abilities import ImageAbilities
from fedgraft.backbones.deltas import Changed, Deltas, LinearMap, linear
from fedgraft.backbones.dual.image_towers import LayeredImageTower
from fedgraft.backbones.prompted_layers import PromptedLayers

PLAIN_VIT = ImageAbilities(cuts=True, prompts=True, deep_prompts=True, patches=True, low_rank=True)
_PREFIX = "vision_model."


class ClassTokenVit(PromptedLayers, LayeredImageTower):
    """What the libraries' transformers share; reads the modules' own weights and holds no copy of them.

    Args:
        model: the library's, whose layers normalize before attention and MLP.
        layers: name of its sequence of layers.
        projection: behind what is pooled; None for none.
    """

    def __init__(self, model: Any, layers: str, projection: nn.Module | None) -> None:
        self._model, self._projection = model, projection
        self._layers: Sequence[Any] = model.get_submodule(layers)
        self._layers_name = layers
        self._modules = {f"{_PREFIX}{name}": module for name, module in model.named_modules()}
        self._fused = True

    @abstractmethod
    def _embedded(self, pixels: Tensor) -> Tensor:
        """The input of the first layer, (B, tokens, width)."""

    @abstractmethod
    def _pooled(self, states: Tensor) -> Tensor:
        """Embeddings (..., dim) of any norm from the last layer's states (..., width)."""

    def embed(self, pixels: Tensor) -> Tensor:
        """The pooled and projected class token."""
        return self._pooled(self._above(self._embedded(pixels), 0, {}, None, 1)[:, 0])

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, tokens, width) in float32."""
        return self._below(self._embedded(pixels), layer).float()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor) -> Tensor:
        """Class token and patches, each pooled and projected as the class token is."""
        return F.normalize(self._pooled(self._below(self._embedded(pixels), len(self._layers))).float(), dim=-1)

    def features(self, states: Tensor, layer: int, deltas: Deltas, prompts: Tensor | None = None) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer; see `Backbone.finish_images`."""
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(next(self._model.parameters()).dtype)
        return F.normalize(self._pooled(self._above(hidden, layer, changed, prompts, 1)[:, 0]).float(), dim=-1)

    def linear_maps(self) -> dict[str, LinearMap]:
        """The maps of attention and MLP in every layer."""
        return {
            f"{_PREFIX}{self._layers_name}.{number}.{name}": LinearMap(number, module.weight)
            for number, layer in enumerate(self._layers)
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }

    def encoder(self, weights: Mapping[str, Tensor], prompts: Tensor | None) -> nn.Module:
        """A copy with attention written out."""
        tower = deepcopy(self)
        tower._fused = False
        for part in (tower._model, tower._projection):
            if part is not None:
                part.float().cpu()
        own = {name.removeprefix(_PREFIX): tensor.detach().float().cpu() for name, tensor in weights.items()}
        tower._model.load_state_dict({**tower._model.state_dict(), **own})
        return _Encoder(tower, prompts).eval().requires_grad_(False)

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of (B, heads, R, head width), as (B, R, width)."""
        if self._fused:
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        else:
            mixed = (queries * queries.shape[-1] ** -0.5 @ keys.mT).softmax(-1) @ values
        return mixed.transpose(1, 2).flatten(2)


class HuggingFaceVit(ClassTokenVit):
    """Hugging Face's `ViTModel`, whose class token goes through a pooler (dense, tanh)."""

    map_names = {"out_proj": "o_proj"}

    def __init__(self, model: Any, projection: nn.Module) -> None:
        super().__init__(model, "layers", projection)
        config = model.config
        self.states_shape = (1 + int(model.embeddings.patch_embeddings.num_patches), int(config.hidden_size))
        self._heads = int(config.num_attention_heads)

    def _embedded(self, pixels: Tensor) -> Tensor:
        embedded: Tensor = self._model.embeddings(pixels)
        return embedded

    def _normed_prompts(self, prompts: Tensor) -> Tensor:
        return prompts

    def _layer(self, layer: Any, states: Tensor, rows: int, changed: Changed) -> Tensor:
        attention, normed = layer.attention, layer.layernorm_before(states)
        queries = linear(attention.q_proj, normed[:, :rows], changed)
        keys, values = linear(attention.k_proj, normed, changed), linear(attention.v_proj, normed, changed)
        mixed = self._attended(*(self._split(part) for part in (queries, keys, values)))
        out: Tensor = states[:, :rows] + linear(attention.o_proj, mixed, changed)
        hidden = layer.mlp.activation_fn(linear(layer.mlp.fc1, layer.layernorm_after(out), changed))
        return out + linear(layer.mlp.fc2, hidden, changed)

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, head width)."""
        return states.view(*states.shape[:2], self._heads, -1).transpose(1, 2)

    def _pooled(self, states: Tensor) -> Tensor:
        pooler = self._model.pooler
        assert self._projection is not None
        pooled: Tensor = self._projection(pooler.activation(pooler.dense(self._model.layernorm(states))))
        return pooled


class _Encoder(nn.Module):
    def __init__(self, tower: ClassTokenVit, prompts: Tensor | None) -> None:
        super().__init__()
        self._tower = tower
        self.model, self.projection = tower._model, tower._projection
        self.prompts = None if prompts is None else nn.Parameter(prompts.detach().float().cpu()[None].clone())

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, dim) of unit norm."""
        return self._tower.features(self._tower._embedded(pixels), 0, {}, self.prompts)
