"""OpenCLIP models of a timm image tower and a BERT-like or CLIP-like text tower, such as MobileCLIP and BiomedCLIP.

No class of Hugging Face holds them. The folder is that of the dual-encoder family: OpenCLIP's `vision_cfg` and the text
tower's own configuration side by side; timm's names of the image tower's weights stay as they are.
"""

from collections.abc import Iterator
from typing import Any

from fedgraft.backbones.checkpoints.clip_names import clip_config, count_layers, text_rules
from fedgraft.backbones.checkpoints.renaming import Rule, same
from fedgraft.backbones.checkpoints.weights import Weight, Weights
from fedgraft.core.errors import UserError

MODEL_TYPE = "open_clip_dual_encoder"
_BERT = "text.transformer."
_WORDS = f"{_BERT}embeddings.word_embeddings.weight"
_BLOCKS = "text.transformer.resblocks."
_POOLINGS = {"cls_last_hidden_state_pooler": "class", "mean_pooler": "mean", "cls_pooler": "pooler"}
_UNSUPPORTED = ("embed_cls", "use_pad_mask", "proj_bias", "ls_init_value", "qk_norm", "scaled_cosine_attn", "scale_fc")
_HEAD = 64
_MULTILINGUAL = 100_000
"""Vocabularies from this size on are those of the multilingual RoBERTa."""


def dual_config(model: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The `config.json` of such a dual encoder.

    Raises:
        UserError: the text tower or its pooling is of a kind that is not read.
    """
    vision, text = model["vision_cfg"], model["text_cfg"]
    if not vision.get("timm_model_name"):
        raise UserError(
            "The checkpoint joins OpenCLIP's own image tower to a text tower of Hugging Face, which no family reads."
        )
    described = _bert_config(text, weights) if text.get("hf_model_name") else _clip_text_config(model)
    return {
        "model_type": MODEL_TYPE,
        "projection_dim": model["embed_dim"],
        "logit_bias": "logit_bias" in weights,
        "vision_config": {**vision, "model_type": "timm"},
        "text_config": described,
    }


def dual_rules(weights: Weights, config: dict[str, Any]) -> Iterator[Rule]:
    """How OpenCLIP's names become those of the family."""
    for name in weights:
        if name.startswith("visual.trunk."):
            yield same(name, f"vision_model.{name.removeprefix('visual.trunk.')}")
        elif name.startswith(("visual.head.proj.", "visual.head.mlp.")):
            yield same(name, f"visual_projection.{name.split('.', 3)[3]}")
    if "pooling" in config["text_config"]:
        yield from _bert_rules(weights, pooler=config["text_config"]["pooling"] == "pooler")
    else:
        yield from text_rules(count_layers(weights, _BLOCKS), "text.")
        yield same("text.text_projection", "text_projection.weight", Weight.transposed)
    yield same("logit_scale", "logit_scale", Weight.flat)
    if "logit_bias" in weights:
        yield same("logit_bias", "logit_bias", Weight.flat)


def _bert_rules(weights: Weights, pooler: bool) -> Iterator[Rule]:
    for name in weights:
        inner = name.removeprefix(_BERT)
        if inner == "embeddings.position_ids" or (inner.startswith("pooler.") and not pooler):
            yield Rule(name)
        elif name.startswith(_BERT):
            yield same(name, f"text_model.{inner}")
        elif name.startswith("text.proj."):
            yield same(name, f"text_projection.{name.removeprefix('text.proj.')}")


def _clip_text_config(model: dict[str, Any]) -> dict[str, Any]:
    text = model["text_cfg"]
    if text.get("pool_type", "argmax") not in ("argmax", "eos"):
        raise UserError(f"The text tower pools by {text['pool_type']!r}; expected its end token (argmax or eos).")
    if found := [key for key in _UNSUPPORTED if text.get(key)]:
        raise UserError(f"The checkpoint sets text_cfg.{found[0]} to {text[found[0]]!r}, which no family reads.")
    described: dict[str, Any] = clip_config({**model, "vision_cfg": {}})["text_config"]
    return {**described, "causal": not text.get("no_causal_mask", False)}


def _bert_config(text: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The configuration of a BERT or RoBERTa with the sizes of its weights and everything else as published."""
    pooler = text.get("hf_pooler_type", "mean_pooler")
    if pooler not in _POOLINGS:
        raise UserError(f"The text tower pools by {pooler!r}; expected {', '.join(_POOLINGS)}.")
    shapes = {part: weights[f"{_BERT}{name}"].shape for part, name in _TELLING.items() if f"{_BERT}{name}" in weights}
    if lacking := [f"{_BERT}{_TELLING[part]}" for part in _TELLING if part not in shapes]:
        raise UserError(f"The text tower is no BERT: the checkpoint lacks {lacking[0]}.")
    (vocabulary, width), (positions, _), (types, _) = shapes["words"], shapes["positions"], shapes["types"]
    roberta = types == 1
    kind = ("xlm-roberta" if vocabulary >= _MULTILINGUAL else "roberta") if roberta else "bert"
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["mlp"][0],
        "num_hidden_layers": count_layers(weights, f"{_BERT}encoder.layer."),
        "num_attention_heads": width // _HEAD,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5 if roberta else 1e-12,
        "pad_token_id": 1 if roberta else 0,
        **(text.get("hf_model_config") or {}),
        "pooling": _POOLINGS[pooler],
        "projection": text.get("hf_proj_type", "mlp") or None,
        "context_length": text.get("context_length", 77),
    }


_TELLING = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "mlp": "encoder.layer.0.intermediate.dense.weight",
}
"""Weights of a BERT that tell its sizes."""
