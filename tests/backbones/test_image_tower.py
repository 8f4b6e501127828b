"""What a user would lose: visual prompts, low-rank changes and patch features that are those of the plain tower."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from fedgraft.backbones.clip.image_tower import ClipImageTower
from fedgraft.core.errors import UserError
from tests.plain_image import plain_features, prompts_in

LAYERS, WIDTH, SIDE, ROWS = 4, 32, 24, 3


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    """A random `CLIPModel` whose image tower has several layers."""
    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    vision |= {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.3, "initializer_factor": 2.0}
    config = CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1}, projection_dim=20)
    torch.manual_seed(0)
    return CLIPModel(config).eval().requires_grad_(False)


def _pixels() -> Tensor:
    return torch.randn(ROWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layer", "depth"), [(0, 1), (0, 2), (0, LAYERS), (1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("between", [False, True])
def test_visual_prompts_have_features_and_gradients_of_the_plain_tower_with_prompts_in_it(
    layer: int, depth: int, between: bool, model: CLIPModel
) -> None:
    """Each image has prompts of its own in one pass; what is below the first prompted layer is cached."""
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randn(ROWS, depth, 2, WIDTH, generator=generator).requires_grad_()
    weights = torch.randn(ROWS, 20, generator=generator)
    tower, pixels = ClipImageTower(model), _pixels()
    found = tower.features(tower.states(pixels, layer), layer, {}, prompts)
    (gradient,) = torch.autograd.grad((found * weights).sum(), prompts)
    before = [None] * layer + [prompts[:, number] for number in range(depth)]
    with prompts_in(model, before, between):
        expected = plain_features(model, pixels)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), prompts)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()
    assert (found - plain_features(model, pixels)).norm() > 1e-3, "the prompts do nothing"


def test_prompts_for_all_rows_are_those_of_each_row(model: CLIPModel) -> None:
    prompts = torch.randn(1, 2, 3, WIDTH, generator=torch.Generator().manual_seed(3))
    tower, pixels = ClipImageTower(model), _pixels()
    states = tower.states(pixels, 0)
    each = prompts.expand(ROWS, -1, -1, -1)
    assert torch.allclose(tower.features(states, 0, {}, prompts), tower.features(states, 0, {}, each), atol=1e-6)


def test_more_prompts_than_layers_are_refused(model: CLIPModel) -> None:
    tower = ClipImageTower(model)
    states = tower.states(_pixels(), 2)
    with pytest.raises(UserError, match=r"3 layers from layer 2 on .* 4 layers"):
        tower.features(states, 2, {}, torch.zeros(1, 3, 2, WIDTH))


def test_patch_features_are_the_projected_last_states(model: CLIPModel) -> None:
    pixels = _pixels()
    states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    expected = F.normalize(model.visual_projection(model.vision_model.post_layernorm(states)), dim=-1)
    found = ClipImageTower(model).patch_features(pixels)
    assert found.shape == (ROWS, 10, 20)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found[:, 0], plain_features(model, pixels), atol=1e-6)


def test_half_precision_states_end_in_nearly_the_same_features(model: CLIPModel) -> None:
    tower, pixels = ClipImageTower(model), _pixels()
    for layer in range(LAYERS):
        kept = tower.states(pixels, layer).half()
        assert torch.allclose(tower.features(kept, layer, {}), plain_features(model, pixels), atol=2e-3)
