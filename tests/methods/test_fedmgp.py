"""FedMGP: loss and gradients from one pass for each group, the draw, and what a round does to the groups."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedgraft.backbones import Backbone
from fedgraft.backbones.representation import Representation
from fedgraft.client.training import TrainingData, train
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import AdapterContext
from fedgraft.methods.fedmgp import FedMGP, probabilities
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
FORM = Representation(layer=0)


def _adapter(backbone: Backbone, site: int | None = 0, last_round: int = 0, **options: Any) -> FedMGP:
    method = METHODS.load("fedmgp")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    context = AdapterContext(seed=3, site=site, round=last_round)
    made = method.adapter(vocabulary, method.parse_options(options), torch.Generator().manual_seed(0), context)
    assert isinstance(made, FedMGP)
    return made


def _data(backbone: Backbone, seed: int = 1, count: int = 4) -> TrainingData:
    pixels = torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return TrainingData(backbone.represent_images(pixels, FORM)[:, None], torch.arange(count) % 3, CLASSES)


def test_the_loss_is_the_mean_over_groups_and_pushes_them_apart(mini: Backbone) -> None:
    """Each group alone through both towers, as visual prompts of the library's plain form; pairs in a double loop."""
    adapter, data = _adapter(mini, groups=3, diversity=0.7), _data(mini)
    with torch.no_grad():
        adapter.text_groups.mul_(15)
        adapter.visual_groups.mul_(15)
    images, labels, count = data.features[:, 0], data.labels, 3
    loss = adapter.loss(images, labels, CLASSES)
    tokens = adapter.vocabulary.tokens(CLASSES)
    x = [mini.finish_images(images, FORM, prompts=adapter.visual_groups[g][None, None]) for g in range(count)]
    t = [mini.text.encode_prompts(adapter.text_groups[g : g + 1], tokens)[0] for g in range(count)]
    expected = torch.zeros(())
    for g in range(count):
        expected = expected + F.cross_entropy(mini.logit_scale * x[g] @ t[g].T, labels) / count
        for h in range(g):
            cosines = F.cosine_similarity(x[g], x[h]).mean() + F.cosine_similarity(t[g], t[h]).mean()
            expected = expected + 0.7 * cosines / 2 / 3
    assert torch.allclose(loss, expected, rtol=1e-4)
    trained = [adapter.text_groups, adapter.visual_groups]
    for mine, other in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True):
        assert other.norm() > 0
        assert (mine - other).norm() <= 1e-4 * other.norm()
    with torch.no_grad():
        cosines = sum(own @ words.T for own, words in zip(x, t, strict=True)) / count
        found = adapter.scores(adapter.image_features(images), adapter.class_features(CLASSES), CLASSES)
    assert torch.allclose(found, cosines, atol=1e-5)


def test_no_image_has_scores_for_no_image(mini: Backbone) -> None:
    """A site may hold no image of a scope; its features then have no group."""
    adapter = _adapter(mini)
    with torch.no_grad():
        empty = adapter.scores(torch.empty(0, mini.dim), adapter.class_features(CLASSES), CLASSES)
    assert empty.shape == (0, 3)


def test_groups_like_the_received_ones_are_drawn_more_often(mini: Backbone) -> None:
    """The chances by hand, and the draws of many sites against them."""
    adapter = _adapter(mini, last_round=1)
    groups = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])[:, None]
    received = torch.tensor([[5.0, 0.0], [0.0, -1.0]])[:, None]
    chances = probabilities(groups, received, first=False)
    weights = np.exp([1.0, 0.0, 0.0])  # the largest cosine of each with (1, 0) and (0, -1): 1, 0 and 0
    assert np.allclose(chances, weights / weights.sum(), atol=1e-6)
    assert np.allclose(probabilities(groups, received, first=True), 1 / 3)
    counts = np.zeros(3)
    for site in range(400):
        adapter.adapter_context = AdapterContext(seed=3, site=site, round=1)
        drawn = adapter._draw(chances, "text").tolist()
        assert len({*drawn}) == 2
        counts[drawn[0]] += 1
    assert np.allclose(counts / 400, chances, atol=0.08)


def test_the_draw_depends_on_seed_site_and_round_alone(mini: Backbone) -> None:
    def drawn(seed: int, site: int, last_round: int, kind: str = "text") -> list[int]:
        adapter.adapter_context = AdapterContext(seed=seed, site=site, round=last_round)
        found: list[int] = adapter._draw(torch.full((5,), 0.2), kind).tolist()
        return found

    adapter = _adapter(mini)
    assert drawn(3, 0, 1) == drawn(3, 0, 1)
    assert len({tuple(drawn(3, site, 1)) for site in range(20)}) > 5
    assert len({tuple(drawn(3, 0, number)) for number in range(20)}) > 5
    assert len({tuple(drawn(seed, 0, 1)) for seed in range(20)}) > 5
    assert any(drawn(3, site, 1) != drawn(3, site, 1, "visual") for site in range(5))


def test_a_round_averages_what_was_drawn_and_puts_it_back_in_its_places(mini: Backbone) -> None:
    """Three sites of 10, 20 and 30 images: only the drawn groups leave, and each returns to where it came from."""
    config = RunConfig(method="fedmgp", local_epochs=1, lr=0.01)
    sites = [_adapter(mini, site) for site in range(3)]
    assert all(torch.equal(own.text_groups, sites[0].text_groups) for own in sites)
    for number, own in enumerate(sites):
        train(own, _data(mini, number), config, np.random.default_rng(number))
    answers = [
        Answer(number, {name: value.numpy() for name, value in own.shared().items()}, 10 * (number + 1), 0.0)
        for number, own in enumerate(sites)
    ]
    for own in sites:
        assert {name: tuple(value.shape) for name, value in own.shared().items()} == {
            "context": (2, 2, mini.text.width),
            "visual": (2, 2, mini.image_shape(FORM)[-1]),
        }
    rule = METHODS.load("fedmgp").rule_for(None)
    means = rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays
    places = [own.text_slots.long().tolist() for own in sites]
    for slot in range(2):
        expected = sum(own.text_groups[places[n][slot]].detach() * (n + 1) / 6 for n, own in enumerate(sites))
        assert np.allclose(means["context"][slot], expected, atol=1e-6)
    for number, own in enumerate(sites):
        later = _adapter(mini, number, last_round=1)
        later.load({name: torch.from_numpy(array) for name, array in means.items()})
        later.load(own.personal())
        for group in range(5):
            if group in places[number]:
                kept = torch.from_numpy(means["context"][places[number].index(group)])
            else:
                kept = own.text_groups[group]
            assert torch.equal(later.text_groups[group], kept)


def test_groups_fewer_than_sampled_are_refused_before_anything_is_loaded() -> None:
    config = RunConfig.build({"method": "fedmgp", "data": "digits", "method_options": {"groups": 2, "sampled": 3}})
    with pytest.raises(UserError, match=r"conflict: 3 groups cannot be sampled of 2; raise groups or lower sampled\."):
        Plan.of(config)
