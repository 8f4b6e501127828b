"""A dual encoder of any two towers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Sizes, TextAbilities
from fedgraft.backbones.backbone import Backbone, TextTower
from fedgraft.backbones.bert.bidirectional_tower import BidirectionalTextTower
from fedgraft.backbones.deltas import Deltas, LinearMap, Tower
from fedgraft.backbones.dual.image_towers import ClipVisionTower, ImageTower, LayeredImageTower
from fedgraft.backbones.dual.preprocessing import FILE, read_preprocessing
from fedgraft.backbones.family import Request
from fedgraft.backbones.fingerprint import fingerprint, preprocessing_digest
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.backbones.vision_tower import reprojected_tower
from fedgraft.core.errors import UserError
from fedgraft.device.preprocessing import Preprocessing

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
BIDIRECTIONAL = TextAbilities(causal=False, placements=("before", "middle", "behind"), deep_prompts=True, low_rank=True)

ROBERTAS = ("roberta", "xlm-roberta", "camembert")
"""Text models of BERT's modules whose first positions are not used."""
BERTS = ("bert", *ROBERTAS)


class DualBackbone(Backbone):
    """Two towers with a tokenizer and a preprocessing.

    Args:
        request: what it is loaded for.
        model: all modules, in float32 on the CPU.
        config: plain values of the model's configuration.
        tokenizer: of transformers.
        preprocessing: the steps that decide pixel values, with Hugging Face's keys.
    """

    def __init__(
        self,
        request: Request,
        model: nn.Module,
        config: Mapping[str, Any],
        tokenizer: Any,
        preprocessing: dict[str, Any],
    ) -> None:
        self.name, self.precision, self.device = request.name, request.precision, request.device
        self.fingerprint = fingerprint(config, tokenizer, model.state_dict())
        self.preprocessing = preprocessing_digest(preprocessing)
        self._dtype: torch.dtype = getattr(torch, self.precision)
        self._model: Any = model.eval().requires_grad_(False).to(self.device, self._dtype)
        self._steps, self._prepare = preprocessing, Preprocessing.from_config(preprocessing)
        self.text, self._image = self._text_tower(tokenizer), self._image_tower()
        self._layered = self._image if isinstance(self._image, LayeredImageTower) else None

    @abstractmethod
    def _text_tower(self, tokenizer: Any) -> TextTower:
        """The text tower on the model's modules, which stand on their device."""

    @abstractmethod
    def _image_tower(self) -> ImageTower:
        """The image tower on the model's modules."""

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values as a device prepares them."""
        return torch.from_numpy(self._prepare.batch(images))

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Projected and normalized image features."""
        return F.normalize(self._image.embed(pixels.to(self.device, self._dtype)).float(), dim=-1)

    def image_shape(self, form: Representation = FEATURES) -> tuple[int, ...]:
        """(dim,); where layers can be told apart, also the other forms, see `Representation`."""
        if form.exits and isinstance(self._image, ClipVisionTower):
            return len(form.exits) + 1, self._image.states_shape[1]
        if self._layered is None or (form.layer is None and not form.patches):
            return (self.dim,)
        tokens, width = self._layered.states_shape
        return (tokens, self.dim) if form.patches else (tokens, width)

    def represent_images(self, pixels: Tensor, form: Representation = FEATURES) -> Tensor:
        """Features, or another form where layers can be told apart, in float32."""
        if form.exits and isinstance(self._image, ClipVisionTower):
            return self._image.exits(pixels.to(self.device, self._dtype), form.exits)
        if self._layered is None or (form.layer is None and not form.patches):
            return super().represent_images(pixels, form)
        own = pixels.to(self.device, self._dtype)
        return self._layered.patch_features(own) if form.layer is None else self._layered.states(own, form.layer)

    def finish_images(
        self,
        represented: Tensor,
        form: Representation = FEATURES,
        deltas: Deltas | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """The features themselves, or the rest of the image tower."""
        if form.exits and isinstance(self._image, ClipVisionTower):
            return self._image.projected(represented[:, -1])
        if self._layered is None or form.layer is None:
            return super().finish_images(represented, form, deltas, prompts)
        return self._layered.features(represented, form.layer, deltas or {}, prompts)

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """Those of attention and MLP; none in an image tower whose layers cannot be told apart."""
        if tower == "text":
            return self.text.linear_maps() if isinstance(self.text, BidirectionalTextTower) else {}
        return {} if self._layered is None else self._layered.linear_maps()

    def map_names(self, tower: Tower) -> Mapping[str, str]:
        """As its towers call them."""
        if tower == "text":
            return self.text.map_names if isinstance(self.text, BidirectionalTextTower) else {}
        return {} if self._layered is None else self._layered.map_names

    def preprocessor_config(self) -> dict[str, Any]:
        """The steps that decide pixel values."""
        return dict(self._steps)

    def image_encoder(self, weights: Mapping[str, Tensor] | None = None, prompts: Tensor | None = None) -> nn.Module:
        """A copy of the image tower."""
        if prompts is not None and self._layered is None:
            raise UserError(f"The backbone {self.name!r} takes no visual prompts.")
        return self._image.encoder(weights or {}, prompts)

    def vision_tower(self, weights: Mapping[str, Tensor] | None = None) -> PrunableTower:
        """A copy of CLIP's image tower; see `Backbone.vision_tower`."""
        if isinstance(self._image, ClipVisionTower):
            return self._image.pruned(weights or {})
        return super().vision_tower(weights)

    def image_projection(self) -> Tensor:
        """CLIP's visual projection; see `Backbone.image_projection`."""
        if not isinstance(self._image, ClipVisionTower):
            return super().image_projection()
        return self._image.projection()

    def reprojected_encoder(self, projection: Tensor, layers: int | None = None) -> nn.Module:
        """A copy of CLIP's image tower; see `Backbone.reprojected_encoder`."""
        if not isinstance(self._image, ClipVisionTower):
            return super().reprojected_encoder(projection, layers)
        return reprojected_tower(self._image.pruned({}), projection, layers)


def abilities_in(folder: Path, text: TextAbilities, image: ImageAbilities) -> Abilities:
    """Abilities of towers with the preprocessing of a folder; a crop where its file is not there yet."""
    crops = read_preprocessing(str(folder))["do_center_crop"] if (folder / FILE).is_file() else True
    return Abilities(text, image, crops=bool(crops))


def bert_sizes(text: Any, folder: Path, dim: int, default: int) -> Sizes:
    """The sizes of a BERT beside an image tower that is used as a whole.

    Args:
        text: the BERT's configuration.
        default: side of the images where the folder's preprocessing is not there yet.
    """
    first = int(text.pad_token_id) + 1 if text.model_type in ROBERTAS else 0
    return Sizes(
        positions=int(text.max_position_embeddings) - first,
        text_layers=int(text.num_hidden_layers),
        text_width=int(text.hidden_size),
        dim=dim,
        image_size=image_side(folder, default),
    )


def image_side(folder: Path, default: int) -> int:
    """The side of a folder's images after its preprocessing; the default where its file is not there yet."""
    if not (folder / FILE).is_file():
        return default
    steps = read_preprocessing(str(folder))
    sides = steps["crop_size"] if steps["do_center_crop"] else steps["size"]
    return int(sides.get("height") or sides["shortest_edge"])


def with_layers(sizes: Sizes, image: Any) -> Sizes:
    """The sizes with those of a transformer with a class token, from its configuration."""
    return replace(
        sizes,
        image_layers=int(image.num_hidden_layers),
        image_width=int(image.hidden_size),
        patches=(int(image.image_size) // int(image.patch_size)) ** 2,
    )


class ScaledDualBackbone(DualBackbone):
    """A model of Hugging Face's with `projection_dim` in its configuration and a `logit_scale`."""

    def __init__(self, request: Request, model: Any, tokenizer: Any, preprocessing: dict[str, Any]) -> None:
        self.dim = int(model.config.projection_dim)
        self.logit_scale = float(model.logit_scale.detach().exp())
        super().__init__(request, model, model.config.to_dict(), tokenizer, preprocessing)
