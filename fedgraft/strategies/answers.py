"""A site's answer, and the checks it must pass before it is averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.core.plain_text import plain
from fedgraft.flower.messages import Arrays

LARGEST_LOSS = 1e6
"""A loss beyond this, to either side, is no loss that training ends with."""
NORM_RATIO = 50.0
"""An update this many times larger than both the round's median and the parameters themselves is left out."""


@dataclass(frozen=True)
class Answer:
    """What one site returns from a round of training.

    Attributes:
        num_examples: its training images; less where its weight is capped.
        seconds: its share of the worker's time.
    """

    site: int
    arrays: Arrays
    num_examples: float
    loss: float
    seconds: float = 0.0


@dataclass(frozen=True)
class LeftOut:
    """A site whose answer does not count in a round, and the reason."""

    site: int
    reason: str


def problem(answer: Answer, reference: Arrays) -> str | None:
    """What is wrong with an answer on its own, or None: names, shapes, dtype, finite values, examples, loss."""
    if set(answer.arrays) != set(reference):
        return f"parameters {_listed(answer.arrays)} instead of {_listed(reference)}"
    for name, expected in reference.items():
        array = answer.arrays[name]
        if array.shape != expected.shape:
            return f"{name} has shape {array.shape} instead of {expected.shape}"
        if array.dtype != expected.dtype:
            return f"{name} has dtype {array.dtype} instead of {expected.dtype}"
        if not np.isfinite(array).all():
            return f"{name} has values that are not finite"
    if answer.num_examples <= 0:
        return f"it reports {answer.num_examples} examples"
    if not abs(answer.loss) <= LARGEST_LOSS:
        return f"it reports the loss {answer.loss}"
    return None


def _listed(arrays: Arrays) -> str:
    return plain(", ".join(sorted(arrays)), 120) if arrays else "none"


def checked(answers: Sequence[Answer], reference: Arrays, sizes: bool = True) -> tuple[list[Answer], list[LeftOut]]:
    """Split answers, sorted by site, into those that count and those left out with a reason.

    A valid answer is also left out when its update exceeds `NORM_RATIO` times both the norm of the parameters it starts
    from and the other updates: the round's median or, with two answers, the smaller one. The first condition keeps
    honest sites in: where most sites have little left to learn, the median is tiny, and a site that is still learning
    may be a hundred times above it. The parameters alone are not a reference where they are zero.

    Args:
        sizes: whether to compare the updates' sizes at all; updates that are clipped anyway need no comparison.
    """
    sound, left_out = [], []
    for answer in sorted(answers, key=lambda answer: answer.site):
        reason = problem(answer, reference)
        if reason is None:
            sound.append(answer)
        else:
            left_out.append(LeftOut(answer.site, reason))
    norms = [_update_norm(answer, reference) for answer in sound]
    usual, what = _usual_norm(norms, _norm(reference))
    if not sizes or usual == 0.0:
        return sound, left_out
    kept = []
    for answer, norm in zip(sound, norms, strict=True):
        if norm > NORM_RATIO * usual:
            left_out.append(LeftOut(answer.site, f"its update is {norm / usual:.0f} times {what}"))
        else:
            kept.append(answer)
    return kept, left_out


def _usual_norm(norms: Sequence[float], parameters: float) -> tuple[float, str]:
    """The norm that updates are compared with, 0 where there is none, and what to call it."""
    start = (parameters, "the norm of the parameters")
    if len(norms) >= 3:
        return max((float(np.median(norms)), "the round's median"), start)
    if len(norms) == 2 and parameters > 0:
        return max((min(norms), "the other update"), start)
    return start


def _update_norm(answer: Answer, reference: Arrays) -> float:
    return _norm({name: answer.arrays[name].astype(np.float64) - reference[name] for name in reference})


def _norm(arrays: Mapping[str, NDArray[np.floating]]) -> float:
    return float(np.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in arrays.values())))
