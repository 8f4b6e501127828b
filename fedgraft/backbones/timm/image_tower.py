"""An image tower of timm as OpenCLIP uses it (Ilharco et al. 2021): timm's model, and a projection behind it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.dual.image_towers import ImageTower
from fedgraft.backbones.timm.importing import import_timm
from fedgraft.backbones.timm.vit_tower import is_plain_vit
from fedgraft.core.errors import UserError

_PROJECTIONS = (None, "", "none", "linear", "mlp")


class TimmTrunk:
    """How a configuration asks for one of timm's models; the keys are those of OpenCLIP's `vision_cfg`.

    Attributes:
        name: the model's name in timm.
        pool: timm's `global_pool`, or empty for the model's own.
        projection: "linear" or "mlp" behind the model, "none", or None for the model's own head as the projection.
        bias: whether the projection has one.
        image_size: side of the images in pixels.
        arguments: others of `timm.create_model`.

    Raises:
        UserError: name or size are missing, the projection is unknown, or the pooling one of OpenCLIP's own.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        name, side = config.get("timm_model_name"), config.get("image_size")
        if not isinstance(name, str) or not isinstance(side, int):
            raise UserError(
                f"The image tower's configuration needs timm_model_name and image_size; it has {name!r} and {side!r}."
            )
        self.name, self.image_size = name, side
        self.pool, self.projection = str(config.get("timm_pool") or ""), config.get("timm_proj")
        self.bias = bool(config.get("timm_proj_bias", False))
        self.arguments = dict(config.get("timm_model_args") or {})
        if self.pool in ("abs_attn", "rot_attn"):
            raise UserError(
                f"The image tower {self.name!r} is pooled by OpenCLIP's own attention ({self.pool}), which is not "
                "supported; pooling by timm (avg, token, map) is."
            )
        if self.projection not in _PROJECTIONS:
            raise UserError(
                f"The projection {self.projection!r} of the image tower is unknown; known: linear, mlp, none."
            )

    def build(self, dim: int) -> tuple[nn.Module, nn.Module | None]:
        """The model and its projection to `dim`, with random weights.

        Raises:
            UserError: timm is not installed, or does not know the model or its arguments.
        """
        timm, extra = import_timm(), self.projection in ("linear", "mlp")
        try:
            if extra:
                trunk = timm.create_model(self.name, pretrained=False, **self.arguments)
                trunk.reset_classifier(0, **({"global_pool": self.pool} if self.pool else {}))
            else:
                classes = 0 if self.projection == "none" else dim
                pool = {"global_pool": self.pool}
                trunk = timm.create_model(self.name, pretrained=False, num_classes=classes, **pool, **self.arguments)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"timm {timm.__version__} cannot make the image tower {self.name!r}: {reason}") from error
        if self.projection == "linear":
            return trunk, nn.Linear(trunk.num_features, dim, bias=self.bias)
        return trunk, MlpProjection(trunk.num_features, dim, self.bias) if extra else None

    def plain_vit(self) -> Any:
        """The model without weights if it is a vision transformer of plain blocks, or None.

        Raises:
            UserError: as in `build`.
        """
        with torch.device("meta"):
            trunk, _ = self.build(1)
        return trunk if is_plain_vit(trunk) else None


class MlpProjection(nn.Module):
    """Two linear layers around twice as many hidden units as outputs, with a GELU."""

    def __init__(self, width: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * dim), nn.Linear(2 * dim, dim, bias=bias)

    def forward(self, states: Tensor) -> Tensor:
        """(B, width) to (B, dim)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(states)))
        return projected


class TimmImageTower(nn.Module, ImageTower):
    """timm's model with its projection, as a whole."""

    def __init__(self, trunk: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.trunk, self.projection = trunk, projection

    def embed(self, pixels: Tensor) -> Tensor:
        """The projected features of timm's model."""
        features: Tensor = self.trunk(pixels)
        return features if self.projection is None else self.projection(features)

    def forward(self, pixels: Tensor) -> Tensor:
        """The same with unit norm, in float32."""
        return F.normalize(self.embed(pixels).float(), dim=-1)

    def encoder(self, weights: Mapping[str, Tensor], prompts: Tensor | None) -> nn.Module:
        """A copy with attention written out, and with parallel branches merged where it has any.

        FastViT and its relatives are trained with branches whose sum is one convolution (Vasu et al. 2023).
        """
        import_timm()
        from timm.utils import reparameterize_model

        copy = deepcopy(self).float().cpu().eval()
        copy.trunk = reparameterize_model(copy.trunk)
        for module in copy.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010
        return copy.requires_grad_(False)
