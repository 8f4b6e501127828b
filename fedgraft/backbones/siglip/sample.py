"""A small SigLIP 2 with random weights and a tokenizer of Gemma's kind, for tests without a network."""

import json
from pathlib import Path
from typing import Any

import torch

from fedgraft.backbones.drift_classes import drift_classes

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_LETTERS = [chr(code) for code in range(33, 127)]


def write_sample(folder: Path) -> None:
    """Towers that differ in width, depth and head count, of images of 48 pixels."""
    from transformers import SiglipConfig, SiglipModel

    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    kind = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    _write(folder / "tokenizer_config.json", {**kind, **names, "model_max_length": 64})
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 48}, "resample": 2}
    scaled = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_resize": True}
    _write(
        folder / "preprocessor_config.json", {**processor, **scaled, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    )
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={**text, **special, "vocab_size": tokenizer.get_vocab_size(), "projection_size": 32},
        vision_config={**vision, "image_size": 48, "patch_size": 12},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(config)
        with torch.no_grad():
            model.logit_scale.fill_(4.0)
            model.logit_bias.fill_(-8.0)
        model.save_pretrained(folder)


def _tokenizer() -> Any:
    """Byte-pair encoding with bytes for what it has no letters for, and an end token, as Gemma's has them."""
    from tokenizers import Tokenizer, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        special_tokens=[*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=["▁", *_LETTERS],
    )
    words = {word for name in ("a photo of a", *drift_classes("siglip")) for word in name.lower().split()}
    tokenizer.train_from_iterator((f" {word}" for word in sorted(words)), trainer)
    end = tokenizer.token_to_id("<eos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", end)])
    return tokenizer


def _write(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
