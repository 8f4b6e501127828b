"""The interface of a frozen dual encoder, whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.deltas import Deltas, LinearMap, Tower
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.core.errors import UserError

Precision = Literal["float32", "bfloat16"]
"""Precision of the frozen weights and activations; learnt parameters, features and losses are float32."""


@dataclass(frozen=True, eq=False)
class ClassTokens:
    """Tokenized class names as they follow a prompt: name, full stop and end token.

    Attributes:
        ids: (C, L) token IDs, padded after the end token.
        ends: (C,) position of the end token in each row.
    """

    ids: Tensor
    ends: Tensor

    @cached_property
    def kept(self) -> Tensor:
        """Positions in the flattened IDs that are not padding, (T,), name after name."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device) <= self.ends[:, None]
        return places.flatten().nonzero()[:, 0]

    @cached_property
    def last(self) -> Tensor:
        """The position of each name's end token among `kept`, (C,)."""
        return (self.ends + 1).cumsum(0) - 1


class TextTower(ABC):
    """The frozen text encoder. All features have unit norm and are float32, on the device of its weights."""

    width: int
    """Size of a token embedding, and so of a context vector."""
    max_tokens: int
    start_tokens: int = 1
    """Special tokens before a context."""

    @abstractmethod
    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Token IDs of class names."""

    @abstractmethod
    def tokenize_texts(self, texts: Sequence[str]) -> tuple[Tensor, ClassTokens]:
        """Ordinary texts as prompts: their common prefix, as a context (n, width), and how each continues.

        `encode_prompts` of the two returns the same features as `encode_texts` of the texts.
        """

    @abstractmethod
    def embed_words(self, text: str) -> Tensor:
        """Token embeddings (n, width) of a text without start and end token."""

    @abstractmethod
    def encode_prompts(
        self,
        context: Tensor,
        classes: ClassTokens,
        deep: Tensor | None = None,
        placement: Placement = "before",
        deltas: Deltas | None = None,
    ) -> Tensor:
        """Features of prompted class names for every context and class, differentiable in everything but the classes.

        Args:
            context: (N, n_ctx, width), or one for each class, (N, C, n_ctx, width).
            deep: (N, depth, n_ctx, width), replaces the context's hidden states before each of the layers
                1 to depth (Khattak et al. 2023); layer 0 reads the context itself.
            placement: [start; context; name; "."; end], "behind" the name: [start; name; context; "."; end], or in
                the "middle": the smaller half of the context before the name, the rest behind it (Zhou et al. 2022).
            deltas: changes to the tower's linear maps, one for each context or one for all.

        Returns:
            (N, C, dim).

        Raises:
            UserError: context and class name need more positions, or `deep` more layers, than the tower has; or
                there are deep prompts and a context for each class.
        """

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (T, dim) of ordinary texts, without gradients."""

    def require_short(self, names: Sequence[str]) -> None:
        """Raise UserError for class names that leave no room for a prompt in the text tower."""
        lengths = (self.tokenize_names(names).ends + 1).tolist()
        room = self.max_tokens - self.start_tokens - 1  # of one context vector
        if long := [(name, length) for name, length in zip(names, lengths, strict=True) if length > room]:
            name, length = max(long, key=lambda item: item[1])
            raise UserError(
                f"The class name {name!r} has {length} tokens, but the text tower takes {self.max_tokens} for a whole "
                f"prompt; shorten it{f' and {len(long) - 1} more' if len(long) > 1 else ''}."
            )

    def require_whole(self, names: Sequence[str], templates: Sequence[str]) -> None:
        """Raise UserError for a template that the text tower would cut off with one of the class names in it."""
        special = self.start_tokens + 1  # with the end token
        room = self.max_tokens - special
        long = []
        for name in names:
            for template in templates:
                if (length := len(self.embed_words(template.format(name)))) > room:
                    long.append((length + special, name, template))
        if long:
            length, name, template = max(long)
            raise UserError(
                f"The template {template!r} with the class name {name!r} in it has {length} tokens, but the text tower "
                f"takes {self.max_tokens}; shorten one of them{f', and {len(long) - 1} more' if len(long) > 1 else ''}."
            )

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Zero-shot class features (C, dim): the normalized mean over hand-written templates (Radford et al. 2021).

        Raises:
            UserError: a class name is too long, alone or in a template.
        """
        self.require_short(names)
        self.require_whole(names, templates)
        texts = [template.format(name) for name in names for template in templates]
        features = self.encode_texts(texts).view(len(names), len(templates), -1)
        return torch.nn.functional.normalize(features.mean(1), dim=-1)


class Backbone(ABC):
    """A frozen dual encoder."""

    name: str
    fingerprint: str
    """SHA-256 over configuration, tokenizer and weights, in hexadecimal."""
    preprocessing: str
    """SHA-256 over the preprocessing configuration, in hexadecimal."""
    precision: Precision
    device: torch.device
    """The device of the weights and the features."""
    dim: int
    """Size of the joint embedding space."""
    logit_scale: float
    """The factor on cosines, already exponentiated."""
    logit_bias: float | None = None
    """What is added to scaled cosines under a sigmoid loss; None where the checkpoint has none."""
    text: TextTower

    @property
    def images_per_pass(self) -> int:
        """How many images go through the image tower at once where nothing else limits them.

        Few on a CPU: activations that leave its caches, and whose memory the allocator gives back after every layer,
        cost up to half as much time again.
        """
        return 32 if self.device.type == "cpu" else 256

    @abstractmethod
    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values (B, 3, height, width) of RGB images of any size."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features (B, dim) of unit norm in float32, without gradients."""

    def image_shape(self, form: Representation = FEATURES) -> tuple[int, ...]:
        """The shape of what `represent_images` returns for an image."""
        return (self.dim,)

    def represent_images(self, pixels: Tensor, form: Representation = FEATURES) -> Tensor:
        """What is cached of images, in float32 and without gradients.

        Returns:
            (B, dim), or the input of a layer (B, tokens, width), or all patches (B, 1 + patches, dim), or what the
            projection reads at each exit and at the end (B, exits + 1, width).

        Raises:
            UserError: the family does not give this form.
        """
        if form.patches:
            raise UserError(f"The backbone {self.name!r} gives no features of patches.")
        if form.exits:
            raise UserError(self._no_exit)
        if form.layer is not None:
            raise UserError(f"The image tower of {self.name!r} cannot be cut at a layer.")
        return self.encode_images(pixels)

    def finish_images(
        self,
        represented: Tensor,
        form: Representation = FEATURES,
        deltas: Deltas | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """Unit-norm features (B, dim) from what is cached of images, differentiable in deltas and prompts.

        Args:
            represented: as `represent_images` returns it, of any floating dtype.
            form: what it is.
            deltas: changes to the linear maps from `form.layer` on, one for each row or one for all.
            prompts: (B, depth, n, width), or (1, depth, n, width) for all rows: n tokens behind the others before each
                of `depth` layers from `form.layer` on. Those before later layers replace the first; behind the last of
                them, what has become of the tokens goes on (Jia et al. 2022, Khattak et al. 2023).

        Raises:
            UserError: there are prompts for more layers than follow, or the family takes none.
        """
        if prompts is not None:
            raise UserError(f"The backbone {self.name!r} takes no visual prompts.")
        return represented[:, 0] if form.patches else represented

    def advance_images(self, represented: Tensor, form: Representation, layer: int, prompts: Tensor) -> Tensor:
        """The input of a later layer of the image tower, (B, tokens, width) in float32, differentiable in both.

        Args:
            represented: the input of `form.layer`, of any floating dtype.
            layer: whose input is returned.
            prompts: (B or 1, layer - form.layer, n, width), before each of the layers between. What becomes of those
                before the last is left out.

        Raises:
            UserError: the family's towers cannot be stopped at a layer.
        """
        raise UserError(f"The image tower of {self.name!r} cannot be stopped at a layer.")

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """The linear maps in a tower's layers that deltas can change, by name; empty if the family supports none."""
        return {}

    def map_names(self, tower: Tower) -> Mapping[str, str]:
        """What a tower calls the maps that CLIP calls q_proj, k_proj, v_proj, out_proj and fc1; empty for the same.

        Targets of low-rank adapters, such as the default q_proj,v_proj, mean these maps in every backbone.
        """
        return {}

    def preprocessor_config(self) -> dict[str, Any]:
        """The preprocessing with Hugging Face's keys, plain JSON; raises UserError if the family cannot be exported."""
        raise UserError(f"The backbone {self.name!r} is of a family that cannot be exported.")

    def image_encoder(self, weights: Mapping[str, Tensor] | None = None, prompts: Tensor | None = None) -> nn.Module:
        """The dense image tower as a plain module for exports: no hooks, no dropout, float32 on the CPU, in eval mode.

        Its `forward(pixels)` maps (B, 3, height, width) to embeddings (B, dim) of unit norm. It shares no tensor with
        the backbone, and writes attention out, which exports best.

        Args:
            weights: in place of its own, by the names of `linear_maps` with ".weight" behind them, such as those with
                adapters merged.
            prompts: visual prompts (depth, n, width) from the first layer on.

        Raises:
            UserError: the family cannot be exported, or takes no visual prompts.
        """
        raise UserError(f"The backbone {self.name!r} is of a family that cannot be exported.")

    def image_projection(self) -> Tensor:
        """The last map of the image tower, (dim, width), a copy in float32 on the CPU.

        Raises:
            UserError: the family's towers cannot end behind an early layer.
        """
        raise UserError(self._no_exit)

    def reprojected_encoder(self, projection: Tensor, layers: int | None = None) -> nn.Module:
        """`image_encoder` with another last map (any dim, width), of all layers or of the first ones alone.

        Raises:
            UserError: as in `image_projection`.
        """
        raise UserError(self._no_exit)

    @property
    def _no_exit(self) -> str:
        return f"The image tower of {self.name!r} cannot end behind an early layer."

    def vision_tower(self, weights: Mapping[str, Tensor] | None = None) -> PrunableTower:
        """The image tower as one that can be pruned, a copy in float32 on the CPU.

        Args:
            weights: as in `image_encoder`.

        Raises:
            UserError: the towers of this family cannot be pruned.
        """
        raise UserError(f"The backbone {self.name!r} is of a family whose image tower cannot be pruned.")
