"""OpenAI's names of CLIP's weights, which OpenCLIP shares, and Hugging Face's; a configuration from shapes.

The layers hold the same numbers: a joint projection becomes three, and the two projections to the joint space are kept
transposed.
"""

import math
from collections.abc import Iterator
from typing import Any

from fedgraft.backbones.checkpoints.renaming import Rule, same, thirds
from fedgraft.backbones.checkpoints.weights import Weight, Weights
from fedgraft.core.errors import UserError

START, END = 49406, 49407
"""Start and end token of CLIP's vocabulary, its last two."""
VOCABULARY = 49408
_BLOCKS = "transformer.resblocks."
_HEAD = 64
"""The size of an attention head in all of OpenAI's towers."""
_WIDEST = 1024
"""Wider image towers were published with heads of other sizes, which shapes do not tell."""
_BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Settings that OpenAI's archives hold among their weights."""


def has_clip_names(weights: Weights) -> bool:
    """Whether an image tower has OpenAI's names: a vision transformer or a ResNet."""
    return "visual.conv1.weight" in weights


def settings_of(weights: Weights) -> dict[str, Any]:
    """The sizes of a CLIP whose heads have 64 dimensions, with OpenCLIP's keys of a `model_cfg`.

    Raises:
        UserError: the image tower is a ResNet, or a weight that tells a size is missing.
    """
    if "visual.layer1.0.conv1.weight" in weights:
        raise UserError("The image tower is a ResNet (visual.layer1...); of CLIP's, vision transformers are read.")
    needed = ("visual.positional_embedding", "positional_embedding", "text_projection", "token_embedding.weight")
    weights = _without_text_prefix(weights)
    if missing := [name for name in needed if name not in weights]:
        raise UserError(f"The checkpoint lacks {', '.join(missing)}, which tell CLIP's sizes.")
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    if width > _WIDEST:
        raise UserError(
            f"The image tower is {width} wide, and its weights do not say how many heads it has; give --config with "
            "the model's open_clip_config.json."
        )
    side = math.isqrt(weights["visual.positional_embedding"].shape[0] - 1)
    context, text_width = weights["positional_embedding"].shape
    return {
        "embed_dim": weights["text_projection"].shape[1],
        "vision_cfg": {
            "image_size": side * patch,
            "patch_size": patch,
            "width": width,
            "head_width": _HEAD,
            "layers": count_layers(weights, f"visual.{_BLOCKS}"),
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": weights["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // _HEAD,
            "layers": count_layers(weights, _BLOCKS),
        },
    }


def clip_config(model: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a `CLIPModel` with the sizes of a `model_cfg`."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    # The end token is what the tower pools at; where the vocabulary is not CLIP's, the last one, which argmax finds.
    end = text.get("vocab_size", VOCABULARY) - 1
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model["embed_dim"],
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_act": activation,
            "hidden_size": text.get("width", 512),
            "intermediate_size": int(text.get("width", 512) * text.get("mlp_ratio", 4.0)),
            "num_attention_heads": text.get("heads", 8),
            "num_hidden_layers": text.get("layers", 12),
            "max_position_embeddings": text.get("context_length", 77),
            "vocab_size": end + 1,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
            "projection_dim": model["embed_dim"],
            "layer_norm_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": activation,
            "hidden_size": vision.get("width", 768),
            "intermediate_size": int(vision.get("width", 768) * vision.get("mlp_ratio", 4.0)),
            "num_attention_heads": vision.get("width", 768) // vision.get("head_width", _HEAD),
            "num_hidden_layers": vision.get("layers", 12),
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
            "projection_dim": model["embed_dim"],
            "layer_norm_eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        },
    }


def clip_rules(weights: Weights) -> Iterator[Rule]:
    """How OpenAI's names become those of a `CLIPModel`."""
    text = "text." if "text.token_embedding.weight" in weights else ""
    yield from vision_rules(count_layers(weights, f"visual.{_BLOCKS}"))
    yield Rule("visual.proj", {"visual_projection.weight": Weight.transposed})
    yield from text_rules(count_layers(weights, f"{text}{_BLOCKS}"), text)
    yield Rule(f"{text}text_projection", {"text_projection.weight": Weight.transposed})
    yield same("logit_scale", "logit_scale", Weight.flat)
    for name in _BUFFERS:
        if name in weights:
            yield Rule(name, {})


def vision_rules(layers: int) -> Iterator[Rule]:
    """The image tower below its projection."""
    to = "vision_model"
    yield same("visual.class_embedding", f"{to}.embeddings.class_embedding")
    yield same("visual.conv1.weight", f"{to}.embeddings.patch_embedding.weight")
    yield same("visual.positional_embedding", f"{to}.embeddings.position_embedding.weight")
    yield from both("visual.ln_pre", f"{to}.pre_layrnorm")
    yield from both("visual.ln_post", f"{to}.post_layernorm")
    yield from block_rules("visual.transformer.resblocks", f"{to}.encoder.layers", layers)


def text_rules(layers: int, prefix: str = "") -> Iterator[Rule]:
    """The text tower below its projection."""
    yield same(f"{prefix}token_embedding.weight", "text_model.embeddings.token_embedding.weight")
    yield same(f"{prefix}positional_embedding", "text_model.embeddings.position_embedding.weight")
    yield from both(f"{prefix}ln_final", "text_model.final_layer_norm")
    yield from block_rules(f"{prefix}transformer.resblocks", "text_model.encoder.layers", layers)


def block_rules(source: str, target: str, layers: int) -> Iterator[Rule]:
    """The residual blocks of a tower."""
    for number in range(layers):
        old, new = f"{source}.{number}", f"{target}.{number}"
        for kind in ("weight", "bias"):
            projections = [f"{new}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            yield thirds(f"{old}.attn.in_proj_{kind}", projections)
        yield from both(f"{old}.attn.out_proj", f"{new}.self_attn.out_proj")
        for part, name in {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1"}.items():
            yield from both(f"{old}.{part}", f"{new}.{name}")
        yield from both(f"{old}.mlp.c_proj", f"{new}.mlp.fc2")


def both(source: str, target: str) -> Iterator[Rule]:
    """Weight and bias of a module."""
    for kind in ("weight", "bias"):
        yield same(f"{source}.{kind}", f"{target}.{kind}")


def count_layers(weights: Weights, blocks: str) -> int:
    """How many blocks there are, numbered after a common beginning of their names."""
    return len({name.removeprefix(blocks).split(".")[0] for name in weights if name.startswith(blocks)})


def _without_text_prefix(weights: Weights) -> Weights:
    return {name.removeprefix("text."): weight for name, weight in weights.items()}
