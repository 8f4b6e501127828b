"""FedCLIP (Lu et al., IEEE Data Engineering Bulletin 2023): a gate on image features, trained by contrast in the batch.

    x' = x * softmax(W_2 tanh(W_1 x + b_1) + b_2)

and, with t_i the frozen text feature of image i's class under "a picture of a" and s the logit scale,

    1/2 mean_i ( -log softmax_j(s cos(x'_i, t_j))_i - log softmax_j(s cos(x'_j, t_i))_i )

over the images of a batch, so two images of one class count as a mismatch. Sites count alike in the average, whatever
their number of examples, as in the authors' code. The authors gate features of any norm, here they have unit norm.
"""

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from fedgraft.config.options import Options
from fedgraft.methods.feature_adapter import FeatureAdapter
from fedgraft.methods.method import Method
from fedgraft.strategies.weighted_average import EqualAverage


def _with_a_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("a template has one {} where the class name goes")
    return template


class FedClipOptions(Options):
    """The texts of the contrast."""

    template: Annotated[str, AfterValidator(_with_a_place)] = Field(
        "a picture of a {}", description="prompt of every class, with {} for its name", examples=["a photo of a {}."]
    )


class Gate(nn.Module):
    """Features (B, dim) times a softmax over their dimensions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        """Of any norm."""
        gated: Tensor = features * self.attention(features)
        return gated


class FedClip(FeatureAdapter):
    """The gate, shared."""

    options: FedClipOptions
    loss_of_features = False

    def network(self, dim: int) -> nn.Module:
        """The gate."""
        return Gate(dim)

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """Of the template, computed once."""
        return self.vocabulary.written_features(self.options.template)[list(classes)]

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The contrast between the images of the batch and the texts of their classes, both ways."""
        cosines = self.image_features(images) @ self.class_features(classes)[labels].mT
        own = torch.arange(len(labels), device=labels.device)
        return (self.cosine_loss(cosines, own) + self.cosine_loss(cosines.mT, own)) / 2


METHOD = Method(
    "fedclip",
    "a gate on image features, trained by contrast between the images and texts of a batch",
    FedClip,
    options=FedClipOptions,
    rule=EqualAverage(),
    paper="Lu et al., IEEE Data Engineering Bulletin 2023",
    shared="the gate",
    towers=(),
)
