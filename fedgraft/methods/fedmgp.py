"""FedMGP (Bo et al., NeurIPS 2025): G paired groups of prompts at every site, of which it shares s in each round.

Group g has a context of the text tower and prompts before the first layer of the image tower, so that an image has G
features x_g and a class G features t_g. The loss is

    mean_g CE(x_g, t_g) + diversity (mean cos(t_g, t_h) + mean cos(x_g, x_h)) / 2

with means over classes or images and over all pairs g < h; the classifier is the mean over g of the cosines. After its
training a site draws s contexts and s visual groups without replacement, with probabilities softmax(c_g), where c_g is
the largest cosine of its group with one of the s that it received; in the first round all are alike. The server
averages what was drawn first, what was drawn second, and so on, and a site puts each mean where it had drawn from.

All sites begin with the same groups. The authors' code adds the distance 1 - cos in place of the cosine, which makes
groups alike; here it is the cosine, so that groups specialize as the paper describes. The code also counts sites
alike, here each weighs by its examples. The softmax has temperature 1, as published. A site that left out rounds gets
the latest means in the places of its own last draw.
"""

from itertools import combinations
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedgraft.backbones.abilities import Needs
from fedgraft.core.randomness import derived_seed
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD, ContextOptions, initial_context
from fedgraft.methods.visual_prompts import CACHES, VisualPromptAdapter, VisualPromptOptions, image_width

WORDS_STD = 0.01
"""What tells groups apart that begin with the same words."""


class FedMGPOptions(VisualPromptOptions, ContextOptions):
    """Number and length of the groups, and how many are shared."""

    n_ctx: int = Field(2, ge=1, description="prompts of a group, in either tower", examples=[4])
    ctx_init: str = Field("", description="words that initialize the contexts and their length", examples=["a photo"])
    groups: int = Field(5, ge=1, description="groups of prompts at a site", examples=[3])
    sampled: int = Field(2, ge=1, description="groups that a site shares in a round", examples=[1])
    diversity: float = Field(1.0, ge=0, description="weight of the cosines between groups", examples=[0.1])

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.sampled > self.groups:
            raise ValueError(f"{self.sampled} groups cannot be sampled of {self.groups}; raise groups or lower sampled")
        return self


class FedMGP(VisualPromptAdapter):
    """text_groups (G, n, width) and visual_groups (G, n, image width) stay; context and visual (s, ...) are shared.

    `text_slots` and `visual_slots` (s,) say which groups were drawn last; what is received takes their place.
    """

    options: FedMGPOptions
    personal_names = frozenset({"text_groups", "visual_groups", "text_slots", "visual_slots"})

    @classmethod
    def needs(cls, options: VisualPromptOptions) -> Needs:
        """A context, and visual prompts before the first layer."""
        assert isinstance(options, FedMGPOptions)
        length = 0 if options.ctx_init else options.n_ctx
        return Needs(options.placement, context=length, visual_prompts=options.n_ctx, visual_depth=1, cut=True)

    def build(self, generator: torch.Generator) -> None:
        """The groups, drawn from the run's seed so that all sites begin alike; the first s count as drawn."""
        options, seed = self.options, self.adapter_context.seed
        draws = torch.Generator().manual_seed(derived_seed(seed, "prompt groups"))
        text = initial_context(self.vocabulary, options, draws, options.groups)
        if options.ctx_init:
            text = text + WORDS_STD * torch.randn(text.shape, generator=draws)
        shape = (options.groups, text.shape[1], image_width(self.vocabulary.backbone))
        visual = INITIAL_STD * torch.randn(*shape, generator=draws)
        self.text_groups, self.visual_groups = nn.Parameter(text), nn.Parameter(visual)
        first = torch.arange(options.sampled)
        self.context = nn.Parameter(text[first], requires_grad=False)
        self.visual = nn.Parameter(visual[first], requires_grad=False)
        self.text_slots = nn.Parameter(first.float(), requires_grad=False)
        self.visual_slots = nn.Parameter(first.float(), requires_grad=False)

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite some parameters, and put what is shared in its places."""
        super().load(values)
        self.text_groups[self.text_slots.round().long()] = self.context
        self.visual_groups[self.visual_slots.round().long()] = self.visual

    def impersonal(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """The shared groups, again and again until there are G."""
        turn = torch.arange(self.options.groups) % self.options.sampled
        slots = torch.arange(self.options.sampled).float()
        groups = {"text_groups": shared["context"][turn], "visual_groups": shared["visual"][turn]}
        return {**groups, "text_slots": slots, "visual_slots": slots}

    # --- loss and classifier ----------------------------------------------------------------------

    def visual_prompts(self) -> Tensor:
        """The prompts of all groups before the first layer, (1, G n, image width)."""
        return self.visual_groups.flatten(0, 1)[None]

    def image_features(self, images: Tensor) -> Tensor:
        """The unit-norm features of every group, (B, G, dim), in one pass."""
        backbone, groups = self.vocabulary.backbone, self.options.groups
        form = self.representation(backbone, self.options)
        states = images.repeat_interleave(groups, dim=0)
        prompts = self.visual_groups.repeat(len(images), 1, 1)[:, None]
        return backbone.finish_images(states, form, prompts=prompts).view(len(images), groups, -1)

    def group_features(self, classes: tuple[int, ...]) -> Tensor:
        """The class features of every group, (G, C, dim)."""
        text, tokens = self.vocabulary.backbone.text, self.vocabulary.tokens(classes)
        return text.encode_prompts(self.text_groups, tokens, placement=self.options.placement)

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The normalized mean over groups, which measures text alone; images are classified by `scores`."""
        return F.normalize(self.group_features(classes).mean(0), dim=-1)

    def scores(self, images: Tensor, class_features: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The mean over groups of the cosines, from all groups' features (B, G, dim)."""
        named = self.group_features(classes)
        flat = images.reshape(len(images), named.shape[0] * named.shape[2])
        return flat @ named.transpose(0, 1).flatten(1).mT / self.options.groups

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """The mean cross-entropy of the groups, and how alike they are."""
        features, named = self.image_features(images).transpose(0, 1), self.group_features(classes)
        losses = [self.cross_entropy(own, words, labels) for own, words in zip(features, named, strict=True)]
        alike = (likeness(features) + likeness(named)) / 2
        return torch.stack(losses).mean() + self.options.diversity * alike

    # --- what is shared ---------------------------------------------------------------------------

    @torch.no_grad()
    def on_training_end(self) -> None:
        """Draw the groups that leave the site."""
        for slots, groups, shared, kind in (
            (self.text_slots, self.text_groups, self.context, "text"),
            (self.visual_slots, self.visual_groups, self.visual, "visual"),
        ):
            drawn = self._draw(probabilities(groups, shared, self.adapter_context.round == 0), kind)
            shared.copy_(groups[drawn])
            slots.copy_(drawn)

    def _draw(self, chances: Tensor, kind: str) -> Tensor:
        """Which groups a site shares after a round, (s,), in the order in which they are drawn."""
        where = self.adapter_context
        seed = derived_seed(where.seed, f"{kind} groups", where.fold, str(where.site), where.round + 1)
        return torch.multinomial(chances.cpu(), self.options.sampled, generator=torch.Generator().manual_seed(seed))


def likeness(features: Tensor) -> Tensor:
    """The mean cosine between the features of two groups, from unit-norm features (G, N, dim); 0 for one group."""
    pairs = [(features[g] * features[h]).sum(-1).mean() for g, h in combinations(range(len(features)), 2)]
    return torch.stack(pairs).mean() if pairs else features.new_zeros(())


def probabilities(groups: Tensor, received: Tensor, first: bool) -> Tensor:
    """The chance (G,) of each group (G, n, width), the larger the more it is like one of those received (s, n, width).

    Args:
        first: whether nothing has been averaged yet, so that all are alike.
    """
    cosines = F.normalize(groups.flatten(1), dim=-1) @ F.normalize(received.flatten(1), dim=-1).mT
    nearest = cosines.amax(1)
    return (torch.zeros_like(nearest) if first else nearest).softmax(0)


METHOD = Method(
    "fedmgp",
    "paired groups of prompts in both towers, some of which are drawn and shared in each round",
    FedMGP,
    options=FedMGPOptions,
    paper="Bo et al., NeurIPS 2025",
    shared="the groups that a site draws",
    personal="all groups, and which were drawn",
    towers=("text", "image"),
    caches=CACHES,
    takes_no_export="each of its groups makes an image feature of its own, and a bundle has one image tower",
)
