"""The rounds of a server: who is asked, which answers count, and when a round stops with its reasons."""

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.randomness import public_key
from fedgraft.flower.messages import METRICS, NUM_EXAMPLES, SHARED, to_array_record
from fedgraft.methods.plan import Plan
from fedgraft.server import summary
from fedgraft.server.rounds import RoundDriver, RoundResult
from fedgraft.server.router import Reply
from fedgraft.strategies.components import State

REFERENCE = {"context": np.zeros((2, 3), np.float32)}
GOOD = np.ones((2, 3), np.float32)
SITES = 8


def _driver(**settings: object) -> RoundDriver:
    plan = Plan.of(RunConfig.build({"method": "promptfl", "sites": SITES, **settings}))
    return RoundDriver(plan, "", REFERENCE, public_key(0), drift=lambda arrays: 0.0)


def _reply(site: int, value: float | None, examples: int = 10) -> Reply:
    if value is None:
        return Reply(site, error="the disk is full")
    metrics = MetricRecord({NUM_EXAMPLES: examples, "loss": 1.0})
    return Reply(site, RecordDict({SHARED: to_array_record({"context": GOOD * value}), METRICS: metrics}))


def _concluded(driver: RoundDriver, values: list[float | None]) -> RoundResult:
    """A first round in which the sites answer in turn with these values; None fails."""
    return driver.conclude(1, REFERENCE, [_reply(site, value) for site, value in enumerate(values)], {})


def test_participation_holds_in_the_first_round_too() -> None:
    """T5: published code trains every client in its first round whatever the fraction."""
    driver = _driver(participation=0.25)
    rounds = [driver.participants(server_round) for server_round in range(1, 30)]
    assert all(len(sites) == 2 for sites in rounds)
    assert {site for sites in rounds for site in sites} == set(range(SITES))
    assert rounds == [_driver(participation=0.25).participants(number) for number in range(1, 30)]
    assert rounds != [_driver(participation=0.25, seed=1).participants(number) for number in range(1, 30)]


def test_a_failing_site_is_named_and_the_round_goes_on() -> None:
    replies = [_reply(site, None if site == 4 else 2.0) for site in range(SITES) if site != 6]
    result = _driver().conclude(1, REFERENCE, replies, {})
    assert np.allclose(result.arrays["context"], 2.0)
    assert result.counted == [0, 1, 2, 3, 5, 7]
    assert [(entry.site, entry.reason) for entry in result.left_out] == [
        (4, "the disk is full"),
        (6, "it did not answer in time"),
    ]


def test_the_order_in_which_answers_arrive_changes_not_one_bit() -> None:
    values = np.random.default_rng(0).normal(1, 0.1, SITES)
    replies = [_reply(site, float(value)) for site, value in enumerate(values)]
    one = _driver().conclude(1, REFERENCE, replies, {})
    other = _driver().conclude(1, REFERENCE, replies[::-1], {})
    assert one.arrays["context"].tobytes() == other.arrays["context"].tobytes()
    assert one.figures == other.figures


def test_an_answer_that_is_no_answer_is_left_out_with_what_is_wrong() -> None:
    replies = [_reply(site, 1.0) for site in range(SITES)]
    replies[3] = Reply(3, RecordDict({METRICS: MetricRecord({"loss": 1.0})}))
    (entry,) = _driver().conclude(1, REFERENCE, replies, {}).left_out
    assert entry.site == 3
    assert entry.reason.startswith("its answer cannot be read")


def test_a_round_below_its_quorum_stops_with_the_reasons() -> None:
    with pytest.raises(RunFailed, match=r"5 valid answers of 8.*disk is full"):
        _concluded(_driver(quorum=0.75), [1.0] * 5 + [None] * 3)


def test_a_users_rule_takes_the_place_of_the_methods_own() -> None:
    result = _concluded(_driver(strategy="median"), [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 30.0, 40.0])
    assert np.allclose(result.arrays["context"], 1.0)


def test_a_round_with_too_few_answers_for_the_rule_stops() -> None:
    with pytest.raises(RunFailed, match=r"6 valid answers of 8, but the strategy needs 7"):
        _concluded(_driver(strategy="bulyan"), [1.0] * 6 + [None] * 2)


def test_under_clipping_no_answer_is_left_out_for_its_size() -> None:
    """Leaving it out would let one site decide whether another counts, and the accounting would not hold."""
    driver = _driver(strategy="central-dp(clipping_norm=1.0, noise_multiplier=1e-9)")
    result = _concluded(driver, [1e5 if site == 3 else 0.01 for site in range(SITES)])
    assert result.left_out == []
    length = float(np.linalg.norm(result.arrays["context"]))
    assert length == pytest.approx((7 * 0.01 * np.sqrt(6) + 1) / 8, rel=1e-4)


# --- how far one site can go ----------------------------------------------------------------------

OWN_DATA = {"protocol": "own-data", "protocol_options": {"class_names": ["cat", "dog"]}}


def test_a_deployed_sites_update_is_cut_at_a_multiple_of_the_usual_one_and_the_memory_is_resumed() -> None:
    start = {"context": np.full((2, 3), 100.0, np.float32)}
    driver = _driver(**OWN_DATA)

    def concluded(values: list[float], state: State) -> RoundResult:
        return driver.conclude(1, start, [_reply(site, value) for site, value in enumerate(values)], state)

    first = concluded([101.0] * 7 + [140.0], {})
    length = float(np.sqrt(6))
    assert first.shortened == {7: pytest.approx(4.0)}
    assert np.allclose(first.arrays["context"], 100 + (7 * 1 + 10) / 8)
    assert first.state["usual norm"] == pytest.approx(length)
    second = concluded([140.0] * 8, first.state)
    assert np.allclose(second.arrays["context"], 110.0)
    assert np.allclose(concluded([140.0] * 8, {}).arrays["context"], 140.0)
    unbounded = _driver(**OWN_DATA, norm_bound=0.0)
    assert unbounded.conclude(1, start, [_reply(site, 101.0) for site in range(8)], {}).state == {}


def test_a_simulation_has_no_norm_bound() -> None:
    result = _driver().conclude(1, {"context": GOOD * 100}, [_reply(s, 101.0 + 39 * (s == 7)) for s in range(8)], {})
    assert result.shortened == {}
    assert result.state == {}


def test_no_site_weighs_more_than_the_operator_lets_it() -> None:
    replies = [_reply(site, 1.0 if site else 2.0, examples=10**5 if site == 0 else 10) for site in range(SITES)]
    arrays = _driver(max_site_share=0.3).conclude(1, REFERENCE, replies, {}).arrays
    assert np.allclose(arrays["context"], 1.3)


def test_a_site_left_out_three_times_is_named_at_the_end_with_its_reasons() -> None:
    rows = [summary.left_out_row({"round": number, "fold": None}, 3, "the disk is full") for number in range(3)]
    rows += [summary.left_out_row({"round": 4, "fold": None}, 3, "late")]
    rows += [summary.left_out_row({"round": number, "fold": None}, 1, "late") for number in range(2)]
    (entry,) = summary.often_left_out(rows, {3: "north"})
    assert entry == {"site": 3, "name": "north", "times": 4, "reasons": {"the disk is full": 3, "late": 1}}
    assert summary.often_left_out_sentence(entry) == (
        "Site 3, 'north', was left out 4 times: the disk is full (3 times); late (once)."
    )


# --- what a resumed run goes on from --------------------------------------------------------------------------------

MEMORIES: list[tuple[str, State]] = [
    ("fedavgm", {"1/v/context": np.zeros((2, 3))}),
    ("fedadam", {"1/m/context": np.zeros((2, 3)), "1/v/context": np.zeros((2, 3))}),
    ("adaptive-dp", {"0/clipping_norm": np.asarray(0.5)}),
    ("fedavg", {"usual norm": np.asarray(0.5), "unused sums": np.asarray(2)}),
]


@pytest.mark.parametrize(("strategy", "state"), MEMORIES, ids=[strategy for strategy, _ in MEMORIES])
def test_a_run_goes_on_from_what_its_strategy_remembers_and_from_nothing_else(strategy: str, state: State) -> None:
    driver = _driver(strategy=strategy)
    driver.require_memory(state)
    driver.require_memory({})
    for name, array in state.items():
        for other in (np.zeros((7, 7)), np.full(array.shape, np.nan)):
            with pytest.raises(UserError, match="The checkpoint's"):
                driver.require_memory({**state, name: other})


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "adaptive-dp", "median+anchored+interpolate"])
def test_what_a_round_leaves_is_what_a_resumed_run_expects(strategy: str) -> None:
    driver = _driver(strategy=strategy)
    driver.require_memory(_concluded(driver, [1.0] * SITES).state)
