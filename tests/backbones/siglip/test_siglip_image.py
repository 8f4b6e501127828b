"""SigLIP's image tower in two parts, and as a plain module, has the features and gradients of the plain forward."""

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import SiglipModel

from fedgraft.backbones.deltas import Delta
from fedgraft.backbones.siglip.dense_tower import dense_tower
from fedgraft.backbones.siglip.image_tower import SiglipImageTower
from fedgraft.core.errors import UserError

FEATURE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


@cache
def _tower(folder: Path) -> tuple[SiglipImageTower, SiglipModel]:
    model = SiglipModel.from_pretrained(folder).eval().requires_grad_(False)
    return SiglipImageTower(model), model


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _plain(model: SiglipModel, pixels: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
    named = {name.removeprefix("vision_model."): weight for name, weight in (weights or {}).items()}
    return F.normalize(functional_call(model.vision_model, named, (pixels,)).pooler_output, dim=-1)


def _plain_prompted(model: SiglipModel, pixels: Tensor, prompts: Tensor, layer: int = 0) -> Tensor:
    """Every position through transformers' own layers; prompts (depth, n, width)."""
    tower = model.vision_model
    hidden = tower.embeddings(pixels)
    patches = hidden.shape[1]
    for index, module in enumerate(tower.encoder.layers):
        if 0 <= index - layer < len(prompts):
            own = prompts[index - layer].expand(len(pixels), -1, -1)
            hidden = torch.cat([hidden[:, :patches], own], dim=1)
        hidden = module(hidden, None)
    return F.normalize(tower.head(tower.post_layernorm(hidden)[:, :patches]), dim=-1)


def _maps(model: SiglipModel) -> dict[str, Tensor]:
    layers = model.vision_model.encoder.layers
    return {
        f"vision_model.encoder.layers.{index}.{name}": module.weight
        for index, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_is_cached_below_a_layer_ends_in_the_plain_features(siglip2_folder: Path, layer: int) -> None:
    tower, model = _tower(siglip2_folder)
    pixels = _random(3, 3, 48, 48)
    states = tower.states(pixels, layer)
    assert states.shape[1:] == tower.states_shape
    assert torch.allclose(tower.features(states, layer, {}), _plain(model, pixels), atol=FEATURE_TOLERANCE)


def test_low_rank_changes_have_the_plain_gradients(siglip2_folder: Path) -> None:
    tower, model = _tower(siglip2_folder)
    pixels = _random(3, 3, 48, 48)
    maps = _maps(model)
    right = {name: (0.2 * _random(3, weight.shape[1], seed=1)).requires_grad_() for name, weight in maps.items()}
    left = {name: (0.2 * _random(weight.shape[0], 3, seed=2)).requires_grad_() for name, weight in maps.items()}
    leaves = [*right.values(), *left.values()]
    deltas = {name: Delta(right[name][None], left[name][None]) for name in maps}
    fast = tower.features(tower.states(pixels, 0), 0, deltas)
    slow = _plain(model, pixels, {f"{name}.weight": weight + left[name] @ right[name] for name, weight in maps.items()})
    assert torch.allclose(fast, slow, atol=FEATURE_TOLERANCE)
    direction = _random(*slow.shape, seed=3)
    gradients = [torch.autograd.grad((features * direction).sum(), leaves) for features in (fast, slow)]
    for mine, other in zip(*gradients, strict=True):
        assert (mine - other).norm() < GRADIENT_TOLERANCE * other.norm()


@pytest.mark.parametrize(("layer", "depth"), [(0, 1), (0, 2), (1, 1)])
def test_visual_prompts_have_the_plain_features_and_gradients(siglip2_folder: Path, layer: int, depth: int) -> None:
    tower, model = _tower(siglip2_folder)
    pixels = _random(3, 3, 48, 48)
    prompts = _random(depth, 4, 32, seed=1).requires_grad_()
    fast = tower.features(tower.states(pixels, layer), layer, {}, prompts[None])
    slow = _plain_prompted(model, pixels, prompts, layer)
    assert torch.allclose(fast, slow, atol=FEATURE_TOLERANCE)
    assert not torch.allclose(slow, _plain(model, pixels), atol=1e-3)
    direction = _random(*slow.shape, seed=3)
    mine, other = (torch.autograd.grad((features * direction).sum(), prompts)[0] for features in (fast, slow))
    assert (mine - other).norm() < GRADIENT_TOLERANCE * other.norm()


def test_more_visual_prompts_than_layers_are_refused(siglip2_folder: Path) -> None:
    tower, _ = _tower(siglip2_folder)
    with pytest.raises(UserError, match="3 layers from layer 0 on do not fit into an image tower of 2"):
        tower.features(torch.zeros(1, 16, 32), 0, {}, torch.zeros(1, 3, 2, 32))


def test_a_patch_has_the_feature_of_an_image_of_that_patch_alone(siglip2_folder: Path) -> None:
    """The pooling over one patch, through transformers' own attention."""
    tower, model = _tower(siglip2_folder)
    pixels = _random(2, 3, 48, 48)
    found = tower.patch_features(pixels)
    vision = model.vision_model
    states = vision(pixels).last_hidden_state
    alone = torch.stack([F.normalize(vision.head(states[:, [patch]]), dim=-1) for patch in range(16)], dim=1)
    assert torch.allclose(found[:, 0], _plain(model, pixels), atol=FEATURE_TOLERANCE)
    assert torch.allclose(found[:, 1:], alone, atol=FEATURE_TOLERANCE)


def test_the_module_for_devices_has_the_plain_features_with_changes_and_prompts(siglip2_folder: Path) -> None:
    _, model = _tower(siglip2_folder)
    pixels = _random(3, 3, 48, 48)
    weights = {f"{name}.weight": weight + 0.1 * _random(*weight.shape) for name, weight in _maps(model).items()}
    assert torch.allclose(dense_tower(model, None, None)(pixels), _plain(model, pixels), atol=FEATURE_TOLERANCE)
    merged = dense_tower(model, weights, None)(pixels)
    assert torch.allclose(merged, _plain(model, pixels, weights), atol=FEATURE_TOLERANCE)
    prompts = _random(2, 4, 32, seed=1)
    prompted = dense_tower(model, None, prompts)(pixels)
    assert torch.allclose(prompted, _plain_prompted(model, pixels, prompts), atol=FEATURE_TOLERANCE)


def test_the_module_for_devices_shares_no_tensor_with_the_backbone(siglip2_folder: Path) -> None:
    _, model = _tower(siglip2_folder)
    copied = dense_tower(model, None, None)
    before = copied(_random(1, 3, 48, 48))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for tensor in copied.parameters():
            tensor.zero_()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert not torch.allclose(copied(_random(1, 3, 48, 48)), before)
