"""DPT against the library's own layers, with the class-aware prompts written out image by image."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.kept_images import keep_images
from fedgraft.backbones.loading import mini_folder
from fedgraft.backbones.representation import Representation
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.dpt import DPT
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven", "g"), (0, 1, 2)
FORM = Representation(layer=0, final=True)


def _adapter(backbone: Backbone, seed: int = 4, **options: Any) -> DPT:
    method = METHODS.load("dpt")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    made = method.adapter(
        vocabulary, method.parse_options({"n_ctx": 2, **options}), torch.Generator().manual_seed(seed)
    )
    assert isinstance(made, DPT)
    with torch.no_grad():
        made.context.mul_(15)
        made.visual.mul_(15)
    return made


@pytest.mark.parametrize(("aware", "likely"), [(1, 1), (2, 2)])
def test_loss_and_gradients_are_those_of_the_plain_layers_with_the_prompts_behind_them(aware: int, likely: int) -> None:
    folder = mini_folder()
    backbone = load_backbone(str(folder))
    adapter = _adapter(backbone, aware_layers=aware, class_prompts=likely, alpha=0.7, n_visual=3)
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    pixels = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    f, w = backbone.encode_images(pixels), backbone.text.encode_classes(NAMES[:3], ("a photo of a {}.",))
    order = (f @ w.T).argsort(dim=1, descending=True)[:, :likely]
    labels = torch.tensor([int(order[0, 0]), int(order[1, -1]), *((order[2:, 0] + 1) % 3).tolist()])
    loss = adapter.loss(keep_images(backbone, pixels, FORM), labels, CLASSES)

    t, vision, rows, right = adapter.class_features(CLASSES), model.vision_model, [], []
    for image in range(6):
        states: Tensor = vision.embeddings(pixels[image : image + 1])
        count = states.shape[1]
        for index, layer in enumerate(vision.encoder.layers):
            tokens = states[:, :count]
            if index < 4 - aware:
                states = torch.cat([tokens, adapter.visual[index][None]], dim=1)
                states = vision.pre_layrnorm(states) if index == 0 else states
            else:
                own: Any = adapter.aware[index - (4 - aware)]
                around = torch.cat([tokens[0].detach(), own.vectors])
                prompts = []
                for known in order[image].tolist():
                    asked = own.named.weight @ t[known] + own.named.bias
                    score = (own.key.weight @ around.T).T @ (own.query.weight @ asked) / 32**0.5
                    saw = own.value.weight @ (score.exp() / score.exp().sum() @ around)
                    prompts.append(F.layer_norm(asked + saw, asked.shape, own.norm.weight, own.norm.bias))
                    if known == labels[image]:
                        normed = F.layer_norm(saw, saw.shape, own.norm_seen.weight, own.norm_seen.bias)
                        right.append(-F.log_softmax(own.classifier.weight[:3] @ normed, dim=0)[known])
                states = torch.cat([tokens, torch.stack(prompts)[None]], dim=1)
            states = layer(states, attention_mask=None)
        rows.append(F.normalize(model.visual_projection(vision.post_layernorm(states[:, 0])), dim=-1)[0])
    assert 0 < len(right) < aware * order.numel(), "some prompts are of the right class and some are not"
    expected = F.cross_entropy(backbone.logit_scale * torch.stack(rows) @ t.T, labels)
    expected = expected + 0.7 * torch.stack(right).mean()
    assert torch.allclose(loss, expected, rtol=1e-4)
    parameters = dict(adapter.named_parameters())
    slopes = torch.autograd.grad(loss, list(parameters.values()))
    others = torch.autograd.grad(expected, list(parameters.values()))
    for name, mine, other in zip(parameters, slopes, others, strict=True):
        assert other.norm() > 0, name
        assert (mine - other).norm() <= 1e-4 * other.norm(), name


def test_a_class_that_is_no_candidate_has_no_say(mini: Backbone) -> None:
    """Training looks for likely classes among those of its softmax; what the others are called changes nothing."""
    images = keep_images(mini, torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)), FORM)
    adapter = _adapter(mini, class_prompts=3)
    features, likely, _ = adapter._seen(images, CLASSES, adapter.class_features(CLASSES))
    assert sorted(likely[0].tolist()) == [0, 1, 2]
    assert features.shape == (4, mini.dim)


def test_sites_are_averaged_by_their_examples(mini: Backbone) -> None:
    sites = [_adapter(mini, seed).shared() for seed in range(3)]
    answers = [Answer(i, {n: v.numpy() for n, v in own.items()}, 10 * (i + 1), 0.0) for i, own in enumerate(sites)]
    rule = METHODS.load("dpt").rule_for(None)
    for name, array in rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays.items():
        expected = sum(own[name].double() * (i + 1) / 6 for i, own in enumerate(sites))
        assert np.allclose(array, expected, atol=1e-6)


def test_a_tower_that_cannot_be_stopped_is_refused_before_anything_is_loaded() -> None:
    method = METHODS.load("dpt")
    needs, sizes = method.adapter.needs(method.parse_options({})), Sizes(77, 12, 512, 512, 224, 12, 768, 196)
    image = ImageAbilities(cuts=True, prompts=True, deep_prompts=True)
    with pytest.raises(UserError, match="has an image tower that cannot be stopped at a layer"):
        needs.check("other", Abilities(TextAbilities(placements=("before",)), image), sizes)


def test_a_tower_without_lower_layers_is_refused(mini: Backbone) -> None:
    options = METHODS.load("dpt").parse_options({"aware_layers": 4})
    with pytest.raises(UserError, match="leaves none of the image tower's 4 layers for learnt prompts; lower it to 3"):
        DPT.representation(mini, options)
