"""Features whose prefixes classify alone (Kusupati et al., NeurIPS 2022): the order of their dimensions, and the cuts.

A rotation of the joint space keeps every cosine. One whose first dimensions span the class features keeps also every
prediction among those classes when the rest is cut off: what is dropped of a class feature is then zero, and what is
dropped of an image scales its cosines alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.vision_tower import PromptedTower, VisionTower, reprojected_tower
from fedgraft.methods.feature_adapter import AdaptedEncoder

LEAST_DIM = 16
_NEGLIGIBLE = 1e-5


def halved(dim: int) -> tuple[int, ...]:
    """Dimensions halved down to 16, the least first and the whole left out."""
    sizes = []
    while dim // 2 >= LEAST_DIM:
        dim //= 2
        sizes.append(dim)
    return tuple(sizes[::-1])


def prefix(features: Tensor, dim: int) -> Tensor:
    """The first dimensions of features (..., any), at unit norm."""
    return F.normalize(features[..., :dim], dim=-1)


def principal_directions(*blocks: Tensor) -> Tensor:
    """An orthogonal matrix (dim, dim) whose first rows span the blocks of rows (n, dim), one block after the other.

    Within a block, the direction that holds most of what the directions before it leave comes first (Eckart and Young
    1936). What no block spans comes last. Signs are fixed: the largest component of each direction is positive.
    """
    dim = blocks[0].shape[1]
    found = torch.zeros(0, dim, dtype=torch.float64)
    for block in (*blocks, torch.eye(dim)):
        rest = block.detach().cpu().double()
        for _ in range(2):
            rest = rest - rest @ found.mT @ found
        _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
        kept = directions[sizes > _NEGLIGIBLE * len(block) ** 0.5]
        found = torch.cat([found, kept])[:dim]
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return (found * largest.sign()).float()


def projected(tower: nn.Module, weight: Tensor) -> nn.Module:
    """A copy of an image tower with a map (k, dim) of its embeddings behind it, and unit norm again.

    Where the tower ends with a projection of its own, the two become one.
    """
    if isinstance(tower, VisionTower):
        return reprojected_tower(tower, weight.detach().float().cpu() @ tower.visual_projection.weight)
    if isinstance(tower, PromptedTower):
        cut = PromptedTower(
            reprojected_tower(tower.tower, weight @ tower.tower.visual_projection.weight), tower.prompts
        )
        return cut.eval().requires_grad_(False)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight.detach().float().cpu().clone())
    return AdaptedEncoder(tower, head).eval().requires_grad_(False)
