"""A vision transformer of timm in two parts gives the features and gradients of timm's own forward."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.deltas import Delta
from fedgraft.backbones.timm.importing import import_timm
from fedgraft.backbones.timm.vit_tower import TimmVitTower, is_plain_vit

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is not installed")

_SMALL = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 4}


def _made(name: str = "test_vit", projected: bool = True, **arguments: Any) -> tuple[Any, nn.Module | None]:
    torch.manual_seed(0)
    trunk = import_timm().create_model(
        name, **{"num_classes": 0 if projected else 24, "global_pool": "token"}, **arguments
    )
    projection = nn.Linear(trunk.num_features, 24, bias=False) if projected else None
    with torch.no_grad():
        for key, parameter in trunk.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0, 0.2) if key.endswith("bias") else parameter.uniform_(0.5, 1.5)
            elif "blocks" in key:
                parameter.mul_(3)
    for part in (trunk, projection):
        if part is not None:
            part.eval().requires_grad_(False)
    return trunk, projection


def _plain(trunk: Any, projection: nn.Module | None, pixels: Tensor, prompts: Tensor | None = None) -> Tensor:
    """timm's forward; hooks put tokens behind the others before each of the first blocks."""
    handles = []
    for index, own in enumerate(() if prompts is None else prompts):

        def put(module: nn.Module, args: tuple[Tensor, ...], own: Tensor = own, index: int = index) -> Any:
            tokens = 1 + trunk.patch_embed.num_patches
            mine = trunk.norm_pre(own) if index == 0 else own
            return (torch.cat([args[0][:, :tokens], mine.expand(len(args[0]), -1, -1)], dim=1),)

        handles.append(trunk.blocks[index].register_forward_pre_hook(put))
    features = trunk(pixels)
    for handle in handles:
        handle.remove()
    return F.normalize(features if projection is None else projection(features), dim=-1)


def _compare(name: str, arguments: dict[str, Any], projected: bool, side: int, depth: int) -> None:
    trunk, projection = _made(name, projected, **arguments)
    assert is_plain_vit(trunk)
    tower = TimmVitTower(trunk, projection)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    for layer in range(len(trunk.blocks)):
        assert torch.allclose(
            tower.features(tower.states(pixels, layer), layer, {}), _plain(trunk, projection, pixels), atol=1e-5
        )
    prompts = torch.randn(depth, 3, trunk.embed_dim, generator=torch.Generator().manual_seed(2))
    mine, other = prompts.clone().requires_grad_(), prompts.clone().requires_grad_()
    fast = tower.features(tower.states(pixels, 0), 0, {}, mine[None])
    slow = _plain(trunk, projection, pixels, other)
    assert torch.allclose(fast, slow, atol=1e-5)
    direction = torch.randn(slow.shape, generator=torch.Generator().manual_seed(3))
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    assert mine.grad is not None
    assert other.grad is not None
    assert (mine.grad - other.grad).norm() < 1e-4 * other.grad.norm()
    assert torch.allclose(tower.encoder({}, prompts)(pixels), slow, atol=1e-5)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cuts_and_visual_prompts_equal_timms_forward(projected: bool, depth: int) -> None:
    _compare("test_vit", _SMALL, projected, 32, depth)


def test_low_rank_changes_and_their_gradients_are_those_of_merged_weights() -> None:
    generator = torch.Generator().manual_seed(4)
    trunk, projection = _made(**_SMALL)
    tower = TimmVitTower(trunk, projection)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    maps = tower.linear_maps()
    assert {name.rsplit(".", 1)[1] for name in maps} == {"qkv", "proj", "fc1", "fc2"}
    factors = {
        name: (
            (0.1 * torch.randn(2, weight.shape[1], generator=generator)).requires_grad_(),
            (0.1 * torch.randn(weight.shape[0], 2, generator=generator)).requires_grad_(),
        )
        for name, (layer, weight) in maps.items()
        if layer >= 1
    }
    deltas = {name: Delta(a[None], b[None]) for name, (a, b) in factors.items()}
    fast = tower.features(tower.states(pixels, 1), 1, deltas)
    merged, same = _made(**_SMALL)
    weights = {}
    for name, (a, b) in factors.items():
        module = merged.get_submodule(name.removeprefix("vision_model."))
        module.weight.data += (b @ a).detach()
        weights[name] = module.weight.requires_grad_()
    slow = _plain(merged, same, pixels)
    assert torch.allclose(fast, slow, atol=1e-5)
    direction = torch.randn(slow.shape, generator=generator)
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    for name, (a, b) in factors.items():
        gradient = weights[name].grad
        assert gradient is not None
        for own, other in ((a.grad, b.detach().mT @ gradient), (b.grad, gradient @ a.detach().mT)):
            assert own is not None
            assert (own - other).norm() < 1e-4 * other.norm(), name
    encoder = tower.encoder({f"{name}.weight": weights[name] for name in factors}, None)
    assert torch.allclose(encoder(pixels), slow, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "projected"),
    [("vit_base_patch16_224", True), ("vit_base_mci_224", False), ("vit_large_patch14_clip_224", False)],
    ids=["BiomedCLIP", "MobileCLIP-B", "MobileCLIP2-L"],
)
def test_published_transformers_at_full_width(name: str, projected: bool) -> None:
    _compare(name, {"depth": 2}, projected, 224, 2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {**_SMALL, "global_pool": "avg", "class_token": True}),
        ("vit_medium_patch16_gap_256", {}),
        ("eva02_tiny_patch14_224", {}),
        ("fastvit_t8", {}),
        ("test_efficientnet", {}),
    ],
)
def test_models_without_a_pooled_class_token_or_with_other_blocks_are_used_as_a_whole(
    name: str, arguments: dict[str, Any]
) -> None:
    with torch.device("meta"):
        assert not is_plain_vit(import_timm().create_model(name, **arguments))
