"""The fast text path gives the features and gradients of the plain forward."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.loading import mini_folder
from fedgraft.core.errors import UserError
from tests.plain_text import PlainTextTower

FEATURE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
NAMES = st.lists(
    st.sampled_from(["red circle", "a", "seven", "laptop computer", "small hollow purple hexagon on white", "x y z w"]),
    min_size=1,
    max_size=4,
    unique=True,
)


@cache
def _towers(folder: str) -> tuple[Backbone, PlainTextTower]:
    return load_backbone(folder), PlainTextTower(folder)


def _compare(
    folder: str, names: list[str], context: torch.Tensor, depth: int = 0, placement: Placement = "before"
) -> None:
    backbone, plain = _towers(folder)
    generator = torch.Generator().manual_seed(2)
    deep = 0.3 * torch.randn(len(context), depth, *context.shape[-2:], generator=generator)
    fast_inputs = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
    plain_inputs = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
    tokens = backbone.text.tokenize_names(names)
    fast = backbone.text.encode_prompts(fast_inputs[0], tokens, fast_inputs[1] if depth else None, placement)
    pairs = zip(*plain_inputs, strict=True)
    slow = torch.stack([plain.encode(one, names, layers if depth else None, placement) for one, layers in pairs])
    assert torch.allclose(fast, slow, atol=FEATURE_TOLERANCE), (fast - slow).abs().max()
    direction = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1))
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    for mine, other in zip(fast_inputs[: 1 + (depth > 0)], plain_inputs, strict=False):
        assert mine.grad is not None
        assert other.grad is not None
        assert (mine.grad - other.grad).norm() < GRADIENT_TOLERANCE * other.grad.norm()


@settings(deadline=None, max_examples=40)
@given(
    names=NAMES,
    prompts=st.integers(1, 3),
    n_ctx=st.integers(1, 16),
    depth=st.integers(0, 1),
    placement=st.sampled_from(["before", "middle", "behind"]),
    seed=st.integers(0, 99),
)
def test_mini_gives_the_plain_features_and_gradients(
    names: list[str], prompts: int, n_ctx: int, depth: int, placement: Placement, seed: int
) -> None:
    context = 0.3 * torch.randn(prompts, n_ctx, 128, generator=torch.Generator().manual_seed(seed))
    _compare(str(mini_folder()), names, context, depth, placement)


@pytest.mark.parametrize("placement", ["before", "middle", "behind"])
@pytest.mark.parametrize("prompts", [1, 2])
def test_another_depth_width_and_head_count(random_clip_folder: Path, prompts: int, placement: Placement) -> None:
    context = torch.randn(prompts, 5, 48, generator=torch.Generator().manual_seed(0))
    _compare(str(random_clip_folder), ["seven", "small hollow purple hexagon", "g"], context, 2, placement)


@pytest.mark.parametrize("placement", ["before", "middle", "behind"])
def test_a_context_for_each_class_stands_with_its_own_class(random_clip_folder: Path, placement: Placement) -> None:
    context = torch.randn(2, 3, 5, 48, generator=torch.Generator().manual_seed(0))
    _compare(str(random_clip_folder), ["seven", "small hollow purple hexagon", "g"], context, placement=placement)


def test_one_context_given_for_every_class_is_the_shared_one(mini: Backbone) -> None:
    tokens = mini.text.tokenize_names(["red circle", "a longer name", "g"])
    context = 0.3 * torch.randn(2, 4, mini.text.width, generator=torch.Generator().manual_seed(0))
    each = context[:, None].expand(-1, 3, -1, -1)
    for placement in ("before", "middle", "behind"):
        shared = mini.text.encode_prompts(context, tokens, placement=placement)
        assert torch.allclose(mini.text.encode_prompts(each, tokens, placement=placement), shared, atol=1e-5)


def test_deep_prompts_beside_a_context_for_each_class_are_refused(mini: Backbone) -> None:
    context = torch.zeros(1, 1, 2, mini.text.width)
    with pytest.raises(UserError, match="class_context"):
        mini.text.encode_prompts(context, mini.text.tokenize_names(["g"]), torch.zeros(1, 1, 2, mini.text.width))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cats &amp; dogs", "cats & dogs"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("jack-o&#39;-lantern", "jack-o'-lantern"),
        ("  red \t\n circle ", "red circle"),
    ],
)
def test_names_are_cleaned_as_clips_own_tokenizer_cleans_them(written: str, meant: str, mini: Backbone) -> None:
    """Otherwise "&amp;" is read letter by letter."""
    one, other = mini.text.tokenize_names([written]), mini.text.tokenize_names([meant])
    assert one.ids.tolist() == other.ids.tolist()
    texts = mini.text.encode_texts([f"a photo of a {written}.", f"a photo of a {meant}."])
    assert torch.allclose(texts[0], texts[1], atol=1e-6)


def test_more_deep_prompts_than_layers_are_refused(random_clip: Backbone) -> None:
    tokens = random_clip.text.tokenize_names(["g"])
    with pytest.raises(UserError, match="at most 2"):
        random_clip.text.encode_prompts(torch.zeros(1, 2, 48), tokens, torch.zeros(1, 3, 2, 48))


def test_a_class_keeps_its_features_whatever_stands_beside_it(mini: Backbone) -> None:
    """What pads a short name must not leak into it."""
    context = 0.1 * torch.randn(1, 4, mini.text.width)
    alone = mini.text.encode_prompts(context, mini.text.tokenize_names(["g"]))
    names = ["a very long class name indeed", "g"]
    together = mini.text.encode_prompts(context, mini.text.tokenize_names(names))
    assert torch.allclose(alone[0, 0], together[0, 1], atol=FEATURE_TOLERANCE)


def test_embedded_words_as_context_equal_the_text_itself(mini: Backbone) -> None:
    """A context that holds the embeddings of words is the hand-written prompt."""
    context = mini.text.embed_words("a photo of a")[None]
    prompted = mini.text.encode_prompts(context, mini.text.tokenize_names(["red circle", "g"]))[0]
    written = mini.text.encode_texts(["a photo of a red circle.", "a photo of a g."])
    assert torch.allclose(prompted, written, atol=FEATURE_TOLERANCE)


def test_a_context_that_does_not_fit_is_refused_with_numbers(mini: Backbone) -> None:
    context = torch.zeros(1, mini.text.max_tokens, mini.text.width)
    with pytest.raises(UserError, match=str(mini.text.max_tokens)):
        mini.text.encode_prompts(context, mini.text.tokenize_names(["g"]))


def test_image_features_are_the_models_own(mini: Backbone) -> None:
    from PIL import Image
    from transformers import CLIPModel

    pixels = mini.preprocess([Image.new("RGB", (60, 50), (200, 30, 30)), Image.new("RGB", (48, 48), (0, 0, 250))])
    assert pixels.shape == (2, 3, 48, 48)
    expected = CLIPModel.from_pretrained(mini_folder()).eval().get_image_features(pixel_values=pixels)
    expected = getattr(expected, "pooler_output", expected)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    assert torch.allclose(mini.encode_images(pixels), expected, atol=FEATURE_TOLERANCE)
