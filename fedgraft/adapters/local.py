"""Each site alone: CoOp (Zhou et al. 2022) on the site's own images, nothing is shared."""

from fedgraft.adapters.base import Method
from fedgraft.adapters.context import ContextOptions
from fedgraft.adapters.promptfl import PromptFL


class Local(PromptFL):
    """PromptFL's context, kept personal."""

    personal_names = frozenset({"context"})


METHOD = Method(
    "local", "each site alone, nothing is shared", Local, ContextOptions, takes_no_strategy="it shares nothing"
)
