"""Every published shape of CLIP, with random weights, gives the features and gradients of the library's own forward.

At full width, heads, patches and pixels with two layers a tower; the small ones of the same kinds run in every test.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, MetaClip2Config, MetaClip2Model, PreTrainedTokenizerFast

from fedgraft.backbones import load_backbone
from fedgraft.backbones.clip.image_tower import ClipImageTower
from fedgraft.backbones.clip.text_tower import ClipTextTower
from fedgraft.backbones.deltas import Delta
from fedgraft.backbones.loading import located
from fedgraft.backbones.vision_tower import tower_of_clip
from fedgraft.core.errors import UserError
from tests.plain_image import plain_features, prompts_in

NAMES = ("cat", "golden retriever dog", "a b c d e f")
WORDS = sorted({word for name in NAMES for word in name.split()} | {".", "photo", "of"})


@dataclass(frozen=True)
class Shape:
    """A published configuration: widths, heads, MLP units and patches, as its config.json has them."""

    text: tuple[int, int, int]
    image: tuple[int, int, int]
    patch: int
    side: int
    dim: int
    act: str
    vocab: int = 49408
    end: int = 49407
    eos: int = field(default=0)
    model: type = CLIPModel


BASE, LARGE = (768, 12, 3072), (1024, 16, 4096)
PUBLISHED = {
    "openai/clip-vit-base-patch32": Shape((512, 8, 2048), BASE, 32, 224, 512, "quick_gelu", eos=2),
    "openai/clip-vit-base-patch16": Shape((512, 8, 2048), BASE, 16, 224, 512, "quick_gelu", eos=2),
    "openai/clip-vit-large-patch14": Shape((768, 12, 3072), LARGE, 14, 224, 768, "quick_gelu", eos=2),
    "openai/clip-vit-large-patch14-336": Shape((768, 12, 3072), LARGE, 14, 336, 768, "quick_gelu", eos=2),
    "laion/CLIP-ViT-B-32-laion2B": Shape((512, 8, 2048), BASE, 32, 224, 512, "gelu", eos=2),
    "laion/CLIP-ViT-L-14-laion2B": Shape((768, 12, 3072), LARGE, 14, 224, 768, "gelu", eos=2),
    "laion/CLIP-ViT-H-14-laion2B": Shape((1024, 16, 4096), (1280, 16, 5120), 14, 224, 1024, "gelu", eos=2),
    "laion/CLIP-ViT-g-14-laion2B": Shape((1024, 16, 4096), (1408, 16, 6144), 14, 224, 1024, "gelu", eos=2),
    "laion/CLIP-ViT-bigG-14-laion2B": Shape((1280, 20, 5120), (1664, 16, 8192), 14, 224, 1280, "gelu", eos=2),
    "facebook/metaclip-b16-400m": Shape((512, 8, 2048), BASE, 16, 224, 512, "quick_gelu"),
    "facebook/metaclip-h14-fullcc2.5b": Shape((1024, 16, 4096), (1280, 16, 5120), 14, 224, 1024, "quick_gelu"),
    "apple/DFN5B-CLIP-ViT-H-14-378": Shape((1024, 16, 4096), (1280, 16, 5120), 14, 378, 1024, "quick_gelu"),
    "facebook/metaclip-2-worldwide-b16-384": Shape(  # its 901,629 words are cut to those of a CLIP
        (512, 8, 2048), BASE, 16, 384, 512, "gelu", end=2, eos=2, model=MetaClip2Model
    ),
    "facebook/metaclip-2-worldwide-huge-quickgelu": Shape(
        (1024, 16, 4096), (1280, 16, 5120), 14, 224, 1024, "quick_gelu", end=2, eos=2, model=MetaClip2Model
    ),
}
SMALL = {
    "quick_gelu, legacy end": Shape((32, 4, 64), (24, 2, 48), 8, 32, 20, "quick_gelu", 60, 59, eos=2),
    "gelu": Shape((24, 2, 64), (32, 4, 48), 7, 28, 16, "gelu", 60, 59),
    "wide projection": Shape((20, 2, 30), (28, 4, 30), 16, 48, 40, "gelu_new", 60, 59),
    "metaclip 2": Shape((32, 4, 64), (24, 2, 48), 8, 24, 20, "quick_gelu", 60, 2, eos=2, model=MetaClip2Model),
}


def model_of(shape: Shape) -> Any:
    """A random model of the shape with two layers a tower."""

    def tower(sizes: tuple[int, int, int], **more: Any) -> dict[str, Any]:
        width, heads, units = sizes
        common = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": units}
        return {**common, "num_hidden_layers": 2, "hidden_act": shape.act, "initializer_factor": 2.0, **more}

    ends = {"bos_token_id": shape.end - 1, "eos_token_id": shape.eos or shape.end, "pad_token_id": shape.end}
    text = tower(shape.text, vocab_size=shape.vocab, **ends)
    image = tower(shape.image, image_size=shape.side, patch_size=shape.patch)
    config_class = MetaClip2Config if shape.model is MetaClip2Model else CLIPConfig
    torch.manual_seed(0)
    # in the published files the towers' own projection_dim often says something else; it is never used
    text["projection_dim"] = image["projection_dim"] = 512
    model = shape.model(config_class(text_config=text, vision_config=image, projection_dim=shape.dim))
    return model.eval().requires_grad_(False)


def tokenizer_of(shape: Shape) -> PreTrainedTokenizerFast:
    """Whole words, with the start and end token that the shape has."""
    start = shape.end - 1
    free = [number for number in range(shape.vocab) if number not in (start, shape.end)]
    vocab = {word: free[number] for number, word in enumerate(WORDS)} | {"<start>": start, "<end>": shape.end}
    if shape.vocab - 1 not in vocab.values():
        vocab["<last>"] = shape.vocab - 1
    plain = Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    plain.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", None, [("<start>", start), ("<end>", shape.end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<end>"
    )


def plain_text_features(model: Any, ids: Tensor, context: Tensor) -> Tensor:
    """The library's own forward and pooling of whole rows of ids whose places 1 to n hold a context (n, width)."""

    def put(module: Any, args: Any, out: Tensor) -> Tensor:
        own = context.expand(len(out), -1, -1)
        return torch.cat([out[:, :1], own, out[:, 1 + len(context) :]], dim=1)

    handle = model.text_model.embeddings.token_embedding.register_forward_hook(put)
    try:
        pooled = model.text_model(input_ids=ids).pooler_output
    finally:
        handle.remove()
    return F.normalize(model.text_projection(pooled), dim=-1)


def whole_rows(tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...], n_ctx: int, length: int) -> Tensor:
    """Every position of every class, padded with end tokens: start, something, name, full stop, end."""
    something = tokenizer.convert_tokens_to_ids("photo")
    rows = []
    for name in names:
        ids = tokenizer(f"{name}.", add_special_tokens=False)["input_ids"]
        row = [tokenizer.bos_token_id] + [something] * n_ctx + ids
        rows.append(row + [tokenizer.eos_token_id] * (length - len(row)))
    return torch.tensor(rows)


def compare_text(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Class features and gradients."""
    tower = ClipTextTower(model, tokenizer)
    context = 0.02 * torch.randn(4, tower.width, generator=torch.Generator().manual_seed(1))
    context.requires_grad_()
    found = tower.encode_prompts(context[None], tower.tokenize_names(NAMES))[0]
    expected = plain_text_features(model, whole_rows(tokenizer, NAMES, 4, tower.max_tokens), context)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (mine,) = torch.autograd.grad((found * direction).sum(), context)
    (other,) = torch.autograd.grad((expected * direction).sum(), context)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (mine - other).norm() <= 1e-4 * other.norm()
    with torch.no_grad():
        written = tower.encode_texts([f"photo of {name}." for name in NAMES])
        prefix, rest = tower.tokenize_texts([f"photo of {name}." for name in NAMES])
        assert (tower.encode_prompts(prefix[None], rest)[0] - written).norm() <= 1e-5 * written.norm()


def compare_image(model: Any, rows: int) -> None:
    """Features from a cut with prompts and a low-rank change, their gradients, and the tower for devices."""
    side, width = model.config.vision_config.image_size, model.config.vision_config.hidden_size
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(rows, 3, side, side, generator=generator)
    tower = ClipImageTower(model)
    plain = plain_features(model, pixels)
    assert (tower.features(tower.states(pixels, 1), 1, {}) - plain).norm() <= 1e-5 * plain.norm()
    assert (tower_of_clip(model)(pixels) - plain).norm() <= 1e-5 * plain.norm()
    prompts = (0.1 * torch.randn(rows, 2, 3, width, generator=generator)).requires_grad_()
    map_name = "vision_model.encoder.layers.0.self_attn.v_proj"
    module = model.get_submodule(map_name)
    left = (0.1 * torch.randn(1, width, 2, generator=generator)).requires_grad_()
    right = 0.1 * torch.randn(1, 2, width, generator=generator)
    found = tower.features(tower.states(pixels, 0), 0, {map_name: Delta(right, left)}, prompts)
    frozen = module.weight.clone()
    change = module.register_forward_hook(lambda m, args, out: out + args[0] @ right[0].mT @ left[0].mT)
    try:
        with prompts_in(model, [prompts[:, 0], prompts[:, 1]]):
            expected = plain_features(model, pixels)
    finally:
        change.remove()
    direction = torch.randn(found.shape, generator=generator)
    mine = torch.autograd.grad((found * direction).sum(), (prompts, left))
    other = torch.autograd.grad((expected * direction).sum(), (prompts, left))
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(mine, other, strict=True))
    assert torch.equal(module.weight, frozen)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_at_full_size_is_exact(name: str) -> None:
    model = model_of(PUBLISHED[name])
    compare_text(model, tokenizer_of(PUBLISHED[name]))
    compare_image(model, 1)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_shape_of_each_kind_is_exact(name: str) -> None:
    model = model_of(SMALL[name])
    compare_text(model, tokenizer_of(SMALL[name]))
    compare_image(model, 2)


@pytest.fixture
def saved(random_clip_folder: Path, tmp_path: Path) -> Any:
    """Writes the folder of a small shape."""

    def save(shape: Shape) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        model_of(shape).save_pretrained(folder)
        tokenizer_of(shape).save_pretrained(folder)
        shutil.copy(random_clip_folder / "preprocessor_config.json", folder)
        config = json.loads((folder / "preprocessor_config.json").read_text())
        sides = {"size": {"shortest_edge": shape.side}, "crop_size": {"height": shape.side, "width": shape.side}}
        (folder / "preprocessor_config.json").write_text(json.dumps({**config, **sides}))
        return folder

    return save


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_of_each_kind_opens_with_the_sizes_of_its_configuration(name: str, saved: Any) -> None:
    shape = SMALL[name]
    folder = saved(shape)
    backbone, sizes = load_backbone(str(folder)), located(str(folder)).sizes()
    assert (sizes.text_width, sizes.image_width, sizes.dim) == (shape.text[0], shape.image[0], shape.dim)
    assert (sizes.patches, sizes.image_size) == ((shape.side // shape.patch) ** 2, shape.side)
    texts = backbone.text.encode_classes(NAMES, ("photo of {}.",))
    assert texts.shape == (len(NAMES), backbone.dim)


def test_a_tokenizer_that_ends_texts_elsewhere_is_refused(saved: Any) -> None:
    """The library would silently pool at the first token of every text."""
    folder = saved(SMALL["gelu"])
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"at the token 7, but its tokenizer ends texts with 59"):
        load_backbone(str(folder))
