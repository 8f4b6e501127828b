"""The rule `similarity`: the published weights, who receives what, and what it cannot be combined with."""

import numpy as np
import pytest

from fedgraft import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.flower.messages import Arrays
from fedgraft.methods.plan import Plan
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.similarity import Similarity, SimilarityOptions
from fedgraft.testing.rounds import round_after

SHAPES = {"first": (2, 3), "second": (4,)}
EXAMPLES = (10, 30, 20)


def _arrays(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def _answers(sites: tuple[int, ...] = (0, 1, 2)) -> list[Answer]:
    return [Answer(site, _arrays(site), n, 0.0) for site, n in zip(sites, EXAMPLES, strict=False)]


def _rule(**options: float) -> Similarity:
    return Similarity(SimilarityOptions(**options))


def test_three_unequal_sites_get_the_papers_weights_of_the_changes_since_the_start() -> None:
    initial, previous, answers = _arrays(8), _arrays(9), _answers()
    outcome = _rule(self_weight=0.3, sharpness=4.0).aggregate(answers, round_after(previous, 3, initial=initial), {})
    flat = [np.concatenate([(a.arrays[n].astype(float) - initial[n]).ravel() for n in SHAPES]) for a in answers]
    for i in range(3):
        score = {
            j: np.exp(4.0 * flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j]))
            for j in range(3)
            if j != i
        }
        for name in SHAPES:
            expected = 0.3 * answers[i].arrays[name].astype(float)
            for j, value in score.items():
                expected = expected + 0.7 * value / sum(score.values()) * answers[j].arrays[name]
            assert np.allclose(outcome.state[f"{i}/{name}"], expected, rtol=1e-4, atol=1e-6)
    for name in SHAPES:
        mean = sum(a.arrays[name].astype(float) * n for a, n in zip(answers, EXAMPLES, strict=True)) / 60
        assert np.allclose(outcome.arrays[name], mean, rtol=1e-4, atol=1e-6)


def test_sites_that_change_alike_move_together_and_away_from_the_one_that_does_not() -> None:
    start = {"first": np.zeros(4, np.float32)}
    changes = ([1, 1, 0, 0], [1, 0.9, 0, 0], [0, 0, -1, 1])
    answers = [Answer(site, {"first": np.asarray(c, np.float32)}, 10, 0.0) for site, c in enumerate(changes)]
    state = _rule().aggregate(answers, round_after(start, 3), {}).state
    assert np.abs(state["0/first"][2:]).max() < 1e-3
    assert np.allclose(state["2/first"][:2].mean(), 0.49, atol=0.03), "its others are equally unlike it"


def test_who_does_not_answer_keeps_its_mean_and_who_never_did_has_that_of_all() -> None:
    rule = _rule()
    first = rule.aggregate(_answers(), round_after(_arrays(9), 3), {})
    second = rule.aggregate(_answers((2, 5)), round_after(first.arrays, 2, number=2), first.state)
    for name in SHAPES:
        assert np.array_equal(rule.own(0, second.arrays, second.state)[name], first.state[f"0/{name}"])
        assert not np.array_equal(rule.own(2, second.arrays, second.state)[name], first.state[f"2/{name}"])
        assert np.array_equal(rule.own(7, second.arrays, second.state)[name], second.arrays[name])
    assert rule.common(second.arrays) == {}


def test_a_site_that_is_alone_or_changed_nothing_gets_finite_parameters() -> None:
    start = _arrays(0)
    alone = _rule().aggregate([Answer(0, _arrays(1), 10, 0.0)], round_after(start, 1), {})
    assert np.array_equal(alone.state["0/first"], _arrays(1)["first"])
    still = _rule().aggregate([Answer(s, start, 10, 0.0) for s in range(3)], round_after(start, 3), {})
    assert np.allclose(still.state["1/first"], start["first"], atol=1e-6)
    assert still.figures["similarity"] == 0


@pytest.mark.parametrize(
    ("method", "strategy", "reason"),
    [
        ("promptfl", "secagg+similarity", "'similarity' needs every site's own answer"),
        ("promptfl", "median+similarity", "more than one rule"),
        ("promptfl", "similarity+anchored", "no|every site receives a mean of its own"),
        ("fedex-lora", "similarity", "keeps its own rule"),
        ("hetlora", "similarity", "keeps its own rule"),
        ("flexlora", "similarity", "takes no strategy"),
        ("local", "similarity", "takes no strategy"),
    ],
)
def test_what_it_cannot_be_combined_with_is_said_before_anything_is_loaded(
    method: str, strategy: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        Plan.of(RunConfig(method=method, data="digits", strategy=strategy, sites=4))
