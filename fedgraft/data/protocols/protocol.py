"""What a protocol is: how classes, domains and images are assigned to sites, and what is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from fedgraft.config.registry import Registered
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples
from fedgraft.data.joined import class_templates
from fedgraft.data.results import Colour, Metric, Results, Row
from fedgraft.data.split import Fold, Split

_LAST = 5
_PARTS = ("domain:", "dataset:")


@dataclass(frozen=True)
class Protocol(Registered):
    """A registered protocol.

    Attributes:
        folds: makes the federations from the examples, the configuration and the options.
        results: computes the metrics of summary.json from the rows of metrics.jsonl and a number of last rounds.
        metrics: how each result is shown; the mappings `per_domain` and `per_dataset` need no entry.
        preserved: the scope that best shows what a federation preserves, or the first of its parts; exports are
            measured by it.
        colours: colours of the scopes in figures.
        announced: what a deployment's server knows about the split before any site has connected, from the options;
            None if one machine splits all images. A deployed site calls `folds` on its own images, and the options
            include `class_names`, the classes of the federation.
        joins: whether it takes several data sets, as the source `several` joins them.
        headline: the result that sums up the others, by key; the first of `metrics` if empty.
        tradeoffs: pairs of results, by key, that figures set against each other, to the right and upwards.
        part: what the accuracy of one domain or data set means, where results have a mapping of them.
    """

    kind: ClassVar[str] = "protocol"
    columns: ClassVar[tuple[str, ...]] = ("measures", "where")

    folds: Callable[[Examples, RunConfig, Any], tuple[Fold, ...]]
    results: Callable[[Sequence[Row], int], Results]
    _: KW_ONLY
    metrics: tuple[Metric, ...]
    preserved: str
    colours: Mapping[str, Colour] = field(default_factory=dict)
    announced: Callable[[Any], Split] | None = None
    joins: bool = False
    headline: str = ""
    tradeoffs: tuple[tuple[str, str], ...] = ()
    part: str = "this domain held out from training"

    def facts(self) -> dict[str, str]:
        """What is measured, and where the protocol runs."""
        where = "deployed sites" if self.deployed else "simulations"
        return {"measures": ", ".join(metric.label for metric in self.metrics), "where": where}

    @property
    def deployed(self) -> bool:
        """Whether each site holds its own images on its own machine."""
        return self.announced is not None

    @property
    def headline_key(self) -> str:
        """The result that sums up the others."""
        return self.headline or self.metrics[0].key

    def split(self, examples: Examples, config: RunConfig, options: Any) -> Split:
        """Split a source's examples; raises UserError if data or number of sites do not suit the protocol."""
        folds = self.folds(examples, config, options)
        for fold in folds:
            for site, share in enumerate(fold.sites):
                if not len(share.train):
                    more = f" or more shots than {config.shots}" if config.shots else ""
                    raise UserError(f"Site {site} of {config.sites} got no training images; use fewer sites{more}.")
        return Split(
            examples.class_names,
            examples.templates,
            examples.labels,
            examples.keys,
            folds,
            class_templates(examples),
        )

    def last_round(self, rows: Sequence[Row]) -> Results:
        """The results of the last evaluated round."""
        return self.results(rows, 1)

    def last_five(self, rows: Sequence[Row]) -> Results:
        """The mean of each result over the last five evaluated rounds."""
        return self.results(rows, _LAST)

    def metric(self, key: str) -> Metric:
        """How a result is shown, including a domain's and one that only an earlier version had."""
        if key.startswith(_PARTS):
            return Metric(key, key.partition(":")[2], self.part)
        return next((metric for metric in self.metrics if metric.key == key), Metric(key, key, ""))


def flat_results(results: Results) -> dict[str, float]:
    """Results without nesting: the mapping `per_domain` becomes one key `domain:NAME` per domain, others likewise."""
    parts = {
        f"{key.removeprefix('per_')}:{name}": value
        for key, nested in results.items()
        if isinstance(nested, dict)
        for name, value in nested.items()
    }
    return parts | {key: value for key, value in results.items() if not isinstance(value, dict)}
