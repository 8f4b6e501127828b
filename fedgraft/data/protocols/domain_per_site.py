"""A domain for each site: a federation over all domains, each site measured on its own domain and on the others.

With more sites than domains, several sites divide a domain, evenly or by drawn proportions of its classes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import derived_seed
from fedgraft.data.examples import Examples
from fedgraft.data.partition import by_domain
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric, Results, Row, mean_of_last, mean_of_parts, part_accuracies
from fedgraft.data.split import PART, Fold, Scope, SiteShare, test_mask, train_mask, training_images


class DomainOptions(Options):
    """How the sites of one domain divide its images."""

    labels: Literal["iid", "dirichlet"] = Field(
        "iid", description="classes within a domain evenly, or by drawn proportions", examples=["dirichlet"]
    )
    alpha: float = Field(0.5, gt=0, description="concentration of the Dirichlet distribution", examples=[0.1])


def folds(examples: Examples, config: RunConfig, options: DomainOptions) -> tuple[Fold, ...]:
    """One federation over all domains.

    Raises:
        UserError: there is only one domain, or the number of sites does not suit the domains.
    """
    names = examples.domain_names
    if len(names) < 2:
        raise UserError(f"A domain for each site needs at least two domains; the data has {names}.")
    testing, training = test_mask(examples, config), train_mask(examples, config)
    seed = derived_seed(config.seed, "deal-domains") % 2**32
    labels = examples.labels if options.labels == "dirichlet" else None
    dealt = by_domain(examples.domains, range(len(names)), config.sites, seed, labels, options.alpha)
    others = [np.flatnonzero(testing & (examples.domains != domain)) for domain in range(len(names))]
    nothing = np.empty(0, np.int64)
    shares = []
    for site, (domain, members) in enumerate(dealt):
        mask = np.zeros(len(examples), bool)
        mask[members] = True
        tests = {f"own{PART}{name}": nothing for name in names}
        tests[f"own{PART}{names[domain]}"] = np.flatnonzero(mask & testing)
        tests["others"] = others[domain]
        shares.append(SiteShare(training_images(examples, mask & training, config, site), tests))
    classes = tuple(range(len(examples.class_names)))
    scopes = tuple(Scope(name, classes) for name in shares[0].tests)
    return (Fold(None, classes, scopes, tuple(shares)),)


def results(rows: Sequence[Row], count: int) -> Results:
    """Accuracy on the sites' own domains, on each of them, and on the others."""

    def of_round(server_round: int) -> dict[str, Any]:
        own = part_accuracies(rows, server_round, "own")
        sites = [value for values in own.values() for value in values]
        others = next(row["accuracy"] for row in rows if row["round"] == server_round and row["scope"] == "others")
        figures = {"own": np.mean(sites), "others": others, "worst_site": np.min(sites), "std": np.std(sites)}
        return {"per_domain": mean_of_parts(own), **figures}

    return mean_of_last(rows, count, of_round)


PROTOCOL = Protocol(
    "domain-per-site",
    "each site holds a domain and is measured on it and on the others",
    folds,
    results,
    metrics=(
        Metric("own", "Own", "each site on its own domain", "blue"),
        Metric("others", "Others", "each site on the domains of the others", "orange"),
        Metric("worst_site", "Worst site", "the lowest accuracy of a site on its own domain", drawn=False),
        Metric("std", "Std", "standard deviation over sites, in percentage points", drawn=False, lower_is_better=True),
    ),
    options=DomainOptions,
    preserved="others",
    tradeoffs=(("own", "others"),),
    colours={"others": "orange"},
    part="the sites that hold this domain, on its test images",
)
