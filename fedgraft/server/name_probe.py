"""Names of classes through the method's own adapter: what the server can see of a model without a single image."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedgraft.flower.messages import Arrays
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary


class NameProbe:
    """The features of some class names, frozen and under shared parameters.

    Personal parameters have their initial values unless others are given: the server knows none.

    Args:
        classes: positions in the vocabulary's class names; all of them unless given.

    Attributes:
        adapter: the method's, whose parameters are overwritten with every call.
    """

    def __init__(self, plan: Plan, vocabulary: Vocabulary, classes: tuple[int, ...] | None = None) -> None:
        self.adapter = plan.adapter(vocabulary)
        self.classes = tuple(range(len(vocabulary.class_names))) if classes is None else classes

    @property
    def written(self) -> Tensor:
        """The frozen features of the hand-written templates, (C, dim)."""
        return self.adapter.vocabulary.zero_shot[list(self.classes)]

    @torch.no_grad()
    def features(self, arrays: Arrays, impersonal: bool = False) -> Tensor:
        """Features (C, dim) under shared parameters.

        Args:
            impersonal: whether personal parameters have the values of a model of all sites, as in a global export.

        Raises:
            UserError: there is no such model.
        """
        self._load(arrays)
        if impersonal and self.adapter.personal_names:
            self.adapter.load(self.adapter.impersonal(_tensors(arrays)))
        return self.adapter.class_features(self.classes)

    def slope(self, arrays: Arrays, loss: Callable[[Tensor], Tensor]) -> tuple[float, Arrays]:
        """A loss of the features (C, dim), and its gradient with respect to each shared array, float32.

        An array that is no parameter of the adapter, as where a method shares more than it trains, has gradient zero.
        """
        self._load(arrays)
        with torch.enable_grad():
            value = loss(self.adapter.class_features(self.classes))
        parameters = {name: value for name, value in self.adapter.named_parameters() if value.requires_grad}
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        known = {name: slope for name, slope in zip(parameters, found, strict=True) if slope is not None}
        return float(value.detach()), {
            name: (known[name].float() if name in known else torch.zeros(array.shape)).cpu().numpy()
            for name, array in arrays.items()
        }

    def _load(self, arrays: Arrays) -> None:
        """Overwrite what the features of these names can depend on."""
        read = {name: array for name, array in arrays.items() if name not in self.adapter.loss_alone}
        self.adapter.load(_tensors(read))


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
