"""Matryoshka (Kusupati et al., NeurIPS 2022): linear maps of image and text features whose prefixes classify alone.

    mean_c CE(z_c, y) + align mean_{c not whole} KL(p || p_c),    z_c = s cos((P_d h_d)_{1:m}, (Q t)_{1:m})

with t the frozen features of the classes, and h_d what the tower's projection reads after d layers, behind the last
norm. The cuts c are all pairs of m dimensions and d layers, the whole of both among them; p_c is the softmax of z_c,
and p that of the whole, held fixed. Depths, and drawing early predictions towards those of the whole, are those of 2D
Matryoshka (Li et al., arXiv 2402.14776); Li et al. draw one layer in each step, here all cuts count alike in every
step, and p also draws the prefixes of the whole tower.

The towers are frozen, so P_d and Q are all that is learnt, and h_d is cached. They begin as one rotation, which keeps
all cosines and orders directions by how much of the run's class features they hold: at the start, the whole classifier
is the hand-written one. Without depths, h is the final feature at unit norm.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.cuts import Cuts
from fedgraft.methods.method import Method
from fedgraft.methods.nesting import halved, prefix, principal_directions, projected

_WHOLE = "whole"


class MatryoshkaOptions(Options):
    """What the classifier can be cut to."""

    dims: str = Field(
        "", description="dimensions that classify alone; halves down to 16 by default", examples=["32,64"]
    )
    depths: str = Field("", description="numbers of layers behind which a classifier stands", examples=["2,3"])
    align: float = Field(
        1.0, ge=0, description="weight of the distance of cut predictions from the whole's", examples=[0.5]
    )

    @field_validator("dims", "depths")
    @classmethod
    def _are_numbers(cls, text: str) -> str:
        if text and not all(part.strip().isdecimal() and int(part) >= 1 for part in text.split(",")):
            raise ValueError("positive whole numbers separated by commas are expected, such as 2,3")
        return text

    def exits(self) -> tuple[int, ...]:
        """The depths in increasing order."""
        return _numbers(self.depths)

    def nested(self, dim: int) -> tuple[int, ...]:
        """The dimensions in increasing order, without the whole."""
        return tuple(size for size in _numbers(self.dims) or halved(dim) if size < dim)


class Matryoshka(Adapter):
    """The maps Q (dim, dim) and, for each depth and the whole tower, P (dim, width), all shared."""

    options: MatryoshkaOptions
    is_drawn = False

    @classmethod
    def needs(cls, options: MatryoshkaOptions) -> Needs:
        """Dimensions and layers to cut to."""
        return Needs(dim=max(_numbers(options.dims), default=0), exit=max(options.exits(), default=0))

    @classmethod
    def representation(cls, backbone: Backbone, options: MatryoshkaOptions) -> Representation:
        """The final features, or with depths what the projection reads at each."""
        return Representation(exits=options.exits()) if options.depths else FEATURES

    @classmethod
    def cuts(cls, options: MatryoshkaOptions, dim: int) -> Cuts:
        """Those that the loss trains."""
        return Cuts(options.nested(dim), options.exits())

    def build(self, generator: torch.Generator) -> None:
        """A rotation of the frozen projection; nothing is drawn."""
        rotation = principal_directions(self.vocabulary.zero_shot)
        self._depths = (*self.options.exits(), None) if self.options.depths else (None,)
        first = rotation @ self.vocabulary.backbone.image_projection() if self.options.depths else rotation
        self.image = nn.ParameterDict({_key(depth): nn.Parameter(first.clone()) for depth in self._depths})
        self.text = nn.Parameter(rotation)

    def image_features(self, images: Tensor) -> Tensor:
        """Of the whole tower, at all dimensions."""
        return F.normalize(self._mapped(images)[-1], dim=-1)

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The mapped features of the hand-written templates."""
        return F.normalize(self._mapped_texts(classes), dim=-1)

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The mean cross-entropy of all cuts, and how far their predictions are from those of the whole."""
        dim, texts = self.vocabulary.backbone.dim, self._mapped_texts(classes)
        pairs = [
            (prefix(rows, size), prefix(texts, size))
            for rows in self._mapped(images)
            for size in (*self.options.nested(dim), dim)
        ]
        cuts = [self.cosine_loss(images @ classes.mT, labels) for images, classes in pairs[:-1]]
        loss = torch.stack([*cuts, self.cross_entropy(*pairs[-1], labels)]).mean()
        if len(pairs) > 1 and self.options.align:
            scale = self.vocabulary.backbone.logit_scale
            *cut, whole = [(scale * images @ classes.mT).log_softmax(-1) for images, classes in pairs]
            gaps = [F.kl_div(own, whole.detach(), reduction="batchmean", log_target=True) for own in cut]
            loss = loss + self.options.align * torch.stack(gaps).mean()
        return loss

    def image_encoder(self) -> nn.Module:
        """The whole tower with its map."""
        return self._encoder(None)

    def shallow_encoder(self, depth: int) -> nn.Module:
        """The layers up to a depth with their map."""
        return self._encoder(depth)

    def vision_tower(self) -> PrunableTower:
        """Raises UserError: a ticket is distilled to the backbone's features, not to mapped ones."""
        raise UserError(
            "An image tower whose features are mapped cannot be pruned; export it dense, with --dim or --depth."
        )

    def _encoder(self, depth: int | None) -> nn.Module:
        weight, backbone = self.image[_key(depth)].detach(), self.vocabulary.backbone
        if self.options.depths:
            return backbone.reprojected_encoder(weight, depth)
        return projected(backbone.image_encoder(), weight)

    def _mapped(self, images: Tensor) -> list[Tensor]:
        """Features (B, dim) of any norm at each depth, the whole tower last."""
        rows = images.unbind(1) if self.options.depths else (images,)
        return [own @ self.image[_key(depth)].mT for own, depth in zip(rows, self._depths, strict=True)]

    def _mapped_texts(self, classes: tuple[int, ...]) -> Tensor:
        return self.vocabulary.zero_shot[list(classes)] @ self.text.mT


def _key(depth: int | None) -> str:
    return _WHOLE if depth is None else f"layers{depth}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")})) if text else ()


METHOD = Method(
    "matryoshka",
    "maps of image and text features whose first dimensions, and whose early layers, classify alone",
    Matryoshka,
    options=MatryoshkaOptions,
    paper="Kusupati et al., NeurIPS 2022",
    shared="a map of text features, and one of image features for each depth",
    towers=(),
    caches="final image features, or class tokens after the layers of depths",
)
