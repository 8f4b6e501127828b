"""A plain vision transformer of timm (Dosovitskiy et al. 2021) in two parts: below a layer, and from that layer on.

It serves models whose class token is pooled and whose blocks are timm's own: ViT-B/16 of BiomedCLIP, MobileCLIP-B with
its convolutional stem, CLIP's in timm. Of the last layer only the class token's row is computed. Visual prompts stand
behind class token and patches and have no position, as before CLIP's image tower.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.abilities import ImageAbilities
from fedgraft.backbones.deltas import Changed, Deltas, LinearMap, linear
from fedgraft.backbones.dual.image_towers import LayeredImageTower
from fedgraft.core.errors import UserError

PLAIN_VIT = ImageAbilities(cuts=True, prompts=True, deep_prompts=True, patches=True, low_rank=True)
_PREFIX = "vision_model."


def is_plain_vit(trunk: nn.Module) -> bool:
    """Whether a model of timm is a vision transformer of plain blocks with a pooled class token."""
    from timm.layers import Attention, Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(trunk) is not VisionTransformer:
        return False
    own: Any = trunk
    pooled = own.global_pool == "token" and own.num_prefix_tokens == 1 and own.attn_pool is None
    kinds = {(type(block), type(block.attn), type(block.mlp)) for block in own.blocks}
    return pooled and kinds == {(Block, Attention, Mlp)} and all(block.attn.gate is None for block in own.blocks)


class TimmVitTower(LayeredImageTower):
    """Reads the modules' own weights and holds no copy of them.

    Args:
        trunk: for which `is_plain_vit` is true.
        projection: behind it; None for none.
    """

    map_names = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "out_proj": "proj"}

    def __init__(self, trunk: Any, projection: nn.Module | None) -> None:
        self._trunk, self._projection = trunk, projection
        self._modules = {f"{_PREFIX}{name}": module for name, module in trunk.named_modules()}
        self._depth = len(self._trunk.blocks)
        self.states_shape = (1 + int(self._trunk.patch_embed.num_patches), int(self._trunk.embed_dim))

    def embed(self, pixels: Tensor) -> Tensor:
        """The projected features of timm's model."""
        features: Tensor = self._trunk(pixels)
        return features if self._projection is None else self._projection(features)

    @torch.no_grad()
    def states(self, pixels: Tensor, layer: int) -> Tensor:
        """The input of a layer, (B, tokens, width) in float32."""
        hidden = embedded_patches(self._trunk, pixels)
        for block in self._trunk.blocks[:layer]:
            hidden = block(hidden)
        return hidden.float()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor) -> Tensor:
        """Class token and patches, each projected as the class token is."""
        return self._projected(self._trunk.forward_features(pixels))

    def features(self, states: Tensor, layer: int, deltas: Deltas, prompts: Tensor | None = None) -> Tensor:
        """Unit-norm features (B, dim) from the input of a layer; see `Backbone.finish_images`."""
        changed = {self._modules[name]: delta for name, delta in deltas.items()}
        hidden = states.to(self._trunk.cls_token.dtype)
        tokens, depth = hidden.shape[1], 0 if prompts is None else prompts.shape[1]
        if layer + depth > self._depth:
            raise UserError(
                f"Visual prompts for {depth} layers from layer {layer} on do not fit into an image tower of "
                f"{self._depth} layers."
            )
        for index in range(layer, self._depth):
            if prompts is not None and index - layer < depth:
                own = prompts[:, index - layer].to(hidden.dtype).expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :tokens], self._trunk.norm_pre(own) if index == 0 else own], dim=1)
            replaced = index + 1 - layer < depth
            rows = 1 if index == self._depth - 1 else tokens if replaced else hidden.shape[1]
            hidden = self._block(self._trunk.blocks[index], hidden, rows, changed)
        return self._projected(self._trunk.norm(hidden[:, 0]))

    def linear_maps(self) -> dict[str, LinearMap]:
        """The maps of attention and MLP in every block; queries, keys and values are one map in timm."""
        return {
            f"{_PREFIX}blocks.{number}.{name}": LinearMap(number, module.weight)
            for number, block in enumerate(self._trunk.blocks)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }

    def encoder(self, weights: Mapping[str, Tensor], prompts: Tensor | None) -> nn.Module:
        """A copy with attention written out."""
        trunk, projection = (deepcopy(part).float().cpu() if part else None for part in (self._trunk, self._projection))
        assert trunk is not None
        own = {name.removeprefix(_PREFIX): tensor.detach().float().cpu() for name, tensor in weights.items()}
        trunk.load_state_dict({**trunk.state_dict(), **own})
        return _Encoder(trunk, projection, prompts).eval().requires_grad_(False)

    def _projected(self, states: Tensor) -> Tensor:
        """Unit-norm features (..., dim) of normalized states (..., width)."""
        features = self._trunk.head(self._trunk.fc_norm(states))
        return F.normalize((features if self._projection is None else self._projection(features)).float(), dim=-1)

    @staticmethod
    def _block(block: Any, states: Tensor, rows: int, changed: Changed) -> Tensor:
        """A block's output for the first rows (B, rows, width) of its input (B, T, width)."""
        attention, perceptron = block.attn, block.mlp
        projected = linear(attention.qkv, block.norm1(states), changed)
        split = projected.view(*states.shape[:2], 3, attention.num_heads, attention.head_dim)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = attention.q_norm(queries[:, :, :rows]), attention.k_norm(keys)
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        out: Tensor = states[:, :rows] + block.ls1(linear(attention.proj, attention.norm(mixed), changed))
        hidden = perceptron.norm(perceptron.act(linear(perceptron.fc1, block.norm2(out), changed)))
        added: Tensor = block.ls2(linear(perceptron.fc2, hidden, changed))
        return out + added


def embedded_patches(trunk: Any, pixels: Tensor) -> Tensor:
    """The input of the first block, (B, tokens, width)."""
    hidden: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
    return hidden


class _Encoder(nn.Module):
    def __init__(self, trunk: Any, projection: nn.Module | None, prompts: Tensor | None) -> None:
        super().__init__()
        self.trunk, self.projection = trunk, projection
        self.prompts = None if prompts is None else nn.Parameter(prompts.detach().float().cpu().clone())
        for block in trunk.blocks:
            block.attn.fused_attn = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, dim) of unit norm."""
        trunk: Any = self.trunk
        states = embedded_patches(trunk, pixels)
        tokens = states.shape[1]
        for index, block in enumerate(trunk.blocks):
            if self.prompts is not None and index < self.prompts.shape[0]:
                own = self.prompts[index].expand(pixels.shape[0], -1, -1)
                states = torch.cat([states[:, :tokens], trunk.norm_pre(own) if index == 0 else own], dim=1)
            states = block(states)
        features = trunk.head(trunk.fc_norm(trunk.norm(states[:, 0])))
        return F.normalize((features if self.projection is None else self.projection(features)).float(), dim=-1)
