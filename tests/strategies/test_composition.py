"""What a user writes becomes components, and what cannot work is refused before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft import RunConfig, UserError
from fedgraft.config.registry import STRATEGIES
from fedgraft.core.observer import Observer
from fedgraft.server.preparation import prepare
from fedgraft.strategies.components import Rule, SiteTransform, Step, Training
from fedgraft.strategies.composition import compose
from fedgraft.strategies.weighted_average import WeightedAverage
from tests.strategies.conftest import answers_of, round_of


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
        ({"strategy": "median+sam"}, r"out of order: a way to train comes first"),
        ({"strategy": "sam+sam(rho=0.1)"}, r"more than one way to take gradients"),
        ({"strategy": "m2mix+sam+m2mix(weight=1)"}, r"more than one term of the sites' loss"),
        ({"strategy": "sam(rho=0)"}, r"'rho' of 'sam' has the value 0"),
        ({"strategy": "local-dp+central-dp"}, r"two privacy mechanisms"),
        ({"strategy": "adaptive-dp(count_noise=0.1)"}, r"raise count_noise"),
        ({"strategy": "median", "method": "local"}, r"'local' takes no strategy because it shares nothing"),
        ({"strategy": "median", "method": "zeroshot"}, r"'zeroshot' takes no strategy because it trains nothing"),
        ({"strategy": "anchored", "method": "flexlora"}, r"'flexlora' takes no strategy because its factors have no"),
        ({"strategy": "median", "method": "flora"}, r"'flora' keeps its own rule because its sites answer with other"),
        ({"strategy": "local-dp", "method": "fedex-lora"}, r"'fedex-lora' keeps its own rule because its server also"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused_before_anything_is_written(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        prepare(RunConfig.build({"method": "promptfl", **settings}), tmp_path / "run", False, Observer())
    assert not (tmp_path / "run").exists()


OTHER: dict[str, Any] = {
    "fraction": 0.4, "malicious": 2, "noise_multiplier": 0.5, "clipping_norm": 0.05, "delta": 1e-6, "quantile": 0.9,
    "clipping_rate": 0.5, "count_noise": 3.0, "coefficient": 0.2, "when": "every", "lr": 0.5, "momentum": 0.1,
    "beta1": 0.1, "beta2": 0.1, "tau": 0.5, "drift": 0.5, "bits": 28, "max_examples": 5, "threshold": 0.9,
    "min_sites": 9, "neighbours": 4, "rho": 0.5, "self_weight": 0.9, "sharpness": 1.0, "weight": 0.5, "alpha": 2.0,
    "temperature": 0.5, "retain": 9.0, "steps": 3,
}  # fmt: skip


def _cubed(weights: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """A loss whose gradient differs from place to place."""
    losses = [weight.pow(3).sum() for weight in weights]
    torch.stack(losses).sum().backward()
    return losses


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_option_of_every_component_changes_something(name: str, start: np.ndarray) -> None:
    registered = STRATEGIES.load(name)
    values = (start + np.random.default_rng(28).normal(0, 1, (11, 2, 3))).astype(np.float32)

    def outcome(options: dict[str, Any]) -> list[object]:
        drift = lambda arrays: float(np.abs(arrays["context"] - start).mean())  # noqa: E731
        component = registered.make(options)
        now, last = (round_of(start, 11, number, drift=drift) for number in (1, 10))
        privacy = component.privacy()
        said: list[object] = [privacy.epsilon(3) if privacy else None]
        if isinstance(component, Training) and (term := component.term(np.random.default_rng(0))) is not None:
            rows = torch.nn.functional.normalize(torch.from_numpy(values[0]), dim=-1)
            return [float(term(rows, rows.roll(1, -1), torch.arange(2)))]
        if isinstance(component, Training):
            weight = torch.nn.Parameter(torch.from_numpy(values[0].copy()))
            component.gradients(lambda: _cubed([weight]), [[weight]])
            return [weight.grad.numpy().tobytes() if weight.grad is not None else b""]
        if isinstance(component, SiteTransform):
            released = component.release({"context": values[0]}, now.previous, now.noise)
            return [*said, released["context"].tobytes()]
        if isinstance(component, Step):
            stepped = component.next({"context": values[0]}, now, {})
            again = component.next({"context": values[1]}, last, stepped.state)
            return [*said, stepped.arrays["context"].tobytes(), again.arrays["context"].tobytes()]
        assert isinstance(component, Rule)
        if (rule := component.summed()) is not None:
            said += [rule.terms(11, ""), rule.encoding(11)]
        first = component.aggregate(answers_of(values), now, {})
        return [*said, first.arrays["context"].tobytes(), *(value.tobytes() for value in first.state.values())]

    base = {"noise_multiplier": 1.0} if "noise_multiplier" in registered.options.model_fields else {}
    for option in registered.options.model_fields:
        assert option in OTHER, f"give this test another value for the option {option!r}"
        assert outcome(base) == outcome(base)
        assert outcome({**base, option: OTHER[option]}) != outcome(base), option


def test_without_a_strategy_the_methods_own_rule_works_alone() -> None:
    own = WeightedAverage()
    composition = compose("", own)
    assert composition.rule is own
    assert (composition.transform, composition.steps) == (None, ())
    assert composition.privacy() is None
