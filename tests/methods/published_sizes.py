"""Backbones of published sizes without a weight: what a method's parameters depend on, and nothing else."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from fedgraft.backbones import Backbone, ClassTokens
from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.backbone import TextTower
from fedgraft.backbones.deltas import Deltas, LinearMap, Tower
from fedgraft.backbones.representation import FEATURES, Representation


class SizedText(TextTower):
    """A text tower that has a width and room for 77 tokens."""

    def __init__(self, width: int, dim: int) -> None:
        self.width, self.max_tokens, self._dim = width, 77, dim

    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Three tokens for each name."""
        return ClassTokens(torch.ones(len(names), 3, dtype=torch.long), torch.full((len(names),), 2))

    def tokenize_texts(self, texts: Sequence[str]) -> tuple[Tensor, ClassTokens]:
        """Four tokens that all texts share."""
        return torch.ones(4, self.width), self.tokenize_names(texts)

    def embed_words(self, text: str) -> Tensor:
        """A vector for each word."""
        return torch.ones(len(text.split()), self.width)

    def encode_prompts(
        self,
        context: Tensor,
        classes: ClassTokens,
        deep: Tensor | None = None,
        placement: Placement = "before",
        deltas: Deltas | None = None,
    ) -> Tensor:
        """The same for all."""
        return torch.full((len(context), len(classes.ids), self._dim), self._dim**-0.5)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """The same for all."""
        return torch.full((len(texts), self._dim), self._dim**-0.5)


class SizedBackbone(Backbone):
    """Two towers of twelve layers, with MLPs four times as wide."""

    precision = "float32"
    device = torch.device("cpu")
    logit_scale = 100.0
    fingerprint = preprocessing = "0"

    def __init__(self, name: str, text_width: int, image_width: int, dim: int, tokens: int) -> None:
        self.name, self.dim, self.text = name, dim, SizedText(text_width, dim)
        self._widths = {"text": text_width, "image": image_width}
        self._tokens = tokens

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """There is no image."""
        raise NotImplementedError

    def encode_images(self, pixels: Tensor) -> Tensor:
        """There is no image."""
        raise NotImplementedError

    def image_shape(self, form: Representation = FEATURES) -> tuple[int, ...]:
        """Tokens and width."""
        if form.patches:
            return self._tokens, self.dim
        return (self.dim,) if form.layer is None else (self._tokens, self._widths["image"])

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """Attention and MLP of every layer, on the meta device."""
        width = self._widths[tower]
        shapes = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        prefix = {"text": "text_model", "image": "vision_model"}[tower] + ".encoder.layers"
        return {
            f"{prefix}.{layer}.{name}": LinearMap(layer, torch.empty(shape, device="meta"))
            for layer in range(12)
            for name, shape in shapes.items()
        }


VIT_B16 = SizedBackbone("CLIP ViT-B/16", 512, 768, 512, 197)
SIGLIP_B16 = SizedBackbone("SigLIP B/16", 768, 768, 768, 196)
