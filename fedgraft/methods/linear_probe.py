"""A linear probe that starts from the zero-shot classifier (Wortsman et al., CVPR 2022), shared and averaged.

CE(x, w / |w|), with a weight vector for each class of the run that begins as the class feature of the hand-written
templates. The rows are normalized, as every classifier is here, where the authors' are free in length. Classes that
nobody trains on keep their zero-shot features as long as no weight decay pulls at them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.methods.adapter import Adapter
from fedgraft.methods.method import Method


class LinearProbe(Adapter):
    """The weights of all classes of the run, (C, dim)."""

    is_drawn = False

    @property
    def class_specific(self) -> bool:
        """Each class has weights of its own."""
        return True

    def build(self, generator: torch.Generator) -> None:
        """The zero-shot classifier; nothing is drawn."""
        self.weight = nn.Parameter(self.vocabulary.zero_shot.detach().float().cpu().clone())

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The rows of some classes at unit norm."""
        return F.normalize(self.weight[list(classes)], dim=-1)


METHOD = Method(
    "linear-probe",
    "a weight vector for each class, from the zero-shot classifier on",
    LinearProbe,
    paper="Wortsman et al., CVPR 2022",
    shared="a weight vector for each class",
    towers=(),
)
