"""FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, cut by SVD to each site's rank.

sum_k p_k B_k A_k = U S V, and a site of rank r goes on with its first r directions, B = U_r S_r and A = V_r. The server
sends the directions of the largest rank, sorted, so that every site gets the same message and takes its own part.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from fedgraft.adapters.base import Method
from fedgraft.adapters.lora import CACHES, LoraAdapter, LoraOptions


class FlexLora(LoraAdapter):
    """A and B shared, of the site's own rank."""

    @property
    def same_at_all_sites(self) -> bool:
        """Sites of another rank have another part."""
        return len(set(cast(LoraOptions, self.options).dealt())) == 1

    def server_state(self) -> dict[str, Tensor]:
        """Factors of the largest rank."""
        largest = cast(LoraOptions, self.options).rank_of(None)
        return {
            name: F.pad(value, (0, 0, 0, largest - self.rank) if name.endswith("lora_A") else (0, largest - self.rank))
            for name, value in self.shared().items()
        }

    def load(self, values: dict[str, Tensor]) -> None:
        """The first directions of what has more; a change is divided by its rank, so B makes up for the smaller one."""
        own = {}
        for name, value in values.items():
            if name.endswith("lora_A"):
                own[name] = value[: self.rank]
            else:
                own[name] = value[:, : self.rank] * (self.rank / value.shape[1])
        super().load(own)


METHOD = Method(
    "flexlora",
    "low-rank adapters of any ranks, averaged and cut by SVD",
    FlexLora,
    LoraOptions,
    strategy="fedgraft.strategies.flexlora:FlexLora",
    takes_no_strategy="its factors of one round and of the next have no directions in common",
    caches=CACHES,
)
