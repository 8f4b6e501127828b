"""DPT (Xing et al., IEEE TMM 2023), averaged: a context, visual prompts, and upper ones that know the likely classes.

A context makes the class features t. Learnt visual prompts stand before the lower layers of the image tower. Before
each of the upper ones stand P prompts made for the image (CAVPT): of the classes that are likeliest to the frozen
towers, t_1 ... t_P are mapped to x_p = M t_p and look at the image's tokens H, as constants, and at learnt vectors V:

    y_p = W_v (softmax(W_q x_p (W_k [H; V])^T / sqrt(32)) [H; V]),   prompt p = LN(x_p + y_p).

With z a linear classifier of LN(y_p), the loss is

    CE(x, t) + alpha mean CE(z, label)   over the prompts of the right class, if there are any.

t is of unit norm here, where the authors map it before it is normalized. Likely classes are searched among those of the
softmax in training and among all of the run otherwise. The authors' first thirty epochs, which train each tower against
the frozen other one, are left out: sites that start from an average have no common first epoch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.kept_images import parted
from fedgraft.backbones.representation import Representation
from fedgraft.core.errors import UserError
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD, ContextOptions, initial_context
from fedgraft.methods.visual_prompts import (
    CACHES_FINAL,
    VisualPromptAdapter,
    VisualPromptOptions,
    image_width,
    number_of_layers,
)

ATTENTION_DIM = 32
"""Size of queries and keys in the authors' code."""


class DPTOptions(VisualPromptOptions, ContextOptions):
    """Numbers of prompts, and the weight of their classifier."""

    n_visual: int = Field(10, ge=1, description="visual prompts before a lower layer, and vectors V", examples=[4])
    class_prompts: int = Field(1, ge=1, description="likely classes that get a prompt", examples=[2])
    aware_layers: int = Field(1, ge=1, description="upper layers with class-aware prompts", examples=[2])
    alpha: float = Field(1.0, ge=0, description="weight of the prompts' own classifier", examples=[0.1])


class ClassAware(nn.Module):
    """Makes the prompts before one layer.

    Args:
        classes: of the run.
    """

    def __init__(self, dim: int, width: int, vectors: int, classes: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(INITIAL_STD * torch.randn(vectors, width))
        self.named = nn.Linear(dim, width)
        self.query = nn.Linear(width, ATTENTION_DIM, bias=False)
        self.key = nn.Linear(width, ATTENTION_DIM, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.norm_seen, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts (B, P, width), and what each saw, normed, for the classifier.

        Args:
            tokens: (B, T, width), the input of the layer.
            named: (B, P, dim), features of the likely classes.
        """
        around = torch.cat([tokens.detach(), self.vectors.expand(len(tokens), -1, -1)], dim=1)
        asked = self.named(named)
        weights = (self.query(asked) @ self.key(around).mT / ATTENTION_DIM**0.5).softmax(-1)
        seen = self.value(weights @ around)
        return self.norm(asked + seen), self.norm_seen(seen)


class DPT(VisualPromptAdapter):
    """context (1, n_ctx, width), visual (lower layers, n_visual, image width) and a `ClassAware` for each upper one."""

    options: DPTOptions
    keeps_final = True

    @classmethod
    def needs(cls, options: VisualPromptOptions) -> Needs:
        """A context, and an image tower that can be stopped at a layer to look at its tokens."""
        assert isinstance(options, DPTOptions)
        return Needs(
            placement=options.placement,
            context=0 if options.ctx_init else options.n_ctx,
            visual_prompts=options.n_visual,
            visual_depth=2,
            cut=True,
            stops=True,
        )

    @classmethod
    def representation(cls, backbone: Backbone, options: VisualPromptOptions) -> Representation:
        """Input and final feature; raises UserError if no lower layer is left."""
        assert isinstance(options, DPTOptions)
        layers = number_of_layers(backbone, "image")
        if options.aware_layers >= layers:
            raise UserError(
                f"aware_layers={options.aware_layers} leaves none of the image tower's {layers} layers for learnt "
                f"prompts; lower it to {layers - 1} or less."
            )
        return super().representation(backbone, options)

    def build(self, generator: torch.Generator) -> None:
        """The prompts from Normal(0, 0.02^2), the maps as torch draws them."""
        backbone, options, vocabulary = self.vocabulary.backbone, self.options, self.vocabulary
        self._lower = number_of_layers(backbone, "image") - options.aware_layers
        width = image_width(backbone)
        self.context = nn.Parameter(initial_context(vocabulary, options, generator))
        self.visual = nn.Parameter(INITIAL_STD * torch.randn(self._lower, options.n_visual, width, generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            sizes: Any = (backbone.dim, width, options.n_visual, len(vocabulary.class_names))
            self.aware = nn.ModuleList(ClassAware(*sizes) for _ in range(options.aware_layers))
        self.loss_alone = frozenset(f"aware.{layer}.classifier.weight" for layer in range(options.aware_layers))

    def visual_prompts(self) -> Tensor:
        """The learnt prompts before the lower layers."""
        return self.visual

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The class names behind the context."""
        text, tokens = self.vocabulary.backbone.text, self.vocabulary.tokens(classes)
        return text.encode_prompts(self.context, tokens, placement=self.options.placement)[0]

    def image_features(self, images: Tensor) -> Tensor:
        """Features with prompts for the likely classes among all of the run."""
        classes = tuple(range(len(self.vocabulary.class_names)))
        return self._seen(images, classes, self.class_features(classes))[0]

    def _seen(self, images: Tensor, classes: tuple[int, ...], named: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Image features (B, dim), the likely classes (B, P) as positions, and what the prompts of each layer saw."""
        backbone = self.vocabulary.backbone
        states, final = parted(backbone, images, self.representation(backbone, self.options))
        assert final is not None, "keeps_final says so"
        cosines = final @ self.vocabulary.zero_shot[list(classes)].mT
        likely = cosines.topk(min(self.options.class_prompts, len(classes)), dim=1).indices
        tokens = backbone.advance_images(states, Representation(layer=0), self._lower, self.visual[None])
        seen = []
        for layer, aware in enumerate(self.aware, self._lower):
            prompts, saw = aware(tokens, named[likely])
            seen.append(saw)
            form = Representation(layer=layer)
            if layer < self._lower + len(self.aware) - 1:
                tokens = backbone.advance_images(tokens, form, layer + 1, prompts[:, None])
        return backbone.finish_images(tokens, form, prompts=prompts[:, None]), likely, seen

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy, and that of the prompts of the right class."""
        named = self.class_features(classes)
        features, likely, seen = self._seen(images, classes, named)
        right = (likely == labels[:, None]).float()
        extra = features.new_zeros(())
        for saw, aware in zip(seen, self.aware, strict=True):
            logits = saw @ aware.classifier.weight[list(classes)].mT  # type: ignore[union-attr, index]
            each = F.cross_entropy(logits.transpose(1, 2), labels[:, None].expand_as(likely), reduction="none")
            extra = extra + (each * right).sum() / (len(self.aware) * right.sum()).clamp(min=1)
        return self.cross_entropy(features, named, labels) + self.options.alpha * extra


METHOD = Method(
    "dpt",
    "a context and visual prompts, the upper ones made for the likely classes of an image, averaged",
    DPT,
    options=DPTOptions,
    paper="Xing et al., IEEE TMM 2023",
    shared="context, visual prompts and the maps that make the upper ones",
    towers=("text", "image"),
    caches=CACHES_FINAL,
    takes_no_export="its visual prompts depend on the image",
)
