"""Task vectors composed by learnt coefficients, against torch's gradients and Adam; and what cannot work with them."""

import numpy as np
import pytest
import torch

from fedgraft import RunConfig, UserError
from fedgraft.backbones import Backbone
from fedgraft.config.registry import STRATEGIES
from fedgraft.flower.messages import Arrays
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.server.drift_monitor import DriftMonitor
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.atlas import AtlasOptions, composed, learnt
from fedgraft.strategies.components import Knowledge, Round, Rule
from fedgraft.testing.rounds import round_after

SHAPES = {"first": (3, 2), "second": (4,)}
CLASSES = ("red square", "blue ring", "green heart")


def _arrays(seed: int, size: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, size, shape).astype(np.float32) for name, shape in SHAPES.items()}


class _Bilinear:
    """Names whose features are unit rows of a smooth function of all parameters."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        self.maps = torch.randn(2, 5, 4, 10, generator=draws, dtype=torch.float64)
        self.written = torch.nn.functional.normalize(torch.randn(5, 4, generator=draws, dtype=torch.float64), dim=-1)

    def of(self, kind: int, flat: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tanh(self.maps[kind] @ flat) + 0.1, dim=-1)

    def objective(self, flat: torch.Tensor, targets: torch.Tensor, retain: float) -> torch.Tensor:
        held, unheld = self.of(0, flat), self.of(1, flat)
        return (1 - (held * targets).sum(-1)).mean() + retain * (1 - (unheld * self.written).sum(-1)).mean()

    def features(self, arrays: Arrays) -> np.ndarray:
        return self.of(0, _flat(arrays)).numpy()

    def slope(self, arrays: Arrays, targets: np.ndarray, retain: float) -> tuple[float, Arrays]:
        flat = _flat(arrays).requires_grad_()
        value = self.objective(flat, torch.from_numpy(targets), retain)
        (slope,) = torch.autograd.grad(value, flat)
        return float(value.detach()), {"first": slope[:6].view(3, 2).numpy(), "second": slope[6:].numpy()}


def _flat(arrays: Arrays) -> torch.Tensor:
    return torch.cat([torch.from_numpy(arrays[name]).double().ravel() for name in sorted(SHAPES)])


def _round(previous: Arrays, knowledge: Knowledge) -> Round:
    plain = round_after(previous, 3)
    return Round(**{**vars(plain), "knowledge": knowledge})


def test_the_coefficients_are_those_of_torchs_adam_on_the_written_objective() -> None:
    names, previous = _Bilinear(), _arrays(0)
    vectors = [{name: array.astype(np.float64) for name, array in _arrays(site, 0.5).items()} for site in (1, 2, 3)]
    shares, options = np.asarray([0.5, 0.3, 0.2]), AtlasOptions(steps=5, lr=0.2, retain=0.7)
    targets = names.features(_arrays(9))
    coefficients, values = learnt(vectors, shares, previous, targets, names, options)

    scales = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    optimizer, told = torch.optim.Adam([scales], lr=0.2), []
    for _ in range(5):
        whole = (torch.from_numpy(shares)[:, None] * scales)[:, :, None]
        parts = [
            _flat(previous)[cut] + (whole[:, block] * torch.stack([_flat(vector)[cut] for vector in vectors])).sum(0)
            for block, cut in enumerate((slice(0, 6), slice(6, 10)))
        ]
        value = names.objective(torch.cat(parts), torch.from_numpy(targets), 0.7)
        told.append(float(value.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values == pytest.approx(told, rel=1e-4)
    assert np.allclose(coefficients, shares[:, None] * scales.detach().numpy(), rtol=1e-4)


def test_coefficients_of_the_shares_compose_the_weighted_mean() -> None:
    vectors = [{name: array.astype(np.float64) for name, array in _arrays(site).items()} for site in (1, 2)]
    shares = np.asarray([[0.75, 0.75], [0.25, 0.25]])
    for name, array in composed(vectors, shares).items():
        assert np.allclose(array, 0.75 * vectors[0][name] + 0.25 * vectors[1][name])


@pytest.mark.parametrize("retain", [0.0, 1.0, 20.0])
def test_the_objective_is_never_worse_than_at_the_mean(retain: float) -> None:
    rule = STRATEGIES.load("atlas").make({"retain": retain, "lr": 0.05})
    assert isinstance(rule, Rule)
    answers = [Answer(site, _arrays(site, 0.5), 10 * site, 0.0) for site in (1, 2, 3)]
    figures = rule.aggregate(answers, _round(_arrays(0), _Bilinear()), {}).figures
    assert figures["objective"] < figures["objective_of_mean"]


def _monitor(backbone: Backbone, method: str, **options: object) -> tuple[DriftMonitor, Arrays]:
    plan = Plan.of(RunConfig.build({"method": method, "strategy": "atlas", "method_options": options}))
    state = plan.adapter(Vocabulary(backbone, CLASSES, ("a photo of a {}.",))).server_state()
    initial = {name: value.numpy().copy() for name, value in state.items()}
    return DriftMonitor(plan, backbone, CLASSES, initial), initial


@pytest.mark.parametrize(("method", "options"), [("promptfl", {"n_ctx": 2}), ("fedit", {"rank": 2})])
def test_the_slope_is_how_the_names_change(method: str, options: dict[str, object], mini: Backbone) -> None:
    monitor, initial = _monitor(mini, method, **options)
    monitor.require_sensitivity()
    knowledge = monitor.knowledge(Vocabulary(mini, CLASSES, ("a photo of a {}.",)), (0, 2))
    rng = np.random.default_rng(0)
    here = {n: a + 0.05 * rng.normal(size=a.shape).astype(np.float32) for n, a in initial.items()}
    along = {n: 0.05 * rng.normal(size=a.shape).astype(np.float32) for n, a in here.items()}
    targets = knowledge.features({n: a + 4 * along[n] for n, a in here.items()})
    assert targets.shape == (2, mini.dim)
    slopes, step = knowledge.slope(here, targets, 2.0)[1], 2e-2
    there, back = (
        knowledge.slope({n: a + sign * step * along[n] for n, a in here.items()}, targets, 2.0)[0] for sign in (1, -1)
    )
    expected = sum(float((slopes[name] * along[name]).sum()) for name in here)
    assert (there - back) / (2 * step) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("fedsa-lora", {}, "shares does not change them"),
        ("fedit", {"tower": "image"}, "shares does not change them"),
        ("fedclip", {}, "shares does not change them"),
        ("fedmgp", {}, "they have none"),
        ("linear-probe", {}, "learns a context for each class"),
    ],
)
def test_what_names_do_not_show_is_refused_before_training(
    method: str, options: dict[str, object], reason: str, mini: Backbone
) -> None:
    with pytest.raises(UserError, match=reason):
        _monitor(mini, method, **options)[0].require_sensitivity()


@pytest.mark.parametrize(
    ("method", "strategy", "reason"),
    [
        ("promptfl", "secagg+atlas", "needs every site's own answer"),
        ("promptfl", "median+atlas", "more than one rule"),
        ("flora", "atlas", "keeps its own rule"),
        ("local", "atlas", "takes no strategy"),
        ("promptfl", "atlas(steps=0)", "'steps' of 'atlas'"),
    ],
)
def test_what_cannot_be_combined_with_it_is_refused_before_anything_is_read(
    method: str, strategy: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        Plan.of(RunConfig(method=method, strategy=strategy))
