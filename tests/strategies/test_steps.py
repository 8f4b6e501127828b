"""Steps behind a rule: Flower's optimizers value for value, the line to the start, and a budget that holds."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgraft.config.registry import STRATEGIES
from fedgraft.flower.internals import SUPERLINK_NODE_ID, identify, set_message_id
from fedgraft.strategies.anchored import last_within, pulled_back
from fedgraft.strategies.components import Step
from fedgraft.strategies.composition import compose
from fedgraft.strategies.weighted_average import WeightedAverage
from tests.strategies.conftest import answers_of, round_of

START = np.arange(6, dtype=np.float32).reshape(2, 3)
VALUES = hnp.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32))


def _step(name: str, **options: object) -> Step:
    step = STRATEGIES.load(name).make(options)
    assert isinstance(step, Step)
    return step


# --- optimizers -------------------------------------------------------------------------------------------------


def _flowers(strategy: Any, learnt: list[np.ndarray]) -> list[np.ndarray]:
    """What Flower's own strategy makes of rounds in which all sites together learnt so much."""
    identify(1, SUPERLINK_NODE_ID)
    current, result = START.astype(np.float64), []
    for number, change in enumerate(learnt, 1):
        sent = ArrayRecord({"context": Array(current)})
        if getattr(strategy, "current_arrays", None) is None or isinstance(strategy, FedAdam | FedYogi):
            strategy.current_arrays = sent if isinstance(strategy, FedAvgM) else {"context": current}
        request = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=1, message_type="train")
        set_message_id(request, "an-id")
        content = RecordDict(
            {"arrays": ArrayRecord({"context": Array(current + change)}), "m": MetricRecord({"num-examples": 1})}
        )
        arrays, _ = strategy.aggregate_train(number, [Message(content, reply_to=request)])
        current = arrays["context"].numpy()
        result.append(current)
    return result


@pytest.mark.parametrize(
    ("name", "options", "flower"),
    [
        ("fedavgm", {"lr": 0.5, "momentum": 0.8}, FedAvgM(server_learning_rate=0.5, server_momentum=0.8)),
        ("fedadam", {"lr": 0.1}, FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)),
        ("fedyogi", {"lr": 0.1, "beta2": 0.5}, FedYogi(eta=0.1, beta_1=0.9, beta_2=0.5, tau=1e-3)),
    ],
)
def test_the_optimizers_are_flowers(name: str, options: dict[str, object], flower: Any) -> None:
    rng = np.random.default_rng(0)
    learnt = [rng.normal(0, 0.1, START.shape).astype(np.float32) for _ in range(4)]
    step, current, state = _step(name, **options), START, {}
    for number, (change, expected) in enumerate(zip(learnt, _flowers(flower, learnt), strict=True), 1):
        outcome = step.next({"context": current + change}, round_of(current, number=number), state)
        current, state = outcome.arrays["context"], outcome.state
        assert np.allclose(current, expected, atol=1e-5)


# --- the line to the start --------------------------------------------------------------------------------------


@given(VALUES, VALUES, st.floats(0, 1))
@settings(max_examples=30)
def test_interpolation_lies_between_the_start_of_the_run_and_the_aggregate(
    initial: np.ndarray, aggregate: np.ndarray, coefficient: float
) -> None:
    step = _step("interpolate", coefficient=coefficient)
    last = step.next({"context": aggregate}, round_of(START, number=10, initial=initial), {}).arrays["context"]
    assert np.allclose(last, (1 - coefficient) * initial + coefficient * aggregate, atol=1e-3)
    assert last.dtype == np.float32
    before = step.next({"context": aggregate}, round_of(START, number=9, initial=initial), {}).arrays["context"]
    assert np.array_equal(before, aggregate)


@given(VALUES, VALUES, st.floats(0.01, 50))
@settings(max_examples=50)
def test_the_budget_holds_and_is_used(initial: np.ndarray, aggregate: np.ndarray, budget: float) -> None:
    """Distance from the start as the drift, so that the right answer is known."""

    def drift(arrays: dict[str, np.ndarray]) -> float:
        return float(np.abs(arrays["context"].astype(np.float64) - initial).mean())

    whole = drift({"context": aggregate})
    assume(whole > budget)
    scale, arrays = pulled_back({"context": aggregate}, {"context": initial}, drift, budget)
    assert drift(arrays) <= budget + 1e-4
    assert scale == pytest.approx(budget / whole, abs=1e-3)


@given(st.integers(0, 4095), st.floats(0.2, 4), st.floats(0, 0.9), st.floats(1e-3, 10))
@settings(max_examples=200)
def test_the_last_point_within_the_bound_is_bisections_and_takes_fewer_measurements(
    expected: int, power: float, begin: float, size: float
) -> None:
    """Growing values of many shapes, which cross the bound between two points."""
    points, measured = 4096, []

    def value(point: int) -> float:
        measured.append(point)
        return size * (begin + (1 - begin) * (point / points) ** power)

    bound = (value(expected) + value(expected + 1)) / 2
    assume(value(expected) < bound < value(expected + 1))
    ends = value(0), value(points)
    measured.clear()
    assert last_within(value, ends, bound, points) == expected
    assert len(set(measured)) == len(measured) <= 4 * 12


@pytest.mark.parametrize("power", [2, 3, 4])
def test_drift_that_grows_like_a_power_takes_half_of_a_bisections_measurements(power: int) -> None:
    measured: list[int] = []

    def value(point: int) -> float:
        measured.append(point)
        return float((point / 4096) ** power)

    crossings = range(400, 4096, 100)
    for expected in crossings:
        assert last_within(value, (0.0, 1.0), ((expected + 0.5) / 4096) ** power, 4096) == expected
    assert len(measured) <= 6 * len(crossings)


def test_where_the_line_begins_at_the_bound_a_later_point_within_it_is_found() -> None:
    """Drift that first falls, as on the way from a random context, and grows only later."""
    assert last_within(lambda point: (point / 64 - 0.25) ** 2, (0.0625, 0.5625), 0.0625, 64) == 32


@pytest.mark.parametrize(
    ("previous", "aggregate", "expected", "scale"),
    [
        (1.0, 1.5, 1.5, 1.0),  # within the budget
        (1.0, 4.0, 2.0, 0.5),  # back on the line to the start of the run, where drift is 0
        (3.0, 4.0, 3.0, 0.75),  # the round began beyond the budget: no farther than that
        (3.0, 2.5, 2.5, 1.0),  # on the way back
    ],
)
def test_anchored_aggregation_draws_back_what_drifts_too_far(
    previous: float, aggregate: float, expected: float, scale: float
) -> None:
    now = round_of(np.full((2, 3), previous, np.float32), initial=np.zeros((2, 3), np.float32))
    outcome = _step("anchored", drift=2.0).next({"context": np.full((2, 3), aggregate, np.float32)}, now, {})
    assert np.allclose(outcome.arrays["context"], expected, atol=2e-3)
    assert outcome.figures["aggregate_drift"] == pytest.approx(aggregate)
    assert outcome.figures["drift"] == pytest.approx(expected, abs=2e-3)
    assert outcome.figures["scale"] == pytest.approx(scale, abs=1e-3)


def test_a_start_beyond_the_bound_is_no_way_back() -> None:
    now = round_of(np.full((2, 3), 1.0, np.float32), initial=np.full((2, 3), 9.0, np.float32))
    outcome = _step("anchored", drift=0.5).next({"context": np.full((2, 3), 2.0, np.float32)}, now, {})
    assert np.allclose(outcome.arrays["context"], 1.0, atol=2e-3)


def test_steps_follow_one_another_and_keep_their_states_apart() -> None:
    composition = compose("fedavgm(momentum=0.5)+fedavgm(momentum=0.1)+drift", WeightedAverage())
    now, answers = round_of(START), answers_of(np.stack([START + 1] * 3))
    first = composition.aggregate(answers, now, {})
    assert set(first.state) == {"1/v/context", "2/v/context"}
    second = composition.aggregate(answers, now, first.state)
    assert np.allclose(second.state["1/v/context"], 1.5)
    assert np.allclose(second.state["2/v/context"], 1.6)
    assert np.allclose(second.arrays["context"], START + 1.6)
    assert set(second.figures) == {"drift"}
