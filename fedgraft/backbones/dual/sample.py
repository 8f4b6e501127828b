"""Parts of small random backbones with a BERT-like text tower, for tests without a network."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import BertTokenizer

from fedgraft.backbones.drift_classes import drift_classes

SIDE = 32
"""Of a sample's images in pixels."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def wordpieces() -> list[str]:
    """BERT's special tokens, all letters and signs, alone and inside a word, and common words."""
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = (word for name in ("a photo of the", *drift_classes("align")) for word in name.lower().split())
    return [*_SPECIAL, *dict.fromkeys([*signs, *sorted(set(words))]), *(f"##{sign}" for sign in signs)]


def write_wordpieces(folder: Path) -> None:
    """BERT's tokenizer."""
    vocabulary = {piece: index for index, piece in enumerate(wordpieces())}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)


def text_sizes() -> dict[str, Any]:
    """Keys of a BERT's configuration."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return {**sizes, "max_position_embeddings": 64, "vocab_size": len(wordpieces()), "initializer_range": 0.2}


def write_preprocessing(folder: Path, kind: str = "CLIPImageProcessor", crops: bool = True, side: int = SIDE) -> None:
    """A preprocessor_config.json for square images."""
    sides = {"height": side, "width": side}
    size = {"size": {"shortest_edge": side} if crops else sides, "do_center_crop": crops, "crop_size": sides}
    scale = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3}
    values = {"image_processor_type": kind, "do_resize": True, "resample": 3, **size, **scale, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=2) + "\n")


@contextmanager
def seeded() -> Iterator[None]:
    """The same random weights wherever a sample is written, without a trace in torch's generator."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


def uneven(model: AnyModule) -> AnyModule:
    """Larger kernels, and random norms and statistics for ones and zeros: features differ, and nothing is hidden."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
    return model
