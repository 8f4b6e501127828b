"""The interface of a method: an adapter's parameters, which of them are personal, its class features and its loss.

A method is one file with an `Adapter` subclass, its options and a `METHOD`. Registered under the entry-point
group `fedgraft.methods` it takes part in simulations, deployments and exports.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones import Backbone, ClassTokens
from fedgraft.backbones.tower import VisionTower
from fedgraft.options import Options, parse_options


class MethodOptions(Options):
    """The options of a method; subclasses add fields with defaults."""


class Vocabulary:
    """The classes of a run as the text tower sees them; what is frozen is computed once."""

    def __init__(self, backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> None:
        self.backbone = backbone
        self.class_names = tuple(class_names)
        self.templates = tuple(templates)
        self._tokens: dict[tuple[int, ...], ClassTokens] = {}
        self._written: dict[tuple[int, ...], list[tuple[Tensor, ClassTokens]]] = {}

    def tokens(self, classes: tuple[int, ...]) -> ClassTokens:
        """Token ids of some classes, in their order."""
        if classes not in self._tokens:
            self._tokens[classes] = self.backbone.text.tokenize_names([self.class_names[index] for index in classes])
        return self._tokens[classes]

    def written(self, classes: tuple[int, ...]) -> list[tuple[Tensor, ClassTokens]]:
        """For each template what the prompts of some classes begin with, as a context, and how they go on."""
        if classes not in self._written:
            names = [self.class_names[index] for index in classes]
            self._written[classes] = [
                self.backbone.text.tokenize_texts([template.format(name) for name in names])
                for template in self.templates
            ]
        return self._written[classes]

    @cached_property
    def zero_shot(self) -> Tensor:
        """Features of all classes under the hand-written templates, (all classes, dim)."""
        return self.backbone.text.encode_classes(self.class_names, self.templates)


class Batch(NamedTuple):
    """Images as `image_layer` has them, features (B, dim) of unit norm unless it says otherwise, and labels (B,) as
    positions in the classes of the softmax.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Seat:
    """Whose adapter it is, and when: what its size and its draws may depend on beside the generator.

    Attributes:
        seed: of the run.
        fold: position of the fold.
        site: number of the site; None for the server's adapter.
        round: the last round before it.
    """

    seed: int = 0
    fold: int = 0
    site: int | None = None
    round: int = 0


class Adapter(nn.Module, ABC):
    """The trainable part of a method at one site.

    Args:
        vocabulary: classes, templates and the frozen backbone.
        options: the method's options.
        generator: the source of the initial values.
        seat: whose it is.
    """

    personal_names: frozenset[str] = frozenset()
    """Parameters that never leave the site; all others are shared. A method may set it when it builds."""

    def __init__(
        self, vocabulary: Vocabulary, options: Any, generator: torch.Generator, seat: Seat | None = None
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.options = options
        self.seat = seat or Seat()
        self.build(generator)
        self.to(vocabulary.backbone.device)

    @abstractmethod
    def build(self, generator: torch.Generator) -> None:
        """Create the parameters on the CPU, so that they are the same wherever they go."""

    @abstractmethod
    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """Features of unit norm of some classes, (C, dim), as positions in the vocabulary's class names."""

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy of scaled cosines; methods with further terms override it.

        Args:
            images: as in `Batch`.
            labels: (B,) positions in `classes`.
            classes: the C classes of the softmax.
        """
        return self.cross_entropy(self.image_features(images), self.class_features(classes), labels)

    @classmethod
    def image_layer(cls, backbone: Backbone, options: Any) -> int | None:
        """The layer of the image tower whose input is cached of each image; None for the tower's final features."""
        return None

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, dim) of unit norm from what is cached of each image."""
        return images

    @property
    def same_at_all_sites(self) -> bool:
        """Whether the server's arrays alone decide the class features."""
        return not self.personal_names

    def training_begins(self) -> None:
        """Called before the first step of every round: a method whose loss refers to what it began with keeps it."""

    def sites_together(self, classes: tuple[int, ...]) -> int:
        """How many sites' steps are worth one forward pass; 1 for a method that has no such pass."""
        return 1

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """The loss of each of several sites on its own batch, as `loss` gives it."""
        return [
            adapter.loss(batch.images, batch.labels, classes) for adapter, batch in zip(adapters, batches, strict=True)
        ]

    @classmethod
    def all_class_features(cls, adapters: Sequence[Self], classes: tuple[int, ...]) -> list[Tensor]:
        """The class features of each of several sites, as `class_features` gives them."""
        return [adapter.class_features(classes) for adapter in adapters]

    def cross_entropy(self, images: Tensor, class_features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logit_scale x cosine."""
        return F.cross_entropy(self.vocabulary.backbone.logit_scale * images @ class_features.mT, labels)

    def vision_tower(self) -> VisionTower:
        """A copy of the image tower that the class features are for, for exports: the backbone's unless adapted."""
        return self.vocabulary.backbone.vision_tower()

    def shared(self) -> dict[str, Tensor]:
        """The parameters that travel to the server, on the CPU, by name in sorted order."""
        return {n: p.detach().cpu() for n, p in sorted(self.named_parameters()) if n not in self.personal_names}

    def server_state(self) -> dict[str, Tensor]:
        """What the server starts from and sends; the shared parameters unless the method's strategy keeps more."""
        return self.shared()

    def personal(self) -> dict[str, Tensor]:
        """The parameters that stay at the site, on the CPU, by name in sorted order."""
        return {n: p.detach().cpu() for n, p in sorted(self.named_parameters()) if n in self.personal_names}

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite some parameters by name."""
        parameters = dict(self.named_parameters())
        for name, value in values.items():
            parameters[name].copy_(value)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        strategy: "package.module:Class" of a Flower strategy; plain weighted averaging unless given.
        trains: whether there is anything to train; a method without parameters is evaluated once.
        takes_no_strategy: why no strategy of the user's can be combined with the method, as "it shares nothing";
            empty where any can.
        keeps_its_rule: why neither a site's answer nor the rule that aggregates can be another than the method's own;
            steps behind the rule still go with it.
        caches: what is computed once of each image.
    """

    name: str
    summary: str
    adapter: type[Adapter]
    options: type[MethodOptions] = MethodOptions
    strategy: str = "fedgraft.strategies.weighted_average:WeightedAverage"
    trains: bool = True
    takes_no_strategy: str = ""
    keeps_its_rule: str = ""
    caches: str = "final image features"

    def parse_options(self, values: dict[str, Any]) -> MethodOptions:
        """Check the options given by a user.

        Raises:
            UserError: an option does not exist or has a wrong value.
        """
        return parse_options(self.options, values, "method", self.name, "configuration key or option")
