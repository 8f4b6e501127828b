"""What a method is: an adapter, its options and its aggregation rule, under one name and in one file."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from fedgraft.backbones.deltas import Tower
from fedgraft.config.registry import Registered
from fedgraft.methods.adapter import Adapter
from fedgraft.strategies.components import Rule
from fedgraft.strategies.weighted_average import WeightedAverage


@dataclass(frozen=True)
class Method(Registered):
    """A registered method.

    Attributes:
        adapter: what a site trains.
        rule: how the server aggregates it, or a function from the method's options to that.
        paper: where it was published.
        shared: what travels to the server, in a few words.
        personal: what stays at the site.
        towers: what its parameters can act on; empty if on features alone.
        trains: whether there is anything to train; a method without parameters is evaluated once.
        takes_no_strategy: why the method cannot be combined with any strategy, such as "it shares nothing"; empty if
            it can.
        keeps_its_rule: why neither a site's answer nor the aggregation rule can be replaced; steps may still follow.
        caches: what is computed once for each image.
        takes_no_export: why no bundle can be made of it, such as "its classifier depends on the image"; empty if one
            can.
    """

    kind: ClassVar[str] = "method"
    columns: ClassVar[tuple[str, ...]] = ("shared", "personal")

    adapter: type[Adapter]
    _: KW_ONLY
    rule: Rule | Callable[[Any], Rule] = WeightedAverage()  # noqa: RUF009 (it has no state)
    paper: str
    shared: str
    personal: str = "nothing"
    towers: tuple[Tower, ...] = ("text",)
    trains: bool = True
    takes_no_strategy: str = ""
    keeps_its_rule: str = ""
    caches: str = "final image features"
    takes_no_export: str = ""

    def rule_for(self, options: Any) -> Rule:
        """How the server aggregates it under a user's options."""
        return self.rule if isinstance(self.rule, Rule) else self.rule(options)

    def facts(self) -> dict[str, Any]:
        """Where it is from, what travels, what stays, what is cached, and which strategies it can be combined with."""
        strategy = f"none: {self.takes_no_strategy}" if self.takes_no_strategy else "any"
        if self.keeps_its_rule:
            strategy = f"steps only: {self.keeps_its_rule}"
        return {
            "paper": self.paper,
            "shared": self.shared,
            "personal": self.personal,
            "towers": list(self.towers),
            "caches": self.caches,
            "strategies": strategy,
            "exports": f"no: {self.takes_no_export}" if self.takes_no_export else "yes",
        }
