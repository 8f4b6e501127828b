"""Low-rank methods whose server merges the sites' updates into the frozen weights (FedEx-LoRA, FLoRA)."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.methods.lora import LoraAdapter
from fedgraft.methods.peft_folder import PeftFactors

_END = ".merged"


class MergingAdapter(LoraAdapter):
    """Besides the factors, each map has `merged` (out, in), in units of alpha: the sum over all rounds.

    It travels down in full in every round, so a site stores none of it, and one that missed rounds is not behind. It is
    never trained, and all sites in a process read the same tensors.
    """

    def build(self, generator: torch.Generator) -> None:
        """Factors, and nothing merged yet."""
        super().build(generator)
        self.merged: dict[str, Tensor] = {}

    def server_state(self) -> dict[str, Tensor]:
        """The shared factors and zeros."""
        maps = [(name, found.weight) for maps in self.adapted.values() for name, found in maps.items()]
        return {**self.shared(), **{f"{name}{_END}": torch.zeros(()).expand(weight.shape) for name, weight in maps}}

    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite the factors, and keep the merged tensors as given."""
        self.merged.update({name.removesuffix(_END): value for name, value in values.items() if name.endswith(_END)})
        super().load({name: value for name, value in values.items() if not name.endswith(_END)})

    def weight(self, name: str) -> Tensor | None:
        """The frozen weight plus alpha times what is merged."""
        if name not in self.merged:
            return None
        return torch.add(self._frozen(name), self.merged[name], alpha=self.options.alpha)

    def shares_weights_with(self, other: Self) -> bool:
        """Whether both hold the same tensors."""
        return self.merged.keys() == other.merged.keys() and all(
            value is other.merged[name] for name, value in self.merged.items()
        )

    @torch.no_grad()
    def change(self, name: str) -> Tensor:
        """The site's own change plus what is merged."""
        own = super().change(name)
        alpha = self.options.alpha
        return torch.add(own, self.merged[name], alpha=alpha) if name in self.merged else own

    def as_peft(self) -> PeftFactors:
        """The total change of each map as factors of one rank, the largest that any map needs."""
        decomposed = {name: _decomposed(self.change(name)) for name in self.factors}
        rank = max(len(right) for right, _ in decomposed.values())
        factors = {
            name: (F.pad(right, (0, 0, 0, rank - len(right))), F.pad(left, (0, rank - len(right))))
            for name, (right, left) in decomposed.items()
        }
        return PeftFactors(rank, float(rank), factors)


def _decomposed(change: Tensor) -> tuple[Tensor, Tensor]:
    """(rank, in) and (out, rank) whose product is the change, keeping singular values above float32's precision."""
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    least = values[0] * max(change.shape) * torch.finfo(torch.float32).eps
    rank = max(1, int((values > least).sum()))
    return right[:rank].float(), (left[:, :rank] * values[:rank]).float()
