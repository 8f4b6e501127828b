"""The loss that a run asks for, against the formulas of the papers written out."""

import math

import pytest
import torch

from fedgraft.backbones import Backbone
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter, AdapterContext
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary

NAMES = ("red circle", "seven", "g")


def _adapter(mini: Backbone, context: AdapterContext) -> Adapter:
    plan = Plan.of(RunConfig(method="zeroshot"))
    vocabulary = Vocabulary(mini, NAMES, ("a photo of a {}.",))
    return plan.method.adapter(vocabulary, plan.options, torch.Generator(), context)


def test_the_sigmoid_loss_decides_each_pair_of_image_and_class(mini: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zhai et al. 2023: -1/B sum_ij log 1 / (1 + exp(z_ij (-t x_i . y_j - b)))."""
    monkeypatch.setattr(mini, "logit_bias", -3.5, raising=False)
    generator = torch.Generator().manual_seed(0)
    images, classes = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (4, 3))
    labels = [2, 0, 1, 2]
    expected = 0.0
    for image, label in zip(images, labels, strict=True):
        for number, feature in enumerate(classes):
            logit = mini.logit_scale * float(image @ feature) - 3.5
            z = 1 if number == label else -1
            expected += math.log1p(math.exp(-z * logit)) / len(labels)
    found = _adapter(mini, AdapterContext(loss="sigmoid")).cross_entropy(images, classes, torch.tensor(labels))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_softmax_loss_is_what_a_run_has_unless_it_asks(mini: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    images, classes = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (4, 3))
    labels = torch.tensor([2, 0, 1, 2])
    logits = (mini.logit_scale * images @ classes.mT).double()
    expected = (logits.exp().sum(1).log() - logits[range(4), labels]).mean()
    found = _adapter(mini, AdapterContext()).cross_entropy(images, classes, labels)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_adapter_of_a_plan_has_the_loss_of_the_run(mini: Backbone) -> None:
    vocabulary = Vocabulary(mini, NAMES, ("a photo of a {}.",))
    for loss in ("softmax", "sigmoid"):
        adapter = Plan.of(RunConfig(method="promptfl", loss=loss)).adapter(vocabulary)
        assert adapter.adapter_context.loss == loss


def test_a_sigmoid_loss_on_a_backbone_without_a_bias_is_refused() -> None:
    with pytest.raises(UserError, match="'mini' has no sigmoid loss"):
        Plan.of(RunConfig(method="promptfl", loss="sigmoid")).require_backbone()
