"""Halves: every site trains on its part of all classes, and is measured on one half of the classes at a time."""

from collections.abc import Sequence

import numpy as np

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples
from fedgraft.data.partition import partition
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric, Results, Row, mean_of_last, scope_accuracy
from fedgraft.data.split import Fold, Scope, SiteShare, test_mask, train_mask, training_images


def folds(examples: Examples, config: RunConfig, options: Options) -> tuple[Fold, ...]:
    """One federation; images are dealt evenly, and all sites share the test images.

    Raises:
        UserError: there are fewer than four classes, so that a half would be one class.
    """
    count = len(examples.class_names)
    if count < 4:
        raise UserError(f"example-halves needs at least four classes, and there are {count}.")
    testing, training = test_mask(examples, config), train_mask(examples, config)
    shares = []
    first, second = tuple(range(count // 2)), tuple(range(count // 2, count))
    tests = {
        "first": np.flatnonzero(testing & np.isin(examples.labels, first)),
        "second": np.flatnonzero(testing & np.isin(examples.labels, second)),
    }
    for site, members in enumerate(partition("iid", examples.labels, config.sites, config.seed)):
        mine = np.zeros(len(examples), bool)
        mine[members] = True
        shares.append(SiteShare(training_images(examples, mine & training, config, site), tests))
    scopes = (Scope("first", first), Scope("second", second))
    return (Fold(None, tuple(range(count)), scopes, tuple(shares)),)


def results(rows: Sequence[Row], count: int) -> Results:
    """Accuracy on either half, and their mean."""

    def of_round(server_round: int) -> dict[str, float]:
        first, second = (scope_accuracy(rows, server_round, scope) for scope in ("first", "second"))
        return {"first": first, "second": second, "halves": (first + second) / 2}

    return mean_of_last(rows, count, of_round)


PROTOCOL = Protocol(
    name="example-halves",
    summary="all classes everywhere, measured on one half of them at a time",
    folds=folds,
    results=results,
    metrics=(
        Metric("first", "First half", "among the first half of the classes", "blue"),
        Metric("second", "Second half", "among the second half of the classes", "orange"),
        Metric("halves", "Mean", "of both halves", "green"),
    ),
    preserved="second",
    colours={"first": "blue", "second": "orange"},
)
