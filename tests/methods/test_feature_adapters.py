"""Networks behind the image tower, CLIP-Adapter's and FedCLIP's: loss, gradients, aggregate, export."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven", "red star"), (0, 2, 3)
ALL = ("clip-adapter", "fedclip")


def _adapter(method: str, backbone: Backbone, seed: int = 4, **options: Any) -> Adapter:
    loaded = METHODS.load(method)
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.", "the {}"))
    adapter = loaded.adapter(vocabulary, loaded.parse_options(options), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return adapter


@pytest.fixture
def batch(mini: Backbone) -> tuple[Tensor, Tensor]:
    """Seven images of three classes."""
    images = F.normalize(torch.randn(7, mini.dim, generator=torch.Generator().manual_seed(2)), dim=-1)
    return images, torch.tensor([0, 1, 2, 1, 0, 0, 2])


def _same_slopes(adapter: Adapter, loss: Tensor, expected: Tensor, plain: dict[str, Tensor]) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        slope = plain[name].grad
        assert parameter.grad is not None
        assert slope is not None
        assert slope.norm() > 0
        assert (parameter.grad - slope).norm() <= 1e-4 * slope.norm()


def _copies(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in adapter.named_parameters()}


@pytest.mark.parametrize(("ratio", "norm"), [(0.2, 1.0), (0.7, 9.0)])
def test_clip_adapter_is_that_of_its_paper_whatever_the_norm_of_the_features(
    ratio: float, norm: float, mini: Backbone, batch: tuple[Tensor, Tensor]
) -> None:
    """The authors feed features before they are normalized."""
    adapter, (images, labels) = _adapter("clip-adapter", mini, ratio=ratio), batch
    plain = _copies(adapter)
    logits = []
    for image in norm * images:
        hidden = (plain["head.down.weight"] @ image).clamp(min=0)
        mixed = ratio * (plain["head.up.weight"] @ hidden).clamp(min=0) + (1 - ratio) * image
        logits.append(mini.logit_scale * adapter.vocabulary.zero_shot[list(CLASSES)] @ mixed / mixed.norm())
    rows = torch.stack(logits)
    expected = (rows.exp().sum(1).log() - rows[range(7), labels]).mean()
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    _same_slopes(adapter, loss, expected, plain)


@pytest.mark.parametrize("template", ["a picture of a {}", "{} here."])
def test_fedclip_contrasts_the_images_of_a_batch_with_their_texts_both_ways(
    template: str, mini: Backbone, batch: tuple[Tensor, Tensor]
) -> None:
    adapter, (images, labels) = _adapter("fedclip", mini, template=template), batch
    plain = _copies(adapter)
    texts = mini.text.encode_texts([template.format(NAMES[CLASSES[label]]) for label in labels])
    gated = []
    for image in images:
        hidden = (plain["head.attention.0.weight"] @ image + plain["head.attention.0.bias"]).tanh()
        weights = (plain["head.attention.2.weight"] @ hidden + plain["head.attention.2.bias"]).exp()
        own = image * weights / weights.sum()
        gated.append(own / own.norm())
    similarity = (mini.logit_scale * torch.stack(gated) @ texts.T).exp()
    own = similarity.diagonal()
    expected = -((own / similarity.sum(1)).log() + (own / similarity.sum(0)).log()).mean() / 2
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    _same_slopes(adapter, loss, expected, plain)


@pytest.mark.parametrize(("method", "weights"), [("clip-adapter", (1, 2, 5)), ("fedclip", (1, 1, 1))])
def test_sites_count_as_the_paper_has_it(method: str, weights: tuple[int, ...], mini: Backbone) -> None:
    sites = [_adapter(method, mini, seed).shared() for seed in range(3)]
    answers = [
        Answer(site, {name: value.numpy() for name, value in own.items()}, examples, 0.0)
        for site, (own, examples) in enumerate(zip(sites, (10, 20, 50), strict=True))
    ]
    rule = METHODS.load(method).rule_for(None)
    after = rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays
    assert after
    for name, array in after.items():
        expected = sum(own[name].double() * weight for own, weight in zip(sites, weights, strict=True)) / sum(weights)
        assert np.allclose(array, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ALL)
def test_an_exported_tower_ends_with_the_network(method: str, mini: Backbone) -> None:
    adapter = _adapter(method, mini)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = mini.encode_images(pixels)
        expected = adapter.image_features(features)
        found = adapter.image_encoder()(pixels)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, features, atol=1e-3)
    with pytest.raises(UserError, match="cannot be pruned; export it dense"):
        adapter.vision_tower()


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_a_template_without_one_place_for_the_name_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"one \{\} where the class name goes"):
        METHODS.load("fedclip").parse_options({"template": template})


@pytest.mark.parametrize(("method", "count"), [("clip-adapter", 131_072), ("fedclip", 525_312)])
def test_parameters_at_vit_b16_are_those_of_the_papers(method: str, count: int) -> None:
    """At 512 features: 2 x 512 x 128, and 2 x (512 x 512 + 512), 0.52 million in others' tables."""
    loaded = METHODS.load(method)
    adapter = loaded.adapter.__new__(loaded.adapter)
    adapter.options = loaded.parse_options({})
    network = loaded.adapter.network(adapter, 512)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
