"""The aggregation rule as a function of arrays, and the checks before it."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgraft.errors import RunFailed
from fedgraft.messages import METRICS, NUM_EXAMPLES, SHARED, to_array_record
from fedgraft.strategies.answers import Answer, checked, problem
from fedgraft.strategies.weighted_average import WeightedAverage, weighted_average

FLOATS = st.floats(-100, 100, width=32)
UPDATES = hnp.arrays(np.float32, (5, 2, 3), elements=FLOATS)
WEIGHTS = st.lists(st.integers(1, 500), min_size=5, max_size=5)


def _answers(updates: np.ndarray, weights: list[int]) -> list[Answer]:
    return [Answer(site, {"context": updates[site]}, weights[site], 0.0) for site in range(len(weights))]


@given(UPDATES, WEIGHTS)
def test_the_mean_is_weighted_by_examples(updates: np.ndarray, weights: list[int]) -> None:
    mean = weighted_average(_answers(updates, weights))["context"]
    assert np.allclose(mean, np.average(updates, axis=0, weights=weights), atol=1e-4)
    assert mean.dtype == np.float32


@given(hnp.arrays(np.float32, (2, 3), elements=FLOATS), WEIGHTS)
def test_equal_updates_change_nothing(update: np.ndarray, weights: list[int]) -> None:
    assert np.allclose(weighted_average(_answers(np.stack([update] * 5), weights))["context"], update, rtol=1e-6)


@settings(max_examples=30)
@given(UPDATES, WEIGHTS, st.permutations(range(5)))
def test_the_order_of_arrival_changes_nothing(updates: np.ndarray, weights: list[int], order: list[int]) -> None:
    """Not even the last bit: answers are sorted by site before they are summed."""
    answers = _answers(updates, weights)
    reference = {"context": np.zeros((2, 3), np.float32)}
    straight, _ = checked(answers, reference)
    shuffled, _ = checked([answers[index] for index in order], reference)
    assert [answer.site for answer in straight] == [answer.site for answer in shuffled]
    if straight:
        assert weighted_average(straight)["context"].tobytes() == weighted_average(shuffled)["context"].tobytes()


REFERENCE = {"context": np.zeros((2, 3), np.float32)}
GOOD = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "examples", "word"),
    [
        ({"other": GOOD}, 5, "other"),
        ({"context": GOOD, "U": GOOD}, 5, "U"),
        ({"context": GOOD.T}, 5, "shape"),
        ({"context": GOOD.astype(np.float64)}, 5, "dtype"),
        ({"context": GOOD * np.nan}, 5, "finite"),
        ({"context": GOOD * np.inf}, 5, "finite"),
        ({"context": GOOD}, 0, "examples"),
    ],
)
def test_a_bad_answer_is_named(arrays: dict[str, np.ndarray], examples: int, word: str) -> None:
    reason = problem(Answer(3, arrays, examples, 0.0), REFERENCE)
    assert reason is not None
    assert word in reason


def test_a_loss_that_is_not_a_number_is_left_out_before_it_reaches_the_metrics() -> None:
    kept, left_out = checked([Answer(0, {"context": GOOD}, 5, float("nan"))], REFERENCE)
    assert kept == []
    assert left_out[0].reason == "it reports the loss nan"


def test_an_update_a_thousand_times_too_large_is_left_out() -> None:
    answers = _answers(np.stack([GOOD, GOOD * 1000, GOOD, GOOD]), [1, 1, 1, 1])
    kept, left_out = checked(answers, REFERENCE)
    assert [answer.site for answer in kept] == [0, 2, 3]
    assert left_out[0].site == 1
    assert "1000 times" in left_out[0].reason


def test_an_honest_site_that_still_learns_is_kept_where_the_others_have_finished() -> None:
    start = {"context": GOOD}
    answers = _answers(np.stack([GOOD + 1e-4, GOOD + 0.02, GOOD + 1e-4]), [1, 1, 1])
    kept, left_out = checked(answers, start)
    assert [answer.site for answer in kept] == [0, 1, 2]
    assert left_out == []


# --- as a Flower strategy -------------------------------------------------------------------------

NODES = {site: 1000 - site for site in range(8)}


@pytest.fixture(autouse=True)
def _as_a_server_task() -> None:
    """Flower's messages ask who sends them."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def _ask(strategy: WeightedAverage, server_round: int) -> list[Message]:
    config = ConfigRecord({})
    return list(strategy.configure_train(server_round, to_array_record(REFERENCE), config, None))  # type: ignore[arg-type]


def _reply(message: Message, value: float | None) -> Message:
    if value is None:
        return Message(Error(100, "the disk is full"), reply_to=message)
    metrics = MetricRecord({NUM_EXAMPLES: 10, "loss": 1.0})
    return Message(RecordDict({SHARED: to_array_record({"context": GOOD * value}), METRICS: metrics}), reply_to=message)


def _answered(message: Message, value: float | None) -> Message:
    message.metadata.__dict__["_message_id"] = "an-id"
    return _reply(message, value)


def test_participation_holds_in_the_first_round_too() -> None:
    """T5: published code trains every client in its first round whatever the fraction."""
    strategy = WeightedAverage(NODES, seed=0, fold="", participation=0.25)
    rounds = [strategy.participants(server_round) for server_round in range(1, 30)]
    assert all(len(sites) == 2 for sites in rounds)
    assert {site for sites in rounds for site in sites} == set(NODES)
    assert len(_ask(strategy, 1)) == 2
    assert rounds == [WeightedAverage(NODES, 0, "", 0.25).participants(r) for r in range(1, 30)]
    assert rounds != [WeightedAverage(NODES, 1, "", 0.25).participants(r) for r in range(1, 30)]


def test_a_failing_site_is_named_and_the_round_goes_on() -> None:
    strategy = WeightedAverage(NODES, seed=0, fold="")
    replies = [
        _answered(message, None if message.metadata.dst_node_id == NODES[4] else 2.0) for message in _ask(strategy, 1)
    ]
    silent = NODES[6]
    arrays, _ = strategy.aggregate_train(1, [reply for reply in replies if reply.metadata.src_node_id != silent])
    assert arrays is not None
    assert np.allclose(arrays["context"].numpy(), 2.0)
    assert [(entry.site, entry.reason) for entry in strategy.left_out] == [
        (4, "the disk is full"),
        (6, "it did not answer in time"),
    ]


def test_a_round_below_its_quorum_stops_with_the_reasons() -> None:
    strategy = WeightedAverage(NODES, seed=0, fold="", quorum=0.75)
    replies = [_answered(message, 1.0 if index < 5 else None) for index, message in enumerate(_ask(strategy, 1))]
    with pytest.raises(RunFailed, match=r"5 sound answers of 8.*disk is full"):
        strategy.aggregate_train(1, replies)
