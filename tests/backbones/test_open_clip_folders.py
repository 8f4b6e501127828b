"""A folder of OpenCLIP's dual encoder has the features of the library's model, and what is wrong with one is named."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from fedgraft.backbones import load_backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.dual.open_clip_sample import write_sample
from fedgraft.backbones.loading import located, require_backbone
from fedgraft.backbones.timm.importing import import_timm
from fedgraft.core.errors import UserError
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.lora_targets import adapted_maps
from tests.backbones.bert_folders import bert_tokenizer, small_text_config
from tests.backbones.open_clip_oracle import (
    bert_weights,
    clip_tokenizer,
    image_weights,
    open_clip,
    text_config,
    text_transformer,
    text_weights,
    uneven,
    write_folder,
)

with_timm = pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is not installed")
with_open_clip = pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip_torch is not installed")
pytestmark = with_timm
DIM = 24
TEXTS = ["a red circle.", "seven", "a photo of x"]


def _image_tower(name: str, pool: str, projection: str | None, side: int) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    kind = open_clip().timm_model.TimmModel
    tower = kind(name, DIM, image_size=side, pool=pool, proj=projection, drop_path=None).eval()
    _statistics(tower)
    return tower, {"timm_model_name": name, "timm_pool": pool, "timm_proj": projection, "image_size": side}


def _statistics(module: Any) -> None:
    """Norms and layer scales as training leaves them: merging norms changes weights, and every block has an effect."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.2, 0.8)
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
                part.weight.uniform_(0.7, 1.3)
                part.bias.normal_(0, 0.1)
    module.requires_grad_(False)


def _scale(value: float = 3.0) -> dict[str, torch.Tensor]:
    return {"logit_scale": torch.tensor(value)}


@with_open_clip
@pytest.mark.parametrize(
    ("name", "pool", "projection"),
    [
        ("test_vit", "", "linear"),
        ("test_vit", "avg", "mlp"),
        ("test_vit", "token", None),
        ("test_efficientnet", "avg", None),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_images_and_texts_have_the_features_of_open_clip(
    name: str, pool: str, projection: str | None, causal: bool, tmp_path: Path
) -> None:
    image, vision = _image_tower(name, pool, projection, 160)
    text = text_config(causal=causal)
    tower = text_transformer(text, DIM)
    weights = {**image_weights(image), **text_weights(tower), **_scale()}
    backbone = load_backbone(str(write_folder(tmp_path, weights, vision, text, DIM)))
    assert backbone.logit_scale == pytest.approx(20.0855, rel=1e-4)
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(backbone.encode_images(pixels), F.normalize(image(pixels), dim=-1), atol=1e-5)
    tokenizer = clip_tokenizer()
    rows = [tokenizer(one)["input_ids"] for one in TEXTS]
    ids = torch.tensor([row + [0] * (32 - len(row)) for row in rows])
    expected = F.normalize(tower(ids), dim=-1)
    assert torch.allclose(backbone.text.encode_texts(TEXTS), expected, atol=1e-5)
    context, tokens = backbone.text.tokenize_texts(TEXTS)
    assert torch.allclose(backbone.text.encode_prompts(context[None], tokens)[0], expected, atol=1e-5)
    assert len(backbone.linear_maps("text")) == 6 * 3
    assert located(str(tmp_path)).abilities().text.causal == causal


@with_open_clip
def test_a_bert_with_an_mlp_behind_it_is_biomedclips_text_tower(tmp_path: Path) -> None:
    image, vision = _image_tower("test_vit", "", "linear", 160)
    torch.manual_seed(1)
    config = BertConfig(**small_text_config())
    text = uneven(open_clip().hf_model.HFTextEncoder("", DIM, config, "cls_last_hidden_state_pooler", "mlp", False))
    weights = {**image_weights(image), **bert_weights(text), **_scale()}
    own = {**config.to_dict(), "pooling": "class", "projection": "mlp", "context_length": 30}
    weights = {key: tensor for key, tensor in weights.items() if ".pooler." not in key}
    backbone = load_backbone(str(write_folder(tmp_path, weights, vision, own, DIM)))
    assert backbone.text.max_tokens == located(str(tmp_path)).sizes().positions == 30
    ids = bert_tokenizer()(TEXTS, padding="max_length", max_length=30, return_tensors="pt")["input_ids"]
    assert torch.allclose(backbone.text.encode_texts(TEXTS), F.normalize(text(ids), dim=-1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "dim"),
    [
        ("fastvit_mci0", {"layers": [1, 1, 1, 1]}, 512),
        ("fastvit_mci1", {"layers": [1, 1, 1, 1]}, 512),
        ("fastvit_mci2", {"layers": [1, 1, 1, 1]}, 512),
        ("fastvit_mci3", {"layers": [1, 1, 1, 1, 1]}, 768),
        ("fastvit_mci4", {"layers": [1, 1, 1, 1, 1]}, 768),
        ("vit_base_mci_224", {"depth": 2}, 512),
    ],
    ids=["S0", "S1", "S2", "S3", "S4", "B"],
)
def test_mobileclips_image_towers_at_full_width(name: str, arguments: dict[str, Any], dim: int) -> None:
    """The model as timm runs it, and the encoder for devices, in which parallel branches are merged."""
    from fedgraft.backbones.timm.image_tower import TimmImageTower, TimmTrunk

    of_vit = name.startswith("vit")
    side, pool = (224, "token") if of_vit else (256, "avg")
    torch.manual_seed(0)
    plain = import_timm().create_model(name, num_classes=dim, global_pool=pool, **arguments).eval()
    _statistics(plain)
    trunk = TimmTrunk({"timm_model_name": name, "timm_pool": pool, "image_size": side, "timm_model_args": arguments})
    module, projection = trunk.build(dim)
    module.load_state_dict(plain.state_dict())
    tower = TimmImageTower(module, projection).eval().requires_grad_(False)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = F.normalize(plain(pixels), dim=-1)
    assert torch.allclose(tower(pixels), expected, atol=1e-5)
    encoder = tower.encoder({}, None)
    assert torch.allclose(encoder(pixels), expected, atol=1e-5)
    if not of_vit:
        assert sum(1 for _ in encoder.modules()) < sum(1 for _ in tower.modules())


def _changed(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The family's sample."""
    write_sample(tmp_path)
    return tmp_path


def test_a_missing_and_an_extra_weight_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    taken = weights.pop("text_projection.2.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 weights, such as text_projection\.2\.weight"):
        load_backbone(str(folder))
    save_file(
        {**weights, "text_projection.2.weight": taken, "visual.extra": taken.clone()}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"has 1 weights without a place .* visual\.extra"):
        load_backbone(str(folder))


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    _changed(folder, projection_dim=20)
    with pytest.raises(UserError, match=r"text_projection\.0\.weight of the shape \(28, 32\).*\(26, 32\)"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"timm_model_name": "vit_of_nobody"}}, "cannot make the image tower 'vit_of_nobody'"),
        ({"vision_config": {"timm_pool": "rot_attn"}}, "OpenCLIP's own attention"),
        ({"vision_config": {"timm_proj": "conv"}}, "projection 'conv'"),
        ({"text_config": {"model_type": "t5"}}, "text model 't5' is unknown"),
        ({"text_config": {"pooling": "max"}}, "pooling 'max'"),
        ({"text_config": {"projection": None}}, "no projection to 24"),
        ({"vision_config": {"image_size": None}}, "image_size"),
        ({"projection_dim": "many"}, "config.json is not a configuration"),
    ],
)
def test_a_configuration_that_asks_for_something_else_is_refused(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    _changed(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        load_backbone(str(folder))
    assert "\n" not in str(error.value)


def test_a_folder_without_timm_is_refused_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise UserError("pip install 'fedgraft[timm]'")

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("fedgraft.backbones.timm.image_tower.import_timm", missing)
    with pytest.raises(UserError, match=r"fedgraft\[timm\]"):
        require_backbone(str(folder), Needs(placement="before"))


def test_low_rank_adapters_find_a_vision_transformers_attention_by_the_default_names(folder: Path) -> None:
    names = adapted_maps(load_backbone(str(folder)), LoraOptions(), "image")
    assert {name.split(".", 3)[3] for name in names} == {"attn.qkv"}


def test_sharded_and_halved_weights_open(folder: Path) -> None:
    """As large checkpoints are published."""
    whole = load_backbone(str(folder))
    halves = {key: tensor.half() for key, tensor in load_file(folder / "model.safetensors").items()}
    names = sorted(halves)
    index = {}
    for number, keys in enumerate((names[::2], names[1::2])):
        save_file({key: halves[key] for key in keys}, folder / f"part-{number}.safetensors")
        index |= dict.fromkeys(keys, f"part-{number}.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    backbone = load_backbone(str(folder))
    texts = F.cosine_similarity(whole.text.encode_texts(TEXTS), backbone.text.encode_texts(TEXTS))
    assert texts.min() > 0.9999
    assert backbone.text.encode_texts(TEXTS).dtype == torch.float32
