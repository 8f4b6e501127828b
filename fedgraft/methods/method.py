"""What a method is: an adapter, its options and its aggregation rule, under one name and in one file."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from fedgraft.config.registry import Registered
from fedgraft.methods.adapter import Adapter
from fedgraft.strategies.components import Rule
from fedgraft.strategies.weighted_average import WeightedAverage


@dataclass(frozen=True)
class Method(Registered):
    """A registered method.

    Attributes:
        adapter: what a site trains.
        rule: how the server aggregates it.
        shares: what travels to the server, in a few words.
        trains: whether there is anything to train; a method without parameters is evaluated once.
        takes_no_strategy: why the method cannot be combined with any strategy, such as "it shares nothing"; empty if
            it can.
        keeps_its_rule: why neither a site's answer nor the aggregation rule can be replaced; steps may still follow.
        caches: what is computed once for each image.
    """

    kind: ClassVar[str] = "method"
    columns: ClassVar[tuple[str, ...]] = ("shares",)

    adapter: type[Adapter]
    _: KW_ONLY
    rule: Rule = WeightedAverage()  # noqa: RUF009 (it has no state)
    shares: str
    trains: bool = True
    takes_no_strategy: str = ""
    keeps_its_rule: str = ""
    caches: str = "final image features"

    def facts(self) -> dict[str, str]:
        """What travels, what is cached, and which strategies can be combined with the method."""
        strategy = f"none: {self.takes_no_strategy}" if self.takes_no_strategy else "any"
        if self.keeps_its_rule:
            strategy = f"steps only: {self.keeps_its_rule}"
        return {"shares": self.shares, "caches": self.caches, "strategies": strategy}
