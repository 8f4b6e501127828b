"""PromptSRC (Khattak et al., ICCV 2023), averaged: prompts in both towers that stay near what the frozen towers say.

With x and t the unit-norm features of images and classes under the prompts, f and w those of the frozen towers, and p
and p_0 the predictions made of either, the loss is

    CE(x, t) + 25 mean |t - w| + 10 mean |x - f| + sum p_0 log(p_0 / p) / (B C)

with means over all entries and the sum over images and classes. A site answers with the mean of its prompts after each
of the round's E epochs, epoch e weighted by a Gaussian around gpa_mean E with the deviation gpa_std E. The authors
average over all epochs of one training; here what a round averages is where the next one starts, so that the sites
agree on one set of prompts. w is the mean over the source's templates, where the authors take 60 of their own.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedgraft.methods.dual_prompts import DualPromptOptions
from fedgraft.methods.ivlp import Ivlp
from fedgraft.methods.method import Method
from fedgraft.methods.visual_prompts import CACHES_FINAL


class PromptSRCOptions(DualPromptOptions):
    """The weights of the terms, and of the epochs."""

    n_ctx: int = Field(4, ge=1, description="prompts before a layer, in either tower", examples=[2])
    text_weight: float = Field(25.0, ge=0, description="weight of the distance of class features", examples=[8.0])
    image_weight: float = Field(10.0, ge=0, description="weight of the distance of image features", examples=[2.0])
    gpa_mean: float = Field(0.75, ge=0, le=1, description="heaviest epoch, as a share of the round's", examples=[1.0])
    gpa_std: float = Field(0.05, gt=0, description="deviation of the weights, as a share of the epochs", examples=[0.5])


def epoch_weights(epochs: int, mean: float, std: float) -> Tensor:
    """The Gaussian weights of epochs 1 to E, which sum to 1; mean and deviation are shares of E."""
    distance = (torch.arange(1, epochs + 1) - mean * epochs) / (std * epochs)
    return (-(distance**2) / 2).softmax(0)


class PromptSRC(Ivlp):
    """The prompts of IVLP, with the consistency terms."""

    options: PromptSRCOptions
    keeps_final = True

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy and the distances of class features, image features and predictions from the frozen ones."""
        options, scale = self.options, self.vocabulary.backbone.logit_scale
        features, frozen = self.image_features(images), self.frozen_features(images)
        named, written = self.class_features(classes), self.vocabulary.zero_shot[list(classes)]
        learnt = F.log_softmax(scale * features @ named.mT, dim=-1)
        known = F.log_softmax(scale * frozen @ written.mT, dim=-1)
        return (
            self.cross_entropy(features, named, labels)
            + options.text_weight * F.l1_loss(named, written)
            + options.image_weight * F.l1_loss(features, frozen)
            + F.kl_div(learnt, known, reduction="sum", log_target=True) / known.numel()
        )

    def on_training_begin(self) -> None:
        """No epoch has been averaged yet."""
        self._mean = {name: torch.zeros_like(value) for name, value in self.named_parameters()}

    @torch.no_grad()
    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        """Add the prompts as they are after an epoch."""
        weight = epoch_weights(epochs, self.options.gpa_mean, self.options.gpa_std)[epoch - 1]
        for name, value in self.named_parameters():
            self._mean[name] += float(weight) * value

    def on_training_end(self) -> None:
        """Answer with the mean over the epochs."""
        self.load(self._mean)


METHOD = Method(
    "promptsrc",
    "prompts in both towers, held near the frozen features, averaged over epochs and sites",
    PromptSRC,
    options=PromptSRCOptions,
    paper="Khattak et al., ICCV 2023",
    shared="the prompts of both towers",
    towers=("text", "image"),
    caches=CACHES_FINAL,
)
