"""OpenCLIP's layout (`open_clip_config.json`): which Hugging Face model computes the same, or why none does."""

from collections.abc import Callable
from typing import Any

from fedgraft.backbones.checkpoints.clip_names import VOCABULARY, clip_config, clip_rules, has_clip_names, settings_of
from fedgraft.backbones.checkpoints.conversion import Conversion
from fedgraft.backbones.checkpoints.dual_names import dual_config, dual_rules
from fedgraft.backbones.checkpoints.preprocessing import preprocessor_config
from fedgraft.backbones.checkpoints.renaming import renamed, require_fit
from fedgraft.backbones.checkpoints.siglip_names import is_siglip, siglip_config, siglip_rules, with_joint_pooling
from fedgraft.backbones.checkpoints.weights import Weights
from fedgraft.core.errors import UserError

_ANY = object()
_VISION = {
    "layers": _ANY, "width": _ANY, "head_width": _ANY, "mlp_ratio": _ANY, "patch_size": _ANY, "image_size": _ANY,
    "norm_kwargs": _ANY, "patch_dropout": _ANY, "output_tokens": _ANY, "pos_embed_type": _ANY,
    "final_ln_after_pool": _ANY, "pool_type": "tok",
}  # fmt: skip
"""What a `CLIPModel` can be of OpenCLIP's settings of an image tower; any other must be absent or off."""
_TEXT = {
    "context_length": _ANY, "vocab_size": _ANY, "width": _ANY, "heads": _ANY, "layers": _ANY, "mlp_ratio": _ANY,
    "norm_kwargs": _ANY, "output_tokens": _ANY, "final_ln_after_pool": _ANY, "pad_id": _ANY, "eos_id": _ANY,
    "pool_type": "argmax", "proj_type": "linear",
}  # fmt: skip
"""The same for a text tower."""
_TIMM = ("timm_", "attn_pooler_")
"""Settings of towers and poolers that are not used."""


def openclip_conversion(weights: Weights, settings: dict[str, Any]) -> Conversion:
    """The conversion of an OpenCLIP model.

    Args:
        settings: an `open_clip_config.json`, or only its `model_cfg`.

    Raises:
        UserError: no model of Hugging Face computes the same, or weights and settings do not fit.
    """
    model = settings.get("model_cfg", settings)
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict) or not isinstance(model.get("embed_dim"), int):
        raise UserError("The configuration of OpenCLIP lacks embed_dim, vision_cfg or text_cfg.")
    if "multimodal_cfg" in model:
        raise UserError("The checkpoint is a CoCa (multimodal_cfg), whose image tower pools by attention; not read.")
    convert: Callable[[Weights, dict[str, Any], dict[str, Any]], Conversion]
    if is_siglip(model):
        convert = _siglip
    elif vision.get("timm_model_name"):
        convert = _dual
    else:
        convert = _clip
    return convert(weights, model, settings.get("preprocess_cfg") or {})


def openai_conversion(weights: Weights, activation: str) -> Conversion:
    """The conversion of weights with OpenAI's names, whose sizes are those of its shapes.

    Args:
        activation: "quick_gelu" as in OpenAI's own models, or "gelu".

    Raises:
        UserError: the image tower is a ResNet, or weights are missing or left over.
    """
    if not has_clip_names(weights):
        raise UserError("The weights have neither OpenAI's names (visual.conv1.weight) nor a --config that names them.")
    model = {**settings_of(weights), "quick_gelu": activation == "quick_gelu"}
    return _clip(weights, model, {})


def _clip(weights: Weights, model: dict[str, Any], preprocess: dict[str, Any]) -> Conversion:
    vision, text = model["vision_cfg"], model["text_cfg"]
    if isinstance(vision.get("layers"), list):
        raise UserError("The image tower is a ResNet (vision_cfg.layers is a list); of CLIP's, ViTs are read.")
    _require_known("vision_cfg", vision, _VISION)
    _require_known("text_cfg", text, _TEXT)
    config = clip_config(model)
    converted = renamed(weights, clip_rules(weights))
    require_fit(converted, config)
    words, end = config["text_config"]["vocab_size"], config["text_config"]["eos_token_id"]
    preprocessor = preprocessor_config(config["vision_config"]["image_size"], preprocess)
    return Conversion("CLIP", config, converted, preprocessor, words, end, clip_vocabulary=words == VOCABULARY)


def _siglip(weights: Weights, model: dict[str, Any], preprocess: dict[str, Any]) -> Conversion:
    config = siglip_config(model, weights)
    converted = renamed(with_joint_pooling(weights), siglip_rules(weights))
    require_fit(converted, config)
    preprocessor = preprocessor_config(config["vision_config"]["image_size"], preprocess, "SiglipImageProcessor")
    return Conversion("SigLIP", config, converted, preprocessor, config["text_config"]["vocab_size"])


def _dual(weights: Weights, model: dict[str, Any], preprocess: dict[str, Any]) -> Conversion:
    config = dual_config(model, weights)
    converted = renamed(weights, dual_rules(weights, config))
    preprocessor = preprocessor_config(model["vision_cfg"].get("image_size", 224), preprocess)
    words, end = config["text_config"]["vocab_size"], config["text_config"].get("eos_token_id")
    clip_words = words == VOCABULARY
    return Conversion("dual encoder", config, converted, preprocessor, words, end, clip_vocabulary=clip_words)


def _require_known(part: str, given: dict[str, Any], known: dict[str, object]) -> None:
    """Raise UserError for a setting that no `CLIPModel` has."""
    for key, value in given.items():
        if key.startswith(_TIMM) or known.get(key) is _ANY or value in (None, False, known.get(key)):
            continue
        raise UserError(
            f"The checkpoint sets {part}.{key} to {value!r}, which Hugging Face's CLIPModel cannot compute."
        )
