"""LoRA-FAIR, HetLoRA and RoLoRA against separate derivations of their papers, and what scalings do to an aggregate."""

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.config.registry import METHODS
from fedgraft.flower.messages import Arrays
from fedgraft.methods.adapter import AdapterContext, Batch
from fedgraft.methods.lora import LoraAdapter
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
OUT, IN, EXAMPLES = 6, 5, (10, 30, 20)
MAPS = ("layers.0.q_proj", "layers.1.v_proj")


def _adapter(method: str, backbone: Backbone, site: int | None = 0, last_round: int = 0, **options: Any) -> LoraAdapter:
    loaded = METHODS.load(method)
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    context = AdapterContext(site=site, round=last_round)
    made = loaded.adapter(vocabulary, loaded.parse_options(options), torch.Generator().manual_seed(4), context)
    return cast(LoraAdapter, made)


def _factors(seed: int, rank: int) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"lora_A": (rank, IN), "lora_B": (OUT, rank)}
    return {f"{m}.{f}": rng.normal(size=shape).astype(np.float32) for m in MAPS for f, shape in shapes.items()}


def _answers(ranks: tuple[int, int, int]) -> list[Answer]:
    return [Answer(site, _factors(site, ranks[site]), EXAMPLES[site], 0.0) for site in range(3)]


def _after(method: str, answers: list[Answer], previous: Arrays, server_round: int = 1, **options: Any) -> Arrays:
    loaded = METHODS.load(method)
    rule = loaded.rule_for(loaded.parse_options(options))
    return rule.aggregate(answers, round_after(previous, 3, server_round), {}).arrays


def _mean(answers: list[Answer], name: str) -> Tensor:
    total = sum(EXAMPLES)
    return sum(torch.tensor(a.arrays[name].astype(float)) * (a.num_examples / total) for a in answers)  # type: ignore[return-value]


def test_lora_fair_corrects_b_by_the_papers_gradient_descent() -> None:
    answers = _answers((2, 2, 2))
    after = _after("lora-fair", answers, _factors(9, 2), correction_steps=300, regularization=0.05)
    for name in MAPS:
        a, b = _mean(answers, f"{name}.lora_A"), _mean(answers, f"{name}.lora_B")
        target = sum(
            torch.tensor(x.arrays[f"{name}.lora_B"].astype(float) @ x.arrays[f"{name}.lora_A"]) * x.num_examples
            for x in answers
        )
        correction = torch.zeros_like(b, requires_grad=True)
        optimizer = torch.optim.SGD([correction], lr=0.01)
        for _ in range(300):
            optimizer.zero_grad()
            near = F.cosine_similarity(((b + correction) @ a).flatten(), target.flatten(), dim=0)
            (1 - near + 0.05 * correction.square().sum()).backward()
            optimizer.step()
        assert np.allclose(after[f"{name}.lora_A"], a, atol=1e-6)
        assert np.allclose(after[f"{name}.lora_B"], (b + correction).detach(), rtol=1e-4, atol=1e-5)
        assert not np.allclose(after[f"{name}.lora_B"], b, atol=1e-3)


def test_lora_fair_brings_the_product_nearer_to_the_mean_of_the_products() -> None:
    answers = _answers((2, 2, 2))
    loaded = METHODS.load("lora-fair")
    errors = loaded.rule_for(loaded.parse_options({})).aggregate(answers, round_after(_factors(9, 2), 3), {}).figures
    assert errors["product_error"] < errors["averaging_error"]


def test_lora_fair_leaves_alone_what_has_no_direction() -> None:
    """In the first round of a site that learnt nothing, B is zero."""
    answers = _answers((2, 2, 2))
    for answer in answers:
        answer.arrays.update({name: 0 * array for name, array in answer.arrays.items() if name.endswith("lora_B")})
    after = _after("lora-fair", answers, _factors(9, 2))
    assert all(not after[f"{name}.lora_B"].any() for name in MAPS)


def test_hetlora_weights_padded_factors_by_the_size_of_each_change() -> None:
    answers = _answers((1, 3, 2))
    after = _after("hetlora", answers, _factors(9, 3), ranks="1,3,2")
    sizes = []
    for answer in answers:
        products = [answer.arrays[f"{m}.lora_B"].astype(float) @ answer.arrays[f"{m}.lora_A"] for m in MAPS]
        sizes.append(sum(float((p**2).sum()) for p in products) ** 0.5)
    for name in MAPS:
        a, b = np.zeros((3, IN)), np.zeros((OUT, 3))
        for answer, size in zip(answers, sizes, strict=True):
            rank = len(answer.arrays[f"{name}.lora_A"])
            a[:rank] += size / sum(sizes) * answer.arrays[f"{name}.lora_A"]
            b[:, :rank] += size / sum(sizes) * answer.arrays[f"{name}.lora_B"]
        assert np.allclose(after[f"{name}.lora_A"], a, atol=1e-6)
        assert np.allclose(after[f"{name}.lora_B"], b, atol=1e-6)


def test_hetlora_leaves_out_a_rank_above_the_largest() -> None:
    rule = METHODS.load("hetlora").rule_for(None)
    kept, left_out = rule.check_answers(_answers((1, 4, 3)), _factors(9, 3), 1)
    assert [answer.site for answer in kept] == [0, 2]
    assert [entry.site for entry in left_out] == [1]


def _learnt(adapter: LoraAdapter) -> None:
    draw = torch.Generator().manual_seed(7)
    adapter.load({name: 0.1 * torch.randn(value.shape, generator=draw) for name, value in adapter.shared().items()})


def test_hetlora_adds_the_norms_of_the_last_directions_to_the_loss(mini: Backbone) -> None:
    one, plain = _adapter("hetlora", mini, ranks="4,8", gamma=0.5, decay=0.7), _adapter("fedit", mini, rank=8)
    _learnt(one)
    plain.load(
        {name: F.pad(v, (0, 0, 0, 4)) if "lora_A" in name else F.pad(v, (0, 4)) for name, v in one.shared().items()}
    )
    images, labels = F.normalize(torch.randn(6, mini.dim), dim=-1), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = plain.loss(images, labels, CLASSES)
    for own in one.factors.values():
        last = own.lora_B[:, 2:4].square().sum().sqrt() * own.lora_A[2:4].square().sum().sqrt()
        expected = expected + 0.7 * last
    loss = one.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(type(one).losses([one], [Batch(images, labels)], CLASSES)[0], expected, rtol=1e-5)
    loss.backward()
    assert all(own.lora_A.grad is not None and not own.lora_A.grad[4:].any() for own in one.factors.values())


def test_hetlora_prunes_a_rank_whose_last_directions_shrank_and_keeps_it_pruned(mini: Backbone) -> None:
    adapter = _adapter("hetlora", mini, ranks="4,8", gamma=0.5)
    _learnt(adapter)
    adapter.on_training_begin()
    adapter.on_training_end()
    assert adapter.shared()[next(n for n in adapter.shared() if n.endswith("lora_A"))].shape[0] == 4
    adapter.on_training_begin()
    with torch.no_grad():
        for own in adapter.factors.values():
            own.lora_A[2:4] *= 0.9
    adapter.on_training_end()
    assert {len(v) for n, v in adapter.shared().items() if n.endswith("lora_A")} == {2}
    again = _adapter("hetlora", mini, ranks="4,8", gamma=0.5)
    again.load(_adapter("hetlora", mini, None, ranks="4,8").server_state())
    again.load(adapter.personal())
    assert {v.shape[1] for n, v in again.shared().items() if n.endswith("lora_B")} == {2}
    with torch.no_grad():
        assert not any(own.lora_A[2:].any() for own in again.factors.values())


@pytest.mark.parametrize(("last_round", "trained", "frozen"), [(0, "lora_B", "lora_A"), (1, "lora_A", "lora_B")])
def test_rolora_trains_and_sends_one_factor_in_turn(last_round: int, trained: str, frozen: str, mini: Backbone) -> None:
    adapter = _adapter("rolora", mini, last_round=last_round)
    both = adapter.server_state()
    adapter.on_training_begin()
    assert {name.rpartition(".")[2] for name in adapter.shared()} == {trained}
    assert {name.rpartition(".")[2] for name in both} == {trained, frozen}
    assert {name.rpartition(".")[2] for name, p in adapter.named_parameters() if p.requires_grad} == {trained}


def test_rolora_averages_what_was_trained_exactly_and_refuses_the_other_factor() -> None:
    previous, rule = _factors(9, 2), METHODS.load("rolora").rule_for(None)
    whole = _answers((2, 2, 2))
    for number, factor, other in ((1, "lora_B", "lora_A"), (2, "lora_A", "lora_B")):
        sent = [
            Answer(a.site, {n: v for n, v in a.arrays.items() if n.endswith(factor)}, a.num_examples, 0.0)
            for a in whole
        ]
        kept, _ = rule.check_answers(sent, previous, number)
        assert len(kept) == 3
        assert rule.check_answers(sent, previous, number + 1)[0] == []
        after = rule.aggregate(kept, round_after(previous, 3, number), {}).arrays
        for name in MAPS:
            assert np.array_equal(after[f"{name}.{other}"], previous[f"{name}.{other}"])
            assert np.allclose(after[f"{name}.{factor}"], _mean(whole, f"{name}.{factor}"), atol=1e-6)


@pytest.mark.parametrize("options", [{"rslora": True}, {"alpha_per_rank": 2.0}])
@pytest.mark.parametrize("method", ["flora", "flexlora"])
def test_sites_of_different_ranks_are_summed_by_the_change_that_each_has_learnt(
    method: str, options: dict[str, Any], mini: Backbone
) -> None:
    """With `alpha_per_rank=2` every site scales by 2, as FLoRA's authors have it; with alpha / rank it would not."""
    ranks = {"ranks": "1,3,2", "layers": 1, **options}
    sites = [_adapter(method, mini, site, **ranks) for site in range(3)]
    for number, adapter in enumerate(sites):
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for own in adapter.factors.values():
                own.lora_B.copy_(0.1 * torch.randn(own.lora_B.shape, generator=draw))
    answers = [
        Answer(site, {n: v.numpy().copy() for n, v in adapter.shared().items()}, EXAMPLES[site], 0.0)
        for site, adapter in enumerate(sites)
    ]
    server = _adapter(method, mini, None, **ranks)
    previous = {name: value.numpy().copy() for name, value in server.server_state().items()}
    after = {name: torch.from_numpy(array) for name, array in _after(method, answers, previous, **ranks).items()}
    server.load(after)
    for name in server.factors:
        expected = torch.zeros(())
        for number, adapter in enumerate(sites):
            own = adapter.factors[name]
            scale = {"rslora": 8 / adapter.rank**0.5, "alpha_per_rank": 2.0}[next(iter(options))]
            expected = expected + EXAMPLES[number] / 60 * scale * own.lora_B @ own.lora_A
        if method == "flexlora":  # the best approximation of the largest rank, 3
            u, s, v = torch.linalg.svd(expected)
            expected = u[:, :3] * s[:3] @ v[:3]
        assert torch.allclose(server.change(name), expected, atol=1e-5)


def test_fedex_lora_weights_all_sites_alike_if_asked() -> None:
    answers, previous = _answers((2, 2, 2)), _factors(9, 2)
    merged = {f"{name}.merged": np.zeros((OUT, IN), np.float32) for name in MAPS}
    after = _after("fedex-lora", answers, {**previous, **merged}, weights="equal")
    for name in MAPS:
        mean_a = np.mean([x.arrays[f"{name}.lora_A"] for x in answers], axis=0)
        mean_b = np.mean([x.arrays[f"{name}.lora_B"] for x in answers], axis=0)
        products = np.mean([x.arrays[f"{name}.lora_B"] @ x.arrays[f"{name}.lora_A"] for x in answers], axis=0)
        assert np.allclose(after[f"{name}.lora_A"], mean_a, atol=1e-6)
        assert np.allclose(after[f"{name}.merged"], (products - mean_b @ mean_a) / 2, atol=1e-5)
