"""CLIP backbones (Radford et al. 2021) from Hugging Face folders."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from fedgraft.backbones.backbone import Backbone, Precision
from fedgraft.backbones.clip.image_tower import ClipImageTower
from fedgraft.backbones.clip.text_tower import ClipTextTower
from fedgraft.backbones.deltas import Deltas, LinearMap, Tower
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.backbones.loading import mini_folder
from fedgraft.backbones.vision_tower import VisionTower, tower_of_clip
from fedgraft.core.errors import UserError

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_VOLATILE_KEYS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")


class ClipBackbone(Backbone):
    """A `CLIPModel` with its tokenizer and image processor."""

    def __init__(
        self,
        name: str,
        model: CLIPModel,
        tokenizer: Any,
        processor: Any,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.precision, self.device = name, precision, torch.device(device)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.fingerprint = _fingerprint(model, tokenizer)
        self._model = model.eval().requires_grad_(False).to(self.device, getattr(torch, precision))
        self._processor = processor
        self.text = ClipTextTower(self._model, tokenizer)
        self._image = ClipImageTower(self._model)
        self.dim = int(model.config.projection_dim)
        self.preprocessing = hashlib.sha256(_canonical(processor.to_dict()).encode()).hexdigest()

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

    def image_shape(self, layer: int | None) -> tuple[int, ...]:
        """(dim,), or (tokens, width) below a layer."""
        return (self.dim,) if layer is None else self._image.states_shape

    def preprocessor_config(self) -> dict[str, Any]:
        """The image processor's configuration, as in preprocessor_config.json."""
        config: dict[str, Any] = json.loads(self._processor.to_json_string())
        return config

    def vision_tower(self) -> VisionTower:
        """A copy of the image tower, with weights as rounded to the precision in which they were loaded."""
        return tower_of_clip(self._model)

    def represent_images(self, pixels: Tensor, layer: int | None) -> Tensor:
        """Features, or the input of a layer, in float32."""
        if layer is None:
            return self.encode_images(pixels)
        return self._image.states(pixels.to(self._model.visual_projection.weight), layer)

    def finish_images(self, represented: Tensor, layer: int | None, deltas: Deltas | None = None) -> Tensor:
        """The features themselves, or the rest of the image tower."""
        return represented if layer is None else self._image.features(represented, layer, deltas or {})

    def linear_maps(self, tower: Tower) -> dict[str, LinearMap]:
        """The linear maps of attention and MLP in every layer."""
        return clip_linear_maps(self._model, tower)


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
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    name, source, local = request.name, request.source, request.source == str(request.folder)
    if local:
        _check_files(request.folder)
    try:
        with _no_progress_bar() if local else nullcontext():
            model, loading = CLIPModel.from_pretrained(
                source, attn_implementation="sdpa", dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source)
            processor = CLIPImageProcessorPil.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The backbone {name!r} cannot be loaded: {reason}") from error
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"The backbone {name!r} lacks {len(missing)} weights, such as {missing[0]}.")
    return ClipBackbone(name, model, tokenizer, processor, request.precision, request.device)


def _check_files(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The backbone folder {folder} holds no weights (*.safetensors).")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(f"The backbone folder {folder} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}).")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the progress bar: reading a local folder takes only a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _fingerprint(model: CLIPModel, tokenizer: Any) -> str:
    digest = hashlib.sha256()
    digest.update(_canonical(_stable(model.config.to_dict())).encode())
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    digest.update(_canonical({**words, "padding": None, "truncation": None}).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(tensor.contiguous().flatten().numpy()).cast("B"))
    return digest.hexdigest()


def _stable(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _stable(value) for key, value in config.items() if key not in _VOLATILE_KEYS}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


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
    "CLIP in Hugging Face's format (CLIPModel with safetensors), including the embedded mini",
    lambda folder: model_type(folder) == "clip",
    load_clip,
    sample=write_sample,
    placements=("before", "middle", "behind"),
    deep_prompts=True,
    adapts=("text", "image"),
    exports=True,
)
