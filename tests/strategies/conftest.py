"""Answers and rounds without a federation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedgraft.core.randomness import keyed_normal
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Drift, Round


def answers_of(values: np.ndarray, examples: list[int] | None = None) -> list[Answer]:
    """An answer for each row, with one parameter."""
    return [Answer(site, {"context": row}, examples[site] if examples else 10, 0.0) for site, row in enumerate(values)]


class Names:
    """`Knowledge` whose class features are the unit rows of the parameter, and whose names are to stay at (1, 1, 1)."""

    def features(self, arrays: Arrays) -> np.ndarray:
        """(2, 3)."""
        return _rows(torch.from_numpy(arrays["context"]).double()).numpy()

    def slope(self, arrays: Arrays, targets: np.ndarray, retain: float) -> tuple[float, Arrays]:
        """Both terms."""
        context = torch.from_numpy(arrays["context"]).double().requires_grad_()
        rows, kept = _rows(context), _rows(torch.ones(2, 3, dtype=torch.float64))
        value = (1 - (rows * torch.from_numpy(targets)).sum(-1)).mean() + retain * (1 - (rows * kept).sum(-1)).mean()
        (slope,) = torch.autograd.grad(value, context)
        return float(value.detach()), {"context": slope.numpy()}


def _rows(context: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(context, dim=-1)


def round_of(
    previous: np.ndarray,
    asked: int = 3,
    number: int = 1,
    key: bytes = b"k" * 32,
    initial: np.ndarray | None = None,
    drift: Drift = lambda arrays: float(np.abs(arrays["context"]).mean()),
) -> Round:
    """A round of ten that began with a parameter."""
    return Round(
        number=number,
        previous={"context": previous},
        initial={"context": previous if initial is None else initial},
        asked=asked,
        noise=lambda count, place: keyed_normal(key, count, "test", number, place),
        rounds=10,
        drift=drift,
        knowledge=Names(),
    )


@pytest.fixture
def start() -> np.ndarray:
    """Shared parameters at the start of a round, (2, 3)."""
    return np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def sites(start: np.ndarray) -> Callable[[int], np.ndarray]:
    """Makes the parameters of so many sites that learnt nearly the same, (sites, 2, 3)."""

    def make(count: int) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, 0.01, (count, *start.shape))
        return (start + 0.5 + noise).astype(np.float32)

    return make
