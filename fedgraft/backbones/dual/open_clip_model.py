"""A dual encoder of OpenCLIP's (Ilharco et al. 2021) that Hugging Face has no class for, in a folder of safetensors.

The image tower is one of timm, the text tower a BERT or OpenCLIP's own. config.json has OpenCLIP's keys for the image
tower and Hugging Face's for the text tower; the names of the weights are Hugging Face's and timm's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel

from fedgraft.backbones.backbone import TextTower
from fedgraft.backbones.bert.padded_text_tower import PaddedTextTower
from fedgraft.backbones.bert.text_tower import BertTextTower, Pooling
from fedgraft.backbones.clip.text_tower import ClipTextTower
from fedgraft.backbones.dual.backbone import BERTS
from fedgraft.backbones.dual.image_towers import ImageTower
from fedgraft.backbones.timm.image_tower import TimmImageTower, TimmTrunk
from fedgraft.backbones.timm.vit_tower import TimmVitTower, is_plain_vit
from fedgraft.core.errors import UserError

MODEL_TYPE = "open_clip_dual_encoder"
_OWN_TEXT = "clip_text_model"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class OpenClipConfig:
    """A folder's config.json.

    Attributes:
        plain: its content.
        dim: of the joint embedding space.
        bias: whether the logits have one.
        trunk: the image tower.
        text: the text model's configuration as transformers' own class.
        causal: whether a token of OpenCLIP's own text tower sees only what precedes it; never of a BERT's.
        pooling, projection, context_length: of a BERT.

    Raises:
        UserError: something is missing, or of a kind that is not supported.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "config.json"
        try:
            self.plain: dict[str, Any] = json.loads(path.read_text())
            image, text = dict(self.plain["vision_config"]), dict(self.plain["text_config"])
            self.dim, kind = int(self.plain["projection_dim"]), str(text.pop("model_type"))
            self.bias = bool(self.plain.get("logit_bias", False))
            self.causal = bool(text.pop("causal", True)) if kind == _OWN_TEXT else False
            self.pooling: Pooling = text.pop("pooling", "class")
            self.projection: str | None = text.pop("projection", None)
            self.context_length: int | None = text.pop("context_length", None)
            if kind not in (*BERTS, _OWN_TEXT):
                raise UserError(f"{path}: the text model {kind!r} is unknown; known: {', '.join((*BERTS, _OWN_TEXT))}.")
            self.text: Any = CLIPTextConfig(**text) if kind == _OWN_TEXT else AutoConfig.for_model(kind, **text)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a configuration of {MODEL_TYPE!r}: {error}.") from error
        if self.pooling not in ("class", "pooler", "mean") or self.projection not in (None, "linear", "mlp"):
            raise UserError(
                f"{path}: the text tower's pooling {self.pooling!r} or projection {self.projection!r} is unknown."
            )
        self.of_bert = kind != _OWN_TEXT
        self.trunk = TimmTrunk(image)


class OpenClipModel(nn.Module):
    """The modules under the names that their weights have in a folder.

    Raises:
        UserError: timm is missing or does not know the image tower.
    """

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.settings = config
        self.vision_model, self.visual_projection = config.trunk.build(config.dim)
        if config.of_bert:
            self.text_model = AutoModel.from_config(config.text, add_pooling_layer=config.pooling == "pooler")
        else:
            self.text_model = CLIPTextModel(config.text)
        self.text_projection = _text_projection(config)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.bias else None

    def image_tower(self) -> ImageTower:
        """The image tower, of the same modules: block by block if it is a plain vision transformer."""
        of_blocks = is_plain_vit(self.vision_model)
        return (TimmVitTower if of_blocks else TimmImageTower)(self.vision_model, self.visual_projection)

    def text_tower(self, tokenizer: Any) -> TextTower:
        """The text tower, of the same modules."""
        settings, prefix = self.settings, "text_model."
        if settings.of_bert:
            return BertTextTower(
                self.text_model, tokenizer, settings.pooling, self.text_projection, prefix, settings.context_length
            )
        assert self.text_projection is not None
        if settings.causal:
            halves = {"text_model": self.text_model, "text_projection": self.text_projection}
            return ClipTextTower(
                cast(Any, SimpleNamespace(config=SimpleNamespace(text_config=settings.text), **halves)), tokenizer
            )
        return PaddedTextTower(self.text_model, tokenizer, self.text_projection, prefix)


def _text_projection(config: OpenClipConfig) -> nn.Module | None:
    width = int(config.text.hidden_size)
    if config.of_bert and config.projection is None:
        if width != config.dim:
            raise UserError(f"The text tower has the width {width} and no projection to {config.dim}.")
        return None
    if config.of_bert and config.projection == "mlp":
        hidden = (width + config.dim) // 2
        return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, config.dim, bias=False))
    return nn.Linear(width, config.dim, bias=False)


def read_model(name: str, folder: Path) -> OpenClipModel:
    """The model of a folder in float32 on the CPU.

    Raises:
        UserError: a weight is missing, of another shape, or belongs to nothing; or as the two classes above.
    """
    weights = dict(_tensors(folder))
    model = OpenClipModel(OpenClipConfig(folder))
    expected = model.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"The backbone {name!r} lacks {len(missing)} weights, such as {missing[0]}.")
    if extra := sorted(weights.keys() - expected.keys()):
        raise UserError(
            f"The backbone {name!r} has {len(extra)} weights without a place in its configuration, such as {extra[0]}."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"The backbone {name!r} has {key} of the shape {tuple(tensor.shape)}; its configuration asks for "
                f"{tuple(expected[key].shape)}."
            )
    model.load_state_dict(weights, assign=True)
    return model


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder's safetensors, floating ones in float32."""
    names = {_WEIGHTS}
    if (folder / _INDEX).is_file():
        names = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
    for file in sorted(names):
        with safe_open(folder / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(key)
                yield key, tensor.float() if tensor.is_floating_point() else tensor
