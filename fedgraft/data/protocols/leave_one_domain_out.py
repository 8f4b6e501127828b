"""Leave one domain out: a federation for each domain, trained on the others and measured on it.

A source's own splits are kept: then only training images train, and only a domain's test images are measured, unless
the whole domain is asked for, as the authors of Dassl and of FedCLIP measure it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import derived_seed, generator
from fedgraft.data.examples import Examples
from fedgraft.data.partition import by_domain
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric, Results, Row, evaluated_rounds, scope_accuracy
from fedgraft.data.split import (
    BoolArray,
    Fold,
    Scope,
    SiteShare,
    content_groups,
    test_mask,
    train_mask,
    training_images,
)


class LeaveOneDomainOutOptions(Options):
    """What trains of the domains that are kept, and what is measured of the one that is left out."""

    whole_domain: bool = Field(
        False, description="measure all images of the domain left out, whatever their split", examples=[True]
    )
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="which part of each domain's training images trains", examples=[0.6]
    )


def folds(examples: Examples, config: RunConfig, options: LeaveOneDomainOutOptions) -> tuple[Fold, ...]:
    """A federation for each domain, with every site in one of the others.

    Raises:
        UserError: there is only one domain, or the number of sites does not suit the domains.
    """
    domains = range(len(examples.domain_names))
    if len(domains) < 2:
        raise UserError(f"Leaving one domain out needs at least two domains; the data has {examples.domain_names}.")
    classes = tuple(range(len(examples.class_names)))
    groups = content_groups(examples)
    everything = np.ones(len(examples), bool)
    testing = everything if options.whole_domain else _in_splits(test_mask, examples, config)
    training = _drawn(_in_splits(train_mask, examples, config), examples, options.train_fraction, config.seed)
    made = []
    for held_out in domains:
        kept = [domain for domain in domains if domain != held_out]
        is_held_out = examples.domains == held_out
        target = np.flatnonzero(is_held_out & testing)
        if not len(target):
            raise UserError(
                f"The domain {examples.domain_names[held_out]!r} has no images in the split {config.evaluate_on!r}."
            )
        fresh = training & np.isin(groups, groups[is_held_out], invert=True)
        seed = derived_seed(config.seed, "deal-domains", held_out) % 2**32
        shares = []
        for site, (_, members) in enumerate(by_domain(examples.domains, kept, config.sites, seed)):
            mask = np.zeros(len(examples), bool)
            mask[members] = True
            shares.append(SiteShare(training_images(examples, mask & fresh, config, site), {"target": target}))
        made.append(Fold(examples.domain_names[held_out], classes, (Scope("target", classes),), tuple(shares)))
    return tuple(made)


def _drawn(training: BoolArray, examples: Examples, fraction: float, seed: int) -> BoolArray:
    """A part of each domain's training images, at least one, drawn from the seed."""
    order = generator(seed, "train-fraction").permutation(len(examples))
    kept = np.zeros(len(examples), bool)
    for domain in range(len(examples.domain_names)):
        members = order[(training & (examples.domains == domain))[order]]
        kept[members[: max(1, int(len(members) * fraction))]] = True
    return kept


def _in_splits(mask: Callable[[Examples, RunConfig], BoolArray], examples: Examples, config: RunConfig) -> BoolArray:
    """A mask of the source's own splits; everything where it has none, for each of several data sets on its own."""
    if examples.data_sets:
        return np.concatenate([_in_splits(mask, each.examples, config) for each in examples.data_sets])
    return np.ones(len(examples), bool) if examples.splits is None else mask(examples, config)


def results(rows: Sequence[Row], count: int) -> Results:
    """Accuracy on each domain that was left out, and their mean."""
    per_domain = {}
    for domain in sorted({row["fold"] for row in rows if row["scope"] == "target"}):
        own = [row for row in rows if row["fold"] == domain]
        accuracies = [scope_accuracy(own, server_round, "target") for server_round in evaluated_rounds(own)[-count:]]
        per_domain[domain] = float(np.mean(accuracies))
    return {"per_domain": per_domain, "mean": float(np.mean(list(per_domain.values())))}


PROTOCOL = Protocol(
    "leave-one-domain-out",
    "a federation for each domain: trained on the others, measured on it",
    folds,
    results,
    metrics=(Metric("mean", "Mean", "over the held-out domains", "muted"),),
    options=LeaveOneDomainOutOptions,
    preserved="target",
)
