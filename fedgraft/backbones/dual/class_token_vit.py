"""A vision transformer with a pooled class token (Dosovitskiy et al. 2021) in two parts: below a layer, and from it on.

Everything below the first adapted or prompted layer is frozen and computed once for each image. Of the last layer only
the class token's row is computed; nor is the output of prompts that the next layer replaces. The features equal those
of the plain forward pass. Visual prompts stand behind class token and patches and have no position, as before CLIP's
image tower (Khattak et al. 2023).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.abilities import ImageAbilities, require_layers
from fedgraft.backbones.deltas import Changed, Deltas, LinearMap, linear
from fedgraft.backbones.dual.image_towers import LayeredImageTower

PLAIN_VIT = ImageAbilities(cuts=True, prompts=True, deep_prompts=True, patches=True, low_rank=True)
_PREFIX = "vision_model."


class ClassTokenVit(LayeredImageTower):
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
    def _normed_prompts(self, prompts: Tensor) -> Tensor:
        """Prompts before the first layer, as the other tokens are normalized there."""

    @abstractmethod
    def _layer(self, layer: Any, states: Tensor, rows: int, changed: Changed) -> Tensor:
        """A layer's output for the first rows (B, rows, width) of its input (B, T, width)."""

    @abstractmethod
    def _pooled(self, states: Tensor) -> Tensor:
        """Embeddings (..., dim) of any norm from the last layer's states (..., width)."""

    def embed(self, pixels: Tensor) -> Tensor:
        """The pooled and projected class token."""
        return self._pooled(self._forward(self._embedded(pixels), 0, {}, None))

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, tokens, width) in float32."""
        hidden = self._embedded(pixels)
        for own in self._layers[:layer]:
            hidden = self._layer(own, hidden, hidden.shape[1], {})
        return hidden.float()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor) -> Tensor:
        """Class token and patches, each pooled and projected as the class token is."""
        hidden = self._embedded(pixels)
        for own in self._layers:
            hidden = self._layer(own, hidden, hidden.shape[1], {})
        return F.normalize(self._pooled(hidden).float(), dim=-1)

    def features(self, states: Tensor, layer: int, deltas: Deltas, prompts: Tensor | None = None) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer; see `Backbone.finish_images`."""
        depth, total = 0 if prompts is None else prompts.shape[1], len(self._layers)
        require_layers(total, layer, depth)
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(next(self._model.parameters()).dtype)
        return F.normalize(self._pooled(self._forward(hidden, layer, changed, prompts)).float(), dim=-1)

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

    def _forward(self, hidden: Tensor, first: int, changed: Changed, prompts: Tensor | None) -> Tensor:
        """The class token's state (B, width) behind the last layer."""
        tokens, depth = hidden.shape[1], 0 if prompts is None else prompts.shape[1]
        for index in range(first, len(self._layers)):
            if prompts is not None and index - first < depth:
                own = prompts[:, index - first].to(hidden.dtype).expand(hidden.shape[0], -1, -1)
                mine = self._normed_prompts(own) if index == 0 else own
                hidden = torch.cat([hidden[:, :tokens], mine], dim=1)
            replaced = index + 1 - first < depth
            rows = 1 if index == len(self._layers) - 1 else tokens if replaced else hidden.shape[1]
            hidden = self._layer(self._layers[index], hidden, rows, changed)
        return hidden[:, 0]

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
