"""ProGrad (Zhu et al., ICCV 2023) on a shared context: a step never goes against what the backbone knows.

With g_d the gradient of the cross-entropy and g_g that of KL(p_hand || p) to the hand-written prompts' predictions, the
step follows

    g_d                                          where <g_d, g_g> >= 0,
    g_d - weight <g_d, g_g> / |g_g|^2 g_g        elsewhere.

The loss that is reported is the cross-entropy. Two backward passes share one forward pass, for all sites at once.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedgraft.methods.adapter import Batch
from fedgraft.methods.method import Method
from fedgraft.methods.promptfl import PromptFL
from fedgraft.methods.prompts import ClassContextOptions


class ProGradOptions(ClassContextOptions):
    """How strongly a conflict is removed, and how soft the predictions are."""

    weight: float = Field(
        1.0, ge=0, description="lambda, which part of a conflicting direction is removed", examples=[0.5]
    )
    temperature: float = Field(1.0, gt=0, description="of both predictions in the divergence", examples=[4.0])


class ProGrad(PromptFL):
    """PromptFL's context with the projected gradient."""

    options: ProGradOptions

    def terms(self, encoded: Tensor, batch: Batch, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the divergence from the hand-written prompts up to a constant."""
        features, scale = self.features_of(encoded), self.vocabulary.backbone.logit_scale
        temperature = self.options.temperature
        written = scale * batch.images @ self.vocabulary.zero_shot[list(classes)].mT / temperature
        learnt = scale * batch.images @ features.mT / temperature
        divergence = -(written.softmax(-1) * F.log_softmax(learnt, -1)).sum(-1).mean() * temperature**2
        return self.cross_entropy(batch.images, features, batch.labels), divergence

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The cross-entropy, with the projected gradient."""
        return self.losses([self], [Batch(images, labels)], classes)[0]

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites' prompts."""
        encoded = adapters[0].encode(torch.cat([adapter.training_prompts() for adapter in adapters]), classes)
        terms = [
            adapter.terms(own, batch, classes)
            for adapter, own, batch in zip(adapters, encoded.chunk(len(adapters)), batches, strict=True)
        ]
        if not torch.is_grad_enabled():
            return [task for task, _ in terms]
        contexts = [adapter.context for adapter in adapters]
        of_task = torch.autograd.grad(torch.stack([task for task, _ in terms]).sum(), contexts, retain_graph=True)
        of_prior = torch.autograd.grad(torch.stack([prior for _, prior in terms]).sum(), contexts)
        return [
            _with_gradient(task.detach(), adapter.context, _projected(g_d, g_g, adapter.options.weight))
            for (task, _), adapter, g_d, g_g in zip(terms, adapters, of_task, of_prior, strict=True)
        ]


def _projected(task: Tensor, prior: Tensor, weight: float) -> Tensor:
    """The task's gradient without `weight` times what goes against the prior's."""
    conflict = (task * prior).sum().clamp(max=0) / prior.square().sum().clamp(min=torch.finfo(prior.dtype).tiny)
    return task - weight * conflict * prior


def _with_gradient(value: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of a given value whose gradient with respect to the parameter is the given one."""
    linear = (parameter * gradient).sum()
    return value + linear - linear.detach()


METHOD = Method(
    "prograd",
    "one shared context, whose steps never go against the hand-written prompts",
    ProGrad,
    options=ProGradOptions,
    paper="Zhu et al., ICCV 2023",
    shared="the context",
)
