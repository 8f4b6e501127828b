"""Learnt context vectors, as in CoOp (Zhou et al. 2022): what prompt methods share."""

import torch
from pydantic import Field
from torch import Tensor

from fedgraft.adapters.base import MethodOptions, Vocabulary
from fedgraft.errors import UserError

INITIAL_STD = 0.02


class ContextOptions(MethodOptions):
    """Length and start of the context."""

    n_ctx: int = Field(16, ge=1, description="context vectors before the class name")
    ctx_init: str = Field("", description="words whose embeddings start the context; they then set its length")


def initial_context(
    vocabulary: Vocabulary, options: ContextOptions, generator: torch.Generator, prompts: int = 1
) -> Tensor:
    """The context at the start, (prompts, n_ctx, width): Normal(0, 0.02^2), or the embeddings of `ctx_init`.

    Raises:
        UserError: context and longest class name do not fit into the text tower.
    """
    text = vocabulary.backbone.text
    if options.ctx_init:
        context = text.embed_words(options.ctx_init).detach().expand(prompts, -1, -1).clone()
    else:
        context = INITIAL_STD * torch.randn(prompts, options.n_ctx, text.width, generator=generator)
    longest = vocabulary.tokens(tuple(range(len(vocabulary.class_names)))).ids.shape[1]
    needed = 1 + context.shape[1] + longest
    if needed > text.max_tokens:
        raise UserError(
            f"A context of {context.shape[1]} vectors and the longest class name need {needed} positions; "
            f"the text tower has {text.max_tokens}. Lower n_ctx to {text.max_tokens - 1 - longest} or less."
        )
    return context
