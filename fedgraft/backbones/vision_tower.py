"""The image tower of a CLIP backbone (Radford et al. 2021) as a plain module whose layers may differ in size.

It computes the same as Hugging Face's tower, with a number of heads and of MLP units for each layer, so that pruned
and dense towers are of one class. It has no hooks and no dropout, and attention is written out: this exports best.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

_PARTS = ("vision_model", "visual_projection")


@dataclass(frozen=True)
class TowerShape:
    """The sizes of all layers, and what the weights alone do not say.

    Attributes:
        width: of the residual stream.
        head_width: channels of one head, the same in all towers, since heads are removed as a whole.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        dim: of the joint embedding space.
        activation: of the MLP, by its name in Hugging Face's configurations.
        norm_epsilon: of the layer norms.
        heads: kept in each layer.
        units: hidden units of the MLP kept in each layer.
    """

    width: int
    head_width: int
    image_size: int
    patch_size: int
    dim: int
    activation: str
    norm_epsilon: float
    heads: tuple[int, ...]
    units: tuple[int, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """From the JSON of `dataclasses.asdict`; raises TypeError or ValueError for wrong keys or sizes."""
        shape = cls(**{**values, "heads": tuple(values["heads"]), "units": tuple(values["units"])})
        if len(shape.heads) != len(shape.units) or min(*shape.heads, *shape.units) < 1:
            raise ValueError("every layer needs at least one head and one MLP unit")
        return shape


class VisionTower(nn.Module):
    """Pixels (B, 3, side, side) to embeddings (B, dim) of unit norm.

    Parameters carry the names of Hugging Face's `CLIPModel` without `vision_model.` and `encoder.`.
    """

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = _Embeddings(shape)
        self.pre_layrnorm = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.layers = nn.ModuleList(
            TowerLayer(shape, heads, units) for heads, units in zip(shape.heads, shape.units, strict=True)
        )
        self.post_layernorm = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.visual_projection = nn.Linear(shape.width, shape.dim, bias=False)

    @property
    def blocks(self) -> list["TowerLayer"]:
        """The layers, under their type."""
        return cast(list[TowerLayer], list(self.layers))

    def digest(self) -> str:
        """SHA-256 over the layers' sizes and the weights, in hexadecimal."""
        digest = hashlib.sha256(json.dumps(asdict(self.shape), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            plain = tensor.float().cpu().contiguous()
            digest.update(f"{name}{tuple(plain.shape)}".encode())
            digest.update(memoryview(plain.flatten().numpy()).cast("B"))
        return digest.hexdigest()

    def forward(self, pixels: Tensor) -> Tensor:
        """The projected and normalized state of the class token."""
        states = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.layers:
            states = layer(states)
        return F.normalize(self.visual_projection(self.post_layernorm(states[:, 0])).float(), dim=-1)


class TowerLayer(nn.Module):
    """Attention and MLP, each with its layer norm and a residual connection."""

    def __init__(self, shape: TowerShape, heads: int, units: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.self_attn = TowerAttention(shape, heads)
        self.layer_norm2 = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.mlp = TowerMLP(shape, units)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        states = states + self.self_attn(self.layer_norm1(states))
        out: Tensor = states + self.mlp(self.layer_norm2(states))
        return out


class TowerAttention(nn.Module):
    """Self-attention with any number of heads of one width."""

    def __init__(self, shape: TowerShape, heads: int) -> None:
        super().__init__()
        inner = heads * shape.head_width
        self.head_width = shape.head_width
        self.q_proj = nn.Linear(shape.width, inner)
        self.k_proj = nn.Linear(shape.width, inner)
        self.v_proj = nn.Linear(shape.width, inner)
        self.out_proj = nn.Linear(inner, shape.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        queries, keys, values = (self._split(project(states)) for project in (self.q_proj, self.k_proj, self.v_proj))
        weights = (queries @ keys.mT * self.head_width**-0.5).softmax(-1)
        mixed: Tensor = self.out_proj((weights @ values).transpose(1, 2).flatten(2))
        return mixed

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, heads x head_width) to (B, heads, T, head_width)."""
        return states.view(*states.shape[:2], -1, self.head_width).transpose(1, 2)


class TowerMLP(nn.Module):
    """Two linear layers around any number of hidden units."""

    def __init__(self, shape: TowerShape, units: int) -> None:
        super().__init__()
        self.activation = ACT2FN[shape.activation]
        self.fc1 = nn.Linear(shape.width, units)
        self.fc2 = nn.Linear(units, shape.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        out: Tensor = self.fc2(self.activation(self.fc1(states)))
        return out


class _Embeddings(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(shape.width))
        self.patch_embedding = nn.Conv2d(3, shape.width, shape.patch_size, shape.patch_size, bias=False)
        self.position_embedding = nn.Embedding((shape.image_size // shape.patch_size) ** 2 + 1, shape.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side) to (B, T, width): the class token, then the patches."""
        patches = self.patch_embedding(pixels.to(self.class_embedding.dtype)).flatten(2).mT
        first = self.class_embedding.expand(patches.shape[0], 1, -1)  # len() would freeze an exported batch
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class PromptedTower(nn.Module):
    """A `VisionTower` with visual prompts (depth, n, width) behind its tokens before each of its first layers."""

    def __init__(self, tower: VisionTower, prompts: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.prompts = nn.Parameter(prompts.detach().float().cpu().clone())

    def forward(self, pixels: Tensor) -> Tensor:
        """The projected and normalized state of the class token."""
        tower = self.tower
        states = tower.embeddings(pixels)
        tokens = states.shape[1]
        for index, layer in enumerate(tower.layers):
            if index < len(self.prompts):
                own = self.prompts[index].expand(pixels.shape[0], -1, -1)
                states = torch.cat([states[:, :tokens], own], dim=1)
            states = layer(tower.pre_layrnorm(states) if index == 0 else states)
        return F.normalize(tower.visual_projection(tower.post_layernorm(states[:, 0])).float(), dim=-1)


def reprojected_tower(tower: VisionTower, projection: Tensor, layers: int | None = None) -> VisionTower:
    """A copy with another projection (any dim, width), of all layers or of the first ones alone."""
    own = tower.shape
    shape = replace(own, dim=len(projection), heads=own.heads[:layers], units=own.units[:layers])
    copy = VisionTower(shape)
    known = copy.state_dict().keys()
    weights = {name: tensor.detach().clone() for name, tensor in tower.state_dict().items() if name in known}
    copy.load_state_dict({**weights, "visual_projection.weight": projection.detach().float().cpu().clone()})
    return copy.eval().requires_grad_(False)


def tower_of_clip(model: Any, weights: Mapping[str, Tensor] | None = None) -> VisionTower:
    """A copy, in float32 on the CPU, of the image tower of a Hugging Face `CLIPModel`.

    Args:
        weights: in place of some of the model's own, by their names in the model.
    """
    config = model.config.vision_config
    layers = int(config.num_hidden_layers)
    shape = TowerShape(
        width=int(config.hidden_size),
        head_width=int(config.hidden_size) // int(config.num_attention_heads),
        image_size=int(config.image_size),
        patch_size=int(config.patch_size),
        dim=int(model.config.projection_dim),
        activation=str(config.hidden_act),
        norm_epsilon=float(config.layer_norm_eps),
        heads=(int(config.num_attention_heads),) * layers,
        units=(int(config.intermediate_size),) * layers,
    )
    tower = VisionTower(shape)
    own = {
        f"{module}.{name}": tensor for module in _PARTS for name, tensor in getattr(model, module).state_dict().items()
    }
    tower.load_state_dict(
        {
            name.removeprefix("vision_model.").removeprefix("encoder."): tensor.detach().float().cpu()
            for name, tensor in {**own, **(weights or {})}.items()
        }
    )
    return tower.eval().requires_grad_(False)
