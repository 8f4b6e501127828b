"""The fast path of a text tower of BERT's shape gives the features and gradients of the library's plain forward."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.bert.text_tower import BertTextTower, Pooling
from fedgraft.backbones.deltas import Delta
from fedgraft.core.errors import UserError
from tests.backbones.bert_folders import bert, bert_tokenizer, roberta, roberta_tokenizer

FEATURE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
POOLINGS: tuple[Pooling, ...] = ("class", "pooler", "mean", "words")
PLACEMENTS: tuple[Placement, ...] = ("before", "middle", "behind")
NAMES = ["red circle", "a", "small hollow purple hexagon"]


class PlainBert:
    """One prompt after another, whole, without padding, through the library's own model."""

    def __init__(self, model: Any, tokenizer: Any, pooling: str, projection: nn.Module | None) -> None:
        self.model, self.tokenizer, self.pooling, self.projection = model, tokenizer, pooling, projection

    def words(self, name: str) -> Tensor:
        """The name as it is tokenized in "a NAME.", without what stands around it."""
        whole = self.tokenizer(f"a {name}.")["input_ids"]
        return self.model.get_input_embeddings()(torch.tensor(whole[2:-1]))

    def encode(self, context: Tensor, name: str, placement: str = "before", deep: Tensor | None = None) -> Tensor:
        words = self.words(name)
        ends = self.model.get_input_embeddings()(
            torch.tensor([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id])
        )
        front = {"before": len(context), "middle": len(context) // 2, "behind": 0}[placement]
        parts = [ends[:1], context[:front], words[:-1], context[front:], words[-1:], ends[1:]]
        places = [*range(1, 1 + front), *range(front + len(words), len(context) + len(words))]
        handles = [] if deep is None else self.hooks(deep, places)
        states = self.model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
        for handle in handles:
            handle.remove()
        return self.pooled(states)

    def hooks(self, deep: Tensor, places: list[int]) -> list[Any]:
        def replace(vectors: Tensor) -> Callable[..., Any]:
            def before(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
                states = args[0].clone()
                states[:, places] = vectors
                return (states, *args[1:]), kwargs

            return before

        layers = self.model.encoder.layer
        return [layers[1 + i].register_forward_pre_hook(replace(v), with_kwargs=True) for i, v in enumerate(deep)]

    def pooled(self, states: Tensor) -> Tensor:
        if self.pooling == "class":
            pooled = states[0]
        elif self.pooling == "pooler":
            pooled = self.model.pooler(states[None])[0]
        else:
            pooled = (states if self.pooling == "mean" else states[1:-1]).mean(0)
        return F.normalize(pooled if self.projection is None else self.projection(pooled), dim=-1)


def _projection(kind: str | None) -> nn.Module | None:
    torch.manual_seed(1)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(32, 28, bias=False), nn.GELU(), nn.Linear(28, 24, bias=False))
    return nn.Linear(32, 24, bias=False) if kind == "linear" else None


def _both(
    family: str, pooling: Pooling, projection: str | None = "linear", **changes: Any
) -> tuple[BertTextTower, PlainBert]:
    model, tokenizer = (bert(**changes), bert_tokenizer()) if family == "bert" else (roberta(), roberta_tokenizer())
    head = _projection(projection)
    return BertTextTower(model, tokenizer, pooling, head, "text_model."), PlainBert(model, tokenizer, pooling, head)


def _compare(
    towers: tuple[BertTextTower, PlainBert],
    names: Sequence[str],
    context: Tensor,
    placement: Placement = "before",
    depth: int = 0,
) -> None:
    fast_tower, plain = towers
    deep = torch.randn(len(context), depth, *context.shape[-2:], generator=torch.Generator().manual_seed(2))
    mine = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
    theirs = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
    tokens = fast_tower.tokenize_names(names)
    fast = fast_tower.encode_prompts(mine[0], tokens, mine[1] if depth else None, placement)
    rows = []
    for one, layers in zip(*theirs, strict=True):
        each = one if one.dim() == 3 else [one] * len(names)
        own = layers if depth else None
        rows.append(torch.stack([plain.encode(c, n, placement, own) for c, n in zip(each, names, strict=True)]))
    slow = torch.stack(rows)
    assert torch.allclose(fast, slow, atol=FEATURE_TOLERANCE), (fast - slow).abs().max()
    direction = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1))
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    for own, other in zip(mine[: 1 + (depth > 0)], theirs, strict=False):
        assert own.grad is not None
        assert other.grad is not None
        assert (own.grad - other.grad).norm() < GRADIENT_TOLERANCE * other.grad.norm()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_features_and_gradients_are_the_plain_ones(family: str, pooling: Pooling, placement: Placement) -> None:
    context = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    _compare(_both(family, pooling), NAMES, context, placement, depth=2)


@settings(deadline=None, max_examples=25)
@given(
    names=st.lists(st.sampled_from([*NAMES, "seven", "g", "x y z w"]), min_size=1, max_size=4, unique=True),
    prompts=st.integers(1, 3),
    n_ctx=st.integers(1, 9),
    depth=st.integers(0, 2),
    placement=st.sampled_from(PLACEMENTS),
    pooling=st.sampled_from(POOLINGS),
)
def test_any_names_contexts_and_depths(
    names: list[str], prompts: int, n_ctx: int, depth: int, placement: Placement, pooling: Pooling
) -> None:
    context = torch.randn(prompts, n_ctx, 32, generator=torch.Generator().manual_seed(n_ctx))
    _compare(_both("bert", pooling), names, context, placement, depth)


@pytest.mark.parametrize("projection", [None, "linear", "mlp"])
def test_every_projection(projection: str | None) -> None:
    _compare(_both("bert", "class", projection), NAMES, torch.randn(1, 4, 32))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_tower_of_one_layer(pooling: Pooling) -> None:
    """Its first layer is its last."""
    _compare(_both("bert", pooling, num_hidden_layers=1), NAMES, torch.randn(2, 4, 32))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_context_for_each_class_stands_with_its_own_class(placement: Placement, pooling: Pooling) -> None:
    context = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(0))
    _compare(_both("bert", pooling), NAMES, context, placement)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_text_as_a_prompt_has_the_features_of_the_text(family: str, pooling: Pooling) -> None:
    tower, plain = _both(family, pooling)
    texts = ["a photo of a red circle.", "a photo of a seven", "a photo of x"]
    features = tower.encode_texts(texts)
    context, tokens = tower.tokenize_texts(texts)
    assert len(context) >= 3
    assert torch.allclose(tower.encode_prompts(context[None], tokens)[0], features, atol=FEATURE_TOLERANCE)
    alone = [plain.model(torch.tensor([plain.tokenizer(text)["input_ids"]])).last_hidden_state[0] for text in texts]
    assert torch.allclose(torch.stack([plain.pooled(states) for states in alone]), features, atol=FEATURE_TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_embedded_words_as_context_equal_the_text_itself(family: str) -> None:
    """A name behind a context has the tokens that it has behind words, not those of a first word."""
    tower, _ = _both(family, "class")
    context = tower.embed_words("a photo of a")[None]
    prompted = tower.encode_prompts(context, tower.tokenize_names(["red circle", "g"]))[0]
    written = tower.encode_texts(["a photo of a red circle.", "a photo of a g."])
    assert torch.allclose(prompted, written, atol=FEATURE_TOLERANCE)


def test_a_class_keeps_its_features_whatever_stands_beside_it() -> None:
    for pooling in POOLINGS:
        tower, _ = _both("bert", pooling)
        context = torch.randn(1, 4, 32)
        alone = tower.encode_prompts(context, tower.tokenize_names(["g"]))
        together = tower.encode_prompts(context, tower.tokenize_names(["a very long class name", "g"]))
        assert torch.allclose(alone[0, 0], together[0, 1], atol=FEATURE_TOLERANCE)


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_low_rank_changes_are_those_of_merged_weights(pooling: Pooling) -> None:
    """Two sites with changes of their own in one pass, against the plain forward of the merged model."""
    generator = torch.Generator().manual_seed(3)
    tower, _ = _both("bert", pooling)
    maps = tower.linear_maps()
    assert len(maps) == 6 * 3
    assert {found.layer for found in maps.values()} == {0, 1, 2}
    factors = {
        name: (
            0.2 * torch.randn(2, 3, found.weight.shape[1], generator=generator),
            0.2 * torch.randn(2, found.weight.shape[0], 3, generator=generator),
        )
        for name, found in maps.items()
    }
    inputs = {name: (a.clone().requires_grad_(), b.clone().requires_grad_()) for name, (a, b) in factors.items()}
    context = torch.randn(2, 4, 32, generator=generator)
    direction = torch.randn(2, 3, 24, generator=generator)
    deltas = {name: Delta(a, b) for name, (a, b) in inputs.items()}
    fast = tower.encode_prompts(context, tower.tokenize_names(NAMES), deltas=deltas)
    (fast * direction).sum().backward()
    for site in range(2):
        _, plain = _both("bert", pooling)
        for name, (a, b) in factors.items():
            weight = plain.model.get_submodule(name.removeprefix("text_model.")).weight
            weight.data += b[site] @ a[site]
            weight.requires_grad_()
        slow = torch.stack([plain.encode(context[site], name) for name in NAMES])
        assert torch.allclose(fast[site], slow, atol=FEATURE_TOLERANCE)
        (slow * direction[site]).sum().backward()
        for name, (a, b) in factors.items():
            gradient = plain.model.get_submodule(name.removeprefix("text_model.")).weight.grad
            for own, other in ((inputs[name][0], b[site].mT @ gradient), (inputs[name][1], gradient @ a[site].mT)):
                assert own.grad is not None
                assert (own.grad[site] - other).norm() <= GRADIENT_TOLERANCE * other.norm() + 1e-6, name


def test_one_change_serves_all_contexts() -> None:
    tower, _ = _both("bert", "class")
    name, found = next(iter(tower.linear_maps().items()))
    delta = Delta(torch.randn(1, 2, found.weight.shape[1]), torch.randn(1, found.weight.shape[0], 2))
    context, tokens = torch.randn(3, 4, 32), tower.tokenize_names(NAMES)
    together = tower.encode_prompts(context, tokens, deltas={name: delta})
    for one, features in zip(context, together, strict=True):
        assert torch.allclose(tower.encode_prompts(one[None], tokens, deltas={name: delta})[0], features, atol=1e-5)


def test_mistakes_are_refused_with_numbers() -> None:
    tower, _ = _both("bert", "class")
    tokens = tower.tokenize_names(["g"])
    with pytest.raises(UserError, match="has 40"):
        tower.encode_prompts(torch.zeros(1, 40, 32), tokens)
    with pytest.raises(UserError, match="at most 2"):
        tower.encode_prompts(torch.zeros(1, 2, 32), tokens, torch.zeros(1, 3, 2, 32))
    with pytest.raises(UserError, match="class_context"):
        tower.encode_prompts(torch.zeros(1, 1, 2, 32), tokens, torch.zeros(1, 1, 2, 32))
    model, tokenizer = roberta(), roberta_tokenizer()
    assert BertTextTower(model, tokenizer, "class").max_tokens == 38, "RoBERTa's first positions are not used"
    assert BertTextTower(model, tokenizer, "class", context_length=16).max_tokens == 16
