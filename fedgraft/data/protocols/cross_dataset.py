"""Cross-dataset transfer (Zhou et al., CVPR 2022): trained on one data set, measured on others.

Each data set is classified among its own classes, under its own templates. The sites divide the training set.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import unknown
from fedgraft.core.randomness import derived_seed
from fedgraft.data.examples import Examples
from fedgraft.data.joined import blocks
from fedgraft.data.partition import partition
from fedgraft.data.protocols.dirichlet import DirichletOptions
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric, Results, Row, mean_of_last, mean_of_parts, part_accuracies, scope_accuracy
from fedgraft.data.split import PART, Fold, Scope, SiteShare, test_mask, train_mask, training_images


class CrossDatasetOptions(DirichletOptions):
    """What is trained on, and how its images are divided among the sites."""

    train: str = Field("", description="the data set trained on; the first unless given", examples=["characters"])
    partition: Literal["dirichlet", "pathological", "iid"] = Field(
        "iid", description="by drawn proportions, a few classes per site, or evenly", examples=["pathological"]
    )


def folds(examples: Examples, config: RunConfig, options: CrossDatasetOptions) -> tuple[Fold, ...]:
    """One federation over the training set; raises UserError if there is one data set or a site gets too few images."""
    known = {block.name: block for block in blocks(examples)}
    if options.train and options.train not in known:
        raise unknown("data set of the run", options.train, known)
    source = known.pop(options.train or next(iter(known)))
    testing, training = test_mask(examples, config), train_mask(examples, config)
    seed = derived_seed(config.seed, "deal-examples") % 2**32
    labels = examples.labels[source.positions]
    parts = partition(options.partition, labels, config.sites, seed, options.alpha, options.classes_per_site)
    targets = {f"target{PART}{name}": block.positions[testing[block.positions]] for name, block in known.items()}
    tests = {"source": source.positions[testing[source.positions]], **targets}
    shares = []
    for site, members in enumerate(parts):
        mask = np.zeros(len(examples), bool)
        mask[source.positions[members]] = True
        shares.append(SiteShare(training_images(examples, mask & training, config, site), tests))
    scopes = [Scope("source", source.classes)]
    scopes += [Scope(f"target{PART}{name}", block.classes) for name, block in known.items()]
    return (Fold(None, source.classes, tuple(scopes), tuple(shares)),)


def results(rows: Sequence[Row], count: int) -> Results:
    """Accuracy on the training set's test images, on each other data set, and the mean of the others."""

    def of_round(server_round: int) -> dict[str, Any]:
        targets = mean_of_parts(part_accuracies(rows, server_round, "target"))
        mean = float(np.mean(list(targets.values())))
        return {"source": scope_accuracy(rows, server_round, "source"), "per_dataset": targets, "mean": mean}

    return mean_of_last(rows, count, of_round)


PROTOCOL = Protocol(
    "cross-dataset",
    "trained on one data set, measured on others, each among its own classes",
    folds,
    results,
    metrics=(
        Metric("source", "Source", "test images of the data set trained on", "blue"),
        Metric("mean", "Mean", "over the other data sets", "orange"),
    ),
    options=CrossDatasetOptions,
    preserved="target",
    headline="mean",
    tradeoffs=(("source", "mean"),),
    colours={"source": "blue"},
    joins=True,
    part="this data set, on which nobody trains",
)
