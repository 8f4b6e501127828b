"""What a user writes becomes parts, and what cannot work is refused with a sentence before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft import RunConfig, UserError, simulate
from fedgraft.config.registry import STRATEGIES
from fedgraft.strategies.composition import compose
from fedgraft.strategies.components import Rule, SitePart, Step
from fedgraft.config.notation import Term, parse_terms, split
from tests.strategies.conftest import answers_of, round_of


def test_terms_and_their_options() -> None:
    assert parse_terms("") == []
    assert parse_terms("median") == [Term("median")]
    assert parse_terms("local-dp( delta=1e-6 ) + trimmed-mean(fraction=0.2)") == [
        Term("local-dp", {"delta": 1e-6}),
        Term("trimmed-mean", {"fraction": 0.2}),
    ]
    assert parse_terms("a(c=word, d=1e+3, e=true)") == [Term("a", {"c": "word", "d": 1000.0, "e": True})]
    assert split("a,b(c=1,d=2),e", ",") == ["a", "b(c=1,d=2)", "e"]


@pytest.mark.parametrize("text", ["median(", "median)", "median+", "+median", "2", "median(fraction)", "a b"])
def test_what_is_no_term_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_terms(text)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strategy": "medain"}, r"no strategy 'medain'. Did you mean 'median'"),
        ({"strategy": "krum(evil=1)"}, r"no option of 'krum' 'evil'"),
        ({"strategy": "median(evil=1)"}, r"'median' has no options"),
        ({"strategy": "krum(malicious=0)"}, r"'malicious' of 'krum' has the value 0"),
        ({"strategy": "trimmed-mean(fraction=0.5)"}, r"'fraction'"),
        ({"strategy": "krum(malicious=2)", "sites": 6}, r"needs the answers of 7 sites.*asks 6 of its 6"),
        ({"strategy": "bulyan", "sites": 10, "participation": 0.5}, r"needs the answers of 7 sites.*asks 5 of its 10"),
        ({"strategy": "median+krum"}, r"more than one rule"),
        ({"strategy": "median+local-dp"}, r"out of order"),
        ({"strategy": "local-dp+central-dp"}, r"privacy twice"),
        ({"strategy": "adaptive-dp(count_noise=0.1)"}, r"raise count_noise"),
        ({"strategy": "median", "method": "local"}, r"'local' takes no strategy, because it shares nothing"),
        ({"strategy": "median", "method": "zeroshot"}, r"'zeroshot' takes no strategy, because it trains nothing"),
        ({"strategy": "anchored", "method": "flexlora"}, r"'flexlora' takes no strategy, because its factors of one"),
        ({"strategy": "median", "method": "flora"}, r"'flora' keeps its own rule, because its sites answer with other"),
        ({"strategy": "local-dp", "method": "fedex-lora"}, r"'fedex-lora' keeps its own rule, because its server also"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused_before_anything_is_written(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        simulate(RunConfig.build({"method": "promptfl", **settings}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


OTHER: dict[str, Any] = {
    "fraction": 0.4, "malicious": 2, "noise_multiplier": 0.5, "clipping_norm": 0.05, "delta": 1e-6, "quantile": 0.9,
    "clipping_rate": 0.5, "count_noise": 3.0, "coefficient": 0.2, "when": "every", "lr": 0.5, "momentum": 0.1,
    "beta1": 0.1, "beta2": 0.1, "tau": 0.5, "drift": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_option_of_every_part_changes_something(name: str, start: np.ndarray) -> None:
    registered = STRATEGIES.load(name)
    values = (start + np.random.default_rng(28).normal(0, 1, (11, 2, 3))).astype(np.float32)

    def outcome(options: dict[str, Any]) -> list[object]:
        drift = lambda arrays: float(np.abs(arrays["context"] - start).mean())  # noqa: E731
        part = registered.make(options)
        now, last = (round_of(start, 11, number, drift=drift) for number in (1, 10))
        privacy = part.privacy()
        said: list[object] = [privacy.spent(3)["epsilon"] if privacy else None]
        if isinstance(part, SitePart):
            released = part.release({"context": values[0]}, now.previous, now.noise)
            return [*said, released["context"].tobytes()]
        if isinstance(part, Step):
            stepped = part.next({"context": values[0]}, now, {})
            again = part.next({"context": values[1]}, last, stepped.state)
            return [*said, stepped.arrays["context"].tobytes(), again.arrays["context"].tobytes()]
        assert isinstance(part, Rule)
        first = part.aggregate(answers_of(values), now, {})
        return [*said, first.arrays["context"].tobytes(), *(value.tobytes() for value in first.state.values())]

    for option in registered.options.model_fields:
        assert option in OTHER, f"give this test another value for the option {option!r}"
        assert outcome({}) == outcome({})
        assert outcome({option: OTHER[option]}) != outcome({}), option


def test_a_configuration_without_a_strategy_has_no_parts() -> None:
    composition = compose(RunConfig())
    assert (composition.site, composition.rule, composition.steps) == (None, None, ())
    assert composition.privacy() is None
