"""Chinese-CLIP (Yang et al. 2022): CLIP's image tower, a Chinese BERT with its class token as the text tower."""

from pathlib import Path
from typing import Any

from transformers import ChineseCLIPConfig, ChineseCLIPModel

from fedgraft.backbones.abilities import Abilities, Sizes
from fedgraft.backbones.bert.text_tower import BertTextTower
from fedgraft.backbones.dual.backbone import (
    BIDIRECTIONAL,
    TOKENIZER_FILES,
    ScaledDualBackbone,
    abilities_in,
    bert_sizes,
    with_layers,
)
from fedgraft.backbones.dual.image_towers import CLIP_VISION, ClipVisionTower
from fedgraft.backbones.dual.preprocessing import read_preprocessing
from fedgraft.backbones.dual.sample import SIDE, seeded, text_sizes, uneven, write_preprocessing, write_wordpieces
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.pretrained import load_pretrained, read_config


class ChineseClipBackbone(ScaledDualBackbone):
    """A `ChineseCLIPModel` with its tokenizer and preprocessing."""

    def _text_tower(self, tokenizer: Any) -> BertTextTower:
        """The class token's state, projected."""
        return BertTextTower(self._model.text_model, tokenizer, "class", self._model.text_projection, "text_model.")

    def _image_tower(self) -> ClipVisionTower:
        """CLIP's."""
        return ClipVisionTower(self._model)


def load_chinese_clip(request: Request) -> ChineseClipBackbone:
    """Load a Hugging Face folder or ID; raises UserError if anything is missing, incomplete or damaged."""
    return ChineseClipBackbone(
        request, *load_pretrained(request, ChineseCLIPModel, TOKENIZER_FILES, read_preprocessing)
    )


def chinese_clip_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's configuration; raises UserError if it is malformed."""
    config = read_config(folder, ChineseCLIPConfig)
    image = config.vision_config
    sizes = bert_sizes(config.text_config, folder, int(config.projection_dim), int(image.image_size))
    return with_layers(sizes, image)


def write_sample(folder: Path) -> None:
    """A Chinese-CLIP of 32 pixels whose BERT reads English letters."""
    write_wordpieces(folder)
    write_preprocessing(folder, "ChineseCLIPImageProcessor", crops=False)
    image = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = ChineseCLIPConfig(
        text_config=text_sizes(), vision_config={**image, "image_size": SIDE, "patch_size": 8}, projection_dim=24
    )
    with seeded():
        uneven(ChineseCLIPModel(config)).save_pretrained(folder)


FAMILY = Family(
    "chinese-clip",
    "Chinese-CLIP in Hugging Face's format (ChineseCLIPModel): CLIP's image tower and BERT",
    lambda folder: model_type(folder) == "chinese_clip",
    load_chinese_clip,
    abilities=Abilities(BIDIRECTIONAL, CLIP_VISION),
    sizes=chinese_clip_sizes,
    narrowed=lambda folder: abilities_in(folder, BIDIRECTIONAL, CLIP_VISION),
    sample=write_sample,
)
