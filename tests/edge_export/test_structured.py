"""A tower with heads and units removed computes what the masked one computes, and what torch-pruning's computes."""

from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.edge_export.tickets.patterns import PATTERNS, masked
from fedgraft.edge_export.tickets.structured import positions


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("sparsity", "heads", "units"), [(0.25, 3, 432), (0.5, 2, 288), (0.75, 1, 144)])
def test_physically_removed_equals_masked(
    sparsity: float, heads: int, units: int, mini: Backbone, pixels: Tensor
) -> None:
    tower, pattern = mini.vision_tower(), PATTERNS["structured"]
    kept = pattern.kept(pattern.magnitudes(tower), sparsity)
    small = pattern.cut(tower, kept)
    assert small.shape.heads == (heads,) * 4
    assert small.shape.units == (units,) * 4
    assert small.layers[0].self_attn.q_proj.weight.shape == (heads * 36, 144)  # type: ignore[union-attr]
    zeroed = masked(tower, pattern.masks(tower, kept))
    assert (small(pixels) - zeroed(pixels)).abs().max() < 1e-5
    assert (small(pixels) - tower(pixels)).abs().max() > 1e-3


def test_the_same_heads_and_units_removed_by_torch_pruning_compute_the_same(mini: Backbone, pixels: Tensor) -> None:
    tower, pattern = mini.vision_tower(), PATTERNS["structured"]
    kept = pattern.kept(pattern.magnitudes(tower), 0.5)
    oracle = _cut_by_torch_pruning(
        mini.vision_tower(), {name: score.nonzero()[:, 0] for name, score in kept.items()}, pixels
    )
    small = pattern.cut(tower, kept)
    assert {n: p.shape for n, p in oracle.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    assert (small(pixels) - oracle(pixels)).abs().max() < 1e-5


def _cut_by_torch_pruning(tower: VisionTower, kept: dict[str, Tensor], pixels: Tensor) -> VisionTower:
    """Its dependency graph finds the columns that belong to the rows of v and of fc1; q and k are cut alike."""
    tower.requires_grad_(True)
    graph: Any = torch_pruning.DependencyGraph().build_dependency(tower, example_inputs=pixels)
    rows = torch_pruning.prune_linear_out_channels
    for number, layer in enumerate(tower.blocks):
        channels = set(positions(kept[f"{number}.heads"], 36).tolist())
        lost = [channel for channel in range(144) if channel not in channels]
        graph.get_pruning_group(layer.self_attn.v_proj, rows, idxs=lost).prune()
        units = set(kept[f"{number}.units"].tolist())
        graph.get_pruning_group(layer.mlp.fc1, rows, idxs=[unit for unit in range(576) if unit not in units]).prune()
    return tower
