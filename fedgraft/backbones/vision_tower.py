"""The image tower of a CLIP backbone (Radford et al. 2021) as a plain module whose layers may differ in size.

It computes the same as Hugging Face's tower, with a number of heads and of MLP units for each layer, so that pruned
and dense towers are of one class. It has no hooks and no dropout, and attention is written out: this exports best.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from fedgraft.backbones.patch_tower import PatchTower
from fedgraft.backbones.prunable import Part, PrunableTower

_PARTS = ("vision_model", "visual_projection")
_INNER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MATRICES = (*_INNER, "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


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


class VisionTower(PrunableTower, PatchTower):
    """Pixels (B, 3, side, side) to embeddings (B, dim) of unit norm.

    Parameters carry the names of Hugging Face's `CLIPModel` without `vision_model.` and `encoder.`.
    """

    family = "clip"
    class_tokens = 1
    shape: TowerShape

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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """An empty tower of the sizes in a ticket's folder; raises TypeError or ValueError for wrong keys or sizes."""
        return cls(TowerShape.from_json(values))

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Those of attention and MLP in every layer."""
        for number, layer in enumerate(self.blocks):
            for path in _MATRICES:
                yield f"layers.{number}.{path}.weight", layer.get_parameter(f"{path}.weight")

    def parts(self) -> Iterator[Part]:
        """A head is its rows of q, k, v and columns of out_proj; an MLP unit its row of fc1 and column of fc2."""
        for number, (heads, units) in enumerate(zip(self.shape.heads, self.shape.units, strict=True)):
            layer, place = f"layers.{number}", f"layer {number}"
            yield Part(
                number,
                "heads",
                "heads",
                place,
                heads,
                self.shape.head_width,
                rows=tuple(f"{layer}.{path}.weight" for path in _INNER),
                columns=(f"{layer}.self_attn.out_proj.weight",),
                vectors=tuple(f"{layer}.{path}.bias" for path in _INNER),
            )
            yield Part(
                number,
                "units",
                "MLP units",
                place,
                units,
                1,
                rows=(f"{layer}.mlp.fc1.weight",),
                columns=(f"{layer}.mlp.fc2.weight",),
                vectors=(f"{layer}.mlp.fc1.bias",),
            )

    def resized(self, counts: Mapping[str, int]) -> Self:
        """With other numbers of heads and units."""
        layers = range(len(self.layers))
        heads, units = (tuple(counts[f"{number}.{kind}"] for number in layers) for kind in ("heads", "units"))
        return type(self)(replace(self.shape, heads=heads, units=units))

    def embed(self, pixels: Tensor) -> Tensor:
        """Class token and patches with their positions."""
        states: Tensor = self.pre_layrnorm(self.embeddings(pixels))
        return states

    def pool(self, states: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The projected and normalized state of the class token."""
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
        return self.attend(states)[0]

    def attend(self, states: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output (B, T, width), and the keys (B, heads, T, head_width).

        Args:
            sizes: (B, T, 1), how many patches each token stands for and counts as; one each by default.
        """
        queries, keys, values = (self._split(project(states)) for project in (self.q_proj, self.k_proj, self.v_proj))
        scores = queries @ keys.mT * self.head_width**-0.5
        if sizes is not None:
            scores = scores + sizes.log().mT[:, None]
        mixed: Tensor = self.out_proj((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
        return mixed, keys

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
