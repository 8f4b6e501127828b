"""PLOT (Chen et al., ICLR 2023), averaged: several contexts, among which an image's patches are divided.

The similarity of image and class is sum_mn T_mn s_mn over M patches and N contexts, with T the plan of balanced
transport: every patch gives 1/M, every context takes 1/N. The authors stop at a mean change of 1e-2 over the batch;
here each image and class stops on its own, at 1e-3, see `transport`. Context n is averaged with context n of the other
sites.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.method import Method
from fedgraft.methods.prompts import initial_context
from fedgraft.methods.transport import CACHES, TransportAdapter, TransportOptions


class PlotOptions(TransportOptions):
    """Number of contexts."""

    prompts: int = Field(4, ge=1, description="number of contexts", examples=[2])


class Plot(TransportAdapter):
    """Contexts (prompts, n_ctx, width), shared."""

    options: PlotOptions

    def build(self, generator: torch.Generator) -> None:
        """The contexts, drawn on their own."""
        self.context = nn.Parameter(initial_context(self.vocabulary, self.options, generator, self.options.prompts))

    def prompts(self) -> Tensor:
        """The contexts."""
        return self.context


METHOD = Method(
    "plot",
    "several contexts, among which the patches are divided by optimal transport",
    Plot,
    options=PlotOptions,
    paper="Chen et al., ICLR 2023",
    shared="the contexts",
    caches=CACHES,
    takes_no_export="its classifier compares all patches of an image with several prompts of a class",
)
