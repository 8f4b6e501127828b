"""Whatever one site answers, the run goes on: the site is left out with one line, and the others count exactly."""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.config.run_config import RunConfig
from fedgraft.core.randomness import public_key
from fedgraft.data.results import site_results
from fedgraft.data.split import Scope
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import (
    COUNTS,
    FAILURES,
    MEASURED,
    METRICS,
    NUM_EXAMPLES,
    SHARED,
    UNMEASURED,
    Arrays,
    pack,
    to_array_record,
    unpack,
)
from fedgraft.methods.plan import Plan
from fedgraft.server import summary
from fedgraft.server.measurements import Measurements, evaluated, measured
from fedgraft.server.rounds import RoundDriver, RoundResult
from fedgraft.server.router import Reply
from fedgraft.server.site_bounds import ToldBounds

SITES, BAD, IMAGES = 5, 3, 40
START: Arrays = {"context": np.full((2, 3), 0.5, np.float32), "scale": np.ones(1, np.float32)}
SCOPES = (Scope("personal", (0, 1, 2)),)
TABLE = np.array([[4, 1, 0], [0, 3, 0], [1, 1, 2]], np.float32)
PAIR = [int(np.trace(TABLE)), int(TABLE.sum())]
OWN_DATA = {"protocol": "own-data", "protocol_options": {"class_names": ["cat", "dog", "eel"]}}
CONFIG = RunConfig.build({"method": "promptfl", "sites": SITES, **OWN_DATA})
ODD_NUMBERS: list[Any] = [
    -1, 0, 10**18, 2**62, 0.5, 7.0, -0.0, 1e308, math.nan, math.inf, -math.inf, [], [1], [1, 2, 3], [3, 2], [-1, 4],
    [2**61, 2**62], [0.5, 1.0], [math.nan, 1.0],
]  # fmt: skip
ODD_TEXTS = [
    "",
    "\x1b[2J\x1b[31mred",
    "two\nlines",
    "x" * 10**6,
    "<script>alert(1)</script>",
    "[bold]b[/bold]",
    "\u202egnp",
]


def _bounds() -> ToldBounds:
    bounds = ToldBounds(CONFIG, classes=3)
    for site in range(SITES):
        bounds.note(site, IMAGES)
    return bounds


def _honest(site: int) -> dict[str, Any]:
    """The records of one site's answer, to a training that measures first, and to an evaluation."""
    rng = np.random.default_rng(site)
    arrays = {name: (value + rng.normal(0, 0.1, value.shape)).astype(np.float32) for name, value in START.items()}
    metrics = MetricRecord({NUM_EXAMPLES: 10 + site, "loss": 1.0 + site, "seconds": 0.25})
    pairs = MetricRecord({"personal": PAIR})
    train = RecordDict({SHARED: to_array_record(arrays), METRICS: metrics, MEASURED: pairs})
    evaluate = RecordDict({METRICS: pairs, COUNTS: to_array_record({"personal": TABLE})})
    return {"train": train, "evaluate": evaluate}


def _replies(kind: str, content: RecordDict | None) -> list[Reply]:
    """Every site's reply as it comes through the wire and its node; the bad site's node answers with the content."""
    replies = []
    for site in range(SITES):
        packed = content if site == BAD else pack({site: _honest(site)[kind]})
        if packed is None:
            continue
        answer = unpack(record_from_bytes(record_bytes(packed)), [site])[site]
        replies.append(Reply(site, error=answer) if isinstance(answer, str) else Reply(site, answer))
    return replies


def _concluded(content: RecordDict | None) -> tuple[RoundResult, Measurements]:
    driver = RoundDriver(Plan.of(CONFIG), "", START, public_key(0), lambda arrays: 0.0, _bounds())
    replies = _replies("train", content)
    result = driver.conclude(1, START, replies, {})
    summary.training_rows({"round": 1, "fold": None}, result, replies, 10, 1.0)
    return result, measured(replies, SCOPES, _bounds())


def _evaluated(content: RecordDict | None) -> Measurements:
    return evaluated(range(SITES), _replies("evaluate", content), SCOPES, _bounds(), detailed=True)


WITHOUT, MEASURED_WITHOUT = _concluded(None)
EVALUATED_WITHOUT = _evaluated(None)


def _npy(header: str, data: bytes) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def _header(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def _pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


ODD_ARRAYS: dict[str, bytes] = {
    "terabytes": _npy(_header("(1099511627776,)"), bytes(24)),
    "a product beyond 64 bits": _npy(_header("(4294967296, 4294967296, 4294967296)"), bytes(24)),
    "pickle": _pickled(),
    "objects": _npy(_header("(2, 3)", "'|O'"), bytes(24)),
    "columns first": _npy(_header("(2, 3)", order="True"), bytes(24)),
    "too short": _npy(_header("(2, 3)"), bytes(23)),
    "too long": _npy(_header("(2, 3)"), bytes(25)),
    "no header": b"",
    "code": _npy("__import__('os').abort()", bytes(24)),
    "nested": _npy("(" * 900, b""),
    "negative": _npy(_header("(-2, -3)"), bytes(24)),
    "double": _npy(_header("(2, 3)", "'<f8'"), bytes(48)),
    "not a number": _npy(_header("(2, 3)"), np.full(6, np.nan, np.float32).tobytes()),
    "infinite": _npy(_header("(2, 3)"), np.full(6, np.inf, np.float32).tobytes()),
    "huge": _npy(_header("(2, 3)"), np.full(6, 3e38, np.float32).tobytes()),
    "another shape": _npy(_header("(3, 2)"), bytes(24)),
}


def _array(data: bytes) -> Array:
    return Array("float32", (2, 3), "numpy.ndarray", data)


# --- each fault of its own ------------------------------------------------------------------------


def _with(kind: str, change: Callable[[RecordDict], Any]) -> RecordDict:
    content = _honest(BAD)[kind]
    change(content)
    return pack({BAD: content})


@pytest.mark.parametrize("fault", ODD_ARRAYS)
def test_an_array_that_is_not_what_it_claims_leaves_out_its_site(fault: str) -> None:
    def change(content: RecordDict) -> None:
        content.array_records[SHARED]["context"] = _array(ODD_ARRAYS[fault])

    result, _ = _concluded(_with("train", change))
    assert [entry.site for entry in result.left_out] == [BAD]
    assert "context" in result.left_out[0].reason or "its update is" in result.left_out[0].reason
    assert all((result.arrays[name] == array).all() for name, array in WITHOUT.arrays.items())


def test_a_claim_of_terabytes_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("NumPy read the header")

    monkeypatch.setattr(np, "load", load)
    test_an_array_that_is_not_what_it_claims_leaves_out_its_site("terabytes")


@pytest.mark.parametrize("value", [0, -5, 10**18, IMAGES + 1, 7.0, math.nan, [3], [3, 4]], ids=str)
def test_a_number_of_examples_that_cannot_be_leaves_out_its_site(value: Any) -> None:
    def change(content: RecordDict) -> None:
        content.metric_records[METRICS][NUM_EXAMPLES] = value

    result, _ = _concluded(_with("train", change))
    (entry,) = result.left_out
    assert (entry.site, entry.reason.partition(" is ")[0]) == (BAD, "its answer cannot be read: 'num-examples'")
    assert all((result.arrays[name] == array).all() for name, array in WITHOUT.arrays.items())


def test_where_a_site_does_not_say_how_many_images_it_has_the_shots_bound_it() -> None:
    bounds = ToldBounds(CONFIG, classes=3)
    assert bounds.training(0) == CONFIG.shots * 3
    assert bounds.test(0, "personal") == CONFIG.max_site_images
    unlimited = ToldBounds(CONFIG.model_copy(update={"shots": 0, "max_site_images": 500}), classes=3)
    assert unlimited.training(0) == 500


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e7, -1e7, [1.0]], ids=str)
def test_a_loss_out_of_bounds_leaves_out_its_site(value: Any) -> None:
    def change(content: RecordDict) -> None:
        content.metric_records[METRICS]["loss"] = value

    result, _ = _concluded(_with("train", change))
    assert [entry.site for entry in result.left_out] == [BAD]
    assert "loss" in result.left_out[0].reason
    assert result.figures["loss"] == WITHOUT.figures["loss"]


@pytest.mark.parametrize("pair", [[3, 2], [-1, 4], [1], [1, 2, 3], [0.5, 1.0], [0, IMAGES + 1], 7], ids=str)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_counts_that_cannot_be_leave_out_their_site(kind: str, pair: Any) -> None:
    def change(content: RecordDict) -> None:
        content.metric_records[MEASURED if kind == "train" else METRICS]["personal"] = pair

    content = _with(kind, change)
    outcome = _concluded(content)[1] if kind == "train" else _evaluated(content)
    assert [entry.site for entry in outcome.left_out] == [BAD]
    assert "'personal'" in outcome.left_out[0].reason
    assert outcome.counts == MEASURED_WITHOUT.counts


@pytest.mark.parametrize(
    "table",
    [TABLE[:2], TABLE - 1, TABLE + 0.5, TABLE * 2, TABLE[[1, 0, 2]], np.full((3, 3), np.nan, np.float32), TABLE[None]],
    ids=[
        "shape",
        "negative",
        "no counts",
        "more than there are",
        "more wrong than there are",
        "not a number",
        "three axes",
    ],
)
def test_confusion_counts_that_cannot_be_leave_out_their_site(table: Any) -> None:
    def change(content: RecordDict) -> None:
        content[COUNTS] = to_array_record({"personal": table})

    outcome = _evaluated(_with("evaluate", change))
    assert [entry.site for entry in outcome.left_out] == [BAD]
    assert (outcome.confusions["personal"] == TABLE * (SITES - 1)).all()


def test_a_site_that_keeps_its_confusion_counts_to_itself_is_measured_all_the_same() -> None:
    outcome = _evaluated(_with("evaluate", lambda content: content.pop(COUNTS)))
    assert outcome.left_out == []
    assert outcome.counts["personal"][BAD] == tuple(PAIR)
    assert (outcome.confusions["personal"] == TABLE * (SITES - 1)).all()


def test_a_site_may_leave_out_small_confusion_counts() -> None:
    coarse = np.where(TABLE < 3, 0, TABLE)
    outcome = _evaluated(
        _with("evaluate", lambda content: content.update({COUNTS: to_array_record({"personal": coarse})}))
    )
    assert outcome.left_out == []
    assert (outcome.confusions["personal"] == TABLE * (SITES - 1) + coarse).all()


def test_confusion_counts_that_nobody_asked_for_are_not_looked_at() -> None:
    outcome = evaluated(range(SITES), _replies("evaluate", None), SCOPES, _bounds(), detailed=False)
    assert outcome.confusions == {}


@pytest.mark.parametrize(
    "name", ["shared", f"{BAD}shared", "4/shared", "x/shared", f"{BAD}/", "999999999999999/a", "/"]
)
def test_a_record_of_no_site_or_of_another_leaves_out_the_node_that_sent_it(name: str) -> None:
    content = pack({BAD: _honest(BAD)["train"]})
    content[name] = to_array_record(START)
    result, _ = _concluded(content)
    assert [entry.site for entry in result.left_out] == [BAD]
    assert result.counted == WITHOUT.counted


def test_failures_that_are_no_texts_and_reasons_that_are_missing_are_one_line_each() -> None:
    content = RecordDict({FAILURES: ConfigRecord({str(BAD): 7})})
    assert _concluded(content)[0].left_out[0].reason == "it failed and gave no reason"
    content = _with("train", lambda content: (content.pop(MEASURED), content.update({UNMEASURED: ConfigRecord({})})))
    assert _concluded(content)[1].left_out[0].reason == "its answer cannot be read: 'reason' is missing, not a text"


@pytest.mark.parametrize("said", ODD_TEXTS)
def test_a_sites_reason_is_one_short_plain_line(said: str) -> None:
    (entry,) = _concluded(RecordDict({FAILURES: ConfigRecord({str(BAD): said})}))[0].left_out
    assert 0 < len(entry.reason) <= 300
    assert entry.reason.isprintable()
    assert not set("<>[]\u202e") & set(entry.reason)


# --- any fault ------------------------------------------------------------------------------------

_metric = st.sampled_from(ODD_NUMBERS) | st.integers(-(2**60), 2**60) | st.floats(width=32)
_value = st.sampled_from(ODD_TEXTS) | st.integers(-(2**60), 2**60) | st.booleans() | st.binary(max_size=8)
_key = st.sampled_from([NUM_EXAMPLES, "loss", "seconds", "personal", "novel", "reason", str(BAD), *ODD_TEXTS[:3]])
_data = st.sampled_from([*ODD_ARRAYS.values(), *map(bytes, range(3))]) | st.binary(max_size=200)
_record = st.one_of(
    st.dictionaries(_key, _metric, max_size=4).map(MetricRecord),
    st.dictionaries(_key, _value, max_size=4).map(ConfigRecord),
    st.dictionaries(st.sampled_from(["context", "scale", "personal", ODD_TEXTS[3]]), _data.map(_array), max_size=3).map(
        ArrayRecord
    ),
)
_name = st.sampled_from([SHARED, METRICS, MEASURED, UNMEASURED, COUNTS]).map(lambda name: f"{BAD}/{name}")
_odd_name = st.sampled_from([FAILURES, "4/shared", "shared", "/", "", *ODD_TEXTS]) | st.text(max_size=8)
_changes = st.lists(st.tuples(_name | _odd_name, st.none() | _record), min_size=1, max_size=4)
_edits = st.lists(st.tuples(_key, _metric), max_size=2)


def _mutated(kind: str, changes: list[tuple[str, Any]], edits: list[tuple[str, Any]]) -> RecordDict:
    content = pack({BAD: _honest(BAD)[kind]})
    for key, value in edits:
        content.metric_records[f"{BAD}/{METRICS}"][key] = value
    for name, record in changes:
        if record is None:
            content.pop(name, None)
        else:
            content[name] = record
    return content


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.just([]) | _changes, edits=_edits)
def test_no_training_answer_ends_a_round_or_changes_what_others_count(changes: Any, edits: Any) -> None:
    result, outcome = _concluded(_mutated("train", changes, edits))
    if BAD in result.counted:  # what was changed may still be an answer, within all bounds
        assert 1 <= result.figures["num_examples"] - WITHOUT.figures["num_examples"] <= IMAGES
        assert all(np.isfinite(array).all() for array in result.arrays.values())
    else:
        assert [entry.site for entry in result.left_out] == [BAD]
        assert result.left_out[0].reason.isprintable()
        assert all((result.arrays[name] == array).all() for name, array in WITHOUT.arrays.items())
    assert [site for site in result.counted if site != BAD] == WITHOUT.counted
    _assert_honest_counts(outcome)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.just([]) | _changes, edits=_edits)
def test_no_evaluation_ends_a_run_or_changes_what_others_count(changes: Any, edits: Any) -> None:
    outcome = _evaluated(_mutated("evaluate", changes, edits))
    _assert_honest_counts(outcome)
    assert len(outcome.left_out) + len(outcome.counts["personal"]) == SITES


def _assert_honest_counts(outcome: Measurements) -> None:
    counts = dict(outcome.counts["personal"])
    if BAD in counts:
        right, total = counts.pop(BAD)
        assert 0 <= right <= total <= IMAGES
    assert counts == EVALUATED_WITHOUT.counts["personal"]
    assert {entry.site for entry in outcome.left_out} <= {BAD}
    assert all(entry.reason.isprintable() and len(entry.reason) < 500 for entry in outcome.left_out)


def test_a_reason_of_an_entry_is_never_longer_than_a_line() -> None:
    arrays = {f"{number}" * 50: np.zeros(1, np.float32) for number in range(1000)}
    content = _with("train", lambda content: content.update({SHARED: to_array_record(arrays)}))
    (entry,) = _concluded(content)[0].left_out
    assert len(entry.reason) < 400
    assert dataclasses.asdict(entry)["site"] == BAD


def test_a_run_in_which_nobody_has_a_test_image_still_has_a_result() -> None:
    rows = [{"round": 0, "fold": None, **summary.evaluation_row({"round": 0}, "personal", {0: (0, 0), 1: (0, 0)})}]
    assert all(math.isnan(value) for value in site_results(rows, 1).values())
