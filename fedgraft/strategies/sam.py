"""Sharpness-aware minimization (Foret et al., ICLR 2021) of each site's loss, as in FedSAM (Qu et al., ICML 2022).

A step takes the gradient not at the parameters w but at w + rho g / |g|, with g the gradient at w: where the loss is
highest nearby. Flat minima of the sites' losses lie closer together, and move what the backbone knows less. A training
step costs two passes in place of one.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from fedgraft.config.options import Options
from fedgraft.strategies.components import StrategyComponent, Training


class SamOptions(Options):
    """How far to look."""

    rho: float = Field(0.05, gt=0, description="distance at which the gradient is taken", examples=[0.01])


class Sam(Training):
    """The gradient at the ascended parameters; the norm is over all of a site's parameters."""

    options: SamOptions

    def gradients(self, backward: Callable[[], list[Tensor]], sites: Sequence[Sequence[Parameter]]) -> list[Tensor]:
        """Ascend, take the gradient, and go back to exactly where the parameters were."""
        losses = backward()
        before = [[parameter.detach().clone() for parameter in parameters] for parameters in sites]
        with torch.no_grad():
            for parameters in sites:
                slopes = [parameter.grad for parameter in parameters]
                norm = torch.stack([slope.norm() for slope in slopes if slope is not None]).norm()
                for parameter, slope in zip(parameters, slopes, strict=True):
                    if slope is not None and norm > 0:
                        parameter.add_(slope * (self.options.rho / norm))
                    parameter.grad = None
        backward()
        with torch.no_grad():
            for parameters, values in zip(sites, before, strict=True):
                for parameter, value in zip(parameters, values, strict=True):
                    parameter.copy_(value)
        return losses


STRATEGY = StrategyComponent("sam", "sharpness-aware training steps at the sites", Sam, options=SamOptions)
