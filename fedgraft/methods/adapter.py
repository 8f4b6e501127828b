"""What a method trains at a site: its parameters, which of them are personal, its class features and its loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.methods.vocabulary import Vocabulary


class Batch(NamedTuple):
    """Images as `image_layer` has them, features (B, dim) of unit norm unless it says otherwise, and labels (B,) as
    positions in the classes of the softmax.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class AdapterContext:
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
        context: whose it is.
    """

    options: Any
    personal_names: frozenset[str] = frozenset()
    """Parameters that never leave the site; all others are shared. A method may set it when it builds."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        options: Any,
        generator: torch.Generator,
        context: AdapterContext | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.options = options
        self.adapter_context = context or AdapterContext()
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

    def on_training_begin(self) -> None:
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
        """What the server starts from and sends; the shared parameters unless the method's rule keeps more."""
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
