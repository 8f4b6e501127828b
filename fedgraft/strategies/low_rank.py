"""What the rules for low-rank adapters share: products of factors, the error of an aggregate, which answers count.

A site of rank r sends A (r, in) and B (out, r) for each map; its change of the frozen weight is alpha / r times B A.
All products here are in units of alpha, B A / r, so that sites of different ranks can be summed. Weights p_k are shares
of the examples; sums are in float64.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.components import Outcome, Round, Rule, State
from fedgraft.strategies.weighted_average import weighted_average

A, B, MERGED = ".lora_A", ".lora_B", ".merged"
"""Suffixes of array names, after the name of a map."""
Products = dict[str, NDArray[np.float64]]


def maps_of(arrays: Arrays) -> list[str]:
    """The names of the maps that the arrays belong to, sorted."""
    return sorted({name.rpartition(".")[0] for name in arrays})


def product(arrays: Arrays, name: str) -> NDArray[np.float64]:
    """B A / r of a map, (out, in)."""
    right = arrays[name + A].astype(np.float64)
    return arrays[name + B].astype(np.float64) @ right / len(right)


def mean_products(answers: Sequence[Answer]) -> Products:
    """sum_k p_k B_k A_k / r_k of each map."""
    total = sum(answer.num_examples for answer in answers)
    return {
        name: np.sum([answer.num_examples / total * product(answer.arrays, name) for answer in answers], axis=0)
        for name in maps_of(answers[0].arrays)
    }


def stacked(answers: Sequence[Answer]) -> Arrays:
    """A = [p_1 A_1 / r_1; p_2 A_2 / r_2; ...] and B = [B_1, B_2, ...] of each map, of rank sum_k r_k."""
    total = sum(answer.num_examples for answer in answers)
    stack: Arrays = {}
    for name in maps_of(answers[0].arrays):
        rows = [a.num_examples / total * a.arrays[name + A] / len(a.arrays[name + A]) for a in answers]
        stack[name + A] = np.concatenate(rows).astype(np.float32)
        stack[name + B] = np.concatenate([answer.arrays[name + B] for answer in answers], axis=1)
    return stack


def relative_error(products: Products, expected: Products) -> float:
    """|products - expected| / |expected| over all maps, in the Frobenius norm; 0 where they are equal.

    Where nothing is expected and something comes, as from updates that cancel, there is no such fraction: not a number.
    """
    difference, length = _norm({name: products[name] - expected[name] for name in expected}), _norm(expected)
    if not difference:
        return 0.0
    return difference / length if length else float("nan")


def averaging_error(answers: Sequence[Answer]) -> float | None:
    """The error of averaging A and B separately; None where ranks differ and there is no mean."""
    if len({len(array) for answer in answers for name, array in answer.arrays.items() if name.endswith(A)}) > 1:
        return None
    mean = weighted_average(answers)
    return relative_error({name: product(mean, name) for name in maps_of(mean)}, mean_products(answers))


class LowRankRule(Rule):
    """A rule for A and B of every map; it reports each round how far its result is from the mean of the products."""

    @abstractmethod
    def next(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """The next shared parameters; a pure function."""

    @abstractmethod
    def effective_update(self, aggregated: Arrays, previous: Arrays) -> Products:
        """What the sites start from next, minus what they started from before; the mean of the products if exact."""

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """`next`, with `product_error` of this rule and `averaging_error` of plain averaging, both relative."""
        arrays = self.next(answers, now.previous)
        errors = {"product_error": relative_error(self.effective_update(arrays, now.previous), mean_products(answers))}
        if (plain := averaging_error(answers)) is not None:
            errors["averaging_error"] = plain
        return Outcome(arrays, figures=errors)


def no_factors(answer: Answer) -> Arrays:
    """Zeros in place of a site's factors: where ranks differ, or factors begin anew, an update is all that is sent."""
    return {name: np.zeros_like(array) for name, array in answer.arrays.items()}


def checked_factors(
    answers: Sequence[Answer], shapes: Mapping[str, tuple[int, ...]], largest: int | None = None
) -> tuple[list[Answer], list[LeftOut]]:
    """`checked` for sites of different ranks, whose factors are zero-padded to one shape.

    Args:
        shapes: (out, in) of each map.
        largest: the largest rank that counts; any that fits the maps by default.
    """
    fitting = [answer for answer in answers if 1 <= (_rank(answer, shapes) or 0) <= (largest or math.inf)]
    most = max((_rank(answer, shapes) or 1 for answer in fitting), default=1)
    reference = {
        name + end: np.zeros(shape, np.float32)
        for name, (out, into) in shapes.items()
        for end, shape in ((A, (most, into)), (B, (out, most)))
    }
    even = [replace(answer, arrays=padded(answer.arrays, most)) if answer in fitting else answer for answer in answers]
    kept, left_out = checked(even, reference)
    own = {answer.site: answer for answer in answers}
    return [own[answer.site] for answer in kept], left_out


def _rank(answer: Answer, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The common rank of an answer's factors, or None where they have none that fits."""
    first = answer.arrays.get(next(iter(shapes)) + A)
    if first is None or first.ndim != 2:
        return None
    rank = len(first)
    expected = {
        name + end: shape
        for name, (out, into) in shapes.items()
        for end, shape in ((A, (rank, into)), (B, (out, rank)))
    }
    fits = {name: array.shape for name, array in answer.arrays.items()} == expected
    return rank if fits and 1 <= rank <= min(map(min, shapes.values())) else None


def padded(arrays: Arrays, rank: int) -> Arrays:
    """Factors with zeros up to a rank."""

    def width(name: str, array: NDArray[Any]) -> tuple[tuple[int, int], tuple[int, int]]:
        return ((0, rank - len(array)), (0, 0)) if name.endswith(A) else ((0, 0), (0, rank - array.shape[1]))

    return {name: np.pad(array, width(name, array)) for name, array in arrays.items()}


def _norm(products: Products) -> float:
    return float(np.sqrt(sum(float(np.square(value).sum()) for value in products.values())))
