"""Learnt context vectors, as in CoOp (Zhou et al. 2022): what prompt methods share.

The text tower takes nearly all the time of a training step, and it does not matter whose context it encodes. So the
steps of several sites go through it in one pass, and each site's loss is computed from its own features.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedgraft.backbones.abilities import Needs, Placement
from fedgraft.config.options import Options
from fedgraft.methods.adapter import Adapter, Batch
from fedgraft.methods.vocabulary import Vocabulary

INITIAL_STD = 0.02


class ContextOptions(Options):
    """Length, initial value and position of the context."""

    n_ctx: int = Field(16, ge=1, description="context vectors before the class name", examples=[4])
    ctx_init: str = Field("", description="words that initialize the context and its length", examples=["a photo of a"])
    placement: Placement = Field(
        "before", description="context before the class name, around it, or behind it", examples=["behind"]
    )


class ClassContextOptions(ContextOptions):
    """A context that all classes share, or one for each."""

    class_context: bool = Field(
        False, description="a context for each class; exports then keep only trained classes", examples=[True]
    )


def initial_context(
    vocabulary: Vocabulary, options: ContextOptions, generator: torch.Generator, prompts: int = 1
) -> Tensor:
    """The initial context, (prompts, n_ctx, width): Normal(0, 0.02^2), or the embeddings of `ctx_init`.

    Underscores in `ctx_init` count as spaces, as CoOp has them.

    Raises:
        UserError: the context and the longest class name do not fit into the text tower.
    """
    text = vocabulary.backbone.text
    if options.ctx_init:
        words = text.embed_words(options.ctx_init.replace("_", " "))
        context = words.detach().cpu().expand(prompts, -1, -1).clone()
    else:
        context = INITIAL_STD * torch.randn(prompts, options.n_ctx, text.width, generator=generator)
    vocabulary.require_room(context.shape[1])
    return context


def initial_class_context(vocabulary: Vocabulary, options: ClassContextOptions, generator: torch.Generator) -> Tensor:
    """The initial context, (1, n_ctx, width), or with `class_context` one for each class, (1, C, n_ctx, width)."""
    if not options.class_context:
        return initial_context(vocabulary, options, generator)
    count = len(vocabulary.class_names)
    return initial_context(vocabulary, options, generator, count)[None]


class PromptAdapter(Adapter):
    """A method whose class features come from learnt prompts around the class names."""

    options: ContextOptions

    @classmethod
    def needs(cls, options: ContextOptions) -> Needs:
        """A context at its place."""
        return Needs(placement=options.placement, context=0 if options.ctx_init else options.n_ctx)

    @abstractmethod
    def prompts(self) -> Tensor:
        """The prompts of the classifier, (N, n_ctx, width)."""

    def training_prompts(self) -> Tensor:
        """What a training step encodes, (M, n_ctx, width): the classifier's prompts unless the loss needs more."""
        return self.prompts()

    def features_of(self, encoded: Tensor) -> Tensor:
        """Class features (C, dim) from the encoded prompts (N, C, dim): their normalized mean."""
        return encoded[0] if len(encoded) == 1 else F.normalize(encoded.mean(0), dim=-1)

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The loss from the encoded training prompts (M, C, dim)."""
        return self.cross_entropy(images, self.features_of(encoded), labels)

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The normalized mean over prompts."""
        return self.features_of(self.encode(self.prompts(), classes))

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """`loss_of` this site's prompts."""
        return self.loss_of(self.encode(self.training_prompts(), classes), images, labels, classes)

    def encode(self, prompts: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Features (N, C, dim) of prompts (N, n_ctx, width), or of one for each class of the run."""
        tokens = self.vocabulary.tokens(classes)
        if prompts.dim() == 4:
            prompts = prompts[:, list(classes)]
        return self.vocabulary.backbone.text.encode_prompts(prompts, tokens, placement=self.options.placement)

    def sites_per_pass(self, classes: tuple[int, ...]) -> int:
        """As many sites as keep one pass in the processor's cache."""
        with torch.no_grad():
            prompts = len(self.training_prompts())
        return self.vocabulary.sites_per_pass(prompts * self.vocabulary.tokens(classes).ids.numel())

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites' prompts."""
        encoded = adapters[0].encode(torch.cat([adapter.training_prompts() for adapter in adapters]), classes)
        return [
            adapter.loss_of(own, batch.images, batch.labels, classes)
            for adapter, own, batch in zip(adapters, encoded.chunk(len(adapters)), batches, strict=True)
        ]

    @classmethod
    def all_class_features(cls, adapters: Sequence[Self], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites' prompts."""
        encoded = adapters[0].encode(torch.cat([adapter.prompts() for adapter in adapters]), classes)
        return [adapter.features_of(own) for adapter, own in zip(adapters, encoded.chunk(len(adapters)), strict=True)]
