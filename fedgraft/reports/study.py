"""One comparison, or several over different data sets read together: the same methods under the same protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedgraft.config.registry import PROTOCOLS
from fedgraft.core.errors import UserError, unknown
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric
from fedgraft.reports.compared_runs import ComparedRuns, read_compared_runs
from fedgraft.reports.reading import read_comparison


@dataclass(frozen=True)
class DataSet:
    """One comparison.

    Attributes:
        name: of its data, with the directory where several comparisons share the data.
        content: of `comparison.json`.
    """

    name: str
    content: dict[str, Any]
    directory: Path

    def entry(self, method: str) -> dict[str, Any]:
        """What is known of a method."""
        return next(dict(entry) for entry in self.content["methods"] if entry["method"] == method)

    @cached_property
    def runs(self) -> ComparedRuns:
        """The runs beside the comparison."""
        return read_compared_runs(self.content, self.directory)


@dataclass(frozen=True)
class Study:
    """What a report on comparisons is about.

    Attributes:
        methods: those of all data sets, in the order of the first.
        reference: the method that the others are set against.
        apart: methods that only some of the data sets have.
    """

    protocol: Protocol
    sets: tuple[DataSet, ...]
    methods: tuple[str, ...]
    reference: str
    apart: tuple[str, ...] = ()

    @cached_property
    def keys(self) -> list[str]:
        """The results that a method has on every data set, in order of first appearance."""
        found = dict.fromkeys(key for method in self.methods for key in self.sets[0].entry(method)["metrics"])
        others = [{key for method in self.methods for key in data.entry(method)["metrics"]} for data in self.sets[1:]]
        return [key for key in found if all(key in keys for keys in others)]

    @property
    def drawn(self) -> list[Metric]:
        """The results that figures show."""
        return [metric for metric in map(self.protocol.metric, self.keys) if metric.drawn]

    @property
    def headline(self) -> Metric:
        """The result that sums up the others, or the first that there is."""
        key = self.protocol.headline_key
        return self.protocol.metric(key if key in self.keys or not self.keys else self.keys[0])

    @property
    def untrained(self) -> list[bool]:
        """Of each method, whether it trains nothing."""
        return [self.sets[0].entry(method).get("trainable_parameters") == 0 for method in self.methods]

    @property
    def seeds(self) -> int:
        """The smallest number of seeds of a data set."""
        return min(len(data.content["seeds"]) for data in self.sets)

    def mean(self, method: str, key: str) -> float | None:
        """The mean over data sets; None if it is not known of all."""
        values = [_statistic(data, method, key, "mean") for data in self.sets]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def spread(self, method: str, key: str) -> float | None:
        """The standard deviation over seeds; None with one seed or several data sets."""
        single = len(self.sets) == 1 and self.seeds > 1
        return _statistic(self.sets[0], method, key, "std") if single else None

    def values(self, method: str, key: str) -> list[list[float]] | None:
        """By data set, the value of each seed; None if any is missing."""
        groups = []
        for data in self.sets:
            values = data.entry(method)["metrics"].get(key, {}).get("values")
            if not values or len(values) != len(data.content["seeds"]) or None in values:
                return None
            groups.append([float(value) for value in values])
        return groups


def read_study(directories: Sequence[Path], against: str | None = None) -> Study:
    """Read comparisons that belong together.

    Args:
        against: the method that the others are set against; the first by default.

    Raises:
        UserError: a comparison cannot be read, they have different protocols or no method in common, or the reference
            is not among their methods.
    """
    contents = [read_comparison(directory) for directory in directories]
    protocols = dict.fromkeys(str(content["protocol"]) for content in contents)
    if len(protocols) > 1:
        first, second = list(protocols)[:2]
        raise UserError(
            f"One report takes comparisons under one protocol, but {directories[0]} has {first}, and another {second}."
        )
    methods = [[str(entry["method"]) for entry in content["methods"]] for content in contents]
    common = [name for name in methods[0] if all(name in names for names in methods)]
    if not common:
        raise UserError(f"The comparisons {', '.join(map(str, directories))} have no method in common.")
    if against is not None and against not in common:
        raise unknown("method of these comparisons", against, common)
    data = [str(content["data"]) for content in contents]
    names = [
        f"{name} ({directory.resolve().name})" if data.count(name) > 1 else name
        for name, directory in zip(data, directories, strict=True)
    ]
    sets = [DataSet(*fields) for fields in zip(names, contents, directories, strict=True)]
    apart = dict.fromkeys(name for names in methods for name in names if name not in common)
    protocol = PROTOCOLS.load(next(iter(protocols)))
    return Study(protocol, tuple(sets), tuple(common), against or common[0], tuple(apart))


def _statistic(data: DataSet, method: str, key: str, statistic: str) -> float | None:
    value = data.entry(method)["metrics"].get(key, {}).get(statistic)
    return None if value is None else float(value)
