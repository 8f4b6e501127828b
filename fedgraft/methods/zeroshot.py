"""Zero-shot classification with hand-written templates (Radford et al. 2021): the baseline; nothing is trained."""

import torch
from torch import Tensor

from fedgraft.methods.adapter import Adapter
from fedgraft.methods.method import Method


class ZeroShot(Adapter):
    """No parameters; the class features of the data source's templates."""

    def build(self, generator: torch.Generator) -> None:
        """Creates nothing."""

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The mean over templates."""
        return self.vocabulary.zero_shot[list(classes)]


METHOD = Method(
    "zeroshot",
    "hand-written templates, nothing is trained",
    ZeroShot,
    paper="Radford et al., ICML 2021",
    shared="nothing",
    trains=False,
    takes_no_strategy="it trains nothing",
)
