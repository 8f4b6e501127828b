"""Weights of a checkpoint, read one at a time: a checkpoint is converted without ever being whole in memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor that is read when it is needed.

    Attributes:
        name: in the checkpoint, for messages.
        shape: of what `read` returns.
        dtype: of what `read` returns.
        read: reads it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Weight":
        """A tensor in memory, or mapped into it."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def bytes(self) -> int:
        """The size of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def third(self, number: int) -> "Weight":
        """One third of its rows, such as the keys' part of a joint projection of queries, keys and values."""
        rows = self.shape[0] // 3
        shape = (rows, *self.shape[1:])
        return replace(self, shape=shape, read=lambda: self.read()[number * rows : (number + 1) * rows])

    def transposed(self) -> "Weight":
        """The matrix with rows and columns exchanged."""
        return replace(self, shape=self.shape[::-1], read=lambda: self.read().T)

    def flat(self, shape: tuple[int, ...] = ()) -> "Weight":
        """The same values under another shape of the same size."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def rows(self) -> "Weight":
        """The matrix in a batch of one, (1, n, m) to (n, m)."""
        return self.flat(self.shape[1:])

    def above(self, other: "Weight") -> "Weight":
        """Its rows followed by those of another."""
        shape = (self.shape[0] + other.shape[0], *self.shape[1:])
        name = f"{self.name} and {other.name}"
        return replace(self, name=name, shape=shape, read=lambda: torch.cat([self.read(), other.read()]))

    def to(self, dtype: torch.dtype) -> "Weight":
        """The values in another precision; what is not a floating-point number stays as it is."""
        if not self.dtype.is_floating_point:
            return self
        return replace(self, dtype=dtype, read=lambda: self.read().to(dtype))


Weights = dict[str, Weight]
"""Weights by name."""


def some(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
