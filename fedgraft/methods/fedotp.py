"""FedOTP (Li et al., CVPR 2024): a shared and a personal context, between which an image's patches are divided.

The similarity of image and class is sum_mn T_mn s_mn over M patches and both contexts, with T the plan of unbalanced
transport: each context takes top_percent / 2, and a patch gives at most 1/M. So the patches that neither context is
close to are left out. The iteration is that of the authors' code, u = min(1, 1 / (K_p v)), v = 1 / (K_q u) with
K_p = M K and K_q = (2 / top_percent) K'. Its stop is per image and class, see `transport`. The shared context is
averaged, weighted by examples.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.method import Method
from fedgraft.methods.prompts import initial_context
from fedgraft.methods.transport import CACHES, TransportAdapter, TransportOptions


class FedOTPOptions(TransportOptions):
    """How much of an image is matched."""

    top_percent: float = Field(0.8, gt=0, le=1, description="part of the patches' mass that is moved", examples=[0.5])


class FedOTP(TransportAdapter):
    """A context (1, n_ctx, width) that is shared, and one of the same length that stays."""

    options: FedOTPOptions
    personal_names = frozenset({"own"})
    at_most = True

    def build(self, generator: torch.Generator) -> None:
        """Both contexts, drawn on their own."""
        self.mass = self.options.top_percent
        self.context = nn.Parameter(initial_context(self.vocabulary, self.options, generator))
        self.own = nn.Parameter(initial_context(self.vocabulary, self.options, generator))

    def prompts(self) -> Tensor:
        """The shared context, then the personal one."""
        return torch.cat([self.context, self.own])

    def impersonal(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """The shared context in place of the personal one, so that it alone classifies."""
        return {"own": shared["context"]}


METHOD = Method(
    "fedotp",
    "a shared and a personal context, between which the patches are divided by unbalanced transport",
    FedOTP,
    options=FedOTPOptions,
    paper="Li et al., CVPR 2024",
    shared="the shared context",
    personal="a context of the same length",
    caches=CACHES,
    takes_no_export="its classifier compares all patches of an image with several prompts of a class",
)
