"""Base to novel classes (Zhou et al., CVPR 2022), dealt as FedPGP deals them (Cui et al., ICML 2024).

The first half of the classes in label order, rounded up, is base and dealt to the sites; the rest is novel, and nobody
trains on it. With more sites than base classes, several sites hold the same class, each with its own part of its
images.

Two definitions of base are measured: the base classes that other sites hold, and all base classes, which the authors'
code of FedPGP and of those that follow it measures.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import Metric, Results, Row, harmonic_mean, has_scope, mean_of_last, scope_accuracy
from fedgraft.data.split import Fold, Scope, SiteShare, class_protocol_mask, shots_of, test_mask, train_mask


def folds(examples: Examples, config: RunConfig, options: Options) -> tuple[Fold, ...]:
    """One federation over the base classes; raises UserError if there are too few classes or sites."""
    count = len(examples.class_names)
    if config.sites > count:
        raise UserError(f"There are more sites ({config.sites}) than classes ({count}); give at most {count} sites.")
    base = tuple(range((count + 1) // 2))
    novel = tuple(range(len(base), count))
    if config.sites < 2 or len(base) < 2:
        raise UserError(
            "base-to-novel measures a site on base classes that others hold: it needs two sites and two base classes, "
            f"but there are {config.sites} and {len(base)}."
        )
    usable = class_protocol_mask(examples)
    testing, training = test_mask(examples, config), usable & train_mask(examples, config)
    owners = _dealt_classes(generator(config.seed, "deal-classes").permutation(base), config.sites)
    base_tests = np.flatnonzero(usable & testing & np.isin(examples.labels, base))
    novel_tests = np.flatnonzero(usable & testing & np.isin(examples.labels, novel))
    shots = {label: shots_of(examples, training, label, config) for label in base}
    if lacking := [examples.class_names[label] for label in base if not len(shots[label])]:
        raise UserError(
            f"Nothing is left to train on in the base {'class' if len(lacking) == 1 else 'classes'} "
            f"{', '.join(map(repr, lacking))}: every image is for validation or testing, or a copy of one."
        )
    for name, positions in (("base", base_tests), ("novel", novel_tests)):
        if not len(positions):
            raise UserError(f"The split {config.evaluate_on!r} has no images of the {name} classes.")
    holders = {label: [site for site, own in enumerate(owners) if label in own] for label in base}
    shares = []
    for site, own in enumerate(owners):
        parts = [shots[label][holders[label].index(site) :: len(holders[label])] for label in sorted(own)]
        is_own = np.isin(examples.labels[base_tests], own)
        tests = {"local": base_tests[is_own], "base": base_tests[~is_own]}
        tests |= {"novel": novel_tests, "base_all": base_tests}
        shares.append(SiteShare(np.sort(np.concatenate(parts)), tests))
    scopes = (Scope("local", base), Scope("base", base), Scope("novel", novel), Scope("base_all", base))
    return (Fold(None, base, scopes, tuple(shares)),)


def _dealt_classes(shuffled: IntArray, sites: int) -> list[IntArray]:
    """Each site's classes: equal parts in order, the last with the remainder, or one each if there are more sites."""
    if sites > len(shuffled):
        return [shuffled[site % len(shuffled)][None] for site in range(sites)]
    size = len(shuffled) // sites
    cuts = [site * size for site in range(sites)] + [len(shuffled)]
    return [np.sort(shuffled[begin:end]) for begin, end in pairwise(cuts)]


def results(rows: Sequence[Row], count: int) -> Results:
    """Accuracy by scope and the means that papers report."""

    def of_round(server_round: int) -> dict[str, float]:
        local, base, novel = (scope_accuracy(rows, server_round, scope) for scope in ("local", "base", "novel"))
        hm2 = harmonic_mean(base, novel)
        means = {"hm": harmonic_mean(local, base, novel), "hm2": hm2, "cm": (local + hm2) / 2}
        found = {"local": local, "base": base, "novel": novel, **means}
        if has_scope(rows, server_round, "base_all"):  # not in rounds that an earlier version ran
            found["base_all"] = scope_accuracy(rows, server_round, "base_all")
        return found

    return mean_of_last(rows, count, of_round)


PROTOCOL = Protocol(
    "base-to-novel",
    "half of the classes dealt to the sites, the other half never seen in training",
    folds,
    results,
    metrics=(
        Metric("local", "Local", "a site's own classes, among all base classes; mean over sites", "blue"),
        Metric("base", "Base", "base classes that other sites hold, among all base classes; mean over sites", "orange"),
        Metric("novel", "Novel", "classes that no site trains on, among the novel classes; mean over sites", "green"),
        Metric("hm", "HM", "harmonic mean of local, base and novel", "purple"),
        Metric("hm2", "HM2", "harmonic mean of base and novel", "sky", drawn=False),
        Metric("cm", "CM", "mean of local and HM2", "red", drawn=False),
        Metric("base_all", "All base", "all base classes, as most published code measures", drawn=False),
    ),
    preserved="novel",
    headline="hm",
    tradeoffs=(("base", "novel"), ("local", "novel")),
    colours={"local": "blue", "base": "orange", "novel": "green"},
)
