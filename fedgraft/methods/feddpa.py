"""FedDPA (Yang et al., NeurIPS 2024): a global low-rank adapter, averaged, and a local one that stays.

With D = (alpha / rank) B A, the adapters change a weight W to

    W + (1 - w_k) D_global + w_k D_k

at site k. Local learning is iterative (FedDPA-T): in every round D_k learns under the cross-entropy of this sum at
w = 1/2 with the global adapter as it was received, while the global one learns alone, from where it was received; a
step's loss is the sum of both, and neither has a gradient of the other's. Or it is sequential (FedDPA-F): D_k begins
each round as the global adapter received, and learns alone.

The paper weighs every instance: w(x) = lambda times the mean cosine of its representation to those of a few training
instances of the site. Where ours departs: class features belong to no image, and a bundle has one of them for each
class, so the weight is one per site, what the formula gives on average over the site's own training images, each
against all others. A model of all sites has the global adapter alone. In FedDPA-F the authors fine-tune once, after the
last round; here every round can be the last, so D_k begins at what the round received, not at what it leads to.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.adapter import Batch
from fedgraft.methods.fedit import MeasuredAverage
from fedgraft.methods.lora import CACHES, LoraAdapter, LowRank
from fedgraft.methods.lora_options import OneRankOptions
from fedgraft.methods.method import Method
from fedgraft.methods.peft_folder import PeftFactors

View = Literal["site", "global", "local"]
"""What a pass goes through: the classifier of the site, or what the global or the local adapter learns in."""


class FedDPAOptions(OneRankOptions):
    """How local and global adapters are weighted."""

    learning: Literal["iterative", "sequential"] = Field(
        "iterative", description="local beside the global adapter, or from where it is", examples=["sequential"]
    )
    weight: float = Field(
        0.5, gt=0, le=1, description="of the local adapter while it learns beside the global one", examples=[0.9]
    )
    scale: float = Field(0.5, ge=0, le=1, description="lambda, the largest weight in the classifier", examples=[0.9])


class FedDPA(LoraAdapter):
    """A and B of every map shared, a second pair and their weight personal."""

    options: FedDPAOptions

    def build(self, generator: torch.Generator) -> None:
        """Both pairs as PEFT initializes them; the local one has no weight before its first round."""
        super().build(generator)
        self.local: dict[str, LowRank] = {}
        for number, (name, factors) in enumerate(sorted(self.factors.items())):
            weight = torch.empty(factors.lora_B.shape[0], factors.lora_A.shape[1])
            self.local[name] = LowRank(weight, self.rank, generator, frozenset())
            self.add_module(f"local_{number}", self.local[name])
        self.local_weight = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.personal_names = frozenset(name for name, _ in self.named_parameters() if name.startswith("local_"))
        self._view: View = "site"
        self._received: dict[str, tuple[Tensor, Tensor]] = {}

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """The factors of a pass: of one adapter, or of the weighted sum of both, of twice the rank."""
        both, own = super().parts(name), self.local[name]
        local = (own.lora_A, self.scaling * own.lora_B)
        if self._view == "global":
            return both
        if self._view == "local":
            if self.options.learning == "sequential":
                return local
            both = self._received.get(name, (both[0].detach(), both[1].detach()))
        weight = self.options.weight if self._view == "local" else float(self.local_weight)
        return torch.cat([both[0], local[0]]), torch.cat([(1 - weight) * both[1], weight * local[1]], dim=1)

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """Of the global and of the local adapter, each in one pass of the text tower over all sites."""
        learnt = []
        views: tuple[View, ...] = ("global", "local")
        for view in views:
            for adapter in adapters:
                adapter._view = view
            learnt.append(super().losses(adapters, batches, classes))
        for adapter in adapters:
            adapter._view = "site"
        return [both + own for both, own in zip(*learnt, strict=True)]

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The same for this site."""
        return self.losses([self], [Batch(images, labels)], classes)[0]

    @torch.no_grad()
    def on_training_images(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> None:
        """Weigh the local adapter by how alike the site's images are."""
        parts = torch.split(images[:, 0], self.vocabulary.backbone.images_per_pass)
        features = torch.cat([self.image_features(part.float()) for part in parts])
        count = len(features)
        pairs = features.sum(0).square().sum() - features.square().sum()
        alike = pairs / (count * (count - 1)) if count > 1 else torch.ones(())
        self.local_weight.copy_(self.options.scale * alike)

    @torch.no_grad()
    def on_training_begin(self) -> None:
        """Keep what was received, which the local adapter learns beside, or begins at."""
        for name, own in self.local.items():
            right, left = super().parts(name)
            self._received[name] = (right.clone(), left.clone())
            if self.options.learning == "sequential":
                own.lora_A.copy_(self.factors[name].lora_A)
                own.lora_B.copy_(self.factors[name].lora_B)

    @torch.no_grad()
    def as_peft(self) -> PeftFactors:
        """The weighted sum as factors of twice the rank."""
        factors = {name: self.parts(name) for name in self.factors}
        return PeftFactors(2 * self.rank, float(2 * self.rank), factors)


METHOD = Method(
    "feddpa",
    "a global low-rank adapter, averaged, and a local one, personal",
    FedDPA,
    options=FedDPAOptions,
    rule=MeasuredAverage(),
    paper="Yang et al., NeurIPS 2024",
    shared="A and B of the global adapter",
    personal="A and B of the local adapter, and its weight",
    towers=("text", "image"),
    caches=CACHES,
)
