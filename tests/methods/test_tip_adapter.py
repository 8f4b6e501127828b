"""Tip-Adapter's cache: what is in it, what it adds to the zero-shot logits, and what its keys learn."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.client.training import TrainingData, train
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.methods.tip_adapter import TipAdapter
from fedgraft.methods.vocabulary import Vocabulary

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven", "red star"), (0, 2, 3)
LABELS = torch.tensor([0, 1, 0, 1, 0, 0, 0])
"""Three classes of which the last has no image."""


def _adapter(backbone: Backbone, **options: Any) -> TipAdapter:
    loaded = METHODS.load("tip-adapter")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    adapter = loaded.adapter(vocabulary, loaded.parse_options(options), torch.Generator())
    assert isinstance(adapter, TipAdapter)
    return adapter


@pytest.fixture
def views(mini: Backbone) -> Tensor:
    """Seven images in two views, (7, 2, dim)."""
    return F.normalize(torch.randn(7, 2, mini.dim, generator=torch.Generator().manual_seed(2)), dim=-1)


def test_the_cache_adds_the_likeness_to_each_kept_image_of_a_class(mini: Backbone, views: Tensor) -> None:
    adapter = _adapter(mini, shots=4, alpha=2.0, beta=3.0)
    adapter.on_training_images(views, LABELS, CLASSES)
    kept = {0: (0, 2, 4, 5), 1: (1, 3), 2: ()}
    keys = {image: F.normalize(views[image].sum(0), dim=0).requires_grad_() for own in kept.values() for image in own}
    images, labels = views[:, 0], LABELS
    rows = []
    for image in images:
        row = []
        for label, index in enumerate(CLASSES):
            logit = mini.logit_scale * adapter.vocabulary.zero_shot[index] @ image
            row.append(logit + sum(2 * (-3 * (1 - keys[own] @ image)).exp() for own in kept[label]))
        rows.append(torch.stack(row))
    logits = torch.stack(rows)
    expected = (logits.exp().sum(1).log() - logits[range(7), labels]).mean()
    scores = adapter.scores(images, adapter.class_features(CLASSES), CLASSES)
    assert torch.allclose(mini.logit_scale * scores, logits, rtol=1e-4, atol=1e-4)
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    (slopes,) = torch.autograd.grad(loss, [adapter.keys])
    wanted = torch.autograd.grad(expected, list(keys.values()))
    places = [(CLASSES[label], place) for label, own in kept.items() for place in range(len(own))]
    for place, slope in zip(places, wanted, strict=True):
        assert (slopes[place] - slope).norm() <= 1e-4 * slope.norm()
    empty = ~adapter.keys.any(-1)
    assert int(empty.sum()) == 4 * 4 - 6
    assert not slopes[empty].any(), "a place without an image must stay empty whatever the optimizer"


@pytest.mark.parametrize("tuned", [True, False])
def test_the_cache_is_filled_once_and_trained_only_if_that_is_asked_for(
    tuned: bool, mini: Backbone, views: Tensor
) -> None:
    adapter, config = _adapter(mini, tuned=tuned, shots=5), RunConfig(method="tip-adapter", local_epochs=3)
    with torch.no_grad():
        zero_shot = float(adapter.loss(views[:, 0], LABELS, CLASSES))
    train(adapter, TrainingData(views, LABELS, CLASSES), config, np.random.default_rng(0))
    first = adapter.keys.detach().clone()
    images = torch.stack([F.normalize(views[i].sum(0), dim=0) for i in (0, 2, 4, 5, 6)])
    assert torch.allclose(first[0], images, atol=1e-6) != tuned
    with torch.no_grad():
        assert float(adapter.loss(views[:, 0], LABELS, CLASSES)) < zero_shot
    train(adapter, TrainingData(views.roll(1, 0), LABELS, CLASSES), config, np.random.default_rng(0))
    assert torch.equal(adapter.keys, first) != tuned


def test_an_empty_cache_is_the_zero_shot_classifier(mini: Backbone, views: Tensor) -> None:
    adapter = _adapter(mini)
    texts = adapter.class_features(CLASSES)
    assert torch.equal(adapter.scores(views[:, 0], texts, CLASSES), views[:, 0] @ texts.T)


def test_no_image_leaves_the_site(mini: Backbone) -> None:
    adapter = _adapter(mini)
    assert set(adapter.personal()) == {"keys"}
    assert not adapter.shared()
    assert METHODS.load("tip-adapter").takes_no_strategy
