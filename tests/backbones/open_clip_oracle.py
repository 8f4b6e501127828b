"""Models of the library open_clip with random weights, and the folders that hold the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from fedgraft.backbones.timm.importing import without_torchvision
from tests.backbones.bert_folders import bert_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def open_clip() -> Any:
    """The package, without torchvision."""
    with without_torchvision():
        import open_clip
        import open_clip.hf_model
        import open_clip.model
        import open_clip.timm_model
        import open_clip.transformer
    return open_clip


def clip_tokenizer() -> Any:
    """CLIP's kind of pieces: letters and pairs, the last of a word marked."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab = ["!", *letters, ".", *(f"{one}</w>" for one in [*letters, "."]), "re", "red</w>", START, END]
    merges = [("r", "e"), ("re", "d</w>")]
    ids = {piece: index for index, piece in enumerate(vocab)}
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    return CLIPTokenizer(vocab=ids, merges=merges, **tokens)


def text_config(
    width: int = 32, layers: int = 3, heads: int = 4, causal: bool = False, **changes: Any
) -> dict[str, Any]:
    """A config.json's entry for OpenCLIP's own text tower."""
    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_size": len(tokenizer),
    }
    rest = {"intermediate_size": 4 * width, "hidden_act": "gelu", "max_position_embeddings": 32, "layer_norm_eps": 1e-5}
    return {"model_type": "clip_text_model", "causal": causal, **sizes, **ends, **rest, **changes}


def text_transformer(config: dict[str, Any], dim: int) -> nn.Module:
    """OpenCLIP's text tower of a configuration."""
    torch.manual_seed(0)
    tower = open_clip().transformer.TextTransformer(
        context_length=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"],
        output_dim=dim,
        no_causal_mask=not config["causal"],
    )
    return uneven(tower)


def uneven(module: nn.Module) -> nn.Module:
    """Larger weights, and random biases and norms, whose initial values hide whether they are applied."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            elif "embedding" in name:
                parameter.normal_(0, 0.5)
            elif "text_projection" in name or "attn" in name or "mlp" in name:
                parameter.mul_(2)
    return module.eval().requires_grad_(False)


def text_weights(tower: nn.Module) -> dict[str, Tensor]:
    """The weights of OpenCLIP's text tower under the names of a folder."""
    found: dict[str, Tensor] = {}
    for name, tensor in tower.state_dict().items():
        if name.startswith("transformer.resblocks."):
            _, _, number, rest = name.split(".", 3)
            layer = f"text_model.encoder.layers.{number}"
            if "in_proj" in rest:
                kind = rest.rsplit("_", 1)[1]
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{letter}_proj.{kind}"] = third.clone()
            else:
                module, kind = rest.rsplit(".", 1)
                found[f"{layer}.{_BLOCK[module]}.{kind}"] = tensor
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif name == "token_embedding.weight":
            found["text_model.embeddings.token_embedding.weight"] = tensor
        elif name == "positional_embedding":
            found["text_model.embeddings.position_embedding.weight"] = tensor
        else:
            found[f"text_model.{name.replace('ln_final', 'final_layer_norm')}"] = tensor
    return found


def bert_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights of OpenCLIP's `HFTextEncoder` under the names of a folder."""
    places = {"transformer.": "text_model.", "proj.": "text_projection."}
    return {
        after + name.removeprefix(before): tensor
        for name, tensor in encoder.state_dict().items()
        for before, after in places.items()
        if name.startswith(before)
    }


def image_weights(tower: nn.Module) -> dict[str, Tensor]:
    """The weights of OpenCLIP's `TimmModel` under the names of a folder."""
    places = {"trunk.": "vision_model.", "head.proj.": "visual_projection.", "head.mlp.": "visual_projection."}
    return {
        after + name.removeprefix(before): tensor
        for name, tensor in tower.state_dict().items()
        for before, after in places.items()
        if name.startswith(before)
    }


def write_folder(
    folder: Path,
    weights: dict[str, Tensor],
    vision: dict[str, Any],
    text: dict[str, Any],
    dim: int,
    mean: float = 0.5,
) -> Path:
    """A folder of a dual encoder of OpenCLIP's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "open_clip_dual_encoder", "projection_dim": dim}
    config |= {"vision_config": {"model_type": "timm", **vision}, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (clip_tokenizer() if text["model_type"] == "clip_text_model" else bert_tokenizer()).save_pretrained(folder)
    side = vision["image_size"]
    images = {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": {"height": side, "width": side}}
    images |= {"image_mean": [mean] * 3, "image_std": [0.25] * 3, "resample": 3, "rescale_factor": 1 / 255}
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **steps, **images})
    )
    return folder
