"""A small random backbone of the family, for the contract tests."""

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertTokenizer

from fedgraft.backbones.photo.image_tower import LiteShape
from fedgraft.backbones.photo.model import PhotoConfig, PhotoModel

_SIDE = 32


def write_sample(folder: Path) -> None:
    """Two blocks of convolutions, two layers of text and a tokenizer that spells."""
    letters = [*string.ascii_lowercase, *string.digits, ".", ","]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}).save_pretrained(folder)
    text = BertConfig(
        vocab_size=len(pieces),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=96,
        initializer_range=0.3,
    )
    shape = LiteShape(8, ((1, 3, 1, 1, 8), (2, 5, 2, 2, 12)), 20)
    config = PhotoConfig(
        text.to_dict(),
        dim=10,
        anchors=15,
        sharpness=2.0,
        logit_scale=20.0,
        image_size=_SIDE,
        context_length=80,
        image=shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PhotoModel(config)
        model.text_model.init_weights()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                nn.init.normal_(module.bias, std=0.5)
                nn.init.uniform_(module.running_var, 0.05, 0.3)
        for parameter in (model.text_map.anchors, model.text_map.coefficients):
            nn.init.normal_(parameter, std=0.5)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": _SIDE + 4}, "resample": 3}
    processor |= {"do_resize": True, "do_center_crop": True, "crop_size": {"height": _SIDE, "width": _SIDE}}
    processor |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
    processor |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
