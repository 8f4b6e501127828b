"""SigLIP's image tower as a plain module for exports: no hooks, no dropout, attention written out.

The learnt query of the attention pooling is multiplied with the key projection once, when the module is made, so the
pooling scores all patches with one small product; see `attention`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.patch_tower import PatchTower
from fedgraft.backbones.vision_tower import TowerLayer, TowerMLP, TowerShape


class SiglipDenseTower(PatchTower):
    """Pixels (B, 3, side, side) to embeddings (B, dim) of unit norm, with visual prompts (depth, n, width) if any.

    Parameters of embeddings and layers carry the names of Hugging Face's `SiglipModel` without `vision_model.` and
    `encoder.`.
    """

    class_tokens = 0

    def __init__(self, shape: TowerShape, prompts: Tensor | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = _Embeddings(shape)
        self.layers = nn.ModuleList(
            TowerLayer(shape, heads, units) for heads, units in zip(shape.heads, shape.units, strict=True)
        )
        self.post_layernorm = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.head = _Pooling(shape)
        own = torch.empty(0, 1, shape.width) if prompts is None else prompts.detach().float().cpu().clone()
        self.prompts = nn.Parameter(own)
        self.projection: nn.Linear | None = None
        """Behind the pooling, where the embeddings are others than the backbone's."""

    @property
    def blocks(self) -> list[TowerLayer]:
        """The layers, under their type."""
        return cast(list[TowerLayer], list(self.layers))

    @property
    def prompted(self) -> bool:
        """Whether there are visual prompts."""
        return len(self.prompts) > 0

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches with their positions."""
        states: Tensor = self.embeddings(pixels)
        return states

    def pool(self, states: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The pooled and normalized states of the patches."""
        pooled = self.head(self.post_layernorm(states), sizes)
        return F.normalize((pooled if self.projection is None else self.projection(pooled)).float(), dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        """The pooled and normalized states of the patches, whatever becomes of the prompts."""
        states = self.embed(pixels)
        patches = states.shape[1]
        for index, layer in enumerate(self.layers):
            if index < len(self.prompts):
                own = self.prompts[index].expand(pixels.shape[0], -1, -1)
                states = torch.cat([states[:, :patches], own], dim=1)
            states = layer(states)
        return self.pool(states[:, :patches])


class _Embeddings(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, shape.width, shape.patch_size, shape.patch_size)
        self.position_embedding = nn.Embedding((shape.image_size // shape.patch_size) ** 2, shape.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side) to (B, patches, width)."""
        patches: Tensor = self.patch_embedding(pixels).flatten(2).mT
        return patches + self.position_embedding.weight


class _Pooling(nn.Module):
    """Attention of one query to all patches, in products with matrices, which can be quantized.

    Attributes:
        looked_for: width to heads, each head's query times its key projection and the scale of the attention.
        v_proj: all heads' value projections, of which each head's mean of the states takes its own.
    """

    own: Tensor

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.heads = shape.width // shape.head_width
        self.looked_for = nn.Linear(shape.width, self.heads, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width)
        self.out_proj = nn.Linear(shape.width, shape.width)
        self.layernorm = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.mlp = TowerMLP(shape, shape.units[-1])
        self.register_buffer("own", torch.eye(self.heads)[:, :, None], persistent=False)

    def forward(self, states: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(B, patches, width) to (B, width)."""
        scores = self.looked_for(states).mT
        if sizes is not None:
            scores = scores + sizes.log().mT
        mean = scores.softmax(-1) @ states
        values = self.v_proj(mean).view(mean.shape[0], self.heads, self.heads, -1)
        mixed: Tensor = self.out_proj((values * self.own).sum(1).flatten(1))
        out: Tensor = mixed + self.mlp(self.layernorm(mixed))
        return out


def dense_tower(model: Any, weights: Mapping[str, Tensor] | None, prompts: Tensor | None) -> SiglipDenseTower:
    """A copy, in float32 on the CPU, of the image tower of a `SiglipModel`.

    Args:
        weights: in place of some of the model's own, by their names in the model.
        prompts: visual prompts (depth, n, width).
    """
    config = model.config.vision_config
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    shape = TowerShape(
        width=int(config.hidden_size),
        head_width=int(config.hidden_size) // heads,
        image_size=int(config.image_size),
        patch_size=int(config.patch_size),
        dim=int(config.hidden_size),
        activation=str(config.hidden_act),
        norm_epsilon=float(config.layer_norm_eps),
        heads=(heads,) * layers,
        units=(int(config.intermediate_size),) * layers,
    )
    own = {f"vision_model.{name}": tensor for name, tensor in model.vision_model.state_dict().items()}
    tensors = {
        name.removeprefix("vision_model.").removeprefix("encoder."): tensor.detach().float().cpu()
        for name, tensor in {**own, **(weights or {})}.items()
    }
    to_query, to_keys, to_values = tensors.pop("head.attention.in_proj_weight").chunk(3)
    query_bias, _, value_bias = tensors.pop("head.attention.in_proj_bias").chunk(3)
    query = F.linear(tensors.pop("head.probe")[0, 0], to_query, query_bias) * shape.head_width**-0.5
    looked_for = torch.einsum("hd,hdw->hw", query.view(heads, -1), to_keys.view(heads, -1, shape.width))
    tensors["head.looked_for.weight"] = looked_for
    tensors["head.v_proj.weight"], tensors["head.v_proj.bias"] = to_values, value_bias
    for name in ("weight", "bias"):
        tensors[f"head.out_proj.{name}"] = tensors.pop(f"head.attention.out_proj.{name}")
    tower = SiglipDenseTower(shape, prompts)
    tower.load_state_dict({**tensors, "prompts": tower.prompts})
    return tower.eval().requires_grad_(False)


def reprojected(tower: SiglipDenseTower, projection: Tensor, layers: int | None = None) -> SiglipDenseTower:
    """A tower, changed in place, with a map (any dim, width) behind the pooling, of all layers or the first ones."""
    own = tower.shape
    tower.shape = replace(own, dim=len(projection), heads=own.heads[:layers], units=own.units[:layers])
    tower.layers = tower.layers[:layers]
    tower.projection = nn.Linear(own.width, len(projection), bias=False)
    tower.projection.weight = nn.Parameter(projection.detach().float().cpu().clone())
    return tower.eval().requires_grad_(False)
