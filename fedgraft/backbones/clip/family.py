"""CLIP (Radford et al. 2021) and MetaCLIP 2 (Chuang et al. 2025), its multilingual sibling, from Hugging Face folders.

Both have the same modules under the same names; they differ in tokenizer and vocabulary, and in how the end of a text
is found. CLIP's first published configurations name the end token 2 and mean the token of the highest ID.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, MetaClip2Config, MetaClip2Model

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.backbone import Backbone, Precision
from fedgraft.backbones.clip.image_tower import ClipImageTower
from fedgraft.backbones.clip.text_tower import ClipTextTower
from fedgraft.backbones.deltas import Deltas, LinearMap, Tower
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.fingerprint import fingerprint, preprocessing_digest
from fedgraft.backbones.loading import MINI, mini_folder
from fedgraft.backbones.pretrained import load_pretrained, read_config
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.backbones.vision_tower import PromptedTower, VisionTower, reprojected_tower, tower_of_clip
from fedgraft.core.errors import UserError

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_KINDS: dict[str | None, tuple[Any, Any]] = {
    "clip": (CLIPConfig, CLIPModel),
    "metaclip_2": (MetaClip2Config, MetaClip2Model),
}
_LEGACY_END = 2


class ClipBackbone(Backbone):
    """A `CLIPModel` or `MetaClip2Model` with its tokenizer and image processor."""

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
        self.fingerprint = fingerprint(model.config.to_dict(), tokenizer, model.state_dict())
        self._model = model.eval().requires_grad_(False).to(self.device, getattr(torch, precision))
        self._processor = processor
        self.text = ClipTextTower(self._model, tokenizer)
        self._image = ClipImageTower(self._model)
        self.dim = int(model.config.projection_dim)
        self.preprocessing = preprocessing_digest(processor.to_dict())

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values as the folder's image processor prepares them."""
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Projected and normalized image features."""
        weights = self._model.visual_projection.weight
        pooled = self._model.vision_model(pixel_values=pixels.to(weights)).pooler_output
        return F.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    def image_shape(self, form: Representation = FEATURES) -> tuple[int, ...]:
        """(dim,), (tokens, width) below a layer, (tokens, dim) with all patches, or (exits + 1, width)."""
        tokens, width = self._image.states_shape
        if form.exits:
            return len(form.exits) + 1, width
        if form.patches:
            return tokens, self.dim
        return (self.dim,) if form.layer is None else (tokens, width)

    def represent_images(self, pixels: Tensor, form: Representation = FEATURES) -> Tensor:
        """Features, those of all patches, the input of a layer, or class tokens at exits, in float32."""
        if form == FEATURES:
            return self.encode_images(pixels)
        own = pixels.to(self._model.visual_projection.weight)
        if form.patches:
            return self._image.patch_features(own)
        if form.exits:
            return self._image.exits(own, form.exits)
        return self.encode_images(pixels) if form.layer is None else self._image.states(own, form.layer)

    def finish_images(
        self,
        represented: Tensor,
        form: Representation = FEATURES,
        deltas: Deltas | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """The features themselves, or the rest of the image tower."""
        if form.exits:
            return self._image.projected(represented[:, -1])
        if form.layer is None:
            return super().finish_images(represented, form, deltas, prompts)
        return self._image.features(represented, form.layer, deltas or {}, prompts)

    def advance_images(self, represented: Tensor, form: Representation, layer: int, prompts: Tensor) -> Tensor:
        """The layers between, with prompts before each."""
        assert form.layer is not None, "what is advanced is the input of a layer"
        return self._image.advance(represented, form.layer, layer, prompts)

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """The linear maps of attention and MLP in every layer."""
        return clip_linear_maps(self._model, tower)

    def preprocessor_config(self) -> dict[str, Any]:
        """The image processor's configuration, as in preprocessor_config.json."""
        config: dict[str, Any] = json.loads(self._processor.to_json_string())
        return config

    def image_encoder(self, weights: Mapping[str, Tensor] | None = None, prompts: Tensor | None = None) -> nn.Module:
        """A `VisionTower`, or one that puts the prompts before its layers."""
        tower = self.vision_tower(weights)
        return tower if prompts is None else PromptedTower(tower, prompts).eval().requires_grad_(False)

    def image_projection(self) -> Tensor:
        """The visual projection."""
        return self._image.projection()

    def reprojected_encoder(self, projection: Tensor, layers: int | None = None) -> VisionTower:
        """A `VisionTower`, with fewer layers if they are given."""
        return reprojected_tower(self.vision_tower(), projection, layers)

    def vision_tower(self, weights: Mapping[str, Tensor] | None = None) -> VisionTower:
        """A copy of the image tower, with weights as rounded to the precision in which they were loaded."""
        return tower_of_clip(self._model, weights)


def clip_linear_maps(model: CLIPModel, tower: Tower) -> dict[str, LinearMap]:
    """`Backbone.linear_maps` of a `CLIPModel`, which may be without weights."""
    prefix = {"text": "text_model", "image": "vision_model"}[tower] + ".encoder.layers"
    return {
        f"{prefix}.{number}.{name}": LinearMap(number, module.weight)
        for number, layer in enumerate(model.get_submodule(prefix))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


def load_clip(request: Request) -> ClipBackbone:
    """Load a Hugging Face folder or ID; raises UserError if weights or tokenizer are missing, incomplete or damaged."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    _, model_class = _KINDS[model_type(request.folder)]
    parts = load_pretrained(request, model_class, _TOKENIZER_FILES, CLIPImageProcessorPil.from_pretrained)
    _require_end(request.name, *parts[:2])
    return ClipBackbone(request.name, *parts, request.precision, request.device)


def _require_end(name: str, model: Any, tokenizer: Any) -> None:
    """Raise UserError unless the model finds the end of a text where the tokenizer puts it."""
    wanted, found = int(model.config.text_config.eos_token_id), int(tokenizer.eos_token_id)
    if isinstance(model, CLIPModel) and wanted == _LEGACY_END:
        wanted = max(tokenizer.get_vocab().values())
    if found != wanted:
        raise UserError(
            f"The backbone {name!r} takes the features of a text at the token {wanted}, but its tokenizer ends texts "
            f"with {found}; correct eos_token_id in its config.json, or take the tokenizer that it was trained with."
        )


def clip_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's config.json; raises UserError if it is malformed."""
    config = read_config(folder, _KINDS[model_type(folder)][0])
    text, image = config.text_config, config.vision_config
    return Sizes(
        positions=int(text.max_position_embeddings),
        text_layers=int(text.num_hidden_layers),
        text_width=int(text.hidden_size),
        dim=int(config.projection_dim),
        image_size=int(image.image_size),
        image_layers=int(image.num_hidden_layers),
        image_width=int(image.hidden_size),
        patches=(int(image.image_size) // int(image.patch_size)) ** 2,
    )


def write_sample(folder: Path) -> None:
    """The tokenizer of `mini` with small random towers of another width, depth and head count."""
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(mini_folder() / name, folder / name)
    config = CLIPConfig.from_pretrained(mini_folder())
    config.text_config.update({"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6})
    config.text_config.update({"intermediate_size": 96, "initializer_range": 0.2, "initializer_factor": 3.0})
    config.vision_config.update({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2})
    config.projection_dim = 24
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)


FAMILY = Family(
    "clip",
    "CLIP and MetaCLIP 2 in Hugging Face's format (safetensors), including the embedded mini",
    lambda folder: model_type(folder) in _KINDS,
    load_clip,
    abilities=Abilities(
        TextAbilities(
            causal=True, placements=("before", "middle", "behind"), deep_prompts=True, low_rank=True, branches=True
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
            prunes=True,
            merges=True,
        ),
    ),
    sizes=clip_sizes,
    sample=write_sample,
    embedded={MINI: mini_folder},
    prunable=VisionTower.from_json,
)
