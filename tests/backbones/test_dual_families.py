"""Dual encoders with a BERT give the features and gradients of Hugging Face's own forward, images and texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AlignConfig,
    AlignModel,
    AutoTokenizer,
    BertConfig,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPVisionConfig,
    ConvNextConfig,
    DistilBertConfig,
    RobertaConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.deltas import Delta
from fedgraft.backbones.dual.sample import (
    SIDE,
    seeded,
    text_sizes,
    uneven,
    wordpieces,
    write_preprocessing,
    write_wordpieces,
)
from fedgraft.backbones.loading import located, require_backbone
from fedgraft.backbones.representation import Representation
from fedgraft.core.errors import UserError
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.lora_targets import adapted_maps
from tests.backbones.bert_folders import roberta_tokenizer

NAMES = ("red circle", "seven", "laptop computer")
TEXTS = tuple(f"a photo of a {name}." for name in NAMES)
_IMAGE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def _align(folder: Path, **changes: Any) -> Any:
    sizes = {"width_coefficient": 0.2, "depth_coefficient": 0.3, "image_size": SIDE, "hidden_dim": 64}
    text = {**text_sizes(), **changes.get("text", {})}
    image, dim = {**sizes, **changes.get("image", {})}, changes.get("dim", 64)
    config = AlignConfig(text_config=text, vision_config=image, projection_dim=dim, temperature_init_value=0.2)
    return _saved(folder, AlignModel, config)


def _chinese_clip(folder: Path, **changes: Any) -> Any:
    image = {**_IMAGE, "image_size": SIDE, "patch_size": 8, **changes.get("image", {})}
    text = {**text_sizes(), **changes.get("text", {})}
    config = ChineseCLIPConfig(text_config=text, vision_config=image, projection_dim=changes.get("dim", 24))
    return _saved(folder, ChineseCLIPModel, config)


def _vision_text(folder: Path, image: Any, text: Any = None) -> Any:
    own = text or BertConfig(**text_sizes())
    config = VisionTextDualEncoderConfig.from_vision_text_configs(image, own, projection_dim=24)
    return _saved(folder, VisionTextDualEncoderModel, config)


def _saved(folder: Path, model_class: Any, config: Any) -> Any:
    folder.mkdir(exist_ok=True)
    write_wordpieces(folder)
    write_preprocessing(folder)
    with seeded():
        model = uneven(model_class(config)).eval()
        model.save_pretrained(folder)
    return model_class.from_pretrained(folder).eval().requires_grad_(False)


def _small(kind: str, folder: Path) -> Any:
    vit = ViTConfig(**_IMAGE, image_size=SIDE, patch_size=8)
    clip = CLIPVisionConfig(**_IMAGE, image_size=SIDE, patch_size=8)
    made = {
        "align": lambda: _align(folder),
        "chinese-clip": lambda: _chinese_clip(folder),
        "vit": lambda: _vision_text(folder, vit),
        "clip": lambda: _vision_text(folder, clip),
        "convnext": lambda: _vision_text(
            folder, ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], image_size=SIDE, hidden_size=32)
        ),
    }
    return made[kind]()


def plain_texts(model: Any, folder: Path, texts: tuple[str, ...]) -> Tensor:
    """As a user of transformers gets them."""
    tokens = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def compare(backbone: Backbone, model: Any, folder: Path, gradient: float = 1e-4) -> None:
    """Features of texts, prompts and images to 1e-5, gradients of prompts to 1e-4."""
    texts = plain_texts(model, folder, TEXTS)
    assert torch.allclose(backbone.text.encode_texts(TEXTS), texts, atol=1e-5)
    context, tokens = backbone.text.tokenize_texts(TEXTS)
    assert torch.allclose(backbone.text.encode_prompts(context[None], tokens)[0], texts, atol=1e-5)

    side = located(str(folder)).sizes().image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    assert torch.allclose(backbone.encode_images(pixels), images, atol=1e-5)

    learnt = (0.1 * torch.randn(1, 4, backbone.text.width, generator=torch.Generator().manual_seed(1))).requires_grad_()
    other = learnt.detach()[0].clone().requires_grad_()
    fast = backbone.text.encode_prompts(learnt, backbone.text.tokenize_names(NAMES))[0]
    slow = torch.stack([_prompted(model, folder, other, name) for name in NAMES])
    assert torch.allclose(fast, slow, atol=1e-5)
    direction = torch.randn(slow.shape, generator=torch.Generator().manual_seed(2))
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    assert learnt.grad is not None
    assert other.grad is not None
    assert (learnt.grad[0] - other.grad).norm() < gradient * other.grad.norm()


def _prompted(model: Any, folder: Path, context: Tensor, name: str) -> Tensor:
    """One prompted name through the model's own forward: the embeddings of dummy words are replaced by the context."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dummies = "x" * len(context)  # a letter in a word is a token of its own in these tokenizers
    tokens = tokenizer(f"{dummies} {name}.", return_tensors="pt")

    def put(module: nn.Module, args: Any, words: Tensor) -> Tensor:
        return torch.cat([words[:, :1], context[None], words[:, 1 + len(context) :]], dim=1)

    handle = model.text_model.embeddings.word_embeddings.register_forward_hook(put)
    features = model.get_text_features(**tokens).pooler_output[0]
    handle.remove()
    return F.normalize(features, dim=-1)


@pytest.mark.parametrize("kind", ["align", "chinese-clip", "vit", "clip", "convnext"])
def test_features_and_gradients_are_those_of_hugging_face(kind: str, tmp_path: Path) -> None:
    model = _small(kind, tmp_path)
    compare(load_backbone(str(tmp_path)), model, tmp_path)


def test_a_roberta_stands_at_its_own_positions(tmp_path: Path) -> None:
    sizes = {"vocab_size": 270, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    text = RobertaConfig(**{**text_sizes(), **sizes, "max_position_embeddings": 66})
    model = _vision_text(tmp_path, ViTConfig(**_IMAGE, image_size=SIDE, patch_size=8), text)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    roberta_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.text.max_tokens == located(str(tmp_path)).sizes().positions == 64
    compare(backbone, model, tmp_path)


def test_the_logits_are_those_of_the_model(tmp_path: Path) -> None:
    """ALIGN divides by a temperature, the others multiply by a scale."""
    for kind in ("align", "chinese-clip", "vit"):
        folder = tmp_path / kind
        model = _small(kind, folder)
        backbone = load_backbone(str(folder))
        tokens = AutoTokenizer.from_pretrained(folder)(list(TEXTS), padding=True, return_tensors="pt")
        pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        expected = model(pixel_values=pixels, **tokens).logits_per_image
        cosines = backbone.encode_images(pixels) @ backbone.text.encode_texts(TEXTS).mT
        assert torch.allclose(backbone.logit_scale * cosines, expected, atol=1e-4), kind


def test_a_folder_says_whether_its_image_tower_has_layers(tmp_path: Path) -> None:
    for kind in ("vit", "clip", "convnext"):
        _small(kind, tmp_path / kind)
    vit, clip, convnext = (located(str(tmp_path / kind)) for kind in ("vit", "clip", "convnext"))
    layered = Needs(visual_prompts=2, visual_depth=3, low_rank=("image",), cut=True)
    for folder in (vit, clip):
        folder.require(layered)
        assert (folder.sizes().image_layers, folder.sizes().patches) == (3, 16)
    clip.require(Needs(prunes=True))
    with pytest.raises(UserError, match="cannot be pruned"):
        vit.require(Needs(prunes=True))
    with pytest.raises(UserError, match="no linear maps in its image tower"):
        convnext.require(Needs(low_rank=("image",)))


def test_visual_prompts_and_low_rank_changes_of_a_vit_equal_the_plain_forward(tmp_path: Path) -> None:
    """Hooks put the prompts behind the other tokens; weights are merged by hand."""
    generator = torch.Generator().manual_seed(0)
    model = _small("vit", tmp_path)
    backbone = load_backbone(str(tmp_path))
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    mine = torch.randn(1, 2, 3, 32, generator=generator).requires_grad_()
    other = mine.detach()[0].clone().requires_grad_()
    deltas = {}
    for name, (_, weight) in backbone.linear_maps("image").items():
        a = 0.1 * torch.randn(1, 2, weight.shape[1], generator=generator)
        b = (0.1 * torch.randn(1, weight.shape[0], 2, generator=generator)).requires_grad_()
        deltas[name] = Delta(a, b)
        own = model.get_submodule(name).weight
        own.data += (b[0] @ a[0]).detach()
        own.requires_grad_()
    form = Representation(layer=0)
    fast = backbone.finish_images(backbone.represent_images(pixels, form), form, deltas, mine)
    for index in range(2):

        def put(module: nn.Module, args: Any, index: int = index) -> Any:
            return (torch.cat([args[0][:, :17], other[index].expand(2, -1, -1)], dim=1), *args[1:])

        model.vision_model.layers[index].register_forward_pre_hook(put)
    slow = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    assert torch.allclose(fast, slow, atol=1e-5)
    direction = torch.randn(slow.shape, generator=generator)
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    pairs = [(mine.grad[0], other.grad)]  # type: ignore[index]
    for name, delta in deltas.items():
        pairs.append((delta.B.grad[0], model.get_submodule(name).weight.grad @ delta.A[0].mT))  # type: ignore[index]
    assert len(pairs) == 1 + 6 * 3
    for own, expected in pairs:
        assert (own - expected).norm() < 1e-4 * expected.norm() + 1e-7


def test_the_image_tower_of_clip_can_be_cut_prompted_and_pruned_beside_a_bert(tmp_path: Path) -> None:
    _small("clip", tmp_path)
    backbone = load_backbone(str(tmp_path))
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    whole = backbone.encode_images(pixels)
    for layer in range(3):
        form = Representation(layer=layer)
        assert torch.allclose(backbone.finish_images(backbone.represent_images(pixels, form), form), whole, atol=1e-5)
    assert torch.allclose(backbone.vision_tower()(pixels), whole, atol=1e-5)
    assert len(backbone.linear_maps("image")) == 6 * 3


@pytest.mark.parametrize("kind", ["align", "clip"])
def test_low_rank_adapters_find_queries_and_values_without_being_told_their_names(kind: str, tmp_path: Path) -> None:
    """The default of every method, which says q_proj and v_proj as CLIP does."""
    _small(kind, tmp_path)
    backbone = load_backbone(str(tmp_path))
    kinds = {name.split(".", 4)[4] for name in adapted_maps(backbone, LoraOptions(), "text")}
    assert kinds == {"attention.self.query", "attention.self.value"}
    attention = adapted_maps(backbone, LoraOptions(targets="out_proj"), "text")
    assert {name.split(".", 4)[4] for name in attention} == {"attention.output.dense"}
    if kind == "clip":
        names = adapted_maps(backbone, LoraOptions(tower="image"), "image")
        assert {name.rsplit(".", 1)[1] for name in names} == {"q_proj", "v_proj"}


def test_half_precision_keeps_the_fingerprint_and_stays_near(tmp_path: Path) -> None:
    for kind in ("align", "vit"):
        _small(kind, tmp_path / kind)
        exact = load_backbone(str(tmp_path / kind))
        rounded = load_backbone(str(tmp_path / kind), "bfloat16")
        assert rounded.fingerprint == exact.fingerprint
        tokens = exact.text.tokenize_names(NAMES)
        context = torch.zeros(1, 2, exact.text.width)
        pair = exact.text.encode_prompts(context, tokens), rounded.text.encode_prompts(context, tokens)
        assert pair[1].dtype == torch.float32
        assert F.cosine_similarity(*pair, dim=-1).min() > 0.98
        pixels = torch.randn(2, 3, SIDE, SIDE)
        assert F.cosine_similarity(exact.encode_images(pixels), rounded.encode_images(pixels)).min() > 0.98


def test_another_text_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    text = DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=len(wordpieces()))
    _vision_text(tmp_path, ViTConfig(**_IMAGE, image_size=SIDE, patch_size=8), text)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="'distilbert'; text models beside a vision model may be bert"):
        require_backbone(str(tmp_path), Needs(placement="before"))


@pytest.mark.slow
def test_align_base_at_full_width(tmp_path: Path) -> None:
    """One block of each stage of EfficientNet-B7, two layers of BERT, 30,522 words."""
    model = _align(
        tmp_path,
        text={"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 2}
        | {"initializer_range": 0.05, "vocab_size": 30522, "max_position_embeddings": 512},
        image={"width_coefficient": 2.0, "depth_coefficient": 0.1, "image_size": 289, "hidden_dim": 2560},
        dim=640,
    )
    write_preprocessing(tmp_path, side=289)
    compare(load_backbone(str(tmp_path)), model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "patch", "dim"), [(768, 16, 512), (1024, 14, 768)], ids=["B/16", "L/14"])
def test_chinese_clip_at_full_width(width: int, patch: int, dim: int, tmp_path: Path) -> None:
    model = _chinese_clip(
        tmp_path,
        text={"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 2}
        | {"initializer_range": 0.05, "vocab_size": 21128, "max_position_embeddings": 512},
        image={"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
        | {"num_hidden_layers": 2, "patch_size": patch, "image_size": 224},
        dim=dim,
    )
    write_preprocessing(tmp_path, side=224)
    compare(load_backbone(str(tmp_path)), model, tmp_path)
