"""The family of `photo`: its folders, and the backbone made of one. docs/photo.md is its model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.bert.text_tower import BertTextTower
from fedgraft.backbones.deltas import LinearMap, Tower
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.fingerprint import fingerprint, preprocessing_digest
from fedgraft.backbones.photo.encoder import PhotoImageEncoder
from fedgraft.backbones.photo.folder import photo_folder
from fedgraft.backbones.photo.model import MODEL_TYPE, PhotoConfig, PhotoModel
from fedgraft.backbones.photo.sample import write_sample
from fedgraft.backbones.pretrained import reading, require_files
from fedgraft.core.errors import UserError


class PhotoBackbone(Backbone):
    """An EfficientNet-Lite and a sentence encoder, joined by a map that was made of words."""

    def __init__(
        self, request: Request, config: PhotoConfig, model: PhotoModel, tokenizer: Any, processor: Any
    ) -> None:
        self.name, self.precision, self.device = request.name, request.precision, request.device
        self.dim, self.logit_scale = config.dim, config.logit_scale
        self.fingerprint = fingerprint(config.to_json(), tokenizer, model.state_dict())
        self.preprocessing = preprocessing_digest(processor.to_dict())
        dtype = getattr(torch, request.precision)
        self._model, self._processor, self._dtype = model, processor, dtype
        self._images = PhotoImageEncoder.of(model).to(self.device, dtype)
        texts = model.text_model.to(self.device, dtype)
        text_map = model.text_map.to(self.device)
        self._text = BertTextTower(
            texts, tokenizer, "mean", text_map, prefix="text_model.", context_length=config.context_length
        )
        self.text = self._text

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values as the folder's image processor prepares them."""
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pooled features on the principal directions of the classifier."""
        ready = pixels.to(self.device, self._dtype, memory_format=torch.channels_last)
        features: Tensor = self._images(ready)
        return features

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """Those of the sentence encoder's attention and MLP; the image tower is one of convolutions."""
        return self._text.linear_maps() if tower == "text" else {}

    def map_names(self, tower: Tower) -> Mapping[str, str]:
        """As BERT calls them."""
        return self._text.map_names if tower == "text" else {}

    def preprocessor_config(self) -> dict[str, Any]:
        """The image processor's configuration, as in preprocessor_config.json."""
        config: dict[str, Any] = json.loads(self._processor.to_json_string())
        return config

    def image_encoder(self, weights: Mapping[str, Tensor] | None = None, prompts: Tensor | None = None) -> nn.Module:
        """The tower with its batch norms folded; it has no linear maps that `weights` could replace."""
        if prompts is not None:
            raise UserError(f"The backbone {self.name!r} takes no visual prompts.")
        return self.vision_tower()

    def vision_tower(self, weights: Mapping[str, Tensor] | None = None) -> PhotoImageEncoder:
        """The same, which tickets are drawn from."""
        return PhotoImageEncoder.of(self._model).float().cpu()


def load_photo(request: Request) -> PhotoBackbone:
    """Load a folder; raises UserError if weights, tokenizer or preprocessing are missing, damaged or misshapen."""
    from transformers import BertTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    require_files(request.folder, ("tokenizer.json",))
    config = PhotoConfig.read(request.folder)
    with reading(request):
        model = PhotoModel(config)
        weights = load_file(request.folder / "model.safetensors")
        tokenizer = BertTokenizer.from_pretrained(request.folder)
        processor = CLIPImageProcessorPil.from_pretrained(request.folder)
    model.fill(request.name, weights)
    return PhotoBackbone(request, config, model, tokenizer, processor)


def photo_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's config.json; raises UserError if it is malformed."""
    config = PhotoConfig.read(folder)
    try:
        layers, width = int(config.text["num_hidden_layers"]), int(config.text["hidden_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is not a configuration of its family: {error}") from error
    return Sizes(config.context_length, layers, width, config.dim, config.image_size)


FAMILY = Family(
    "photo",
    "photographs without a download: EfficientNet-Lite0 and MiniLM from the extra photo, joined by words",
    lambda folder: model_type(folder) == MODEL_TYPE,
    load_photo,
    abilities=Abilities(
        TextAbilities(causal=False, placements=("before", "middle", "behind"), deep_prompts=True, low_rank=True),
        ImageAbilities(prunes=True),
    ),
    sizes=photo_sizes,
    sample=write_sample,
    embedded={"photo": photo_folder},
    prunable=PhotoImageEncoder.from_json,
)
