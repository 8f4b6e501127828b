"""ALIGN (Jia et al. 2021): an EfficientNet as the image tower, a BERT with its class token as the text tower."""

from pathlib import Path
from typing import Any

from transformers import AlignConfig, AlignModel

from fedgraft.backbones.abilities import Abilities, Sizes
from fedgraft.backbones.bert.text_tower import BertTextTower
from fedgraft.backbones.dual.backbone import BIDIRECTIONAL, TOKENIZER_FILES, DualBackbone, abilities_in, bert_sizes
from fedgraft.backbones.dual.image_towers import WHOLE, PooledImageModel
from fedgraft.backbones.dual.preprocessing import read_preprocessing
from fedgraft.backbones.dual.sample import SIDE, seeded, text_sizes, uneven, write_preprocessing, write_wordpieces
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.pretrained import load_pretrained, read_config


class AlignBackbone(DualBackbone):
    """An `AlignModel` with its tokenizer and preprocessing."""

    def __init__(self, request: Request, model: Any, tokenizer: Any, preprocessing: dict[str, Any]) -> None:
        self.dim = int(model.config.projection_dim)
        self.logit_scale = 1 / float(model.temperature.detach())
        super().__init__(request, model, model.config.to_dict(), tokenizer, preprocessing)

    def _text_tower(self, tokenizer: Any) -> BertTextTower:
        """The class token's state, projected."""
        return BertTextTower(self._model.text_model, tokenizer, "class", self._model.text_projection, "text_model.")

    def _image_tower(self) -> PooledImageModel:
        """What the EfficientNet pools."""
        return PooledImageModel(self._model.vision_model)


def load_align(request: Request) -> AlignBackbone:
    """Load a Hugging Face folder or ID; raises UserError if anything is missing, incomplete or damaged."""
    parts = load_pretrained(request, AlignModel, TOKENIZER_FILES, read_preprocessing, attention=None)
    return AlignBackbone(request, *parts)


def align_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's configuration; raises UserError if it is malformed."""
    config = read_config(folder, AlignConfig)
    return bert_sizes(config.text_config, folder, int(config.projection_dim), int(config.vision_config.image_size))


def write_sample(folder: Path) -> None:
    """An ALIGN of 32 pixels with an image tower of a few channels."""
    write_wordpieces(folder)
    write_preprocessing(folder)
    image = {"width_coefficient": 0.2, "depth_coefficient": 0.3, "image_size": SIDE, "hidden_dim": 64}
    config = AlignConfig(text_config=text_sizes(), vision_config=image, projection_dim=64, temperature_init_value=0.05)
    with seeded():
        uneven(AlignModel(config)).save_pretrained(folder)


FAMILY = Family(
    "align",
    "ALIGN in Hugging Face's format (AlignModel): EfficientNet and BERT",
    lambda folder: model_type(folder) == "align",
    load_align,
    abilities=Abilities(BIDIRECTIONAL, WHOLE),
    sizes=align_sizes,
    narrowed=lambda folder: abilities_in(folder, BIDIRECTIONAL, WHOLE),
    sample=write_sample,
)
