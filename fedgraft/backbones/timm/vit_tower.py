"""A plain vision transformer of timm, layer by layer.

It serves models whose class token is pooled and whose blocks are timm's own: ViT-B/16 of BiomedCLIP, MobileCLIP-B with
its convolutional stem, CLIP's in timm.
"""

from typing import Any

from torch import Tensor, nn

from fedgraft.backbones.deltas import Changed, linear
from fedgraft.backbones.dual.class_token_vit import ClassTokenVit


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


class TimmVitTower(ClassTokenVit):
    """A model for which `is_plain_vit` is true; queries, keys and values are one map in timm."""

    map_names = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "out_proj": "proj"}

    def __init__(self, trunk: Any, projection: nn.Module | None) -> None:
        super().__init__(trunk, "blocks", projection)
        self.states_shape = (1 + int(trunk.patch_embed.num_patches), int(trunk.embed_dim))

    def _embedded(self, pixels: Tensor) -> Tensor:
        trunk = self._model
        embedded: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
        return embedded

    def _normed_prompts(self, prompts: Tensor) -> Tensor:
        normed: Tensor = self._model.norm_pre(prompts)
        return normed

    def _layer(self, layer: Any, states: Tensor, rows: int, changed: Changed) -> Tensor:
        attention, perceptron = layer.attn, layer.mlp
        projected = linear(attention.qkv, layer.norm1(states), changed)
        split = projected.view(*states.shape[:2], 3, attention.num_heads, attention.head_dim)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self._attended(attention.q_norm(queries[:, :, :rows]), attention.k_norm(keys), values)
        out: Tensor = states[:, :rows] + layer.ls1(linear(attention.proj, attention.norm(mixed), changed))
        hidden = perceptron.norm(perceptron.act(linear(perceptron.fc1, layer.norm2(out), changed)))
        added: Tensor = layer.ls2(linear(perceptron.fc2, hidden, changed))
        return out + added

    def _pooled(self, states: Tensor) -> Tensor:
        trunk = self._model
        features: Tensor = trunk.head(trunk.fc_norm(trunk.norm(states)))
        return features if self._projection is None else self._projection(features)
