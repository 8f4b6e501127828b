"""HiCroPL against torch's own attention and the formulas written out layer by layer."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.kept_images import keep_images
from fedgraft.backbones.representation import Representation
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.hicropl import Attention, HiCroPL
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
FORM = Representation(layer=0, final=True)


def _adapter(backbone: Backbone, seed: int = 0, **options: Any) -> HiCroPL:
    method = METHODS.load("hicropl")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    made = method.adapter(vocabulary, method.parse_options(options), torch.Generator().manual_seed(seed))
    assert isinstance(made, HiCroPL)
    with torch.no_grad():
        made.text.mul_(10)
        made.visual.mul_(10)
    return made


def _attended(own: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Torch's attention with the same weights, and keys whose bias is zero."""
    width = values.shape[-1]
    zero = torch.zeros(width)
    if len(keys) == 1:
        out: Tensor = own.out(own.value(values)).expand(len(queries), -1)
        return out
    found, _ = F.multi_head_attention_forward(
        queries[:, None], keys[:, None], values[:, None], width, 8, None,
        torch.cat([own.query.bias, zero, own.value.bias]), None, None, False, 0.0, own.out.weight, own.out.bias,
        use_separate_proj_weight=True, q_proj_weight=own.query.weight, k_proj_weight=own.key.weight,
        v_proj_weight=own.value.weight,
    )  # fmt: skip
    return found[:, 0]


def _norm(layer: nn.LayerNorm, states: Tensor) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def _written(mapper: Any, proxies: Any, targets: Tensor, sources: Tensor) -> Tensor:
    """The prompts of some layers of one tower from those of the other."""
    drawn = []
    for proxy, prompts in zip(proxies, sources, strict=True):
        keys, query = _norm(proxy.norm, prompts), _norm(proxy.norm, proxy.query)
        drawn.append(_norm(proxy.norm_out, proxy.query + _attended(proxy.attention, query, keys, keys)))
    together = torch.cat(drawn)
    values = _norm(mapper.norm, together @ mapper.value.weight.T + mapper.value.bias)
    keys = values
    if len(together) > 1:
        keys = _norm(mapper.norm, together @ mapper.key.weight.T + mapper.key.bias)
    rows = []
    for layer in targets:
        for prompt in layer:
            query = (mapper.query.weight @ prompt + mapper.query.bias)[None]
            query = query + _attended(mapper.attention, _norm(mapper.norm, query), keys, values)
            hidden = _norm(mapper.norm_hidden, query) @ mapper.hidden.weight.T + mapper.hidden.bias
            rows.append(query + hidden / (1 + (-1.702 * hidden).exp()) @ mapper.out.weight.T + mapper.out.bias)
    return torch.cat(rows).view(targets.shape)


@pytest.mark.parametrize("cross", [1, 2])
def test_loss_and_gradients_are_those_of_the_formulas(cross: int, mini: Backbone) -> None:
    adapter = _adapter(mini, cross=cross, distill=3.0)
    pixels, labels = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1])
    loss = adapter.loss(keep_images(mini, pixels, FORM), labels, CLASSES)

    visual = _written(adapter.to_image, adapter.text_proxies, adapter.visual[:cross], adapter.text[:cross])
    visual, text = torch.cat([visual, adapter.visual[cross:]]), adapter.text
    if cross < 2:
        written = _written(adapter.to_text, adapter.visual_proxies, adapter.text[cross:], adapter.visual[cross:])
        text = torch.cat([adapter.text[:cross], written])
    f, w = mini.encode_images(pixels), mini.text.encode_classes(NAMES, ("a photo of a {}.",))
    states = mini.represent_images(pixels, FORM.represented)
    x = F.normalize(mini.finish_images(states, FORM.represented, prompts=visual[None]) + f, dim=-1)
    t = mini.text.encode_prompts(text[:1], adapter.vocabulary.tokens(CLASSES), text[None, 1:])[0]
    t = F.normalize(t + w, dim=-1)
    expected = F.cross_entropy(mini.logit_scale * x @ t.T, labels)
    expected = expected + 3 * (1 - F.cosine_similarity(x, f).mean()) + 3 * (1 - F.cosine_similarity(t, w).mean())
    assert torch.allclose(loss, expected, rtol=1e-4)
    parameters = dict(adapter.named_parameters())
    slopes = torch.autograd.grad(loss, list(parameters.values()))
    others = torch.autograd.grad(expected, list(parameters.values()))
    for name, mine, other in zip(parameters, slopes, others, strict=True):
        assert other.norm() > 0, name
        assert (mine - other).norm() <= 2e-4 * other.norm(), name


def test_gradients_reach_the_mappers(mini: Backbone) -> None:
    """In the authors' code none does, because what a mapper writes overwrites the prompts outside of the graph."""
    adapter = _adapter(mini)
    pixels = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    adapter.loss(keep_images(mini, pixels, FORM), torch.tensor([0, 1, 2, 1]), CLASSES).backward()
    for mapper in (adapter.to_image, adapter.to_text):
        assert all(p.grad is not None and p.grad.norm() > 0 for p in mapper.parameters())


def test_sites_are_averaged_by_their_examples(mini: Backbone) -> None:
    sites = [_adapter(mini, seed).shared() for seed in range(3)]
    answers = [Answer(i, {n: v.numpy() for n, v in own.items()}, 10 * (i + 1), 0.0) for i, own in enumerate(sites)]
    rule = METHODS.load("hicropl").rule_for(None)
    for name, array in rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays.items():
        expected = sum(own[name].double() * (i + 1) / 6 for i, own in enumerate(sites))
        assert np.allclose(array, expected, atol=1e-6)


def test_an_exported_encoder_adds_the_features_of_both_towers(mini: Backbone) -> None:
    adapter = _adapter(mini)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = adapter.image_features(keep_images(mini, pixels, FORM))
        assert torch.allclose(adapter.image_encoder()(pixels), expected, atol=1e-5)


def test_a_turn_behind_the_last_prompted_layer_is_refused(mini: Backbone) -> None:
    options = METHODS.load("hicropl").parse_options({"cross": 3})
    with pytest.raises(UserError, match="cross=3 layers are more than the 2 with prompts; lower cross"):
        HiCroPL.representation(mini, options)
