"""Matryoshka against a plain derivation of its own, and the order of directions that makes prefixes useful."""

from typing import Any

import pytest
import torch
from transformers import CLIPModel

from fedgraft.backbones import Backbone
from fedgraft.backbones.loading import mini_folder
from fedgraft.backbones.representation import Representation
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.nesting import halved, prefix, principal_directions, projected
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary

NAMES = ("blue circle", "green dotted heart", "seven", "red striped star")
CLASSES, LABELS = (0, 1, 3), torch.tensor([0, 2, 1, 1, 0])
EXITS = Representation(exits=(1, 3))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 48, 48, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    """`mini` as the library has it."""
    found: CLIPModel = CLIPModel.from_pretrained(mini_folder(), attn_implementation="eager")
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens(model: CLIPModel, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
    """The class token behind the last norm after each number of layers, from the library's own layers."""
    states: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: states.append(out if torch.is_tensor(out) else out[0]))
        for layer in model.vision_model.encoder.layers
    ]
    model.vision_model(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    return {count: model.vision_model.post_layernorm(own[:, 0]) for count, own in enumerate(states, 1)}


def _adapter(backbone: Backbone, moved: float = 0.0, **options: Any) -> Adapter:
    method = METHODS.load("matryoshka")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    adapter = method.adapter(vocabulary, method.parse_options(options), torch.Generator())
    generator = torch.Generator().manual_seed(5)
    adapter.load(
        {name: own + moved * torch.randn(own.shape, generator=generator) for name, own in adapter.shared().items()}
    )
    return adapter


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def test_loss_and_gradients_are_those_of_every_cut_on_its_own(
    mini: Backbone, pixels: torch.Tensor, tokens: dict[int, torch.Tensor]
) -> None:
    adapter = _adapter(mini, 0.05, dims="16,64", depths="1,3", align=0.3)
    kept = mini.represent_images(pixels, EXITS)
    assert torch.allclose(kept, torch.stack([tokens[1], tokens[3], tokens[4]], dim=1), atol=1e-5)
    maps = {name: own.detach().clone().requires_grad_() for name, own in adapter.named_parameters()}
    texts = adapter.vocabulary.zero_shot[list(CLASSES)]
    entropies, logs = [], []
    for key, depth in (("layers1", 1), ("layers3", 3), ("whole", 4)):
        for size in (16, 64, 128):
            images = _unit(tokens[depth] @ maps[f"image.{key}"][:size].T)
            classes = _unit(texts @ maps["text"][:size].T)
            logs.append((mini.logit_scale * images @ classes.T).log_softmax(-1))
            entropies.append(-logs[-1][torch.arange(5), LABELS].mean())
    whole = logs[-1].detach()
    gaps = [(whole.exp() * (whole - own)).sum(-1).mean() for own in logs[:-1]]
    expected = sum(entropies) / 9 + 0.3 * sum(gaps) / 8
    loss = adapter.loss(kept, LABELS, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    names = sorted(maps)
    found = torch.autograd.grad(loss, [dict(adapter.named_parameters())[name] for name in names])
    wanted = torch.autograd.grad(expected, [maps[name] for name in names])
    for own, other in zip(found, wanted, strict=True):
        assert (own - other).norm() <= 1e-4 * other.norm()


def test_it_starts_as_the_hand_written_classifier_and_needs_a_dimension_for_each_class(
    mini: Backbone, pixels: torch.Tensor
) -> None:
    for options, form in (({}, Representation()), ({"depths": "1,3"}, EXITS)):
        adapter = _adapter(mini, **options)
        images = adapter.image_features(mini.represent_images(pixels, form))
        classes = adapter.class_features((0, 1, 2, 3))
        cosines = mini.encode_images(pixels) @ adapter.vocabulary.zero_shot.T
        assert torch.allclose(images @ classes.T, cosines, atol=1e-6)
        cut = prefix(images, len(NAMES)) @ prefix(classes, len(NAMES)).T
        assert torch.equal(cut.argmax(1), cosines.argmax(1))


def test_directions_are_a_rotation_that_takes_one_block_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(3, 12, generator=generator), torch.randn(4, 12, generator=generator)
    rotation = principal_directions(first, torch.cat([second, 2 * first]))
    assert torch.allclose(rotation @ rotation.T, torch.eye(12), atol=1e-6)
    assert torch.allclose(first @ rotation[3:].T, torch.zeros(3, 9), atol=1e-5)
    assert torch.allclose(second @ rotation[7:].T, torch.zeros(4, 5), atol=1e-5)
    assert torch.equal(rotation, principal_directions(first, torch.cat([second, 2 * first])))
    same = principal_directions(first[:1].expand(5, -1))
    assert torch.allclose(same @ same.T, torch.eye(12), atol=1e-6)


@pytest.mark.parametrize("depth", [None, 1, 3])
def test_an_encoder_has_the_features_of_its_depth(
    depth: int | None, mini: Backbone, pixels: torch.Tensor, tokens: dict[int, torch.Tensor]
) -> None:
    adapter = _adapter(mini, 0.05, depths="1,3")
    tower = adapter.image_encoder() if depth is None else adapter.shallow_encoder(depth)
    weight = adapter.state_dict()["image.whole" if depth is None else f"image.layers{depth}"]
    assert len(tower.layers) == (depth or 4)
    assert torch.allclose(tower(pixels), _unit(tokens[depth or 4] @ weight.T), atol=1e-5)
    few = projected(tower, torch.eye(mini.dim)[:8])
    assert few.visual_projection.weight.shape == (8, 144)
    assert torch.allclose(few(pixels), prefix(tower(pixels), 8), atol=1e-5)


def test_a_tower_with_visual_prompts_or_a_network_behind_it_is_cut_as_well(
    mini: Backbone, pixels: torch.Tensor
) -> None:
    prompts = torch.randn(2, 3, 144, generator=torch.Generator().manual_seed(0))
    rotation = principal_directions(torch.randn(4, mini.dim, generator=torch.Generator().manual_seed(1)))
    for tower in (mini.image_encoder(prompts=prompts), torch.nn.Sequential(mini.image_encoder())):
        expected = _unit(tower(pixels) @ rotation[:8].T)
        assert torch.allclose(projected(tower, rotation[:8])(pixels), expected, atol=1e-5)


def test_sizes_are_halved_down_to_16() -> None:
    assert halved(512) == (16, 32, 64, 128, 256)
    assert halved(24) == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dims": "32,256"}, "has features of 128 dimensions, which cannot be cut to 256"),
        ({"depths": "2,4"}, "has 4 layers in its image tower, which cannot end early after 4"),
        ({"dims": "32,none"}, "positive whole numbers separated by commas"),
        ({"depths": "0"}, "positive whole numbers separated by commas"),
    ],
)
def test_cuts_that_the_backbone_cannot_have_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Plan.of(RunConfig.build({"method": "matryoshka", "method_options": options})).require_backbone()
    assert "\n" not in str(error.value)
