"""Fewer patches on their way through an image tower: Token Merging (Bolya et al., ICLR 2023), in plain ONNX operators.

In chosen layers, between attention and MLP, the patches are split in turn into two halves. Each of the first half finds
the one of the second whose key is most like its own, and the most alike pairs become their mean, weighted by how many
patches either stands for; attention weighs a token by that number too. How many are merged is fixed when the tower is
made, so all shapes but the batch are static. A class token is never merged. Nothing is trained.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.patch_tower import PatchTower
from fedgraft.core.errors import UserError
from fedgraft.edge_export.patch_steps import PatchStep
from fedgraft.edge_export.tickets.ticket import TicketSpec


class MergedTower(nn.Module):
    """A tower whose patches become fewer in some layers; without steps it computes what the tower does.

    Raises:
        UserError: there is no such layer, or the tower has visual prompts, which would be merged with patches.
    """

    def __init__(self, tower: PatchTower, steps: Sequence[PatchStep]) -> None:
        super().__init__()
        layers = len(tower.blocks)
        if beyond := [step for step in steps if step.layer > layers]:
            raise UserError(f"--keep-patches has {beyond[0]}, and the image tower has {layers} layers.")
        self.tower = tower
        self.steps = {step.layer - 1: step for step in steps}

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side) to embeddings (B, dim) of unit norm."""
        states, first = self.tower.embed(pixels), self.tower.class_tokens
        sizes: Tensor | None = None
        for number, layer in enumerate(self.tower.blocks):
            mixed, keys = layer.self_attn.attend(layer.layer_norm1(states), sizes)
            states = states + mixed
            if (step := self.steps.get(number)) is not None:
                sizes = torch.ones_like(states[..., :1]) if sizes is None else sizes
                patches = states.shape[1] - first
                merged = merge(states[:, first:], sizes[:, first:], keys.mean(1)[:, first:], step.left(patches))
                states = torch.cat([states[:, :first], merged[0]], 1)
                sizes = torch.cat([sizes[:, :first], merged[1]], 1)
            states = states + layer.mlp(layer.layer_norm2(states))
        return self.tower.pool(states, sizes)


def merge(patches: Tensor, sizes: Tensor, keys: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: patches at even positions join those at odd ones that are most like them.

    Args:
        patches: (B, P, width).
        sizes: (B, P, 1), how many patches each stands for.
        keys: (B, P, any), compared by their cosine.
        left: at least half of the patches.

    Returns:
        (B, left, width), those at even positions that joined no other before all at odd ones, and their sizes.
    """
    unit = F.normalize(keys, dim=-1)
    likeness, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(-1)
    joins = F.one_hot(partner, patches.shape[1] // 2).to(patches.dtype)
    count, stay = patches.shape[1] - left, joins.shape[1] - (patches.shape[1] - left)
    even, even_sizes, odd, odd_sizes = patches[:, ::2], sizes[:, ::2], patches[:, 1::2], sizes[:, 1::2]
    alone, alone_sizes = even[:, :0], even_sizes[:, :0]
    if stay:
        order = likeness.topk(joins.shape[1]).indices
        merged = F.one_hot(order[:, :count], joins.shape[1]).sum(1).to(patches.dtype)
        joins = joins * merged[..., None]
        apart = order[:, count:, None]
        alone = even.gather(1, apart.expand(-1, -1, patches.shape[2]))
        alone_sizes = even_sizes.gather(1, apart)
    joined_sizes = odd_sizes + joins.mT @ even_sizes
    joined = (odd * odd_sizes + joins.mT @ (even * even_sizes)) / joined_sizes
    return torch.cat([alone, joined], 1), torch.cat([alone_sizes, joined_sizes], 1)


@dataclass(frozen=True)
class ReducedTower:
    """A dense tower or a ticket whose patches are merged, as an export takes it.

    Attributes:
        spec: that of the tower.
        vision: pixels (B, 3, side, side) to embeddings (B, dim) of unit norm in float32.
        steps: as `--keep-patches` writes them.
        whole: fingerprint of the tower.
        parameters: number of weights, zeros included.
        nonzero: number of nonzero weights.
    """

    spec: TicketSpec
    vision: MergedTower
    steps: str
    whole: str
    parameters: int
    nonzero: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tower and the steps, in hexadecimal."""
        return hashlib.sha256(f"{self.whole} {self.steps}".encode()).hexdigest()
