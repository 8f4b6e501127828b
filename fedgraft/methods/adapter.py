"""What a method trains at a site: its parameters, which of them are personal, its class features and its loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Loss, Needs
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.methods.cuts import Cuts
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.components import LossTerm


class Batch(NamedTuple):
    """What is cached of each image, unit-norm features (B, dim) by default; labels (B,) among the softmax classes."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class AdapterContext:
    """What an adapter's size and random draws may depend on besides the generator.

    Attributes:
        seed: the run's seed.
        fold: position of the fold.
        site: number of the site; None for the server's adapter.
        round: the last round before the adapter is built.
        loss: of the run.
        sites: of the run.
        noise_key: gives the key of a site's noise, secret in a deployment; without one, what the seed gives.
    """

    seed: int = 0
    fold: int = 0
    site: int | None = None
    round: int = 0
    loss: Loss = "softmax"
    sites: int = 1
    noise_key: Callable[[], bytes] | None = None


class Adapter(nn.Module, ABC):
    """The trainable part of a method at one site.

    Args:
        vocabulary: classes, templates and the frozen backbone.
        options: the method's options.
        generator: the source of the initial values.
        context: for whom the adapter is built.

    Attributes:
        beside: what is added to each cross-entropy of image and class features in a training step.
    """

    options: Any
    personal_names: frozenset[str] = frozenset()
    """Parameters that never leave the site; all others are shared. `build` may set it."""
    loss_alone: frozenset[str] = frozenset()
    """Parameters that nothing but the loss reads: their shape may follow from the run's classes. `build` may set it."""
    is_drawn: bool = True
    """Whether the initial parameters depend on the seed."""
    loss_of_features: ClassVar[bool] = True
    """Whether the loss is made of `cross_entropy`, where what a strategy adds to the loss finds the features."""

    def __init__(
        self, vocabulary: Vocabulary, options: Any, generator: torch.Generator, context: AdapterContext | None = None
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.options = options
        self.adapter_context = context or AdapterContext()
        self.beside: LossTerm | None = None
        self.build(generator)
        self.to(vocabulary.backbone.device)

    @abstractmethod
    def build(self, generator: torch.Generator) -> None:
        """Create the parameters on the CPU, so that they do not depend on the device."""

    @abstractmethod
    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """Unit-norm features (C, dim) of classes given as positions in the vocabulary's class names."""

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy of scaled cosines; methods with additional terms override it.

        Args:
            images: as in `Batch`.
            labels: (B,) positions in `classes`.
            classes: the C classes of the softmax.
        """
        return self.cross_entropy(self.image_features(images), self.class_features(classes), labels)

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """What the method needs of a backbone under its options, checked before anything is loaded."""
        return Needs()

    @classmethod
    def cost(cls, options: Any, images: int, batch_size: int, classes: int) -> str:
        """What training costs, in one sentence that is said before it starts; empty if as much as one expects.

        Args:
            images: that go through a step over all rounds and sites.
            classes: of the softmax with the most.
        """
        return ""

    @classmethod
    def representation(cls, backbone: Backbone, options: Any) -> Representation:
        """What is cached of each image; the final features unless the method trains the image tower."""
        return FEATURES

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, dim) from what is cached of each image."""
        return images

    @property
    def changes_images(self) -> bool:
        """Whether an image's features are others than the backbone's, so that only its own image tower fits."""
        return type(self).image_features is not Adapter.image_features

    @property
    def site_independent(self) -> bool:
        """Whether the server's arrays alone determine the class features."""
        return not self.personal_names

    @property
    def class_specific(self) -> bool:
        """Whether something is learnt for each class, which says nothing about classes that nobody trains on."""
        return False

    def on_training_images(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> None:
        """Called before `on_training_begin` with all training images of the site, for methods that keep some of them.

        Args:
            images: what is cached of each, in every view, (n, views, ...).
            labels: (n,) positions in `classes`.
            classes: of the site's softmax.
        """

    def on_training_begin(self) -> None:
        """Called before the first step of every round, for methods whose loss refers to the parameters received."""

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        """Called after the last step of each of the round's epochs, numbered from 1."""

    def on_training_end(self) -> None:
        """Called after the last step of every round, before the site answers."""

    def sites_per_pass(self, classes: tuple[int, ...]) -> int:
        """How many sites' steps to combine in one forward pass; 1 for a method that cannot combine them."""
        return 1

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """The loss of each of several sites on its own batch, as `loss` returns it."""
        return [own.loss(batch.images, batch.labels, classes) for own, batch in zip(adapters, batches, strict=True)]

    @classmethod
    def all_class_features(cls, adapters: Sequence[Self], classes: tuple[int, ...]) -> list[Tensor]:
        """The class features of each of several sites, as `class_features` returns them."""
        return [adapter.class_features(classes) for adapter in adapters]

    def scores(self, images: Tensor, class_features: Tensor, classes: tuple[int, ...]) -> Tensor:
        """What the predicted class has most of, (B, C): cosines, unless the classifier depends on the image.

        Args:
            images: of `image_features`.
            class_features: of `class_features` for the same classes.
        """
        return images @ class_features.mT

    def cross_entropy(self, images: Tensor, class_features: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits logit_scale x cosine, for images (B, dim) and class features (C, dim).

        What the strategy of a run adds, `beside`, is added here.
        """
        loss = self._loss_of_logits(self.vocabulary.backbone.logit_scale * images @ class_features.mT, labels)
        return loss if self.beside is None else loss + self.beside(images, class_features, labels)

    def cosine_loss(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The same for cosines (B, C), or what a method has in their place."""
        return self._loss_of_logits(self.vocabulary.backbone.logit_scale * cosines, labels)

    def _loss_of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; under the run's sigmoid loss, binary and summed over classes.

        The latter is -mean_i sum_j log sigmoid(z_ij (logit_scale x cosine_ij + bias)), with z_ij = 1 for the class of
        image i and -1 for every other (Zhai et al. 2023, eq. 2, with classes in place of the texts of a batch).
        """
        if self.adapter_context.loss == "softmax":
            return F.cross_entropy(logits, labels)
        bias = self.vocabulary.backbone.logit_bias
        assert bias is not None, "a plan checks this before anything is loaded"
        signs = 2 * F.one_hot(labels, logits.shape[-1]) - 1
        return -F.logsigmoid(signs * (logits + bias)).sum(-1).mean()

    def image_encoder(self) -> nn.Module:
        """A copy of the image tower that matches the class features, for exports; the backbone's unless adapted."""
        return self.vocabulary.backbone.image_encoder()

    @classmethod
    def cuts(cls, options: Any, dim: int) -> Cuts:
        """The sizes besides the whole that the classifier is trained to be cut to, of a backbone's dimension; none."""
        return Cuts()

    def shallow_encoder(self, depth: int) -> nn.Module:
        """`image_encoder` up to one of the depths of `cuts`; raises ValueError if they name none."""
        raise ValueError(f"{type(self).__name__} has no classifier behind layer {depth}")

    def vision_tower(self) -> PrunableTower:
        """The same as a tower that can be pruned; raises UserError if the family's cannot be."""
        return self.vocabulary.backbone.vision_tower()

    def shared(self) -> dict[str, Tensor]:
        """The parameters that travel to the server, on the CPU, by name in sorted order."""
        return {n: p.detach().cpu() for n, p in sorted(self.named_parameters()) if n not in self.personal_names}

    def server_state(self) -> dict[str, Tensor]:
        """What the server starts from, and what a site receives: the shared parameters unless the rule maintains more.

        They differ where the rule sends each site its own (`Rule.own`): the adapter's context then says whose it is.
        """
        return self.shared()

    def personal(self) -> dict[str, Tensor]:
        """The parameters that stay at the site, on the CPU, by name in sorted order."""
        return {n: p.detach().cpu() for n, p in sorted(self.named_parameters()) if n in self.personal_names}

    def impersonal(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values for the personal parameters in a model of all sites, from the shared ones: zeros unless overridden."""
        return {name: torch.zeros_like(value) for name, value in self.personal().items()}

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite some parameters by name."""
        parameters = dict(self.named_parameters())
        for name, value in values.items():
            parameters[name].copy_(value)
