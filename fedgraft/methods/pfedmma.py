"""pFedMMA (Ghiasvand et al., ICLR 2026): multi-modal adapters (Yang et al., MMA, CVPR 2024) with a shared middle.

Beside the upper layers of both towers runs, from a layer's input x after its first norm,

    scale x up(relu(shared(relu(down(norm x)))))

which is added to the layer's output. `down` to `dim` and `up` from it belong to a tower and stay at the site; `shared`
(dim, dim) serves both towers at that height, and is averaged. Counted from the top, the k-th layer of one tower is
paired with the k-th of the other. As in MMA's code, the gradients of the adapters are those without `scale`, and
weights begin as Normal(0, 2 / outputs), biases as 0. All sites begin alike. The class names stand in the source's
templates.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.deltas import Branch, Tower, layer_names
from fedgraft.backbones.representation import Representation
from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import derived_seed
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.method import Method
from fedgraft.methods.visual_prompts import number_of_layers

PUBLISHED_LAYERS = 9
"""How many of twelve layers the authors adapt: from the fourth on."""
TOWERS: tuple[Tower, ...] = ("text", "image")


class PFedMMAOptions(Options):
    """Size and place of the adapters."""

    dim: int = Field(32, ge=1, description="width of the shared projection", examples=[8])
    layers: int = Field(
        0, ge=0, description=f"layers with an adapter, from the top; 0 for {PUBLISHED_LAYERS}, or all", examples=[1]
    )
    scale: float = Field(0.001, gt=0, description="factor on what an adapter adds", examples=[0.1])


def adapted_layers(backbone: Backbone, layers: int) -> int:
    """How many layers of each tower get an adapter; raises UserError if a tower has fewer."""
    fewest = min(number_of_layers(backbone, tower) for tower in TOWERS)
    if layers > fewest:
        raise UserError(f"Adapters are asked for {layers} layers, but a tower has {fewest}; lower layers.")
    return layers or min(PUBLISHED_LAYERS, fewest)


class PFedMMA(Adapter):
    """TOWER_down (K, dim, width), TOWER_up (K, width, dim) and shared_middle (K, dim, dim), each with a bias."""

    options: PFedMMAOptions

    @classmethod
    def needs(cls, options: PFedMMAOptions) -> Needs:
        """Places beside the layers of both towers; the written prompts stand before the class names."""
        return Needs(placement="before", branches=TOWERS, cut=True)

    @classmethod
    def representation(cls, backbone: Backbone, options: PFedMMAOptions) -> Representation:
        """The input of the first adapted layer."""
        return Representation(layer=number_of_layers(backbone, "image") - adapted_layers(backbone, options.layers))

    def build(self, generator: torch.Generator) -> None:
        """All maps, drawn from the run's seed so that the sites' projections mean the same."""
        backbone, dim = self.vocabulary.backbone, self.options.dim
        count = adapted_layers(backbone, self.options.layers)
        draws = torch.Generator().manual_seed(derived_seed(self.adapter_context.seed, "multi-modal adapters"))
        widths = {"text": backbone.text.width, "image": backbone.image_shape(Representation(layer=0))[-1]}
        sizes = {f"{tower}_down": (dim, width) for tower, width in widths.items()}
        sizes |= {f"{tower}_up": (width, dim) for tower, width in widths.items()}
        for name, (out, width) in {**sizes, "shared_middle": (dim, dim)}.items():
            weight = (2 / out) ** 0.5 * torch.randn(count, out, width, generator=draws)
            for kind, value in ((name, weight), (f"{name}_bias", torch.zeros(count, out))):
                parameter = nn.Parameter(value)
                parameter.register_hook(self._unscaled)  # type: ignore[no-untyped-call]
                self.register_parameter(kind, parameter)
        self.personal_names = frozenset(f"{name}{bias}" for name in sizes for bias in ("", "_bias"))

    def _unscaled(self, gradient: Tensor) -> Tensor:
        return gradient / self.options.scale

    def branches(self, tower: Tower) -> dict[str, Branch]:
        """The adapters of a tower by the names of its layers."""
        backbone, count = self.vocabulary.backbone, len(self.get_parameter("shared_middle"))
        names = layer_names(backbone.linear_maps(tower))[-count:]
        return {name: partial(self._added, tower, number) for number, name in enumerate(names)}

    def _added(self, tower: Tower, number: int, normed: Tensor) -> Tensor:
        """What the adapter of a tower's layer adds, (..., width)."""
        hidden = normed.float()
        for name in (f"{tower}_down", "shared_middle"):
            hidden = F.relu(F.linear(hidden, *self._map(name, number)))
        added = self.options.scale * F.linear(hidden, *self._map(f"{tower}_up", number))
        return added.to(normed.dtype)

    def _map(self, name: str, number: int) -> Iterator[Tensor]:
        return iter((self.get_parameter(name)[number], self.get_parameter(f"{name}_bias")[number]))

    def image_features(self, images: Tensor) -> Tensor:
        """Features after the adapted layers."""
        backbone = self.vocabulary.backbone
        return backbone.finish_images(images, self.representation(backbone, self.options), self.branches("image"))

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The normalized mean over the hand-written templates, through the adapted text tower."""
        encode, branches = self.vocabulary.backbone.text.encode_prompts, self.branches("text")
        written = self.vocabulary.template_prompts(classes)
        encoded = torch.cat([encode(context[None], tokens, deltas=branches) for context, tokens in written])
        return F.normalize(encoded.mean(0), dim=-1)


METHOD = Method(
    "pfedmma",
    "adapters beside the layers of both towers, of which the projection between the towers is averaged",
    PFedMMA,
    options=PFedMMAOptions,
    paper="Ghiasvand et al., ICLR 2026",
    shared="the projections in the middle",
    personal="the maps to them and from them",
    towers=("text", "image"),
    caches="the input of the first adapted layer of the image tower; the layers above run in every step",
    takes_no_export="its adapters run beside the layers of the image tower, where a bundle's tower has no place",
)
