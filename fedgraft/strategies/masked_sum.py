"""What server and sites ask of a rule whose answers are summed under masks, so that the server sees none of them."""

from typing import Protocol

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Noise, Outcome, Round
from fedgraft.strategies.secagg.encoding import Encoding, Integers, SumFigures
from fedgraft.strategies.secagg.protocol import Terms


class SummedAnswers(Protocol):
    """How a round's answers become vectors of integers, and their sum the next parameters."""

    def needed_answers(self, asked: int) -> int:
        """The fewest sites in a sum."""

    def most_neighbours(self) -> int:
        """With how many others a site exchanges masks at most."""

    def encoding(self, asked: int) -> Encoding:
        """How the values of a round become integers."""

    def terms(self, asked: int, place: str) -> Terms:
        """What the stages of a round rest on."""

    def vector_size(self, shared: Arrays) -> int:
        """The number of values in a site's vector."""

    def encoded(self, answer: Answer, received: Arrays, asked: int, noise: Noise) -> Integers:
        """A site's vector; raises Refusal if its update has values that are not finite."""

    def is_clipped(self, vector: Integers) -> bool:
        """Whether the update in a site's vector was scaled down."""

    def mean(self, total: Integers, sites: int, now: Round) -> tuple[Outcome, SumFigures]:
        """The parameters after `sites` updates, from their vectors' sum.

        Raises:
            ValueError: no sites that keep to the protocol have this sum.
        """
