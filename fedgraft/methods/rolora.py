"""RoLoRA (Chen et al., NeurIPS 2025): A and B take turns, so that each average is exact at half the uplink.

In odd rounds A is frozen and B trained, in even rounds B is frozen and A trained. The frozen factor is the same at all
sites, so sum_k p_k B_k A = (sum_k p_k B_k) A, and likewise for A. Only what was trained travels up; both travel down,
so that a site which missed a round is not behind.
"""

from collections.abc import Sequence

from torch import Tensor

from fedgraft.flower.messages import Arrays
from fedgraft.methods.lora import CACHES, LoraAdapter
from fedgraft.methods.lora_options import OneRankOptions
from fedgraft.methods.method import Method
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.components import Outcome, Round, Rule, State
from fedgraft.strategies.weighted_average import weighted_average


def turn(server_round: int) -> str:
    """The factor that is trained in a round, counted from 1."""
    return "lora_B" if server_round % 2 else "lora_A"


class RoLora(LoraAdapter):
    """A and B, of which one is trained in a round."""

    @property
    def _turn(self) -> str:
        return turn(self.adapter_context.round + 1)

    def on_training_begin(self) -> None:
        """Freeze the factor whose turn it is not."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.endswith(self._turn))

    def shared(self) -> dict[str, Tensor]:
        """The factor whose turn it is."""
        return {name: value for name, value in super().shared().items() if name.endswith(self._turn)}

    def server_state(self) -> dict[str, Tensor]:
        """Both factors."""
        return super().shared()


class AlternatingRule(Rule):
    """The weighted mean of the factor that was trained; the other stays."""

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Compare answers with the factor that was to be trained."""
        factor = turn(server_round)
        return checked(answers, {name: array for name, array in previous.items() if name.endswith(factor)})

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The mean of the one, and the other as it was."""
        return Outcome({**now.previous, **weighted_average(answers)})


METHOD = Method(
    "rolora",
    "low-rank adapters, A and B trained and averaged in turn",
    RoLora,
    options=OneRankOptions,
    rule=AlternatingRule(),
    paper="Chen et al., NeurIPS 2025",
    shared="A in even rounds, B in odd ones",
    towers=("text", "image"),
    keeps_its_rule="its sites answer with one of the two factors that they receive",
    caches=CACHES,
)
