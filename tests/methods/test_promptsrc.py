"""PromptSRC: its loss and gradients written out again, its averages, and the frozen feature that is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fedgraft.backbones import Backbone
from fedgraft.backbones.feature_store import FeatureStore
from fedgraft.backbones.kept_images import keep_images, kept_shape, parted
from fedgraft.backbones.representation import Representation
from fedgraft.client.training import TrainingData, train
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.data.examples import KEY_BYTES
from fedgraft.methods.promptsrc import PromptSRC, epoch_weights
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
FORM = Representation(layer=0, final=True)


def _adapter(backbone: Backbone, seed: int = 0, **options: Any) -> PromptSRC:
    method = METHODS.load("promptsrc")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.", "the {}"))
    made = method.adapter(vocabulary, method.parse_options(options), torch.Generator().manual_seed(seed))
    assert isinstance(made, PromptSRC)
    return made


def _pixels(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def test_the_loss_holds_features_and_predictions_near_the_frozen_ones(mini: Backbone) -> None:
    """Every term in plain sums, the frozen features from passes of their own; gradients by the chain of both."""
    adapter, pixels, labels = _adapter(mini, text_weight=3.0, image_weight=5.0), _pixels(), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(10)
    images = keep_images(mini, pixels, FORM)
    loss = adapter.loss(images, labels, CLASSES)

    x = mini.finish_images(
        mini.represent_images(pixels, Representation(layer=0)), FORM.represented, prompts=adapter.visual[None]
    )
    t, f = adapter.class_features(CLASSES), mini.encode_images(pixels)
    w = mini.text.encode_classes(NAMES, ("a photo of a {}.", "the {}"))
    p = (mini.logit_scale * x @ t.T).softmax(1)
    p_0 = (mini.logit_scale * f @ w.T).softmax(1)
    expected = -p[torch.arange(4), labels].log().sum() / 4
    expected = expected + 3 * (t - w).abs().sum() / t.numel() + 5 * (x - f).abs().sum() / x.numel()
    expected = expected + (p_0 * (p_0 / p).log()).sum() / (4 * 3)
    assert torch.allclose(loss, expected, rtol=1e-4)
    parameters = list(adapter.parameters())
    for mine, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert other.norm() > 0
        assert (mine - other).norm() <= 1e-4 * other.norm()


def test_the_image_term_is_not_zero_once_prompts_are_in_the_image_tower(mini: Backbone) -> None:
    images, labels = keep_images(mini, _pixels(), FORM), torch.tensor([0, 1, 2, 1])
    with_term, without = (float(_adapter(mini, image_weight=w).loss(images, labels, CLASSES).detach()) for w in (10, 0))
    assert with_term > without + 1e-3


def test_epochs_are_weighted_by_the_published_gaussian() -> None:
    """20 epochs with mean 15 and deviation 1, as the authors train, from the density itself."""
    density = np.exp(-((np.arange(1, 21) - 15.0) ** 2) / 2) / np.sqrt(2 * np.pi)
    assert np.allclose(epoch_weights(20, 0.75, 0.05), density / density.sum(), atol=1e-6)
    assert epoch_weights(1, 0.75, 0.05).tolist() == [1.0]


def test_a_site_answers_with_the_mean_of_its_prompts_over_the_epochs(mini: Backbone) -> None:
    """Against the prompts after one, two and three epochs of the same training."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(PromptSRC):
        def on_epoch_end(self, epoch: int, epochs: int) -> None:
            super().on_epoch_end(epoch, epochs)
            assert (epoch, epochs) == (len(seen) + 1, 3)
            seen.append({name: value.detach().clone() for name, value in self.named_parameters()})

    like = _adapter(mini, gpa_std=0.5)
    adapter = Watched(like.vocabulary, like.options, torch.Generator().manual_seed(0))
    data = TrainingData(keep_images(mini, _pixels(), FORM)[:, None], torch.tensor([0, 1, 2, 1]), CLASSES)
    train(adapter, data, RunConfig(method="promptsrc", local_epochs=3, batch_size=2, lr=0.01), np.random.default_rng(0))
    weights = np.exp(-((np.arange(1, 4) - 2.25) ** 2) / (2 * 1.5**2))
    for name, value in adapter.shared().items():
        expected = sum(own[name] * float(weight / weights.sum()) for own, weight in zip(seen, weights, strict=True))
        assert isinstance(expected, torch.Tensor)
        assert torch.allclose(value, expected, atol=1e-6)
        assert not torch.allclose(value, seen[-1][name], atol=1e-6)


def test_sites_are_averaged_by_their_examples(mini: Backbone) -> None:
    sites = [_adapter(mini, seed).shared() for seed in range(3)]
    answers = [Answer(i, {n: v.numpy() for n, v in own.items()}, 10 * (i + 1), 0.0) for i, own in enumerate(sites)]
    rule = METHODS.load("promptsrc").rule_for(None)
    for name, array in rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays.items():
        expected = sum(own[name].double() * (i + 1) / 6 for i, own in enumerate(sites))
        assert np.allclose(array, expected, atol=1e-6)


def test_the_final_feature_is_kept_beside_the_states(mini: Backbone, tmp_path: Path) -> None:
    """One pass of the frozen tower gives both, and both come back from the store as they were."""
    pixels = _pixels(3)
    kept = keep_images(mini, pixels, FORM)
    assert kept.shape[1:] == kept_shape(mini, FORM)
    states, final = parted(mini, kept, FORM)
    assert final is not None
    assert torch.equal(states, mini.represent_images(pixels, Representation(layer=0)))
    assert torch.allclose(final, mini.encode_images(pixels), atol=1e-5)
    store = FeatureStore(tmp_path, mini, FORM)
    assert store.folder.name.endswith("-layer0-final")
    values = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(value) for value in values]
    keys = np.arange(3 * KEY_BYTES, dtype=np.uint8).reshape(3, KEY_BYTES)
    assert store.fill(keys, lambda position: pictures[position]) == 3
    pixels = mini.preprocess(pictures)
    stored = torch.from_numpy(np.array(store.vectors()[store.rows(keys)]))
    assert torch.equal(stored, keep_images(mini, pixels, FORM))
    assert np.allclose(store.features(store.rows(keys)), mini.encode_images(pixels), atol=1e-5)


def test_half_precision_keeps_the_frozen_feature_to_a_thousandth(mini: Backbone) -> None:
    form = Representation(layer=0, final=True, dtype="float16")
    _, final = parted(mini, keep_images(mini, _pixels(), form).half(), form)
    assert final is not None
    assert F.cosine_similarity(final, mini.encode_images(_pixels())).min() > 1 - 1e-6
    assert torch.allclose(final, mini.encode_images(_pixels()), atol=1e-3)


def test_a_final_feature_beside_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="name a layer"):
        Representation(final=True)
