"""A small dual encoder of OpenCLIP's kind with random weights, for tests without a network."""

import json
from pathlib import Path

from safetensors.torch import save_file

from fedgraft.backbones.dual.open_clip_model import MODEL_TYPE, OpenClipConfig, OpenClipModel
from fedgraft.backbones.dual.sample import SIDE, seeded, text_sizes, uneven, write_preprocessing, write_wordpieces


def write_sample(folder: Path) -> None:
    """BiomedCLIP's shape: a ViT of timm, and a BERT with an MLP behind its class token."""
    write_wordpieces(folder)
    write_preprocessing(folder)
    sizes = {"img_size": SIDE, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}
    image = {"model_type": "timm", "timm_model_name": "test_vit", "timm_model_args": sizes, "timm_pool": ""}
    text = {"model_type": "bert", **text_sizes(), "pooling": "class", "projection": "mlp", "context_length": 48}
    config = {"model_type": MODEL_TYPE, "projection_dim": 24, "logit_bias": True, "text_config": text}
    vision = {"vision_config": {**image, "timm_proj": "linear", "image_size": SIDE}}
    (folder / "config.json").write_text(json.dumps({**config, **vision}, indent=2) + "\n")
    with seeded():
        model = uneven(OpenClipModel(OpenClipConfig(folder)))
        model.logit_scale.fill_(3.0)
        assert model.logit_bias is not None
        model.logit_bias.fill_(-6.0)
        save_file(model.state_dict(), folder / "model.safetensors")
