"""SigLIP in OpenCLIP's layout computes in Hugging Face's what it computes in its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SiglipModel

from fedgraft.backbones.checkpoints import importing
from fedgraft.backbones.checkpoints.siglip_names import _TANH, _TOWERS
from fedgraft.backbones.timm.importing import import_timm
from tests.backbones.checkpoints.conftest import IMPORT, randomized, refusal

Build = Callable[..., nn.Module]
Write = Callable[..., Path]
TEXT: dict[str, Any] = {
    "context_length": 16, "vocab_size": 790, "width": 48, "heads": 4, "layers": 2, "no_causal_mask": True,
    "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
FIRST = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}
SECOND = {**FIRST, "timm_model_name": "vit_base_patch32_siglip_256", "image_size": 256}
CONFIGS: dict[str, dict[str, Any]] = {
    "SigLIP": {"vision_cfg": FIRST, "text_cfg": TEXT},
    "SigLIP 2, exact gelu in the images": {
        "vision_cfg": FIRST, "text_cfg": {**TEXT, "act_kwargs": {"approximate": "tanh"}}
    },
    "SigLIP 2": {"vision_cfg": SECOND, "text_cfg": {**TEXT, "mlp_ratio": 3.7362}},
}  # fmt: skip


@pytest.fixture
def siglip(open_clip: Any) -> Callable[[dict[str, Any]], tuple[dict[str, Any], nn.Module]]:
    """OpenCLIP's model of a configuration, its image tower narrower and of two layers."""

    def build(parts: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
        config = {"embed_dim": 48, "init_logit_bias": -10, "custom_text": True, **parts}
        name, size = config["vision_cfg"]["timm_model_name"], config["vision_cfg"]["image_size"]
        small = {"layers": 1, "width": 64, "image_size": 16}
        model = open_clip.CustomTextCLIP(48, small, parts["text_cfg"], init_logit_bias=-10)
        model.visual = nn.Module()
        model.visual.trunk = import_timm().create_model(
            name, depth=2, embed_dim=48, num_classes=0, img_size=size, global_pool="map"
        )
        model.visual.forward = model.visual.trunk.forward
        return config, randomized(model)

    return build


@pytest.fixture(autouse=True)
def _any_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of the conversion, whichever families are installed."""
    monkeypatch.setattr(importing, "_family", lambda *_: "siglip")


@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_logits_are_those_of_openclip(
    name: str, siglip: Any, openclip_folder: Write, imported: IMPORT
) -> None:
    config, model = siglip(CONFIGS[name])
    made = imported(openclip_folder(model, config))
    theirs = SiglipModel.from_pretrained(made.out).eval()
    generator = torch.Generator().manual_seed(1)
    size = config["vision_cfg"]["image_size"]
    pixels = torch.randn(3, 3, size, size, generator=generator)
    ids = torch.randint(0, 790, (3, 16), generator=generator)
    with torch.no_grad():
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
        out = theirs(input_ids=ids, pixel_values=pixels)
        logits = images @ texts.T * model.logit_scale.exp() + model.logit_bias
    torch.testing.assert_close(out.image_embeds, images, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.text_embeds, texts, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.logits_per_image, logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-2)


def test_preprocessing_squashes(siglip: Any, openclip_folder: Write, imported: IMPORT) -> None:
    config, model = siglip(CONFIGS["SigLIP"])
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    written = (imported(openclip_folder(model, config, preprocess)).out / "preprocessor_config.json").read_text()
    assert '"SiglipImageProcessor"' in written
    assert '"do_center_crop": false' in written


def test_a_missing_half_of_the_pooling_is_named(siglip: Any, openclip_folder: Write, imported: IMPORT) -> None:
    config, model = siglip(CONFIGS["SigLIP"])
    del model.visual.trunk.attn_pool.kv
    assert "visual.trunk.attn_pool" in refusal(lambda: imported(openclip_folder(model, config)))


def test_the_facts_of_each_tower_are_those_of_timm(open_clip: Any) -> None:
    """Heads, patches and activation that are read from the tower's name, of every such tower that timm has."""
    timm = import_timm()
    names = [name for name in timm.list_models("*siglip*") if "_gap_" not in name and "naflex" not in name]
    assert len(names) > 10
    for name in names:
        heads, patch, activation = _TOWERS[name.rpartition("_")[0]]
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0, depth=1)
        block = tower.blocks[0]
        act = type(block.mlp.act).__name__
        expected = "gelu_pytorch_tanh" if name in _TANH else activation
        assert (block.attn.num_heads, tower.patch_embed.patch_size[0]) == (heads, patch), name
        assert {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh"}[act] == expected, name
        assert (tower.attn_pool.num_heads, tower.norm.eps) == (heads, 1e-6), name
        assert type(tower.attn_pool.mlp.act).__name__ == act, name
