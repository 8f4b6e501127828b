"""OpenCLIP models with an image tower of timm, MobileCLIP's and BiomedCLIP's kind, compute here what they do there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertTokenizer, RobertaConfig

from fedgraft.backbones import load_backbone
from fedgraft.backbones.checkpoints import importing
from fedgraft.backbones.checkpoints.dual_names import MODEL_TYPE
from tests.backbones.checkpoints.conftest import IMPORT, TEXTS, padded_ids, pictures, refusal

Build = Callable[..., nn.Module]
Write = Callable[..., Path]
TOWER = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None, "image_size": 160}
OWN_TEXT = {"context_length": 32, "vocab_size": 790, "width": 64, "heads": 1, "layers": 2}
BERT = {"hf_model_pretrained": False, "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 24}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 96,
    "vocab_size": 120,
}
OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bidirectional": (TOWER, {**OWN_TEXT, "no_causal_mask": True}),
    "causal": (TOWER, OWN_TEXT),
    "convolutions": ({**TOWER, "timm_model_name": "test_efficientnet", "timm_pool": "avg"}, OWN_TEXT),
    "a linear projection": ({**TOWER, "timm_proj": "linear", "timm_pool": ""}, OWN_TEXT),
    "a projection of two layers": ({**TOWER, "timm_proj": "mlp", "timm_proj_bias": True}, OWN_TEXT),
}
PROJECTIONS = ["linear", "mlp"]
POOLERS = ["cls_last_hidden_state_pooler", "mean_pooler", "cls_pooler"]


def _config(vision: dict[str, Any], text: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "text_cfg": text, **others}


@pytest.fixture
def compared(openclip_model: Build, openclip_folder: Write, imported: IMPORT) -> Callable[..., None]:
    """Imports OpenCLIP's model of a configuration and compares the features of both."""

    def compare(config: dict[str, Any], length: int, padding: int, **options: Any) -> None:
        model = openclip_model(config)
        made = imported(openclip_folder(model, config), **options)
        backbone = load_backbone(str(made.out))
        pixels = backbone.preprocess(pictures())
        ids = padded_ids(AutoTokenizer.from_pretrained(made.out), length, padding)
        with torch.no_grad():
            images, texts = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
        torch.testing.assert_close(backbone.encode_images(pixels), images, rtol=0, atol=1e-5)
        torch.testing.assert_close(backbone.text.encode_texts(TEXTS), texts, rtol=0, atol=1e-5)
        assert not torch.allclose(texts[0], texts[1], atol=1e-3)
        assert (backbone.logit_bias is None) == ("init_logit_bias" not in config)

    return compare


@pytest.fixture
def bert_tokenizer(tmp_path: Path) -> Path:
    """A folder with a BERT tokenizer of single letters."""
    folder = tmp_path / "words"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def _of_bert(tmp_path: Path, kind: Any, **text: Any) -> dict[str, Any]:
    """OpenCLIP's settings of a text tower whose configuration lies in a folder, as it would in the cache."""
    folder = tmp_path / "bert"
    kind(**SIZES, max_position_embeddings=80).save_pretrained(folder)
    return {**BERT, "hf_model_name": str(folder), **text}


@pytest.mark.parametrize("name", OWN)
def test_features_with_openclips_text_tower(name: str, compared: Callable[..., None]) -> None:
    compared(_config(*OWN[name]), length=32, padding=0)


def test_a_bias_of_the_logits_is_kept(compared: Callable[..., None]) -> None:
    compared(_config(*OWN["causal"], init_logit_bias=-10), length=32, padding=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("pooler", POOLERS)
def test_features_with_a_bert(
    projection: str, pooler: str, compared: Callable[..., None], bert_tokenizer: Path, tmp_path: Path
) -> None:
    text = _of_bert(tmp_path, BertConfig, hf_proj_type=projection, hf_pooler_type=pooler)
    compared(_config({**TOWER, "timm_proj": "linear"}, text), length=24, padding=0, tokenizer=bert_tokenizer)


def test_a_roberta_is_told_from_a_bert(
    openclip_model: Build, openclip_folder: Write, imported: IMPORT, bert_tokenizer: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(importing, "_family", lambda *_: "open-clip")
    kind = type("Kind", (), {"__new__": lambda cls, **sizes: RobertaConfig(**sizes, type_vocab_size=1)})
    config = _config(TOWER, _of_bert(tmp_path, kind, hf_proj_type="mlp"))
    made = imported(openclip_folder(openclip_model(config), config), tokenizer=bert_tokenizer)
    written = json.loads((made.out / "config.json").read_text())
    assert written["model_type"] == MODEL_TYPE
    text = written["text_config"]
    assert (text["model_type"], text["pad_token_id"], text["layer_norm_eps"]) == ("roberta", 1, 1e-5)
    assert (text["vocab_size"], text["hidden_size"], text["num_hidden_layers"], text["max_position_embeddings"]) == (
        120, 64, 2, 80
    )  # fmt: skip


REFUSED = {
    "another pooling": (TOWER, {**OWN_TEXT, "pool_type": "first"}, "'first'"),
    "a class token of the texts": (TOWER, {**OWN_TEXT, "embed_cls": True}, "embed_cls"),
    "a bias of the projection": (TOWER, {**OWN_TEXT, "proj_bias": True}, "proj_bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_text_towers_that_no_family_reads_are_refused_by_name(
    name: str, openclip_model: Build, openclip_folder: Write, imported: IMPORT
) -> None:
    vision, text, word = REFUSED[name]
    config = _config(vision, text)
    folder = openclip_folder(openclip_model(_config(TOWER, OWN_TEXT)), config)
    assert word in refusal(lambda: imported(folder))


def test_missing_and_extra_weights_are_named(
    openclip_model: Build, openclip_folder: Write, imported: IMPORT, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(*OWN["causal"])
    folder = openclip_folder(openclip_model(config), config)
    file = folder / "open_clip_pytorch_model.bin"
    whole = torch.load(file, weights_only=True)
    torch.save({key: value for key, value in whole.items() if key != "text.ln_final.bias"}, file)
    assert "text.ln_final.bias" in refusal(lambda: imported(folder))
    torch.save({**whole, "text.head.weight": torch.ones(2)}, file)
    assert "text.head.weight" in refusal(lambda: imported(folder))
