"""pFedMMA against the library's own layers with the adapters written out beside them."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.loading import mini_folder
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.pfedmma import PFedMMA
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)


def _adapter(backbone: Backbone, seed: int = 4, **options: Any) -> PFedMMA:
    method = METHODS.load("pfedmma")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    made = method.adapter(vocabulary, method.parse_options(options), torch.Generator().manual_seed(seed))
    assert isinstance(made, PFedMMA)
    with torch.no_grad():
        for name, parameter in sorted(made.named_parameters()):
            generator = torch.Generator().manual_seed(seed + len(name))
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def _through(layers: Any, states: Tensor, plain: dict[str, Tensor], tower: str, scale: float, mask: Any) -> Tensor:
    """Every layer of the library's own, and beside the upper ones the adapter in the paper's words."""
    count = len(plain["shared_middle"])
    for index, layer in enumerate(layers):
        number = index - (len(layers) - count)
        added = torch.zeros(())
        if number >= 0:
            low = layer.layer_norm1(states) @ plain[f"{tower}_down"][number].T + plain[f"{tower}_down_bias"][number]
            middle = low.clamp(min=0) @ plain["shared_middle"][number].T + plain["shared_middle_bias"][number]
            up = middle.clamp(min=0) @ plain[f"{tower}_up"][number].T + plain[f"{tower}_up_bias"][number]
            added = scale * up
        states = layer(states, attention_mask=mask) + added
    return states


@pytest.mark.parametrize("layers", [1, 2])
def test_loss_and_gradients_are_those_of_the_plain_towers_with_the_adapters_beside_them(layers: int) -> None:
    folder, scale = mini_folder(), 0.05
    backbone = load_backbone(str(folder))
    adapter = _adapter(backbone, layers=layers, dim=8, scale=scale)
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    pixels, labels = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1])
    parameters = dict(adapter.named_parameters())
    plain = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}

    vision, text = model.vision_model, model.text_model
    states = vision.pre_layrnorm(vision.embeddings(pixels))
    states = _through(vision.encoder.layers, states, plain, "image", scale, None)
    images = F.normalize(model.visual_projection(vision.post_layernorm(states[:, 0])), dim=-1)
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), []
    for name in NAMES:
        states = text.embeddings(input_ids=torch.tensor([tokenizer(f"a photo of a {name}.")["input_ids"]]))
        mask = torch.full((states.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        states = _through(text.encoder.layers, states, plain, "text", scale, mask)
        rows.append(model.text_projection(text.final_layer_norm(states[0, -1])))
    classes = F.normalize(torch.stack(rows), dim=-1)
    expected = F.cross_entropy(backbone.logit_scale * images @ classes.T, labels)

    kept = backbone.represent_images(pixels, adapter.representation(backbone, adapter.options))
    loss = adapter.loss(kept, labels, CLASSES)
    assert torch.allclose(adapter.image_features(kept), images, atol=1e-5)
    assert torch.allclose(adapter.class_features(CLASSES), classes, atol=1e-5)
    assert not torch.allclose(classes, backbone.text.encode_classes(NAMES, ("a photo of a {}.",)), atol=1e-3)
    assert torch.allclose(loss, expected, rtol=1e-4)
    loss.backward()
    expected.backward()
    for name, parameter in parameters.items():
        slope = plain[name].grad
        assert parameter.grad is not None
        assert slope is not None
        assert slope.norm() > 0
        assert (parameter.grad - slope / scale).norm() <= 1e-4 * slope.norm() / scale


def test_only_the_projections_between_the_towers_leave_a_site(mini: Backbone) -> None:
    """A mean of three sites of 10, 20 and 30 images; the maps to and from it stay."""
    sites = [_adapter(mini, seed).shared() for seed in range(3)]
    assert {*sites[0]} == {"shared_middle", "shared_middle_bias"}
    answers = [Answer(i, {n: v.numpy() for n, v in own.items()}, 10 * (i + 1), 0.0) for i, own in enumerate(sites)]
    rule = METHODS.load("pfedmma").rule_for(None)
    for name, array in rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays.items():
        expected = sum(own[name].double() * (i + 1) / 6 for i, own in enumerate(sites))
        assert np.allclose(array, expected, atol=1e-6)


def test_without_its_personal_maps_the_backbone_is_as_it_was(mini: Backbone) -> None:
    adapter = _adapter(mini, scale=0.1)
    adapter.load(adapter.impersonal(adapter.shared()))
    with torch.no_grad():
        assert torch.allclose(adapter.class_features(CLASSES), adapter.vocabulary.zero_shot, atol=1e-6)


def test_a_tower_without_room_beside_its_layers_is_refused_before_anything_is_loaded() -> None:
    needs = METHODS.load("pfedmma").adapter.needs(None)
    sizes = Sizes(77, 12, 512, 512, 224, 12, 768, 196)
    can = TextAbilities(placements=("before",), branches=True)
    with pytest.raises(UserError, match="takes no adapters beside the layers of its image tower"):
        needs.check("other", Abilities(can, ImageAbilities(cuts=True)), sizes)
    with pytest.raises(UserError, match="takes no adapters beside the layers of its text tower"):
        needs.check("other", Abilities(TextAbilities(placements=("before",)), ImageAbilities(branches=True)), sizes)


def test_more_layers_than_a_tower_has_are_refused(mini: Backbone) -> None:
    options = METHODS.load("pfedmma").parse_options({"layers": 3})
    with pytest.raises(UserError, match="asked for 3 layers, but a tower has 2; lower layers"):
        PFedMMA.representation(mini, options)
