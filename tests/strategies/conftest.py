"""Answers and rounds without a federation."""

from collections.abc import Callable

import numpy as np
import pytest

from fedgraft.randomness import keyed_normal
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.parts import Round


def answers_of(values: np.ndarray, examples: list[int] | None = None) -> list[Answer]:
    """An answer for each row, with one parameter."""
    return [Answer(site, {"context": row}, examples[site] if examples else 10, 0.0) for site, row in enumerate(values)]


def round_of(previous: np.ndarray, asked: int, number: int = 1, key: bytes = b"k" * 32) -> Round:
    """A round that began with a parameter."""
    arrays = {"context": previous}
    return Round(number, arrays, arrays, asked, lambda count, place: keyed_normal(key, count, "test", number, place))


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
