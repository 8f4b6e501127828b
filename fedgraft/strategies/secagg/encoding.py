"""Updates as integers that can be masked and summed: clipping, fixed point, and what a sum says.

A site's vector holds its update, clipped to norm C and rounded to a grid of C / 2^(bits - 1), times its weight, and
three values more: its number of examples n, n times its loss, and whether it was clipped. The sum is divided by the sum
of weights, so the mean is within half a step of the grid of the exact mean of the clipped updates, in every value.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.uint64]
"""Values modulo 2^64; a sum modulo a smaller power of two is read from the low bytes."""
FIGURES = 3
"""The number of values after the update: examples, examples times loss, clipped."""
MAX_LOSS = 100.0
"""A larger loss is told as this one."""
_LONGEST_NOISE = 8.65
"""No draw of `fedgraft.core.randomness.keyed_normal` is larger: its uniform values are at least 2^-54."""


@dataclass(frozen=True)
class SumFigures:
    """What a sum says of its sites together."""

    num_examples: int
    loss: float
    clipped: int


@dataclass(frozen=True)
class Encoding:
    """How values become integers, the same at all sites of a round.

    Attributes:
        clipping_norm: the largest norm of an update.
        bits: of an update's value, with its sign.
        max_examples: the largest weight of a site; one with more examples counts as one with so many.
        sites: the number of sites asked, and so the largest number in a sum.
        deviation: of the noise that a site adds to each value, in steps of the grid; 0 for none.
    """

    clipping_norm: float
    bits: int
    max_examples: int
    sites: int
    deviation: float = 0.0

    @property
    def step(self) -> float:
        """The grid's step."""
        return self.clipping_norm / self._largest

    @property
    def width(self) -> int:
        """Bytes of a value in a sum, so many that no sum of the round wraps around."""
        largest = self.sites * (self.max_examples * self._largest + self._longest_noise)
        return -(-(int(largest).bit_length() + 1) // 8)

    @property
    def _largest(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def _longest_noise(self) -> int:
        return math.ceil(_LONGEST_NOISE * self.deviation) + 1 if self.deviation else 0

    def weight(self, num_examples: int) -> int:
        """What a site counts: its examples or, with noise, which needs equal weights, 1."""
        return 1 if self.deviation else min(num_examples, self.max_examples)

    def encoded(
        self, update: NDArray[np.float64], num_examples: int, loss: float, normal: NDArray[np.float64] | None = None
    ) -> Integers:
        """A site's vector (d + 3,).

        Args:
            update: (d,), finite.
            normal: standard normal values (d,), for an encoding with noise.
        """
        room = 1 - math.sqrt(update.size) / (2 * self._largest)  # rounding adds at most sqrt(d) / 2 steps to the norm
        bound = max(room, 0.0) * self.clipping_norm
        length = float(np.linalg.norm(update))
        scale = bound / length if length > bound else 1.0
        values = np.rint(update * (scale / self.step)).astype(np.int64) * self.weight(num_examples)
        if normal is not None:
            values += np.rint(self.deviation * normal).astype(np.int64)
        count = min(num_examples, self.max_examples)
        told = round(min(max(loss, 0.0), MAX_LOSS) / MAX_LOSS * self._largest)
        figures = np.asarray([count, count * told, int(scale < 1)], np.int64)
        return np.concatenate([values, figures]).view(np.uint64)

    def decoded(self, total: Integers, sites: int) -> tuple[NDArray[np.float64], SumFigures]:
        """The sum of the updates (d,), each times its weight, and the sites' figures.

        Args:
            total: the sum of the vectors modulo 2^(8 width).
            sites: how many vectors are in the sum.

        Raises:
            ValueError: no sites that keep to the encoding have this sum.
        """
        shift = np.int64(64 - 8 * self.width)
        values = (total.view(np.int64) << shift) >> shift
        count, told, clipped = (int(value) for value in values[-FIGURES:])
        weights = sites if self.deviation else count
        largest = weights * self._largest + sites * self._longest_noise
        sound = sites <= count <= sites * self.max_examples and 0 <= clipped <= sites
        if not sound or not 0 <= told <= count * self._largest or np.abs(values[:-FIGURES]).max(initial=0) > largest:
            raise ValueError("a site's vector is not what an update can become")
        loss = told / count / self._largest * MAX_LOSS
        return values[:-FIGURES].astype(np.float64) * self.step, SumFigures(count, loss, clipped)


def packed(vector: Integers, width: int) -> bytes:
    """The low `width` bytes of every value."""
    return vector.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


def unpacked(data: bytes, count: int, width: int) -> Integers:
    """The values of `packed`; raises ValueError if they are not `count`."""
    if len(data) != count * width:
        raise ValueError(f"a masked vector of {len(data)} bytes instead of {count * width}")
    values = np.zeros((count, 8), np.uint8)
    values[:, :width] = np.frombuffer(data, np.uint8).reshape(count, width)
    return values.view("<u8").reshape(count).astype(np.uint64)
