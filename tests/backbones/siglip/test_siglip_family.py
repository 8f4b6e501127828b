"""A SigLIP folder is the model that it says it is, or a sentence about what is wrong with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SiglipModel

from fedgraft.backbones import load_backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.backbone import ClassTokens
from fedgraft.backbones.loading import require_backbone
from fedgraft.backbones.siglip.layout import Layout, layouts
from fedgraft.backbones.siglip.text_tower import SiglipTextTower
from fedgraft.backbones.siglip.tokens import SiglipTokens
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import AdapterContext
from fedgraft.methods.promptfl import METHOD
from fedgraft.methods.vocabulary import Vocabulary
from tests.backbones.siglip.pieces import sentencepiece_model

TEXTS = ["a photo of a red circle.", "a photo of a g."]


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of each folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_tower(folder: Path, tower: str, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    _edit(folder / "config.json", **{tower: {**config[tower], **changes}})


def _error(folder: Path) -> str:
    """What is said before anything is loaded, and again by whoever loads it all the same."""
    sentences = []
    for ask in (lambda: require_backbone(str(folder), Needs(context=4)), lambda: load_backbone(str(folder))):
        with pytest.raises(UserError) as error:
            ask()
        sentences.append(str(error.value))
    assert len(set(sentences)) == 1
    assert "\n" not in sentences[0]
    return sentences[0]


def _images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)) for size in ((40, 64), (90, 50))]


def test_a_photo_and_a_text_get_the_logits_of_transformers(folder: Path) -> None:
    """From the files on disk, preprocessing, tokenizer, scale and bias included."""
    backbone = load_backbone(str(folder))
    model, tokenizer = SiglipModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = backbone.preprocess(_images())
    ids = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(pixel_values=pixels, input_ids=ids).logits_per_image
    cosines = backbone.encode_images(pixels) @ backbone.text.encode_texts(TEXTS).mT
    assert backbone.logit_bias is not None
    assert torch.allclose(backbone.logit_scale * cosines + backbone.logit_bias, expected, atol=1e-4)


def test_an_image_is_squeezed_into_a_square_as_a_whole(folder: Path) -> None:
    """A crop would lose what stands at the edge."""
    pixels = load_backbone(str(folder)).preprocess(_images())
    squeezed = [image.resize((48, 48), Image.Resampling.BILINEAR) for image in _images()]
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in squeezed])
    assert torch.allclose(pixels, expected, atol=1e-5)


def test_the_sigmoid_loss_is_that_of_transformers(siglip2_folder: Path) -> None:
    """With each image's own text as its class."""
    backbone = load_backbone(str(siglip2_folder))
    names = ("red circle", "g")
    vocabulary = Vocabulary(backbone, names, ("a photo of a {}.",))
    options = METHOD.parse_options({"ctx_init": "a photo of a"})
    context = AdapterContext(loss="sigmoid")
    adapter = METHOD.adapter(vocabulary, options, torch.Generator().manual_seed(0), context)
    pixels = backbone.preprocess(_images())
    loss = adapter.loss(backbone.encode_images(pixels), torch.tensor([0, 1]), (0, 1))
    model, tokenizer = SiglipModel.from_pretrained(siglip2_folder).eval(), AutoTokenizer.from_pretrained(siglip2_folder)
    ids = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(pixel_values=pixels, input_ids=ids, return_loss=True).loss
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_bfloat16_stays_close(siglip2_folder: Path) -> None:
    full, half = (load_backbone(str(siglip2_folder), precision) for precision in ("float32", "bfloat16"))
    assert half.fingerprint == full.fingerprint
    context = 0.1 * torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(0))
    tokens = full.text.tokenize_names(["red circle", "seven", "g"])
    texts = [backbone.text.encode_prompts(context, tokens) for backbone in (full, half)]
    images = [backbone.encode_images(backbone.preprocess(_images())) for backbone in (full, half)]
    for wanted, found in (texts, images):
        assert found.dtype == torch.float32
        assert torch.allclose(wanted, found, atol=0.05)
        assert not torch.equal(wanted, found)


def test_every_tensor_of_a_step_is_on_the_device_of_the_weights(
    siglip2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device computes shapes alone and refuses to mix with others, as a GPU does: this needs none."""
    model, tokenizer = SiglipModel.from_pretrained(siglip2_folder), AutoTokenizer.from_pretrained(siglip2_folder)
    tokens = SiglipTokens("it", tokenizer, 64)
    real = SiglipTextTower(model, tokens).tokenize_names(["red circle", "g"])

    def on_meta(classes: ClassTokens, *rest: Any) -> tuple[Layout, ...]:
        return tuple(
            Layout(**{name: tensor.to("meta") for name, tensor in vars(group).items()})
            for group in layouts(real, *rest)
        )

    monkeypatch.setattr("fedgraft.backbones.siglip.text_tower.layouts", on_meta)
    tower = SiglipTextTower(model.to("meta"), tokens)
    assert tower.embed_words("a photo of a").is_meta
    classes = tower.tokenize_names(["red circle", "g"])
    assert classes.ids.is_meta
    context = torch.empty(1, 4, 48, device="meta", requires_grad=True)
    deep = torch.empty(1, 1, 4, 48, device="meta", requires_grad=True)
    tower.encode_prompts(context, classes, deep, "middle").sum().backward()
    assert context.grad is not None
    assert deep.grad is not None


# --- what it is -----------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content_wherever_the_folder_lies(folder: Path, copy: Path) -> None:
    first = load_backbone(str(folder)).fingerprint
    assert load_backbone(str(copy)).fingerprint == first
    _edit(copy / "config.json", transformers_version="4.0.0")
    assert load_backbone(str(copy)).fingerprint == first


def test_another_sentencepiece_model_is_another_backbone(siglip_folder: Path, tmp_path: Path) -> None:
    """It gives a class name other tokens, with the same towers behind it."""
    copy = Path(shutil.copytree(siglip_folder, tmp_path / "copy"))
    (copy / "spiece.model").write_bytes(sentencepiece_model(340))
    one, other = load_backbone(str(siglip_folder)), load_backbone(str(copy))
    assert one.fingerprint != other.fingerprint
    _edit(copy / "tokenizer_config.json", do_lower_case=False)
    assert load_backbone(str(copy)).fingerprint != other.fingerprint


def test_loading_prints_nothing_even_for_a_configuration_as_published(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Published configurations leave token IDs at defaults beyond the vocabulary, of which transformers warns."""
    config = json.loads((copy / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        del config["text_config"][name]
    (copy / "config.json").write_text(json.dumps(config))
    require_backbone(str(copy))
    load_backbone(str(copy))
    assert capfd.readouterr() == ("", "")


# --- what is wrong --------------------------------------------------------------------------------


def test_flexible_resolution_is_refused_with_what_would_be_right(copy: Path) -> None:
    _edit(copy / "config.json", model_type="siglip2")
    sentence = _error(copy)
    assert str(copy / "config.json") in sentence
    assert "NaFlex" in sentence
    assert "google/siglip2-base-patch16-224" in sentence


def test_an_image_tower_without_pooling_is_refused(copy: Path) -> None:
    _edit_tower(copy, "vision_config", vision_use_head=False)
    assert "vision_use_head=false" in _error(copy)


def test_features_of_two_sizes_are_refused(copy: Path) -> None:
    _edit_tower(copy, "text_config", projection_size=24)
    assert "text features of size 24 and image features of size 32" in _error(copy)


def test_images_that_are_not_square_are_refused(copy: Path) -> None:
    _edit_tower(copy, "vision_config", image_size=[48, 24])
    assert "not square" in _error(copy)


def test_a_missing_tokenizer_is_named(copy: Path) -> None:
    for file in ("tokenizer.json", "spiece.model"):
        (copy / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"no tokenizer \(spiece.model or tokenizer.json\)"):
        load_backbone(str(copy))


def test_a_context_longer_than_the_positions_is_refused_before_anything_is_loaded(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="64 positions"):
        require_backbone(str(copy), Needs(context=63))
    require_backbone(str(copy), Needs(context=60, loss="sigmoid"))
