"""What a pattern removes, how much of each layer, and what it refuses."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.backbones import Backbone
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.core.errors import UserError
from fedgraft.edge_export.tickets.patterns import PATTERNS, checked_pattern
from fedgraft.edge_export.tickets.schemes import SCHEMES
from fedgraft.edge_export.tickets.ticket_config import Induction, PatternName, Scheme, TicketConfig
from fedgraft.edge_export.tickets.tuning import INDUCTIONS


def _cut(tower: VisionTower, name: str, sparsity: float) -> dict[str, torch.Tensor]:
    pattern = checked_pattern(name, tower, sparsity)
    return dict(pattern.cut(tower, pattern.kept(pattern.magnitudes(tower), sparsity)).matrices())


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.9), ("n:m", 0.5), ("rows", 0.7)])
def test_every_matrix_loses_the_requested_fraction(pattern: str, sparsity: float, mini: Backbone) -> None:
    for name, matrix in _cut(mini.vision_tower(), pattern, sparsity).items():
        assert float((matrix == 0).float().mean()) == pytest.approx(sparsity, abs=0.01), name


@pytest.mark.parametrize("pattern", ["unstructured", "structured"])
def test_a_layer_of_small_weights_is_not_emptied(pattern: str, mini: Backbone) -> None:
    """Under one threshold for the whole tower nothing of it would stay."""
    tower = mini.vision_tower()
    for name, matrix in tower.matrices():
        if name.startswith("layers.1."):
            matrix.mul_(1e-3)
    weights = torch.cat([matrix.flatten() for _, matrix in tower.matrices()]).abs()
    layer = torch.cat([matrix.flatten() for name, matrix in tower.matrices() if name.startswith("layers.1.")]).abs()
    assert layer.max() < weights.median()
    cut = _cut(tower, pattern, 0.5)
    sizes = {name: int(matrix.count_nonzero()) for name, matrix in cut.items()}
    assert sizes["layers.1.mlp.fc1.weight"] == sizes["layers.0.mlp.fc1.weight"] > 0
    assert sizes["layers.1.self_attn.q_proj.weight"] == sizes["layers.0.self_attn.q_proj.weight"] > 0


def test_two_of_four_neighbours_stay_and_they_are_the_largest(mini: Backbone) -> None:
    tower = mini.vision_tower()
    whole = dict(tower.matrices())
    for name, matrix in _cut(tower, "n:m", 0.5).items():
        fours, before = matrix.view(-1, 4), whole[name].view(-1, 4).abs()
        assert ((fours != 0).sum(1) == 2).all()
        assert torch.equal(fours.abs().amax(1), before.amax(1))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
@settings(max_examples=4, deadline=None)
def test_what_the_masks_keep_is_what_the_cut_keeps(pattern: str, sparsity: float, random_clip: Backbone) -> None:
    rule, tower = PATTERNS[pattern], random_clip.vision_tower()
    if pattern == "structured" and sparsity == 0.75:
        sparsity = 0.5  # two heads
    kept = rule.kept(rule.magnitudes(tower), sparsity)
    masks = rule.masks(tower, kept)
    cut = dict(rule.cut(tower, kept).matrices())
    for name, matrix in tower.matrices():
        assert int((matrix * masks[name]).count_nonzero()) == int(cut[name].count_nonzero())


@pytest.mark.parametrize(
    ("pattern", "sparsity", "said"),
    [
        ("structured", 0.9, "remove all 4 heads of layer 0; give at most 0.75"),
        ("structured", 1.0, "at least 0 and less than 1, not 1.0"),
        ("unstructured", -0.1, "at least 0 and less than 1, not -0.1"),
        ("rows", 0.999, "would remove all 144 rows"),
        ("n:m", 0.6, "the sparsity is 0.25, 0.5 or 0.75, not 0.6"),
    ],
)
def test_an_impossible_cut_is_refused_with_what_would_be_right(
    pattern: str, sparsity: float, said: str, mini: Backbone
) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        checked_pattern(pattern, mini.vision_tower(), sparsity)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pattern": "cubes"}, "no ticket pattern 'cubes'"),
        ({"pattern": "struktured"}, "Did you mean 'structured'?"),
        ({"steps": 3}, "There is no option of 'ticket draw' 'steps'"),
        ({"scheme": "om"}, "Did you mean 'omp'?"),
        ({"kind": "sturdy"}, "Known: natural, robust"),
        ({"sparsity": float("nan")}, "'sparsity' of 'ticket draw' has the value nan"),
        ({"induction_steps": 0}, "'induction_steps' of 'ticket draw' has the value 0"),
    ],
)
def test_a_configuration_is_checked(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        TicketConfig.build(settings)


def test_every_name_of_the_configuration_has_its_code() -> None:
    assert set(PATTERNS) == set(get_args(PatternName))
    assert set(SCHEMES) == set(get_args(Scheme))
    assert set(INDUCTIONS) == set(get_args(Induction))
