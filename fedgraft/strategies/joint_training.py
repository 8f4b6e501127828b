"""A term beside the sites' loss together with another way to take its gradients, such as `m2mix+sam`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedgraft.strategies.components import LossTerm, Training

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


class JointTraining(Training):
    """The gradients of a loss that has the term; what is drawn for the term stays the same within a step."""

    adds_term = True

    def __init__(self, term: Training, gradients: Training) -> None:
        super().__init__()
        self._term, self._gradients = term, gradients

    def term(self, rng: np.random.Generator) -> LossTerm | None:
        """The one's term."""
        return self._term.term(rng)

    def gradients(
        self, backward: Callable[[], "list[Tensor]"], sites: "Sequence[Sequence[Parameter]]"
    ) -> "list[Tensor]":
        """The other's gradients."""
        return self._gradients.gradients(backward, sites)


def joint_training(term: Training | None, gradients: Training | None) -> Training | None:
    """Both, one of them, or None."""
    return JointTraining(term, gradients) if term and gradients else term or gradients
