"""What OpenCLIP computes, a backbone imported from its layout computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from fedgraft.backbones import load_backbone
from fedgraft.backbones.loading import mini_folder
from tests.backbones.checkpoints.conftest import CLIP_CFG, IMPORT, TEXTS, padded_ids, pictures, refusal

Build = Callable[..., nn.Module]
Write = Callable[..., Path]


def _changed(part: str, **values: Any) -> dict[str, Any]:
    return {**CLIP_CFG, part: {**CLIP_CFG[part], **values}}


CONFIGS = {
    "plain": CLIP_CFG,
    "quick_gelu": {**CLIP_CFG, "quick_gelu": True},
    "other heads": _changed("vision_cfg", head_width=32, mlp_ratio=2.55),
    "other eps": _changed("text_cfg", norm_kwargs={"eps": 1e-3}),
    "custom_text": {**CLIP_CFG, "custom_text": True},
    "norm after pooling": _changed("vision_cfg", final_ln_after_pool=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_openclip(
    name: str, openclip_model: Build, openclip_folder: Write, imported: IMPORT
) -> None:
    model = openclip_model(CONFIGS[name])
    made = imported(openclip_folder(model, CONFIGS[name]))
    backbone = load_backbone(str(made.out))
    pixels = backbone.preprocess(pictures())
    ids = padded_ids(AutoTokenizer.from_pretrained(made.out), 32)
    with torch.no_grad():
        images = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(ids, normalize=True)
    torch.testing.assert_close(backbone.encode_images(pixels), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.text.encode_texts(TEXTS), texts, rtol=0, atol=1e-5)
    assert backbone.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert not torch.allclose(images[0], images[1], atol=1e-2)
    assert not torch.allclose(texts[0], texts[1], atol=1e-2)


def test_the_activation_matters(openclip_model: Build, openclip_folder: Write, imported: IMPORT) -> None:
    """A quick_gelu model read as a gelu one would differ by more than the tolerance above."""
    model = openclip_model(CLIP_CFG)
    backbone = load_backbone(str(imported(openclip_folder(model, {**CLIP_CFG, "quick_gelu": True})).out))
    pixels = backbone.preprocess(pictures())
    with torch.no_grad():
        assert (backbone.encode_images(pixels) - model.encode_image(pixels, normalize=True)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({}, {"resample": 3, "do_center_crop": True, "size": {"shortest_edge": 48}}),
        ({"resize_mode": "squash", "interpolation": "bilinear"},
         {"resample": 2, "do_center_crop": False, "size": {"height": 48, "width": 48}}),
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}),
    ],
)  # fmt: skip
def test_preprocessing_is_that_of_the_folder(
    preprocess: dict[str, Any],
    expected: dict[str, Any],
    openclip_model: Build,
    openclip_folder: Write,
    imported: IMPORT,
) -> None:
    backbone = load_backbone(str(imported(openclip_folder(openclip_model(CLIP_CFG), CLIP_CFG, preprocess)).out))
    found = backbone.preprocessor_config()
    assert {key: found[key] for key in expected} == expected
    assert backbone.preprocess(pictures()).shape == (3, 3, 48, 48)


REFUSED = {
    "CoCa": ({**CLIP_CFG, "multimodal_cfg": {}}, "CoCa"),
    "a ResNet": (_changed("vision_cfg", layers=[1, 1, 1, 1]), "ResNet"),
    "average pooling": (_changed("vision_cfg", pool_type="avg"), "pool_type"),
    "no first norm": (_changed("vision_cfg", no_ln_pre=True), "no_ln_pre"),
    "layer scale": (_changed("text_cfg", ls_init_value=0.1), "ls_init_value"),
    "a bidirectional text tower": (_changed("text_cfg", no_causal_mask=True), "no_causal_mask"),
    "another tokenizer": (_changed("text_cfg", hf_tokenizer_name="facebook/xlm-v-base"), "hf_tokenizer_name"),
    "a text tower of Hugging Face": (_changed("text_cfg", hf_model_name="roberta-base"), "Hugging Face"),
    "a setting of the future": (_changed("vision_cfg", rotary=True), "rotary"),
    "padded images": (CLIP_CFG, "longest"),
    "no sizes": ({"vision_cfg": {}}, "embed_dim"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_here_computes_is_refused_by_name(
    name: str, openclip_model: Build, openclip_folder: Write, imported: IMPORT, tmp_path: Path
) -> None:
    config, word = REFUSED[name]
    preprocess = {"resize_mode": "longest"} if name == "padded images" else {}
    folder = openclip_folder(openclip_model(CLIP_CFG), config, preprocess)
    sentence = refusal(lambda: imported(folder))
    assert word in sentence
    assert str(folder) in sentence
    assert not (tmp_path / "imported").exists()


def test_shapes_that_do_not_fit_the_configuration_are_named(
    openclip_model: Build, openclip_folder: Write, imported: IMPORT
) -> None:
    folder = openclip_folder(openclip_model(CLIP_CFG), {**CLIP_CFG, "embed_dim": 32})
    sentence = refusal(lambda: imported(folder))
    assert "(24, 128), expected (32, 128)" in sentence
    assert "visual.proj" in sentence


def test_a_layer_too_few_is_named(openclip_model: Build, openclip_folder: Write, imported: IMPORT) -> None:
    folder = openclip_folder(openclip_model(CLIP_CFG), _changed("vision_cfg", layers=3))
    assert "vision_model.encoder.layers.2" in refusal(lambda: imported(folder))


@pytest.mark.parametrize(
    "key", ["visual.ln_post.bias", "transformer.resblocks.1.attn.in_proj_weight", "text_projection"]
)
def test_missing_weights_are_named(key: str, openclip_model: Build, openclip_folder: Write, imported: IMPORT) -> None:
    folder = openclip_folder(openclip_model(CLIP_CFG), CLIP_CFG)
    weights = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    del weights[key]
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    assert key in refusal(lambda: imported(folder))


def test_extra_weights_are_named(openclip_model: Build, openclip_folder: Write, imported: IMPORT) -> None:
    folder = openclip_folder(openclip_model(CLIP_CFG), CLIP_CFG)
    weights = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    torch.save({**weights, "visual.adapter.weight": torch.ones(2)}, folder / "open_clip_pytorch_model.bin")
    assert "visual.adapter.weight" in refusal(lambda: imported(folder))


def test_a_tokenizer_with_more_words_than_the_tower_is_refused(
    openclip_model: Build, openclip_folder: Write, imported: IMPORT
) -> None:
    config = _changed("text_cfg", vocab_size=700)
    sentence = refusal(lambda: imported(openclip_folder(openclip_model(config), config)))
    assert "790 words, but the text tower has 700" in sentence


def test_a_tokenizer_that_ends_texts_otherwise_is_refused(
    openclip_model: Build, openclip_folder: Write, imported: IMPORT
) -> None:
    config = _changed("text_cfg", vocab_size=800)
    sentence = refusal(lambda: imported(openclip_folder(openclip_model(config), config)))
    assert "ends a text with 789, but the text tower with 799" in sentence


def test_a_folder_without_a_tokenizer_says_how_to_give_one(
    openclip_model: Build, openclip_folder: Write, imported: IMPORT
) -> None:
    sentence = refusal(lambda: imported(openclip_folder(openclip_model(CLIP_CFG), CLIP_CFG), tokenizer=None))
    assert "--tokenizer" in sentence


def test_a_tokenizer_in_the_folder_is_taken(openclip_model: Build, openclip_folder: Write, imported: IMPORT) -> None:
    folder = openclip_folder(openclip_model(CLIP_CFG), CLIP_CFG)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((mini_folder() / name).read_bytes())
    made = imported(folder, tokenizer=None)
    assert (made.out / "tokenizer.json").read_bytes() == (mini_folder() / "tokenizer.json").read_bytes()
