"""The classes of a run as the text tower sees them."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from fedgraft.backbones import Backbone, ClassTokens

_VALUES_PER_PASS = 64 * 1024
"""Token embeddings times width, beyond which more sites per pass bring no gain on a CPU; see docs/performance.md."""


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

    def template_prompts(self, classes: tuple[int, ...]) -> list[tuple[Tensor, ClassTokens]]:
        """For each template, what the prompts of some classes begin with, as a context, and how they continue."""
        if classes not in self._written:
            names = [self.class_names[index] for index in classes]
            self._written[classes] = [
                self.backbone.text.tokenize_texts([template.format(name) for name in names])
                for template in self.templates
            ]
        return self._written[classes]

    def sites_per_pass(self, tokens: int) -> int:
        """How many sites keep one pass in the processor's cache, if each contributes `tokens` token embeddings."""
        return max(1, _VALUES_PER_PASS // (tokens * self.backbone.text.width))

    @cached_property
    def zero_shot(self) -> Tensor:
        """Features of all classes under the hand-written templates, (all classes, dim)."""
        return self.backbone.text.encode_classes(self.class_names, self.templates)
