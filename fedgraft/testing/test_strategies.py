"""What every registered component of a strategy must keep: rules, steps, transforms at the site, ways to train."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.config.registry import STRATEGIES
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import (
    Component,
    Outcome,
    Rule,
    SiteTransform,
    State,
    Step,
    StrategyComponent,
    Training,
)
from fedgraft.strategies.privacy import Participation
from fedgraft.testing.rounds import round_after

SHAPES = {"first": (2, 3), "second": (4,)}


def _of_kind(kind: type[Component]) -> Callable[..., Any]:
    entries = [entry for entry in STRATEGIES if issubclass(entry.component, kind)]
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: str(entry.name))


def _arrays(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}


def _moved(start: Arrays, seed: int) -> Arrays:
    change = _arrays(seed, 0.01)
    return {name: (array + np.float32(0.1) + change[name]).astype(np.float32) for name, array in start.items()}


def _answers(start: Arrays, sites: int) -> list[Answer]:
    return [Answer(site, _moved(start, site + 1), 10 + site, 0.5) for site in range(sites)]


def _require_parameters(outcome: Outcome) -> None:
    assert {name: array.shape for name, array in outcome.arrays.items()} == SHAPES
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in outcome.arrays.values())
    assert all(np.isfinite(value) for value in outcome.figures.values())
    assert all(np.isfinite(array).all() for array in outcome.state.values())


def _rule(entry: StrategyComponent) -> tuple[Rule, Arrays, list[Answer]]:
    rule = entry.make({})
    assert isinstance(rule, Rule)
    start = _arrays(0)
    return rule, start, _answers(start, max(4, rule.min_answers()))


@_of_kind(Rule)
def test_a_rule_gives_the_parameters_that_sites_expect_and_changes_nothing_it_was_given(
    entry: StrategyComponent,
) -> None:
    rule, start, answers = _rule(entry)
    before = [{name: array.copy() for name, array in answer.arrays.items()} for answer in answers]
    _require_parameters(rule.aggregate(answers, round_after(start, len(answers)), {}))
    for answer, arrays in zip(answers, before, strict=True):
        assert all(np.array_equal(answer.arrays[name], array) for name, array in arrays.items())


@_of_kind(Rule)
def test_a_rule_gives_the_same_for_the_same_answers_in_another_order(entry: StrategyComponent) -> None:
    """Answers come in the order of the sites; which site has which number says nothing."""
    rule, start, answers = _rule(entry)
    if rule.privacy() is not None:
        pytest.skip("its noise is keyed by the bytes of the sum")
    now = round_after(start, len(answers))
    one, other = rule.aggregate(answers, now, {}).arrays, rule.aggregate(answers[::-1], now, {}).arrays
    assert all(np.allclose(one[name], other[name], atol=1e-6) for name in SHAPES)


@_of_kind(Rule)
def test_a_rule_without_noise_keeps_what_all_sites_agree_on(entry: StrategyComponent) -> None:
    rule, start, answers = _rule(entry)
    if rule.privacy() is not None:
        pytest.skip("noise moves it")
    agreed = _moved(start, 99)
    same = [Answer(answer.site, agreed, answer.num_examples, answer.loss) for answer in answers]
    after = rule.aggregate(same, round_after(start, len(same)), {}).arrays
    assert all(np.allclose(after[name], agreed[name], atol=1e-6) for name in SHAPES)


@_of_kind(Rule)
def test_a_rule_leaves_out_an_answer_that_is_not_finite(entry: StrategyComponent) -> None:
    rule, start, answers = _rule(entry)
    spoiled = Answer(len(answers), {name: np.full_like(array, np.nan) for name, array in start.items()}, 10, 0.5)
    kept, left_out = rule.check_answers([*answers, spoiled], start, 1)
    assert [answer.site for answer in kept] == [answer.site for answer in answers]
    assert [entry.site for entry in left_out] == [spoiled.site]


@_of_kind(Step)
def test_a_step_gives_parameters_and_goes_on_from_what_it_remembered(entry: StrategyComponent) -> None:
    """A run that is resumed gets a step's memory from the checkpoint, as arrays."""
    step = entry.make({})
    assert isinstance(step, Step)
    start = _arrays(0)
    state: State = {}
    previous = start
    for number in (1, 2):
        now = round_after(previous, 4, number, initial=start)
        aggregate = _moved(previous, number)
        outcome = step.next(aggregate, now, {name: array.copy() for name, array in state.items()})
        again = step.next(aggregate, now, state)
        _require_parameters(outcome)
        assert all(np.array_equal(outcome.arrays[name], again.arrays[name]) for name in SHAPES)
        previous, state = outcome.arrays, outcome.state


@_of_kind(SiteTransform)
def test_a_transform_answers_with_the_parameters_of_the_method(entry: StrategyComponent) -> None:
    transform = entry.make({})
    assert isinstance(transform, SiteTransform)
    start = _arrays(0)
    released = transform.release(_moved(start, 1), start, round_after(start, 4).noise)
    _require_parameters(Outcome(released))


@_of_kind(Component)
def test_what_a_component_promises_of_privacy_can_be_accounted_for(entry: StrategyComponent) -> None:
    promise = entry.make({}).privacy()
    if promise is None:
        pytest.skip("it promises nothing")
    once, often = ([Participation([0, 1, 2], [0, 1, 2])] * rounds for rounds in (1, 10))
    assert 0 < promise.spent(once, 10)["epsilon"] < promise.spent(often, 10)["epsilon"]


@_of_kind(Training)
def test_a_way_to_train_leaves_gradients_and_moves_no_parameter(entry: StrategyComponent) -> None:
    """The optimizer moves them; two sites that share a pass get what each would have got alone."""
    training = entry.make({})
    assert isinstance(training, Training)

    def gradients(*starts: torch.Tensor) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(start.clone()) for start in starts]

        def backward() -> list[torch.Tensor]:
            losses = [weight.pow(4).sum() for weight in weights]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            return losses

        losses = training.gradients(backward, [[weight] for weight in weights])
        assert [float(loss.detach()) for loss in losses] == [float(start.pow(4).sum()) for start in starts]
        assert all(torch.equal(weight, start) for weight, start in zip(weights, starts, strict=True))
        return [weight.grad for weight in weights if weight.grad is not None]

    one, two = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.1])
    together = gradients(one, two)
    assert torch.allclose(together[0], gradients(one)[0])
    assert torch.allclose(together[1], gradients(two)[0])
