"""Local training: CoOp (Zhou et al. 2022) on each site's own images; nothing is shared."""

from fedgraft.methods.method import Method
from fedgraft.methods.promptfl import PromptFL
from fedgraft.methods.prompts import ClassContextOptions


class Local(PromptFL):
    """PromptFL's context, kept personal."""

    personal_names = frozenset({"context"})


METHOD = Method(
    "local",
    "each site on its own, nothing is shared",
    Local,
    options=ClassContextOptions,
    paper="Zhou et al., IJCV 2022",
    shared="nothing",
    personal="the context",
    takes_no_strategy="it shares nothing",
)
