"""The model that all sites without personal parameters evaluate in a round, kept from one message to the next."""

from dataclasses import dataclass

import numpy as np

from fedgraft.client.evaluation import Model
from fedgraft.flower.messages import Arrays


@dataclass(frozen=True)
class SharedModel:
    """A model, and what it was made of.

    Attributes:
        place: fold and round.
        arrays: that the server sent.
        model: with these parameters.
    """

    place: tuple[int, int]
    arrays: Arrays
    model: Model

    def is_of(self, place: tuple[int, int], arrays: Arrays) -> bool:
        """Whether a message for this fold and round, with these arrays, is about this model."""
        return (
            place == self.place
            and arrays.keys() == self.arrays.keys()
            and all(_equal(self.arrays[name], array) for name, array in arrays.items())
        )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
