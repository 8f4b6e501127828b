"""Prompts in the image tower, and in both: loss, gradients and aggregate against the library's own plain forward."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.loading import mini_folder
from fedgraft.backbones.representation import Representation
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.methods.plan import Plan
from fedgraft.methods.visual_prompts import VisualPromptAdapter
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
ALL = ("vpt", "ivlp", "maple")


def _adapter(method: str, backbone: Backbone, seed: int = 4, **options: Any) -> VisualPromptAdapter:
    loaded = METHODS.load(method)
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    made = loaded.adapter(vocabulary, loaded.parse_options(options), torch.Generator().manual_seed(seed))
    assert isinstance(made, VisualPromptAdapter)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def _prompted_images(model: CLIPModel, pixels: Tensor, prompts: Tensor) -> Tensor:
    """Every layer of the library's own, with the prompts (depth, n, width) behind its tokens."""
    tower = model.vision_model
    states = tower.embeddings(pixels)
    tokens = states.shape[1]
    for index, layer in enumerate(tower.encoder.layers):
        if index < len(prompts):
            states = torch.cat([states[:, :tokens], prompts[index].expand(len(pixels), -1, -1)], dim=1)
        states = layer(tower.pre_layrnorm(states) if index == 0 else states, attention_mask=None)
    return F.normalize(model.visual_projection(tower.post_layernorm(states[:, 0])), dim=-1)


def _prompted_classes(model: CLIPModel, folder: Path, context: Tensor, deep: Tensor | None) -> Tensor:
    """Every layer of the library's own over [start; context; name.; end], with deep prompts at the context's places."""
    tokenizer, tower = AutoTokenizer.from_pretrained(folder), model.text_model
    features = []
    for name in NAMES:
        ids = torch.tensor(tokenizer(f"{name}.")["input_ids"])
        words = tower.embeddings.token_embedding(ids)
        states = torch.cat([words[:1], context, words[1:]])[None]
        states = states + tower.embeddings.position_embedding.weight[: states.shape[1]]
        mask = torch.full((states.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        for index, layer in enumerate(tower.encoder.layers):
            if deep is not None and 1 <= index <= len(deep):
                states = torch.cat([states[:, :1], deep[index - 1][None], states[:, 1 + len(context) :]], dim=1)
            states = layer(states, attention_mask=mask)
        features.append(model.text_projection(tower.final_layer_norm(states[0, -1])))
    return F.normalize(torch.stack(features), dim=-1)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("method", ALL)
def test_loss_and_gradients_are_those_of_the_plain_towers_with_the_prompts_in_them(method: str, depth: int) -> None:
    folder = mini_folder()
    backbone = load_backbone(str(folder))
    adapter = _adapter(method, backbone, depth=depth)
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    pixels = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 1])
    parameters = dict(adapter.named_parameters())
    plain = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    classes = adapter.class_features(CLASSES).detach()
    if method != "vpt":
        classes = _prompted_classes(model, folder, plain["context"][0], plain["deep"][0] if depth > 1 else None)
    if method == "maple":
        text = [plain["context"][0], *(plain["deep"][0] if depth > 1 else [])]
        visual = torch.stack(
            [own @ plain["coupling"][layer].T + plain["offset"][layer] for layer, own in enumerate(text)]
        )
    else:
        visual = plain["visual"]
    found = _prompted_images(model, pixels, visual)
    expected = F.cross_entropy(backbone.logit_scale * found @ classes.mT, labels)
    images = backbone.represent_images(pixels, Representation(layer=0))
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(adapter.image_features(images), found, atol=1e-5)
    assert torch.allclose(adapter.class_features(CLASSES), classes, atol=1e-5)
    assert torch.allclose(loss, expected, rtol=1e-4)
    loss.backward()
    expected.backward()
    for name, parameter in parameters.items():
        slope = plain[name].grad
        assert parameter.grad is not None
        assert slope is not None
        assert (parameter.grad - slope).norm() <= 1e-4 * slope.norm()


@pytest.mark.parametrize("method", ALL)
def test_sites_are_averaged_by_their_examples(method: str, mini: Backbone) -> None:
    sites = [_adapter(method, mini, seed).shared() for seed in range(3)]
    answers = [Answer(i, {n: v.numpy() for n, v in own.items()}, 10 * (i + 1), 0.0) for i, own in enumerate(sites)]
    rule = METHODS.load(method).rule_for(None)
    after = rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays
    for name, array in after.items():
        expected = sum(own[name].double() * (i + 1) / 6 for i, own in enumerate(sites))
        assert np.allclose(array, expected, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_an_exported_tower_has_the_prompts_in_it(method: str, mini: Backbone) -> None:
    adapter = _adapter(method, mini)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = adapter.image_features(mini.represent_images(pixels, Representation(layer=0)))
        assert torch.allclose(adapter.image_encoder()(pixels), expected, atol=1e-5)
    with pytest.raises(UserError, match="cannot be pruned; export it dense"):
        adapter.vision_tower()


def test_half_precision_keeps_the_features_to_a_thousandth(mini: Backbone) -> None:
    exact, half = _adapter("ivlp", mini), _adapter("ivlp", mini, cache="float16")
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    states = mini.represent_images(pixels, Representation(layer=0))
    with torch.no_grad():
        assert torch.allclose(half.image_features(states.half()), exact.image_features(states), atol=2e-3)


@pytest.mark.parametrize("method", ALL)
def test_more_layers_than_the_tower_has_are_refused_before_anything_is_loaded(method: str) -> None:
    config = RunConfig.build({"method": method, "data": "digits", "method_options": {"depth": 5}})
    with pytest.raises(UserError, match=r"(2|4) layers in its (text|image) tower, and .*prompts are asked for 5"):
        Plan.of(config).require_backbone()
