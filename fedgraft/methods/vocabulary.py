"""The classes of a run as the text tower sees them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from fedgraft.backbones import Backbone, ClassTokens
from fedgraft.core.errors import UserError
from fedgraft.data.split import Split

_SHOWN = 60
"""How many characters of a class name a message shows."""
_VALUES_PER_PASS = 64 * 1024
"""Token embeddings times width, beyond which more sites per pass bring no gain on a CPU; see docs/performance.md."""


def _abridged(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


class Vocabulary:
    """The classes of a run as the text tower sees them; what is frozen is computed once."""

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        templates: Sequence[str],
        class_templates: Sequence[Sequence[str]] = (),
    ) -> None:
        self.backbone = backbone
        self.class_names = tuple(class_names)
        self.templates = tuple(templates)
        self._templates = [tuple(own) for own in class_templates] or [self.templates] * len(self.class_names)
        self._tokens: dict[tuple[int, ...], ClassTokens] = {}
        self._written: dict[tuple[int, ...], list[tuple[Tensor, ClassTokens]]] = {}
        self._features: dict[str, Tensor] = {}

    @classmethod
    def of(cls, backbone: Backbone, split: Split) -> Self:
        """The vocabulary of a run's split."""
        return cls(backbone, split.class_names, split.templates, split.class_templates)

    def tokens(self, classes: tuple[int, ...]) -> ClassTokens:
        """Token ids of some classes, in their order."""
        if classes not in self._tokens:
            self._tokens[classes] = self.backbone.text.tokenize_names([self.class_names[index] for index in classes])
        return self._tokens[classes]

    def require_room(self, n_ctx: int = 0) -> None:
        """Raise UserError unless a context of so many vectors and the longest class name fit into the text tower."""
        tokens, text = self.tokens(tuple(range(len(self.class_names)))), self.backbone.text
        longest = tokens.ids.shape[1]
        room = text.max_tokens - text.start_tokens - longest
        if n_ctx <= room:
            return
        name = self.class_names[int(tokens.ends.argmax())]
        if room < 1:
            text.require_short(self.class_names)
        needed = text.start_tokens + n_ctx + longest
        raise UserError(
            f"A context of {n_ctx} vectors and the class name {_abridged(name)!r} need {needed} positions, but the "
            f"text tower has {text.max_tokens}. Lower n_ctx to {room} or less, or shorten the name."
        )

    def template_prompts(self, classes: tuple[int, ...]) -> list[tuple[Tensor, ClassTokens]]:
        """For each template, what the prompts of some classes begin with, as a context, and how they continue.

        Where classes have templates of their own, those with fewer repeat them in turn.

        Raises:
            UserError: the text tower would cut off a prompt.
        """
        if classes not in self._written:
            for index in classes:
                self.backbone.text.require_whole([self.class_names[index]], self._templates[index])
            self._written[classes] = [
                self.backbone.text.tokenize_texts([self._text(index, number) for index in classes])
                for number in range(max(len(self._templates[index]) for index in classes))
            ]
        return self._written[classes]

    def _text(self, index: int, number: int) -> str:
        own = self._templates[index]
        return own[number % len(own)].format(self.class_names[index])

    def sites_per_pass(self, tokens: int) -> int:
        """How many sites keep one pass in the processor's cache, if each contributes `tokens` token embeddings."""
        return max(1, _VALUES_PER_PASS // (tokens * self.backbone.text.width))

    def written_features(self, template: str) -> Tensor:
        """Features of all classes under a template of a method's own, (all classes, dim), computed once."""
        if template not in self._features:
            self._features[template] = self.backbone.text.encode_classes(self.class_names, (template,))
        return self._features[template]

    @cached_property
    def zero_shot(self) -> Tensor:
        """Features of all classes under the hand-written templates, (all classes, dim)."""
        encode = self.backbone.text.encode_classes
        different = list(dict.fromkeys(self._templates))
        if len(different) == 1:
            return encode(self.class_names, different[0])
        features: dict[int, Tensor] = {}
        for templates in different:
            classes = [index for index, own in enumerate(self._templates) if own == templates]
            features.update(
                zip(classes, encode([self.class_names[index] for index in classes], templates), strict=True)
            )
        return torch.stack([features[index] for index in range(len(features))])
