"""SigLIP as OpenCLIP keeps it (a timm image tower, a bidirectional text tower) and as Hugging Face does."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from fedgraft.backbones.checkpoints.clip_names import both, count_layers, text_rules
from fedgraft.backbones.checkpoints.renaming import Rule, same, thirds
from fedgraft.backbones.checkpoints.weights import Weight, Weights
from fedgraft.core.errors import UserError

_END = 1
"""The end token of the vocabularies of both versions."""
_POOL = "visual.trunk.attn_pool"
_MLP = "visual.trunk.blocks.0.mlp.fc1.weight"
_TOWERS = {
    "vit_base_patch16_siglip": (12, 16, "gelu"),
    "vit_base_patch32_siglip": (12, 32, "gelu_pytorch_tanh"),
    "vit_large_patch16_siglip": (16, 16, "gelu"),
    "vit_so400m_patch14_siglip": (16, 14, "gelu"),
    "vit_so400m_patch16_siglip": (16, 16, "gelu_pytorch_tanh"),
    "vit_giantopt_patch16_siglip": (16, 16, "gelu_pytorch_tanh"),
}
"""timm's towers without their resolution: heads, patch size and activation, which no shape tells."""
_TANH = ("vit_large_patch16_siglip_512",)
"""A tower whose activation is not that of its other resolutions."""


def is_siglip(model: dict[str, Any]) -> bool:
    """Whether a `model_cfg` of OpenCLIP describes a SigLIP or SigLIP 2 of fixed resolution."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    known = _tower(vision) in _TOWERS and vision.get("timm_pool") == "map"
    return known and bool(text.get("no_causal_mask")) and text.get("pool_type") == "last"


def siglip_config(model: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The `config.json` of a `SiglipModel` that computes the same.

    Raises:
        UserError: the image tower's weights are missing.
    """
    vision, text = model["vision_cfg"], model["text_cfg"]
    heads, patch, activation = _TOWERS[_tower(vision)]
    if vision["timm_model_name"] in _TANH:
        activation = "gelu_pytorch_tanh"
    if missing := [name for name in ("visual.trunk.patch_embed.proj.weight", _MLP) if name not in weights]:
        raise UserError(f"The checkpoint lacks {', '.join(missing)}, which tell the sizes of SigLIP's image tower.")
    width, eps = text.get("width", 512), (text.get("norm_kwargs") or {}).get("eps", 1e-5)
    tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {
            "model_type": "siglip_text_model",
            "hidden_act": "gelu_pytorch_tanh" if tanh else "gelu",
            "hidden_size": width,
            "intermediate_size": int(width * text.get("mlp_ratio", 4.0)),
            "num_attention_heads": text.get("heads", 8),
            "num_hidden_layers": text.get("layers", 12),
            "max_position_embeddings": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", 32000),
            "projection_size": model["embed_dim"],
            "bos_token_id": None,
            "eos_token_id": _END,
            "layer_norm_eps": eps,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": activation,
            "hidden_size": weights["visual.trunk.patch_embed.proj.weight"].shape[0],
            "intermediate_size": weights[_MLP].shape[0],
            "num_attention_heads": heads,
            "num_hidden_layers": count_layers(weights, "visual.trunk.blocks."),
            "image_size": vision.get("image_size", 224),
            "patch_size": patch,
            "layer_norm_eps": 1e-6,
        },
    }


def with_joint_pooling(weights: Weights) -> Weights:
    """The weights with one joint projection in the attention pooling, which timm keeps in two parts."""
    joint = dict(weights)
    for kind in ("weight", "bias"):
        parts = [f"{_POOL}.q.{kind}", f"{_POOL}.kv.{kind}"]
        if all(part in joint for part in parts):
            queries, others = (joint.pop(part) for part in parts)
            joint[f"{_POOL}.in_proj_{kind}"] = queries.above(others)
    return joint


def siglip_rules(weights: Weights) -> Iterator[Rule]:
    """How OpenCLIP's names, after `with_joint_pooling`, become those of a `SiglipModel`."""
    trunk, to = "visual.trunk", "vision_model"
    yield from both(f"{trunk}.patch_embed.proj", f"{to}.embeddings.patch_embedding")
    yield same(f"{trunk}.pos_embed", f"{to}.embeddings.position_embedding.weight", Weight.rows)
    yield from both(f"{trunk}.norm", f"{to}.post_layernorm")
    for number in range(count_layers(weights, f"{trunk}.blocks.")):
        yield from _block(f"{trunk}.blocks.{number}", f"{to}.encoder.layers.{number}")
    yield same(f"{_POOL}.latent", f"{to}.head.probe")
    for kind in ("weight", "bias"):
        yield same(f"{_POOL}.in_proj_{kind}", f"{to}.head.attention.in_proj_{kind}")
    for old, new in {
        "proj": "attention.out_proj",
        "norm": "layernorm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        yield from both(f"{_POOL}.{old}", f"{to}.head.{new}")
    layers = count_layers(weights, "text.transformer.resblocks.")
    yield from text_rules(layers, "text.")
    yield from both("text.text_projection", "text_model.head")
    yield same("logit_scale", "logit_scale", partial(Weight.flat, shape=(1,)))
    yield same("logit_bias", "logit_bias", partial(Weight.flat, shape=(1,)))


def _block(source: str, target: str) -> Iterator[Rule]:
    for kind in ("weight", "bias"):
        yield thirds(f"{source}.attn.qkv.{kind}", [f"{target}.self_attn.{part}_proj.{kind}" for part in "qkv"])
    names = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2"}
    for old, new in (names | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}).items():
        yield from both(f"{source}.{old}", f"{target}.{new}")


def _tower(vision: dict[str, Any]) -> str:
    """The name of timm's tower without its resolution."""
    return str(vision.get("timm_model_name")).rpartition("_")[0]
