"""Tip-Adapter (Zhang et al., ECCV 2022) at each site: a cache of the site's own images beside the written templates.

    logits(x) = s cos(x, t_c) + alpha sum over the cached images k of class c of exp(-beta (1 - x . k))

with s the logit scale and t_c the feature of the hand-written templates. The cache holds up to `shots` images of each
class, each as the normalized mean of its views. Without `tuned` that is all, and training is over when the cache is
filled; with it, the keys are trained from there (Tip-Adapter-F), unbounded in length as in the authors' code.

The keys are features of a site's images, so they stay at the site and nothing is shared. The authors search alpha and
beta on validation images, here they are options with the paper's values.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.config.options import Options
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.method import Method


class TipAdapterOptions(Options):
    """Size and weight of the cache."""

    tuned: bool = Field(
        True, description="train the keys; false classifies with the images as they are", examples=[False]
    )
    shots: int = Field(16, ge=1, description="images of each class in the cache, at most", examples=[2])
    alpha: float = Field(1.0, ge=0, description="weight of the cache", examples=[3.0])
    beta: float = Field(5.5, ge=0, description="how fast an image's weight falls with its distance", examples=[1.0])


class TipAdapter(Adapter):
    """Keys (classes, shots, dim), zero where there is no image."""

    options: TipAdapterOptions
    personal_names = frozenset({"keys"})
    is_drawn = False
    loss_of_features = False

    @property
    def class_specific(self) -> bool:
        """Each class has images of its own."""
        return True

    def build(self, generator: torch.Generator) -> None:
        """An empty cache; nothing is drawn."""
        vocabulary, options = self.vocabulary, self.options
        keys = torch.zeros(len(vocabulary.class_names), options.shots, vocabulary.backbone.dim)
        self.keys = nn.Parameter(keys, requires_grad=options.tuned)

    @torch.no_grad()
    def on_training_images(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> None:
        """Fill the cache, once for all rounds."""
        if self.keys.any():
            return
        for label, index in enumerate(classes):
            found = F.normalize(images[labels == label][: self.options.shots].mean(1), dim=-1)
            self.keys[index, : len(found)] = found

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The hand-written templates, computed once."""
        return self.vocabulary.zero_shot[list(classes)]

    def scores(self, images: Tensor, class_features: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The logits over s."""
        keys = self.keys[list(classes)]
        near = (self.options.beta * (torch.einsum("bd,csd->bcs", images, keys) - 1)).exp()
        cached = (near * keys.detach().any(-1)).sum(-1)
        return images @ class_features.mT + self.options.alpha / self.vocabulary.backbone.logit_scale * cached

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy of the logits; without `tuned` there is nothing to derive it by."""
        return self.cosine_loss(self.scores(images, self.class_features(classes), classes), labels)


METHOD = Method(
    "tip-adapter",
    "a cache of each site's own images beside the hand-written templates",
    TipAdapter,
    options=TipAdapterOptions,
    paper="Zhang et al., ECCV 2022",
    shared="nothing",
    personal="the features of its images, or keys trained from them",
    towers=(),
    takes_no_strategy="it shares nothing",
    takes_no_export="its classifier compares an image with those that a site keeps",
)
