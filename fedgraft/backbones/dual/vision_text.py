"""`VisionTextDualEncoderModel` (Zhai et al. 2022, LiT): any vision model beside a BERT or RoBERTa, both projected."""

from pathlib import Path
from typing import Any

from transformers import BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel, ViTConfig

from fedgraft.backbones.abilities import Abilities, Sizes
from fedgraft.backbones.bert.text_tower import BertTextTower
from fedgraft.backbones.dual.backbone import (
    BERTS,
    BIDIRECTIONAL,
    TOKENIZER_FILES,
    ScaledDualBackbone,
    abilities_in,
    bert_sizes,
    with_layers,
)
from fedgraft.backbones.dual.class_token_vit import PLAIN_VIT, HuggingFaceVit
from fedgraft.backbones.dual.image_towers import CLIP_VISION, WHOLE, ClipVisionTower, ImageTower, PooledImageModel
from fedgraft.backbones.dual.preprocessing import read_preprocessing
from fedgraft.backbones.dual.sample import SIDE, seeded, text_sizes, uneven, write_preprocessing, write_wordpieces
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.pretrained import load_pretrained, read_config
from fedgraft.core.errors import UserError

_CLIP, _VIT = "clip_vision_model", "vit"


class VisionTextBackbone(ScaledDualBackbone):
    """A `VisionTextDualEncoderModel` with its tokenizer and preprocessing."""

    def _text_tower(self, tokenizer: Any) -> BertTextTower:
        """What BERT's pooler makes of the start token's state, projected."""
        return BertTextTower(self._model.text_model, tokenizer, "pooler", self._model.text_projection, "text_model.")

    def _image_tower(self) -> ImageTower:
        """CLIP's and ViT layer by layer, any other as a whole."""
        kind = self._model.config.vision_config.model_type
        if kind == _CLIP:
            return ClipVisionTower(self._model)
        if kind == _VIT:
            return HuggingFaceVit(self._model.vision_model, self._model.visual_projection)
        return PooledImageModel(self._model.vision_model, self._model.visual_projection)


def load_vision_text(request: Request) -> VisionTextBackbone:
    """Load a Hugging Face folder or ID; raises UserError if anything is missing, incomplete or damaged."""
    _config(request.folder)
    parts = load_pretrained(request, VisionTextDualEncoderModel, TOKENIZER_FILES, read_preprocessing, None)
    return VisionTextBackbone(request, *parts)


def vision_text_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's configuration; raises UserError if it is malformed."""
    config = _config(folder)
    image = config.vision_config
    sizes = bert_sizes(config.text_config, folder, int(config.projection_dim), int(getattr(image, "image_size", 224)))
    return with_layers(sizes, image) if image.model_type in (_CLIP, _VIT) else sizes


def vision_text_abilities(folder: Path) -> Abilities:
    """More than exports where the folder has CLIP's image tower or a ViT."""
    kind = _config(folder).vision_config.model_type
    return abilities_in(folder, BIDIRECTIONAL, {_CLIP: CLIP_VISION, _VIT: PLAIN_VIT}.get(kind, WHOLE))


def _config(folder: Path) -> Any:
    config = read_config(folder, VisionTextDualEncoderConfig)
    if (kind := config.text_config.model_type) not in BERTS:
        raise UserError(
            f"The text model of {folder} is of the kind {kind!r}; text models beside a vision model may be "
            f"{', '.join(BERTS)}."
        )
    return config


def write_sample(folder: Path) -> None:
    """A ViT of 32 pixels beside a BERT."""
    write_wordpieces(folder)
    write_preprocessing(folder, "ViTImageProcessor", crops=False)
    image = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vision = ViTConfig(**image, image_size=SIDE, patch_size=8, initializer_range=0.2)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, BertConfig(**text_sizes()), projection_dim=24)
    with seeded():
        uneven(VisionTextDualEncoderModel(config)).save_pretrained(folder)


FAMILY = Family(
    "vision-text",
    "a vision model and a BERT or RoBERTa in Hugging Face's format (VisionTextDualEncoderModel)",
    lambda folder: model_type(folder) == "vision-text-dual-encoder",
    load_vision_text,
    abilities=Abilities(BIDIRECTIONAL, CLIP_VISION),
    sizes=vision_text_sizes,
    narrowed=vision_text_abilities,
    sample=write_sample,
)
