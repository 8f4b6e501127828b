"""SigLIP and SigLIP 2 of fixed resolution (Zhai et al. 2023, Tschannen et al. 2025) from Hugging Face folders.

The published checkpoints of both are of transformers' class `SiglipModel`; SigLIP 2 has another tokenizer. SigLIP 2 of
flexible resolution (NaFlex) keeps the aspect ratio of each image and is refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.backbone import Backbone, Precision
from fedgraft.backbones.deltas import Deltas, LinearMap, Tower
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.fingerprint import fingerprint, preprocessing_digest
from fedgraft.backbones.pretrained import load_pretrained, read_config
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.backbones.siglip.dense_tower import dense_tower, reprojected
from fedgraft.backbones.siglip.image_tower import SiglipImageTower
from fedgraft.backbones.siglip.sample import write_sample
from fedgraft.backbones.siglip.text_tower import SiglipTextTower
from fedgraft.backbones.siglip.tokens import SiglipTokens
from fedgraft.core.errors import UserError

_FIXED, _FLEXIBLE = "siglip", "siglip2"
_TOKENIZER_FILES = ("spiece.model", "tokenizer.json")


class SiglipBackbone(Backbone):
    """A `SiglipModel` with its tokenizer and image processor."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        processor: Any,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.precision, self.device = name, precision, torch.device(device)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.logit_bias = float(model.logit_bias.detach())
        self.fingerprint = fingerprint(model.config.to_dict(), tokenizer, model.state_dict())
        self._model = model.eval().requires_grad_(False).to(self.device, getattr(torch, precision))
        self._processor = processor
        positions = int(model.config.text_config.max_position_embeddings)
        self.text = SiglipTextTower(self._model, SiglipTokens(name, tokenizer, positions))
        self._image = SiglipImageTower(self._model)
        self.dim = int(model.config.vision_config.hidden_size)
        self.preprocessing = preprocessing_digest(processor.to_dict())

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values as the folder's image processor prepares them: the whole image, squeezed into a square."""
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pooled and normalized image features."""
        return self._image.features(self._image.states(self._own(pixels), 0), 0, {})

    def image_shape(self, form: Representation = FEATURES) -> tuple[int, ...]:
        """(dim,), (patches, width) below a layer, (1 + patches, dim) with all patches, or (exits + 1, dim)."""
        patches, width = self._image.states_shape
        if form.patches:
            return 1 + patches, self.dim
        if form.exits:
            return len(form.exits) + 1, self.dim
        return (self.dim,) if form.layer is None else (patches, width)

    def represent_images(self, pixels: Tensor, form: Representation = FEATURES) -> Tensor:
        """Features, those of all patches, the input of a layer, or what is pooled at exits, in float32."""
        if form.patches:
            return self._image.patch_features(self._own(pixels))
        if form.exits:
            return self._image.exits(self._own(pixels), form.exits)
        return self.encode_images(pixels) if form.layer is None else self._image.states(self._own(pixels), form.layer)

    def finish_images(
        self,
        represented: Tensor,
        form: Representation = FEATURES,
        deltas: Deltas | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """The features themselves, or the rest of the image tower, whose pooling reads the patches and no prompts."""
        if form.exits:
            return F.normalize(represented[:, -1].float(), dim=-1)
        if form.layer is None:
            return super().finish_images(represented, form, deltas, prompts)
        return self._image.features(represented, form.layer, deltas or {}, prompts)

    def advance_images(self, represented: Tensor, form: Representation, layer: int, prompts: Tensor) -> Tensor:
        """The layers between, with prompts before each."""
        assert form.layer is not None, "what is advanced is the input of a layer"
        return self._image.advance(represented, form.layer, layer, prompts)

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """The linear maps of attention and MLP in every layer."""
        prefix = {"text": "text_model", "image": "vision_model"}[tower] + ".encoder.layers"
        return {
            f"{prefix}.{number}.{name}": LinearMap(number, module.weight)
            for number, layer in enumerate(self._model.get_submodule(prefix))
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }

    def preprocessor_config(self) -> dict[str, Any]:
        """The image processor's configuration, as in preprocessor_config.json, and that it does not crop."""
        config: dict[str, Any] = json.loads(self._processor.to_json_string())
        return {**config, "do_center_crop": bool(config.get("do_center_crop"))}

    def image_encoder(self, weights: Mapping[str, Tensor] | None = None, prompts: Tensor | None = None) -> nn.Module:
        """The dense tower, with weights as rounded to the precision in which they were loaded."""
        return dense_tower(self._model, weights, prompts)

    def image_projection(self) -> Tensor:
        """What is pooled is the feature: the identity."""
        return torch.eye(self.dim)

    def reprojected_encoder(self, projection: Tensor, layers: int | None = None) -> nn.Module:
        """The dense tower with a map behind its pooling, and with fewer layers if they are given."""
        return reprojected(dense_tower(self._model, None, None), projection, layers)

    def _own(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, getattr(torch, self.precision))


def load_siglip(request: Request) -> SiglipBackbone:
    """Load a Hugging Face folder or ID.

    Raises:
        UserError: the resolution is not fixed, or weights, tokenizer or preprocessing are missing or do not fit.
    """
    from transformers import SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    siglip_sizes(request.folder)
    with _no_warnings():
        parts = load_pretrained(request, SiglipModel, _TOKENIZER_FILES, SiglipImageProcessorPil.from_pretrained)
    return SiglipBackbone(request.name, *parts, request.precision, request.device)


def siglip_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's config.json.

    Raises:
        UserError: it is malformed, or of a model without a fixed resolution, without pooling or with features of two
            sizes.
    """
    from transformers import SiglipConfig

    path = folder / "config.json"
    if model_type(folder) == _FLEXIBLE:
        raise UserError(
            f"{path} is of a SigLIP 2 that keeps the aspect ratio of images (NaFlex), and only those of fixed "
            "resolution are supported; take the checkpoint of the same size with a resolution in its name, such as "
            "google/siglip2-base-patch16-224."
        )
    with _no_warnings():
        config = read_config(folder, SiglipConfig)
    text, image = config.text_config, config.vision_config
    if not image.vision_use_head:
        raise UserError(f"{path} has vision_use_head=false: the image tower has no features of whole images.")
    if text.projection_size != image.hidden_size:
        raise UserError(
            f"{path} has text features of size {text.projection_size} and image features of size {image.hidden_size}; "
            "they must be equal."
        )
    if not (isinstance(image.image_size, int) and isinstance(image.patch_size, int)):
        raise UserError(
            f"{path} has images or patches that are not square; give one number for image_size and patch_size."
        )
    return Sizes(
        positions=int(text.max_position_embeddings),
        text_layers=int(text.num_hidden_layers),
        text_width=int(text.hidden_size),
        dim=int(image.hidden_size),
        image_size=image.image_size,
        image_layers=int(image.num_hidden_layers),
        image_width=int(image.hidden_size),
        patches=(image.image_size // image.patch_size) ** 2,
        start_tokens=SiglipTextTower.start_tokens,
    )


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Without transformers' warnings about token IDs that published configurations leave at defaults of no use."""
    from transformers.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(shown)


FAMILY = Family(
    "siglip",
    "SigLIP and SigLIP 2 of fixed resolution in Hugging Face's format (SiglipModel with safetensors)",
    lambda folder: model_type(folder) in (_FIXED, _FLEXIBLE),
    load_siglip,
    abilities=Abilities(
        TextAbilities(
            causal=False, placements=("before", "middle", "behind"), deep_prompts=True, low_rank=True, branches=True
        ),
        ImageAbilities(
            cuts=True,
            prompts=True,
            deep_prompts=True,
            stops=True,
            patches=True,
            exits=True,
            low_rank=True,
            branches=True,
            merges=True,
        ),
        losses=("softmax", "sigmoid"),
        crops=False,
    ),
    sizes=siglip_sizes,
    sample=write_sample,
)
