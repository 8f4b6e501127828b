"""Rules for low-rank adapters as functions of arrays: which are exact, and how far off plain averaging is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedgraft.config.registry import METHODS
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.low_rank import (
    LowRankRule,
    averaging_error,
    mean_products,
    product,
    relative_error,
    stacked,
)
from tests.strategies.conftest import round_of

OUT, IN = 7, 5
MAPS = ("layers.0.q_proj", "layers.1.fc1")
SEEDS, WEIGHTS = st.integers(0, 10_000), st.lists(st.integers(1, 300), min_size=1, max_size=4)


def _answers(seed: int, weights: Sequence[int], ranks: Sequence[int]) -> list[Answer]:
    rng = np.random.default_rng(seed)
    answers = []
    for site, weight in enumerate(weights):
        rank = ranks[site % len(ranks)]
        arrays: Arrays = {}
        for name in MAPS:
            arrays[f"{name}.lora_A"] = rng.normal(size=(rank, IN)).astype(np.float32)
            arrays[f"{name}.lora_B"] = rng.normal(size=(OUT, rank)).astype(np.float32)
        answers.append(Answer(site, arrays, weight, 0.0))
    return answers


def _merged(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {f"{name}.merged": rng.normal(size=(OUT, IN)).astype(np.float32) for name in MAPS}


def _by_hand(answers: Sequence[Answer], name: str) -> NDArray[np.float64]:
    total = sum(answer.num_examples for answer in answers)
    result = np.zeros((OUT, IN))
    for answer in answers:
        right, left = answer.arrays[f"{name}.lora_A"], answer.arrays[f"{name}.lora_B"]
        result += answer.num_examples / total * np.asarray(left, np.float64) @ right / right.shape[0]
    return result


def _rule(method: str) -> LowRankRule:
    loaded = METHODS.load(method)
    rule = loaded.rule_for(loaded.parse_options({}))
    assert isinstance(rule, LowRankRule)
    return rule


def _errors(method: str, answers: Sequence[Answer], previous: Arrays) -> Mapping[str, float]:
    now = replace(round_of(np.zeros(1, np.float32)), previous=previous)
    return _rule(method).aggregate(answers, now, {}).figures


@settings(deadline=None, max_examples=40)
@given(SEEDS, WEIGHTS, st.integers(1, IN))
def test_fedex_goes_on_from_exactly_the_mean_of_the_products(seed: int, weights: list[int], rank: int) -> None:
    answers = _answers(seed, weights, [rank])
    previous = {**answers[0].arrays, **_merged(seed)}
    after = _rule("fedex-lora").next(answers, previous)
    for name in MAPS:
        gained = after[f"{name}.merged"].astype(np.float64) - previous[f"{name}.merged"]
        assert np.allclose(product(after, name) + gained, _by_hand(answers, name), atol=2e-6)
        mean = sum(a.num_examples * a.arrays[f"{name}.lora_B"] for a in answers) / sum(weights)
        assert np.allclose(after[f"{name}.lora_B"], mean, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(SEEDS, WEIGHTS, st.lists(st.integers(1, IN), min_size=1, max_size=3))
def test_flora_merges_exactly_the_mean_of_the_products_whatever_the_ranks(
    seed: int, weights: list[int], ranks: list[int]
) -> None:
    answers, previous = _answers(seed, weights, ranks), _merged(seed)
    stack = stacked(answers)
    after = _rule("flora").next(answers, previous)
    for name in MAPS:
        together = sum(len(answer.arrays[f"{name}.lora_A"]) for answer in answers)
        assert stack[f"{name}.lora_A"].shape == (together, IN)
        assert stack[f"{name}.lora_B"].shape == (OUT, together)
        gained = after[f"{name}.merged"].astype(np.float64) - previous[f"{name}.merged"]
        assert np.allclose(gained, _by_hand(answers, name), atol=2e-6)
    assert set(after) == set(previous)


@settings(deadline=None, max_examples=40)
@given(SEEDS, WEIGHTS, st.lists(st.integers(1, IN), min_size=1, max_size=3))
def test_flexlora_at_full_rank_is_exactly_the_mean_of_the_products(
    seed: int, weights: list[int], ranks: list[int]
) -> None:
    answers, previous = _answers(seed, weights, ranks), _answers(seed + 1, [1], [IN])[0].arrays
    after = _rule("flexlora").next(answers, previous)
    for name in MAPS:
        assert after[f"{name}.lora_A"].shape == (IN, IN)
        assert np.allclose(product(after, name), _by_hand(answers, name), atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(SEEDS, WEIGHTS, st.integers(1, IN), st.integers(1, IN))
def test_flexlora_keeps_the_largest_directions_and_a_part_of_them_is_the_smaller_cut(
    seed: int, weights: list[int], sent: int, own: int
) -> None:
    answers, previous = _answers(seed, weights, [2, 3]), _answers(seed + 1, [1], [sent])[0].arrays
    after = _rule("flexlora").next(answers, previous)
    for name in MAPS:
        left, right = after[f"{name}.lora_B"], after[f"{name}.lora_A"]
        assert np.allclose(right @ right.T, np.eye(sent), atol=1e-5)
        u, s, v = np.linalg.svd(_by_hand(answers, name))
        for rank in {sent, min(own, sent)}:
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            assert np.allclose(left[:, :rank] @ right[:rank] / sent, best, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.lists(st.integers(1, 300), min_size=2, max_size=4), st.permutations(range(4)))
def test_the_order_of_sites_and_equal_sites_change_nothing(seed: int, weights: list[int], order: list[int]) -> None:
    answers = _answers(seed, weights, [2])
    shuffled = [answers[index] for index in order if index < len(answers)]
    for method, previous in (("fedex-lora", _merged(0)), ("flora", _merged(0)), ("flexlora", answers[0].arrays)):
        one, other = (_rule(method).next(some, previous) for some in (answers, shuffled))
        assert all(np.allclose(one[name], other[name], atol=1e-5) for name in one)
    same = [Answer(site, answers[0].arrays, weight, 0.0) for site, weight in enumerate(weights)]
    after = _rule("fedex-lora").next(same, {**answers[0].arrays, **_merged(0)})
    assert all(np.allclose(after[name], _merged(0)[name], atol=1e-6) for name in _merged(0))
    assert averaging_error(same) == pytest.approx(0, abs=1e-6)


def test_the_error_of_plain_averaging_is_measured_and_the_exact_rules_have_none() -> None:
    answers = _answers(0, [10, 30, 20], [2])
    after = _rule("fedit").next(answers, answers[0].arrays)
    errors = _errors("fedit", answers, answers[0].arrays)
    difference = sum(np.square(product(after, name) - _by_hand(answers, name)).sum() for name in MAPS)
    expected = np.sqrt(difference / sum(np.square(_by_hand(answers, name)).sum() for name in MAPS))
    assert expected > 0.1
    assert errors == {"product_error": pytest.approx(expected), "averaging_error": pytest.approx(expected)}
    for method, previous in (("fedex-lora", {**answers[0].arrays, **_merged(1)}), ("flora", _merged(1))):
        measured = _errors(method, answers, previous)
        assert measured["product_error"] < 1e-6
        assert measured["averaging_error"] == pytest.approx(expected)
    assert set(_errors("flora", _answers(0, [1, 1], [2, 3]), _merged(1))) == {"product_error"}


def test_one_a_at_all_sites_makes_plain_averaging_exact() -> None:
    """FFA-LoRA."""
    answers = _answers(3, [5, 9], [2])
    for name in MAPS:
        answers[1].arrays[f"{name}.lora_A"] = answers[0].arrays[f"{name}.lora_A"]
    assert cast(float, averaging_error(answers)) < 1e-6


def test_nothing_learnt_is_no_error() -> None:
    answers = _answers(0, [1, 2], [2])
    for answer in answers:
        answer.arrays.update({name: 0 * array for name, array in answer.arrays.items() if name.endswith("lora_B")})
    assert averaging_error(answers) == 0.0
    assert relative_error(mean_products(answers), mean_products(answers)) == 0.0


def test_updates_that_cancel_make_no_fraction_and_no_failure() -> None:
    """The mean product is exactly nothing; what another one differs from it by has nothing to be relative to."""
    answers = _answers(0, [1, 1], [2])
    for name in MAPS:
        answers[1].arrays[f"{name}.lora_A"] = answers[0].arrays[f"{name}.lora_A"]
        answers[1].arrays[f"{name}.lora_B"] = -answers[0].arrays[f"{name}.lora_B"]
    assert averaging_error(answers) == 0.0
    nothing = {name: np.zeros((OUT, IN)) for name in MAPS}
    assert np.isnan(relative_error({name: np.ones((OUT, IN)) for name in MAPS}, nothing))
    assert relative_error(nothing, nothing) == 0.0


# --- which answers count --------------------------------------------------------------------------


def test_sites_of_different_ranks_count_and_a_wrong_answer_is_named() -> None:
    answers = _answers(0, [1, 1, 1, 1, 1], [1, 4, 2])
    del answers[1].arrays[f"{MAPS[0]}.lora_B"]
    answers[2].arrays[f"{MAPS[1]}.lora_A"] = np.zeros((3, IN), np.float32)
    answers[3].arrays[f"{MAPS[1]}.lora_A"][0, 0] = np.nan
    for method, previous in (("flora", _merged(0)), ("flexlora", _answers(1, [1], [4])[0].arrays)):
        kept, left_out = _rule(method).check_answers(answers, previous, 1)
        assert [answer.site for answer in kept] == [0, 4]
        assert kept[0] is answers[0]
        assert [entry.site for entry in left_out] == [1, 2, 3]
        assert "shape" in left_out[1].reason
        assert "finite" in left_out[2].reason


def test_a_rank_beyond_the_dimensions_and_an_update_far_too_large_are_left_out() -> None:
    answers = _answers(0, [1, 1, 1, 1, 1], [2, 2, IN + 1, 2, 2])
    answers[3].arrays[f"{MAPS[0]}.lora_B"] *= 1e4
    kept, left_out = _rule("flora").check_answers(answers, _merged(0), 1)
    assert [answer.site for answer in kept] == [0, 1, 4]
    assert [entry.site for entry in left_out] == [2, 3]


def test_fedex_compares_answers_with_the_factors_that_were_sent() -> None:
    answers = _answers(0, [1, 1], [2])
    previous = {**answers[0].arrays, **_merged(0)}
    assert len(_rule("fedex-lora").check_answers(answers, previous, 1)[0]) == 2
    assert _rule("fedex-lora").check_answers(_answers(0, [1], [3]), previous, 1)[0] == []
