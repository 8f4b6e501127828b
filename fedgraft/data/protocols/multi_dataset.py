"""Several data sets in one federation, as FedTPG deals them (Qiu et al., ICLR 2024).

A site holds some classes of one data set, in label order, and trains with a softmax over these classes alone. Measured
are a site's own classes among themselves, all classes of a data set that sites hold together, those that nobody trains
on, and whole data sets that nobody trains on. Each is the mean over data sets.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError, unknown
from fedgraft.data.examples import Examples
from fedgraft.data.joined import Block, blocks
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric, Results, Row, harmonic_mean, mean_of_last, mean_of_parts, part_accuracies
from fedgraft.data.split import PART, Fold, Scope, SiteShare, test_mask, train_mask, training_images


class MultiDatasetOptions(Options):
    """Which classes are trained on, and how many a site holds."""

    classes_per_site: int = Field(
        0, ge=0, description="classes of a site; 0 for as many as make the run's number of sites", examples=[20]
    )
    seen: Literal["half", "all"] = Field(
        "half",
        description="the first half of a data set's classes, rounded up, or all are trained on",
        examples=["all"],
    )
    unseen: str = Field("", description="data sets that nobody trains on, separated by commas", examples=["digits"])


def folds(examples: Examples, config: RunConfig, options: MultiDatasetOptions) -> tuple[Fold, ...]:
    """One federation over the classes that are trained on.

    Raises:
        UserError: there is one data set, none to train on, or the number of sites does not suit the classes.
    """
    known = {block.name: block for block in blocks(examples)}
    held_out = [name.strip() for name in options.unseen.split(",") if name.strip()]
    for name in held_out:
        if name not in known:
            raise unknown("data set of the run", name, known)
    trained = [block for name, block in known.items() if name not in held_out]
    if not trained:
        raise UserError("All data sets are unseen; leave one to train on.")
    seen = {block.name: _seen(block, options) for block in trained}
    owners = _owners(seen, config.sites, options.classes_per_site)
    testing, training = test_mask(examples, config), train_mask(examples, config)

    def tests_of(classes: Sequence[int]) -> NDArray[np.int64]:
        return np.flatnonzero(testing & np.isin(examples.labels, classes))

    scopes = [Scope(f"local{PART}{name}", classes, own=True) for name, classes in seen.items()]
    scopes += [Scope(f"base{PART}{name}", classes) for name, classes in seen.items()]
    scopes += [
        Scope(f"novel{PART}{block.name}", rest) for block in trained if (rest := block.classes[len(seen[block.name]) :])
    ]
    scopes += [Scope(f"unseen{PART}{name}", known[name].classes) for name in held_out]
    shared = {scope.name: tests_of(scope.classes) for scope in scopes if not scope.own}
    nothing = np.empty(0, np.int64)
    shares = []
    for site, (name, own) in enumerate(owners):
        local = {scope.name: nothing for scope in scopes if scope.own}
        local[f"local{PART}{name}"] = tests_of(own)
        train = training_images(examples, training & np.isin(examples.labels, own), config, site)
        shares.append(SiteShare(train, {**local, **shared}, own))
    classes = tuple(sorted(label for own in seen.values() for label in own))
    return (Fold(None, classes, tuple(scopes), tuple(shares)),)


def _seen(block: Block, options: MultiDatasetOptions) -> tuple[int, ...]:
    return block.classes if options.seen == "all" else block.classes[: (len(block.classes) + 1) // 2]


def _owners(seen: dict[str, tuple[int, ...]], sites: int, per_site: int) -> list[tuple[str, tuple[int, ...]]]:
    """The data set and the classes of each site; the last site of a data set takes the remainder."""
    if per_site:
        counts = {name: max(1, round(len(classes) / per_site)) for name, classes in seen.items()}
        if (total := sum(counts.values())) != sites:
            raise UserError(
                f"Sites of about {per_site} classes each are {total} for these data sets, not {sites}; give --sites "
                f"{total}, or classes_per_site=0."
            )
    else:
        counts = _proportional(seen, sites)
    owners = []
    for name, classes in seen.items():
        size = per_site or len(classes) // counts[name]
        for number in range(counts[name]):
            end = len(classes) if number == counts[name] - 1 else (number + 1) * size
            owners.append((name, classes[number * size : end]))
    if small := [name for name, own in owners if len(own) < 2]:
        raise UserError(
            f"A site of the data set {small[0]!r} would hold fewer than two classes, which is no classification; give "
            "fewer sites or more classes per site."
        )
    return owners


def _proportional(seen: dict[str, tuple[int, ...]], sites: int) -> dict[str, int]:
    """How many sites each data set has: one, and the others where a site would hold the most classes."""
    if sites < len(seen):
        raise UserError(f"{sites} sites cannot cover {len(seen)} data sets; give at least {len(seen)}.")
    counts = dict.fromkeys(seen, 1)
    for _ in range(sites - len(seen)):
        counts[max(seen, key=lambda name: len(seen[name]) / counts[name])] += 1
    return counts


def results(rows: Sequence[Row], count: int) -> Results:
    """Accuracies as means over data sets, and the base accuracy of each."""

    def of_round(server_round: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind in ("local", "base", "novel", "unseen"):
            if parts := mean_of_parts(part_accuracies(rows, server_round, kind)):
                found[kind] = float(np.mean(list(parts.values())))
                if kind in ("base", "unseen"):
                    found["per_dataset"] = {**found.get("per_dataset", {}), **parts}
        means = [found[kind] for kind in ("local", "base", "novel") if kind in found]
        return {**found, "hm": harmonic_mean(*means)}

    return mean_of_last(rows, count, of_round)


PROTOCOL = Protocol(
    "multi-dataset",
    "several data sets in one federation, a site holding some classes of one",
    folds,
    results,
    metrics=(
        Metric("local", "Local", "a site's own classes, among themselves; mean over data sets", "blue"),
        Metric("base", "Base", "all classes of a data set that sites hold; mean over data sets", "orange"),
        Metric("novel", "Novel", "a data set's classes that no site holds; mean over data sets", "green", always=False),
        Metric("unseen", "Unseen", "data sets that no site holds; mean over them", "sky", always=False),
        Metric("hm", "HM", "harmonic mean of local, base and novel", "purple"),
    ),
    options=MultiDatasetOptions,
    preserved="base",
    headline="hm",
    tradeoffs=(("base", "novel"), ("local", "base")),
    joins=True,
    part="all its classes that sites hold, or all classes of a data set that nobody trains on",
)
