"""Geodesic multi-modal mixup against a separate derivation of its formula, and what cannot be combined with it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft import RunConfig, UserError, simulate
from fedgraft.config.registry import STRATEGIES
from fedgraft.methods.plan import Plan
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.strategies.components import Training
from fedgraft.strategies.composition import compose
from fedgraft.strategies.m2mix import contrast, mixed
from fedgraft.strategies.weighted_average import WeightedAverage

SHARE, TEMPERATURE = 0.3, 0.2


def _features(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def _derived(images: np.ndarray, classes: np.ndarray, labels: list[int]) -> float:
    """The paper's sums, one pair at a time; with all labels different they are those of the authors' code."""
    texts = [classes[label] / np.linalg.norm(classes[label]) for label in labels]
    total = 0.0
    mixtures = []
    for image, text in zip(images, texts, strict=True):
        angle = math.acos(float(np.dot(image, text)))
        mixtures.append((math.sin(SHARE * angle) * image + math.sin((1 - SHARE) * angle) * text) / math.sin(angle))
    for i, label in enumerate(labels):
        right = math.exp(float(np.dot(images[i], texts[i])) / TEMPERATURE)
        for seen in (images[i], texts[i]):
            wrong = sum(
                math.exp(float(np.dot(seen, mixtures[j])) / TEMPERATURE)
                for j, other in enumerate(labels)
                if other != label
            )
            total -= math.log(right / (right + wrong)) / len(labels)
    return total


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 1, 3, 0]])
def test_value_and_gradients_are_those_of_the_papers_formula(labels: list[int]) -> None:
    images, classes = _features(len(labels), 1).requires_grad_(), _features(4, 2).requires_grad_()
    place = torch.tensor(labels)
    value = contrast(images, classes[place], place, SHARE, TEMPERATURE)
    assert float(value.detach()) == pytest.approx(_derived(images.detach().numpy(), classes.detach().numpy(), labels))
    value.backward()
    plain, step = classes.detach().numpy(), 1e-6
    assert classes.grad is not None
    for row in range(4):
        # Along the sphere: the formula is of unit vectors.
        along = np.linalg.svd(plain[row][None])[2][1]
        moved = [plain.copy(), plain.copy()]
        moved[0][row] = math.cos(step) * plain[row] + math.sin(step) * along
        moved[1][row] = math.cos(step) * plain[row] - math.sin(step) * along
        there, back = (_derived(images.detach().numpy(), at, labels) for at in moved)
        assert float(classes.grad[row] @ torch.from_numpy(along)) == pytest.approx(
            (there - back) / (2 * step), rel=1e-4, abs=1e-7
        )


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_mixture_lies_on_the_arc_and_begins_and_ends_at_its_features(share: float) -> None:
    images, texts = _features(5, 3), _features(5, 4)
    between = mixed(images, texts, share)
    assert torch.allclose(between.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    whole = (images * texts).sum(-1).acos()
    assert torch.allclose((between * texts).sum(-1).clamp(-1, 1).acos(), share * whole, atol=1e-6)


def test_equal_features_and_a_batch_of_one_class_give_finite_gradients() -> None:
    images = _features(3, 5).requires_grad_()
    value = contrast(images, images.detach(), torch.zeros(3, dtype=torch.long), SHARE, TEMPERATURE)
    value.backward()
    assert float(value.detach()) == 0
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_a_site_draws_the_same_shares_whoever_trains_beside_it() -> None:
    component = STRATEGIES.load("m2mix").make({})
    assert isinstance(component, Training)
    images, classes, labels = _features(6, 6), _features(3, 7), torch.tensor([0, 1, 2, 0, 1, 2])

    def values(seeds: list[int]) -> list[float]:
        rngs = [np.random.default_rng(seed) for seed in seeds]
        found = [[float(component.term(rng)(images, classes, labels)) for _ in range(2)] for rng in rngs]  # type: ignore[misc]
        return found[0]

    alone = values([3])
    assert alone == values([3, 4])
    assert alone[0] != alone[1]


@pytest.mark.parametrize(
    ("method", "options", "loss", "reason"),
    [
        ("cocoop", {}, "softmax", "the method 'cocoop' has none"),
        ("fedclip", {}, "softmax", "the method 'fedclip' has none"),
        ("fedotp", {}, "softmax", "the method 'fedotp' has none"),
        ("promptfl", {}, "sigmoid", "loss = 'sigmoid' replaces"),
        ("local", {}, "softmax", "takes no strategy"),
    ],
)
def test_what_has_no_place_for_it_is_refused_before_anything_is_read(
    method: str, options: dict[str, object], loss: str, reason: str
) -> None:
    config = RunConfig.build({"method": method, "strategy": "m2mix", "method_options": options, "loss": loss})
    with pytest.raises(UserError, match=reason):
        Plan.of(config)


@pytest.mark.parametrize("text", ["m2mix(weight=0)", "m2mix(alpha=0)", "m2mix(temperature=0)", "m2mix(rho=1)"])
def test_an_option_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Plan.of(RunConfig(method="promptfl", strategy=text))


def test_a_run_trains_otherwise_with_it_and_before_any_rule(tmp_path: Path) -> None:
    def losses(strategy: str) -> list[float]:
        options = {"n_ctx": 2}
        config = RunConfig(
            method="promptfl", data="digits", sites=2, rounds=2, shots=4, strategy=strategy, method_options=options
        )
        run = tmp_path / str(len(strategy))
        simulate(config, run)
        return [row["loss"] for row in RunDirectory(run).rows() if row["scope"] == "train"]

    plain, with_mixtures = losses(""), losses("m2mix(weight=0.5)+fedavg")
    assert all(ours > theirs for ours, theirs in zip(with_mixtures, plain, strict=True))


def test_with_sam_the_gradient_is_taken_where_loss_and_term_together_are_highest() -> None:
    """Of one draw: the share is the same in both passes of a step, and another one in the next step."""
    training = compose("sam(rho=0.1)+m2mix(weight=2)", WeightedAverage()).training
    assert training is not None
    assert training.adds_term
    classes, labels = _features(3, 7), torch.tensor([0, 1, 2, 0])
    weight = torch.nn.Parameter(_features(4, 6))
    rng = np.random.default_rng(0)
    term = training.term(rng)
    assert term is not None

    def loss(at: torch.Tensor) -> torch.Tensor:
        images = torch.nn.functional.normalize(at, dim=-1)
        return at.pow(3).sum() + term(images, classes, labels)

    def backward() -> list[torch.Tensor]:
        value = loss(weight)
        value.backward()
        return [value]

    before = weight.detach().clone()
    (reported,) = training.gradients(backward, [[weight]])
    at = before.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at)
    highest = (before + 0.1 * slope / slope.norm()).requires_grad_()
    (expected,) = torch.autograd.grad(loss(highest), highest)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, expected, rtol=1e-9)
    assert not torch.allclose(expected, slope, rtol=1e-3)
    assert torch.equal(weight.detach(), before)
    assert float(reported.detach()) == float(loss(before))
    other = training.term(rng)
    assert other is not None
    assert float(other(before, classes, labels)) != float(term(before, classes, labels))
