"""The sizes of the published checkpoints, as in their configurations on the Hugging Face Hub."""

from typing import Any

_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_GIANT = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}


def _checkpoint(text: dict[str, int], image: dict[str, int], vocabulary: int, patch: int, side: int) -> dict[str, Any]:
    projected = {} if text["hidden_size"] == image["hidden_size"] else {"projection_size": image["hidden_size"]}
    return {
        "text_config": {**text, **projected, "vocab_size": vocabulary},
        "vision_config": {**image, "patch_size": patch, "image_size": side},
    }


_SIGLIP, _MULTILINGUAL, _GEMMA = 32000, 250000, 256000
PUBLISHED = {
    **{f"siglip-base-patch16-{side}": _checkpoint(_BASE, _BASE, _SIGLIP, 16, side) for side in (224, 256, 384, 512)},
    "siglip-base-patch16-256-multilingual": _checkpoint(_BASE, _BASE, _MULTILINGUAL, 16, 256),
    **{f"siglip-large-patch16-{side}": _checkpoint(_LARGE, _LARGE, _SIGLIP, 16, side) for side in (256, 384)},
    **{f"siglip-so400m-patch14-{side}": _checkpoint(_SO400M, _SO400M, _SIGLIP, 14, side) for side in (224, 384)},
    "siglip-so400m-patch16-256-i18n": _checkpoint(_SO400M, _SO400M, _MULTILINGUAL, 16, 256),
    "siglip2-base-patch32-256": _checkpoint(_BASE, _BASE, _GEMMA, 32, 256),
    **{f"siglip2-base-patch16-{side}": _checkpoint(_BASE, _BASE, _GEMMA, 16, side) for side in (224, 256, 384, 512)},
    **{f"siglip2-large-patch16-{side}": _checkpoint(_LARGE, _LARGE, _GEMMA, 16, side) for side in (256, 384, 512)},
    **{f"siglip2-so400m-patch14-{side}": _checkpoint(_SO400M, _SO400M, _GEMMA, 14, side) for side in (224, 384)},
    **{f"siglip2-so400m-patch16-{side}": _checkpoint(_SO400M, _SO400M, _GEMMA, 16, side) for side in (256, 384, 512)},
    **{f"siglip2-giant-opt-patch16-{side}": _checkpoint(_SO400M, _GIANT, _GEMMA, 16, side) for side in (256, 384)},
}


def reduced(name: str, layers: int, vocabulary: int) -> dict[str, Any]:
    """A published size at full width with few layers and words."""
    own = PUBLISHED[name]
    text = {**own["text_config"], "num_hidden_layers": layers, "vocab_size": vocabulary}
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return {
        "text_config": {**text, **special},
        "vision_config": {**own["vision_config"], "num_hidden_layers": layers},
    }
