"""FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, truncated by SVD to each site's rank.

sum_k p_k B_k A_k = U S V, and a site of rank r continues with the first r directions, B = U_r S_r and A = V_r. The
server sends as many directions as the largest rank, sorted, so that all sites get one message and take their own part.
"""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.flower.messages import Arrays
from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer, LeftOut
from fedgraft.strategies.low_rank import (
    A,
    B,
    LowRankRule,
    Products,
    checked_factors,
    maps_of,
    no_factors,
    product,
    stacked,
)

Matrix = NDArray[np.float64]


class FlexLora(LoraAdapter):
    """A and B shared, with the site's own rank."""

    @property
    def site_independent(self) -> bool:
        """Not where ranks differ: sites of different ranks use different parts."""
        return len(set(self.options.site_ranks())) == 1

    def server_state(self) -> dict[str, Tensor]:
        """Factors of the largest rank."""
        largest = self.options.rank_of(None)
        return {
            name: F.pad(value, (0, 0, 0, largest - self.rank) if name.endswith("lora_A") else (0, largest - self.rank))
            for name, value in self.shared().items()
        }

    def load(self, values: dict[str, Tensor]) -> None:
        """Take the first directions; a change is divided by the rank, so B is scaled to make up for a smaller one."""
        own = {}
        for name, value in values.items():
            if name.endswith("lora_A"):
                own[name] = value[: self.rank]
            else:
                own[name] = value[:, : self.rank] * (self.rank / value.shape[1])
        super().load(own)


def truncated(left: Matrix, right: Matrix, start: Matrix) -> tuple[Matrix, Matrix]:
    """The best low-rank approximation of left (out, k) times right (k, in), as (out, rank) and (rank, in).

    It uses the QR factors of both, so that only a k x k matrix is decomposed. All singular values go into the left
    factor, and the right one has orthonormal rows: a direction that is not used yet can then still be learnt, as at
    the start of LoRA. Each row's largest entry is positive, so that the result is unique.

    Args:
        start: (rank, in), whose directions complete the right factor where k is less than the rank.
    """
    basis_left, core_left = np.linalg.qr(left)
    basis_right, core_right = np.linalg.qr(right.T)
    u, s, v = np.linalg.svd(core_left @ core_right.T, full_matrices=False)
    count = min(len(start), len(s))
    rows = v[:count] @ basis_right.T
    signs = np.where(rows[np.arange(count), np.abs(rows).argmax(1)] < 0, -1.0, 1.0)
    columns = basis_left @ (u[:, :count] * (s[:count] * signs))
    more = np.linalg.qr(np.concatenate([rows, start]).T)[0].T[count : len(start)]
    return np.pad(columns, ((0, 0), (0, len(more)))), np.concatenate([rows * signs[:, None], more])


class TruncatingRule(LowRankRule):
    """`truncated` to the largest rank of any site; a site of a smaller rank takes the first directions."""

    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """Factors of the rank that was sent; B is multiplied by it, since a site divides its change by its rank."""
        stack = stacked(answers)
        factors: Arrays = {}
        for name in maps_of(previous):
            given = (stack[name + B], stack[name + A], previous[name + A])
            left, right = truncated(*(array.astype(np.float64) for array in given))
            factors[name + A], factors[name + B] = right.astype(np.float32), (len(right) * left).astype(np.float32)
        return factors

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Accept any rank that fits the maps."""
        shapes = {name: (len(previous[name + B]), previous[name + A].shape[1]) for name in maps_of(previous)}
        return checked_factors(answers, shapes)

    def start(self, answer: Answer, previous: Arrays) -> Arrays:
        """Nothing: the whole of the factors is the update."""
        return no_factors(answer)

    def effective_update(self, aggregated: Arrays, previous: Arrays) -> Products:
        """What remains of the mean after truncation to the largest rank."""
        return {name: product(aggregated, name) for name in maps_of(aggregated)}


METHOD = Method(
    "flexlora",
    "low-rank adapters of any ranks, averaged and truncated by SVD",
    FlexLora,
    options=LoraOptions,
    rule=TruncatingRule(),
    paper="Bai et al., NeurIPS 2024",
    shared="A and B",
    towers=("text", "image"),
    takes_no_strategy="its factors have no directions in common from one round to the next",
    caches=CACHES,
)
