"""Dual encoders of OpenCLIP's with an image tower of timm: BiomedCLIP, MobileCLIP and their relatives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fedgraft.backbones.abilities import Abilities, Sizes
from fedgraft.backbones.backbone import TextTower
from fedgraft.backbones.clip.family import clip_linear_maps
from fedgraft.backbones.deltas import LinearMap, Tower
from fedgraft.backbones.dual.backbone import BIDIRECTIONAL, TOKENIZER_FILES, DualBackbone, abilities_in, bert_sizes
from fedgraft.backbones.dual.image_towers import WHOLE, ImageTower
from fedgraft.backbones.dual.open_clip_model import MODEL_TYPE, OpenClipConfig, OpenClipModel, read_model
from fedgraft.backbones.dual.open_clip_sample import write_sample
from fedgraft.backbones.dual.preprocessing import read_preprocessing
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.pretrained import reading, require_files
from fedgraft.backbones.timm.importing import import_timm, is_installed
from fedgraft.backbones.timm.vit_tower import PLAIN_VIT


class OpenClipBackbone(DualBackbone):
    """An `OpenClipModel` with its tokenizer and preprocessing."""

    def __init__(self, request: Request, model: OpenClipModel, tokenizer: Any, preprocessing: dict[str, Any]) -> None:
        self.dim = model.settings.dim
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.logit_bias = None if model.logit_bias is None else float(model.logit_bias.detach())
        super().__init__(request, model, model.settings.plain, tokenizer, preprocessing)

    def _text_tower(self, tokenizer: Any) -> TextTower:
        tower: TextTower = self._model.text_tower(tokenizer)
        return tower

    def _image_tower(self) -> ImageTower:
        tower: ImageTower = self._model.image_tower()
        return tower

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """Those of attention and MLP in every layer of the text tower."""
        causal = self._model.settings.causal
        return clip_linear_maps(self._model, tower) if causal and tower == "text" else super().linear_maps(tower)


def load_open_clip(request: Request) -> OpenClipBackbone:
    """Load a folder; raises UserError if timm or anything of the folder is missing, incomplete or damaged."""
    import_timm()
    require_files(request.folder, TOKENIZER_FILES)
    with reading(request):
        model = read_model(request.name, request.folder)
        tokenizer = AutoTokenizer.from_pretrained(request.source)
        preprocessing = read_preprocessing(request.source)
    return OpenClipBackbone(request, model, tokenizer, preprocessing)


def open_clip_sizes(folder: Path) -> Sizes:
    """The sizes in a folder's config.json; raises UserError if it is malformed."""
    config = OpenClipConfig(folder)
    sizes = bert_sizes(config.text, folder, config.dim, config.trunk.image_size)
    sizes = replace(sizes, positions=min(config.context_length or sizes.positions, sizes.positions))
    vit = config.trunk.plain_vit()
    if vit is None:
        return sizes
    return replace(sizes, image_layers=len(vit.blocks), image_width=vit.embed_dim, patches=vit.patch_embed.num_patches)


def open_clip_abilities(folder: Path) -> Abilities:
    """What the towers of a folder can do; raises UserError without timm."""
    config = OpenClipConfig(folder)
    image = PLAIN_VIT if config.trunk.plain_vit() else WHOLE
    abilities = abilities_in(folder, replace(BIDIRECTIONAL, causal=config.causal), image)
    return replace(abilities, losses=("softmax", "sigmoid")) if config.bias else abilities


FAMILY = Family(
    "open-clip",
    "OpenCLIP's with an image tower of timm (BiomedCLIP, MobileCLIP), as `fedgraft backbones import` writes them",
    lambda folder: model_type(folder) == MODEL_TYPE,
    load_open_clip,
    abilities=Abilities(BIDIRECTIONAL, PLAIN_VIT, losses=("softmax", "sigmoid")),
    sizes=open_clip_sizes,
    narrowed=open_clip_abilities,
    sample=write_sample if is_installed() else None,
)
