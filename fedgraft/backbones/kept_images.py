"""What is kept of an image, in one tensor: a backbone's representation, and the final feature where a form has both.

A method that compares an adapted image tower with the frozen one needs the input of a layer and the final feature. The
feature (dim,) then fills rows as wide as the tokens, zeros behind it, and they precede the tokens: (rows + tokens,
width). So each image passes the frozen tower once, and families give their representations as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.representation import Representation


def kept_shape(backbone: Backbone, form: Representation) -> tuple[int, ...]:
    """The shape of what is kept of an image."""
    shape = backbone.image_shape(form.represented)
    return (_rows(backbone, shape[-1]) + shape[0], shape[1]) if form.final else shape


def keep_images(backbone: Backbone, pixels: Tensor, form: Representation) -> Tensor:
    """What is kept of images (B, 3, height, width), in float32; raises UserError if the backbone lacks the form."""
    represented = backbone.represent_images(pixels, form.represented)
    if not form.final:
        return represented
    feature, width = backbone.finish_images(represented, form.represented), represented.shape[-1]
    rows = F.pad(feature, (0, _rows(backbone, width) * width - backbone.dim)).view(len(feature), -1, width)
    return torch.cat([rows, represented], dim=1)


def parted(backbone: Backbone, kept: Tensor, form: Representation) -> tuple[Tensor, Tensor | None]:
    """What a backbone finishes, and the unit-norm final features (B, dim) if the form has them."""
    if not form.final:
        return kept, None
    rows = _rows(backbone, kept.shape[-1])
    feature = kept[:, :rows].flatten(1)[:, : backbone.dim]
    return kept[:, rows:], F.normalize(feature.float(), dim=-1)


def _rows(backbone: Backbone, width: int) -> int:
    return -(-backbone.dim // width)
