"""HiCroPL (Zheng et al., ICCV 2025), averaged: prompts of two towers, each the source of the other's at some depth.

Both towers have prompts before their first D layers. Of the first `cross` layers, the text prompts write the visual
ones; of those behind, the visual prompts write the text's. Each layer's prompts are drawn together in a proxy by
attention, a query q of the layer's own over its prompts P, LN(q + attention(LN q, LN P)), and a mapper turns the
prompts Z of the other tower and the proxies R of all those layers into

    Q + MLP(LN Q),  Q = Z W_q + attention(LN(Z W_q), LN(R W_k), LN(R W_v)).

With x and t the features under the prompts and f and w the frozen ones, the classifier compares x' = norm(x + f) with
t' = norm(t + w), and the loss is

    CE(x', t') + distill (2 - mean cos(x', f) - mean cos(t', w)).

The authors' code overwrites the prompts with what the mappers wrote, so that no gradient reaches the mappers and every
step maps what the last one mapped; here what is mapped is a function of the prompts that are learnt.
f is of the tower itself and w of the source's templates, where the authors take a larger teacher and descriptions by a
language model. Keys have no bias, and maps that only tell keys apart are left out where there is one key.
"""

from math import gcd

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.representation import Representation
from fedgraft.core.errors import UserError
from fedgraft.methods.dual_prompts import DualPromptAdapter, DualPromptOptions
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import INITIAL_STD, initial_context
from fedgraft.methods.visual_prompts import CACHES_FINAL, VisualPromptOptions, image_width, resolved_depth

HEADS, EXPANSION = 8, 4


class HiCroPLOptions(DualPromptOptions):
    """Where the direction turns, and the weight of the frozen features."""

    cross: int = Field(0, ge=0, description="layers whose text prompts write the visual ones; 0 for 2/3", examples=[2])
    distill: float = Field(10.0, ge=0, description="weight of the distance to the frozen features", examples=[1.0])


class Attention(nn.Module):
    """Multi-head attention of queries (Q, width) over keys and values (K, width); without a choice if K is 1."""

    def __init__(self, width: int, keys: int) -> None:
        super().__init__()
        self.heads = gcd(HEADS, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        if keys > 1:
            self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        bound = (1.5 / width) ** 0.5  # of torch's own attention
        for name, own in self.named_children():
            assert isinstance(own, nn.Linear)
            if name != "out":
                nn.init.uniform_(own.weight, -bound, bound)
            if own.bias is not None:
                nn.init.zeros_(own.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(Q, width), or (1, width) where all queries get the same."""
        mixed = self._split(self.value(values))
        if len(keys) > 1:
            q, k = self._split(self.query(queries)), self._split(self.key(keys))
            mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ mixed
        out: Tensor = self.out(mixed.transpose(0, 1).flatten(1))
        return out

    def _split(self, states: Tensor) -> Tensor:
        """(T, width) to (heads, T, width / heads)."""
        return states.view(len(states), self.heads, -1).transpose(0, 1)


class Proxy(nn.Module):
    """Draws the prompts of a layer together in one vector."""

    def __init__(self, width: int, prompts: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.attention = Attention(width, prompts)
        self.norm, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, prompts: Tensor) -> Tensor:
        """(1, width) from prompts (n, width)."""
        normed = self.norm(prompts)
        out: Tensor = self.norm_out(self.query + self.attention(self.norm(self.query), normed, normed))
        return out


class Mapper(nn.Module):
    """Writes prompts of one tower from proxies of the other."""

    def __init__(self, width: int, source: int, proxies: int) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(width, width), nn.Linear(source, width)
        if proxies > 1:
            self.key = nn.Linear(source, width)
        self.attention = Attention(width, proxies)
        self.norm, self.norm_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.hidden, self.out = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)

    def forward(self, prompts: Tensor, proxies: Tensor) -> Tensor:
        """(layers, n, width) from prompts of that shape and proxies (layers, source)."""
        queries, values = self.query(prompts.flatten(0, 1)), self.norm(self.value(proxies))
        keys = self.norm(self.key(proxies)) if len(proxies) > 1 else values
        queries = queries + self.attention(self.norm(queries), keys, values)
        hidden = self.hidden(self.norm_hidden(queries))
        written: Tensor = queries + self.out(hidden * torch.sigmoid(1.702 * hidden))
        return written.view(prompts.shape)


class SummedEncoder(nn.Module):
    """The image tower with prompts and the frozen one, their features added."""

    def __init__(self, prompted: nn.Module, frozen: nn.Module) -> None:
        super().__init__()
        self.prompted, self.frozen = prompted, frozen

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit-norm features (B, dim) of (B, 3, height, width)."""
        return F.normalize(self.prompted(pixels) + self.frozen(pixels), dim=-1)


class HiCroPL(DualPromptAdapter):
    """text (D, n, width) and visual (D, n, image width), the proxies of each layer and two mappers, all shared."""

    options: HiCroPLOptions
    keeps_final = True

    @classmethod
    def representation(cls, backbone: Backbone, options: VisualPromptOptions) -> Representation:
        """Input and final feature; raises UserError if the direction turns behind the last prompted layer."""
        assert isinstance(options, HiCroPLOptions)
        depth = resolved_depth(backbone, options.depth, "text", "image")
        if options.cross > depth:
            raise UserError(f"cross={options.cross} layers are more than the {depth} with prompts; lower cross.")
        return super().representation(backbone, options)

    def build(self, generator: torch.Generator) -> None:
        """Prompts from Normal(0, 0.02^2) or the words, proxies from Normal(0, 1), maps as torch draws them."""
        backbone, options = self.vocabulary.backbone, self.options
        depth, wide = resolved_depth(backbone, options.depth, "text", "image"), image_width(backbone)
        self._cross = min(depth, options.cross or max(1, round(depth * 2 / 3)))
        context = initial_context(self.vocabulary, options, generator)
        length, width = context.shape[1:]
        deep = INITIAL_STD * torch.randn(depth - 1, length, width, generator=generator)
        self.text = nn.Parameter(torch.cat([context, deep]))
        self.visual = nn.Parameter(INITIAL_STD * torch.randn(depth, length, wide, generator=generator))
        behind = depth - self._cross
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.text_proxies = nn.ModuleList(Proxy(width, length) for _ in range(self._cross))
            self.to_image = Mapper(wide, width, self._cross)
            if behind:
                self.visual_proxies = nn.ModuleList(Proxy(wide, length) for _ in range(behind))
                self.to_text = Mapper(width, wide, behind)

    def text_prompts(self) -> tuple[Tensor, Tensor | None]:
        """The learnt prompts, and behind the turn those that the visual ones write."""
        prompts, behind = self.text[: self._cross], self.text[self._cross :]
        if len(behind):
            own = zip(self.visual_proxies, self.visual[self._cross :], strict=True)
            prompts = torch.cat([prompts, self.to_text(behind, torch.cat([proxy(visual) for proxy, visual in own]))])
        return prompts[:1], prompts[None, 1:] if len(prompts) > 1 else None

    def visual_prompts(self) -> Tensor:
        """Those that the text prompts write, and behind the turn the learnt ones."""
        own = zip(self.text_proxies, self.text[: self._cross], strict=True)
        proxies = torch.cat([proxy(text) for proxy, text in own])
        return torch.cat([self.to_image(self.visual[: self._cross], proxies), self.visual[self._cross :]])

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The prompted class names and the hand-written ones, added."""
        return F.normalize(super().class_features(classes) + self.vocabulary.zero_shot[list(classes)], dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """The features with and without prompts, added."""
        return F.normalize(super().image_features(images) + self.frozen_features(images), dim=-1)

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy, and the distance of either side from the frozen features."""
        features, named = self.image_features(images), self.class_features(classes)
        alike = (features * self.frozen_features(images)).sum(-1).mean()
        alike = alike + (named * self.vocabulary.zero_shot[list(classes)]).sum(-1).mean()
        return self.cross_entropy(features, named, labels) + self.options.distill * (2 - alike)

    def image_encoder(self) -> nn.Module:
        """Both towers in one module, for exports."""
        return SummedEncoder(super().image_encoder(), self.vocabulary.backbone.image_encoder()).eval()


METHOD = Method(
    "hicropl",
    "prompts in both towers, mapped from text to image in lower layers and back in upper ones, averaged",
    HiCroPL,
    options=HiCroPLOptions,
    paper="Zheng et al., ICCV 2025",
    shared="the prompts, proxies and mappers",
    towers=("text", "image"),
    caches=CACHES_FINAL,
)
