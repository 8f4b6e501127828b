"""What a bidirectional text tower shares among classes changes neither features nor gradients."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoTokenizer, SiglipModel

from fedgraft.backbones.backbone import Placement
from fedgraft.backbones.deltas import Delta
from fedgraft.backbones.siglip.text_tower import SiglipTextTower
from fedgraft.backbones.siglip.tokens import SiglipTokens
from fedgraft.core.errors import UserError
from tests.plain_siglip import PlainSiglip

FEATURE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
NAMES = ["seven", "small hollow purple hexagon on white", "g", "laptop computer", "Red Circle"]
PLACEMENTS = ("before", "middle", "behind")


@cache
def _towers(folder: Path) -> tuple[SiglipTextTower, PlainSiglip]:
    model, tokenizer = SiglipModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    plain = PlainSiglip(model, tokenizer)
    return SiglipTextTower(model, SiglipTokens("it", tokenizer, 64)), plain


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _compare(
    folder: Path,
    names: list[str],
    context: Tensor,
    depth: int = 0,
    placement: Placement = "before",
    rank: int = 0,
    adapted: str = "",
) -> None:
    """Features, and the gradients of context, deep prompts and low-rank factors."""
    tower, plain = _towers(folder)
    sites = len(context)
    deep = _random(sites, depth, *context.shape[-2:], seed=2)
    maps = {
        f"text_model.encoder.layers.{index}.{name}": module.weight
        for index, layer in enumerate(plain.model.text_model.encoder.layers)
        for name, module in layer.named_modules()
        if rank and isinstance(module, nn.Linear) and adapted in name
    }
    right = {name: 0.2 * _random(sites, rank, weight.shape[1], seed=3) for name, weight in maps.items()}
    left = {name: 0.2 * _random(sites, weight.shape[0], rank, seed=4) for name, weight in maps.items()}
    leaves = [context.requires_grad_(), *([deep.requires_grad_()] if depth else [])]
    leaves += [factor.requires_grad_() for factor in (*right.values(), *left.values())]
    deltas = {name: Delta(right[name], left[name]) for name in maps}
    fast = tower.encode_prompts(context, tower.tokenize_names(names), deep if depth else None, placement, deltas)
    slow = torch.stack(
        [
            plain.encode(
                context[site],
                names,
                deep[site] if depth else None,
                placement,
                {f"{name}.weight": weight + left[name][site] @ right[name][site] for name, weight in maps.items()},
            )
            for site in range(sites)
        ]
    )
    assert torch.allclose(fast, slow, atol=FEATURE_TOLERANCE), (fast - slow).abs().max()
    direction = _random(*slow.shape, seed=1)
    pairs = zip(
        torch.autograd.grad((fast * direction).sum(), leaves),
        torch.autograd.grad((slow * direction).sum(), leaves),
        strict=True,
    )
    for mine, other in pairs:
        assert (mine - other).norm() < GRADIENT_TOLERANCE * other.norm()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True),
    sites=st.integers(1, 3),
    n_ctx=st.integers(1, 20),
    depth=st.integers(0, 2),
    placement=st.sampled_from(PLACEMENTS),
    seed=st.integers(0, 99),
)
def test_prompts_have_the_plain_features_and_gradients(
    folder: Path, names: list[str], sites: int, n_ctx: int, depth: int, placement: Placement, seed: int
) -> None:
    _compare(folder, names, _random(sites, n_ctx, 48, seed=seed), depth, placement)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_context_for_each_class_stands_with_its_own_class(folder: Path, placement: Placement) -> None:
    _compare(folder, NAMES, _random(2, len(NAMES), 5, 48), placement=placement)


@pytest.mark.parametrize("adapted", ["q_proj", "k_proj", "v_proj", "out_proj", "fc", ""])
def test_sites_with_low_rank_changes_share_a_pass(siglip2_folder: Path, adapted: str) -> None:
    """Also of the keys and values that the last layer does without."""
    _compare(siglip2_folder, NAMES[:3], _random(2, 4, 48), depth=1, rank=3, adapted=adapted)


def test_more_classes_than_go_through_together_are_the_same(siglip2_folder: Path) -> None:
    """Classes are encoded in groups; the grouping must not be seen."""
    names = [f"{word} {thing}" for word in NAMES for thing in ("cat", "yellow submarine", "x")] + NAMES
    _compare(siglip2_folder, names, _random(3, 4, 48), depth=1)
    _compare(siglip2_folder, names, _random(2, len(names), 3, 48), placement="middle")


def test_more_classes_than_fit_into_memory_are_computed_twice_to_the_same_gradients(
    siglip2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedgraft.backbones.siglip.text_tower._VALUES_KEPT", 0)
    monkeypatch.setattr("fedgraft.backbones.siglip.text_tower._STATES_PER_PASS", 128)
    tower, _ = _towers(siglip2_folder)
    calls, layer = [], tower._layer
    monkeypatch.setattr(tower, "_layer", lambda *given: calls.append(1) or layer(*given))
    _compare(siglip2_folder, NAMES, _random(1, 4, 48), depth=1, rank=3)
    assert len(calls) == 2 * 2 * 3  # passes, layers before the last, groups


def test_every_position_may_be_used(siglip2_folder: Path) -> None:
    """A context that leaves no padding behind the longest name, and one more vector."""
    tower, _ = _towers(siglip2_folder)
    room = 64 - tower.tokenize_names(NAMES).ids.shape[1]
    for placement in PLACEMENTS:
        _compare(siglip2_folder, NAMES, _random(1, room, 48), placement=placement)
    with pytest.raises(UserError, match="need 65 positions, but the text tower has 64"):
        tower.encode_prompts(torch.zeros(1, room + 1, 48), tower.tokenize_names(NAMES))


def test_texts_have_the_features_of_the_model_card(folder: Path) -> None:
    tower, plain = _towers(folder)
    texts = ["a photo of a red circle.", "g", "two cats, one of them asleep", "very " * 80 + "long"]
    assert torch.allclose(tower.encode_texts(texts), plain.texts(texts), atol=FEATURE_TOLERANCE)


def test_a_text_in_capitals_is_read_as_in_lower_case(folder: Path) -> None:
    """Both were trained on lower case, which Gemma's tokenizer does not see to by itself."""
    tower, plain = _towers(folder)
    assert torch.allclose(tower.encode_texts(["A Photo of  RED"]), plain.texts(["a photo of red"]), atol=1e-6)


def test_written_words_as_context_equal_the_text_itself(folder: Path) -> None:
    tower, plain = _towers(folder)
    context = tower.embed_words("A photo of a")[None]
    prompted = tower.encode_prompts(context, tower.tokenize_names(["red circle", "g"]))[0]
    texts = ["a photo of a red circle.", "a photo of a g."]
    assert torch.allclose(prompted, plain.texts(texts), atol=FEATURE_TOLERANCE)
    context, tokens = tower.tokenize_texts(texts)
    assert len(context) >= 4
    assert torch.allclose(tower.encode_prompts(context[None], tokens)[0], prompted, atol=FEATURE_TOLERANCE)


def test_a_class_keeps_its_features_whatever_stands_beside_it(folder: Path) -> None:
    tower, _ = _towers(folder)
    context = _random(1, 4, 48)
    alone = tower.encode_prompts(context, tower.tokenize_names(["g"]))
    together = tower.encode_prompts(context, tower.tokenize_names([NAMES[1], "g"]))
    assert torch.allclose(alone[0, 0], together[0, 1], atol=FEATURE_TOLERANCE)


def test_siglip_2_reads_the_full_stop_and_siglip_does_not(siglip_folder: Path, siglip2_folder: Path) -> None:
    ends = {}
    for folder in (siglip_folder, siglip2_folder):
        tower, plain = _towers(folder)
        (stop,) = plain.tokenizer(".", add_special_tokens=False)["input_ids"] or [None]
        row = tower.tokenize_names(["red circle"]).ids[0].tolist()
        ends[folder] = stop, row[-2] == stop, row[-1] == plain.tokenizer.eos_token_id
    assert ends[siglip_folder] == (None, False, True)
    assert ends[siglip2_folder][1:] == (True, True)


def test_a_name_of_which_the_tokenizer_leaves_nothing_is_refused(siglip_folder: Path, siglip2_folder: Path) -> None:
    """Otherwise '+' and '-' are one class."""
    with pytest.raises(UserError, match=r"'\+' has no letter or digit"):
        _towers(siglip_folder)[0].tokenize_names(["seven", "+"])
    ids = _towers(siglip2_folder)[0].tokenize_names(["-", "+"]).ids
    assert not torch.equal(ids[0], ids[1])


def test_a_tokenizer_that_begins_texts_with_a_token_is_refused(siglip2_folder: Path) -> None:
    """Such as Gemma's own, which language models use."""
    tokenizer = AutoTokenizer.from_pretrained(siglip2_folder, add_bos_token=True)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    with pytest.raises(UserError, match=r"its end token behind a text and none before it.*<bos>"):
        SiglipTokens("it", tokenizer, 64)


def test_the_end_token_does_not_depend_on_whether_the_tokenizer_writes_it(siglip2_folder: Path) -> None:
    """Versions of transformers differ in what they keep of a published tokenizer; the model was trained with it."""
    tokenizer = AutoTokenizer.from_pretrained(siglip2_folder, add_eos_token=False)
    assert tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id
    tower, _ = _towers(siglip2_folder)
    written, unwritten = tower._tokens, SiglipTokens("it", tokenizer, 64)
    assert unwritten.texts(["a photo of a g."]) == written.texts(["a photo of a g."])


def test_what_does_not_fit_is_refused(siglip2_folder: Path) -> None:
    tower, _ = _towers(siglip2_folder)
    tokens = tower.tokenize_names(["g"])
    with pytest.raises(UserError, match="at most 2"):
        tower.encode_prompts(torch.zeros(1, 2, 48), tokens, torch.zeros(1, 3, 2, 48))
    with pytest.raises(UserError, match="class_context"):
        tower.encode_prompts(torch.zeros(1, 1, 2, 48), tokens, torch.zeros(1, 1, 2, 48))
