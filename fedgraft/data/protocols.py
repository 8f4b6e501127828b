"""Protocols: how classes, domains and examples are dealt to sites, and what is measured.

A deal has one fold, or one for each held-out domain. Everything follows from the configuration and the
content of the images; nothing depends on the order of a set or of files on disk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedgraft.config import RunConfig
from fedgraft.data.examples import DEFAULT_TEMPLATES, Examples, IntArray
from fedgraft.data.partition import by_domain, partition
from fedgraft.errors import UserError
from fedgraft.randomness import derived_seed, generator

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Scope:
    """One thing that is measured: the classes that images are told apart among, as positions in the class names."""

    name: str
    classes: tuple[int, ...]


@dataclass(frozen=True)
class SiteShare:
    """What one site holds: positions of its training images, and of its test images for each scope."""

    train: IntArray
    tests: dict[str, IntArray]


@dataclass(frozen=True)
class Fold:
    """One federation: the classes of its training softmax, its scopes and its sites."""

    name: str | None
    train_classes: tuple[int, ...]
    scopes: tuple[Scope, ...]
    sites: tuple[SiteShare, ...]


@dataclass(frozen=True)
class Deal:
    """The dealt data of a run: the table of examples without images, and its folds."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    labels: IntArray
    folds: tuple[Fold, ...]


def deal(examples: Examples, config: RunConfig) -> Deal:
    """Deal a source's examples under the configuration's protocol.

    Raises:
        UserError: the protocol cannot be played with this data and number of sites.
    """
    if config.protocol not in _RULES:
        raise UserError(f"The protocol {config.protocol!r} is for deployed sites, each with its own images.")
    folds = _RULES[config.protocol](examples, config)
    for fold in folds:
        for site, share in enumerate(fold.sites):
            if not len(share.train):
                more = f" or more shots than {config.shots}" if config.shots else ""
                raise UserError(f"Site {site} of {config.sites} got no training images; give fewer sites{more}.")
    return Deal(examples.class_names, examples.templates, examples.labels, folds)


def named_deal(class_names: Sequence[str]) -> Deal:
    """What the server of a deployment knows: the classes, and nothing of the sites' images."""
    return Deal(tuple(class_names), DEFAULT_TEMPLATES, np.empty(0, np.int64), (_personal_fold(class_names, ()),))


def own_deal(examples: Examples, config: RunConfig) -> Deal:
    """One site's own images: a part of each class tests, the rest trains; copies of an image stay together.

    Raises:
        UserError: nothing is left to train on.
    """
    testing = _test_mask(examples, config)
    classes = range(len(examples.class_names))
    train = np.sort(np.concatenate([_shots(examples, ~testing, label, config) for label in classes]))
    if not len(train):
        raise UserError(
            f"Of {len(examples)} images {int(testing.sum())} are for testing, and none is left to train on."
        )
    share = SiteShare(train, {"personal": np.flatnonzero(testing)})
    fold = _personal_fold(examples.class_names, (share,))
    return Deal(examples.class_names, examples.templates, examples.labels, (fold,))


def _personal_fold(class_names: Sequence[str], sites: tuple[SiteShare, ...]) -> Fold:
    classes = tuple(range(len(class_names)))
    return Fold(None, classes, (Scope("personal", classes),), sites)


# --- protocols ------------------------------------------------------------------------------------


def _base_to_novel(examples: Examples, config: RunConfig) -> tuple[Fold, ...]:
    """FedPGP's split: the first half of the sorted classes is base and dealt to the sites, the rest is novel.

    With more sites than base classes several sites hold one class, each its own part of the images.
    """
    count = len(examples.class_names)
    if config.sites > count:
        raise UserError(f"There are more sites ({config.sites}) than classes ({count}); give at most {count} sites.")
    base = tuple(range((count + 1) // 2))
    novel = tuple(range(len(base), count))
    if config.sites < 2 or len(base) < 2:
        raise UserError(
            "base-to-novel measures a site on base classes that others hold: it needs two sites and two base classes, "
            f"and there are {config.sites} and {len(base)}."
        )
    usable = _in_class_protocol_domains(examples)
    testing = _test_mask(examples, config)
    shuffled = generator(config.seed, "deal-classes").permutation(base)
    owners = _dealt_classes(shuffled, config.sites)
    base_tests = np.flatnonzero(usable & testing & np.isin(examples.labels, base))
    novel_tests = np.flatnonzero(usable & testing & np.isin(examples.labels, novel))
    shots = {label: _shots(examples, usable & ~testing, label, config) for label in base}
    holders = {label: [site for site, own in enumerate(owners) if label in own] for label in base}
    shares = []
    for site, own in enumerate(owners):
        parts = [shots[label][holders[label].index(site) :: len(holders[label])] for label in sorted(own)]
        mine = np.isin(examples.labels[base_tests], own)
        tests = {"local": base_tests[mine], "base": base_tests[~mine], "novel": novel_tests}
        shares.append(SiteShare(np.sort(np.concatenate(parts)), tests))
    scopes = (Scope("local", base), Scope("base", base), Scope("novel", novel))
    return (Fold(None, base, scopes, tuple(shares)),)


def _leave_one_domain_out(examples: Examples, config: RunConfig) -> tuple[Fold, ...]:
    """One federation for each domain: trained on the others, measured on all of its images."""
    domains = range(len(examples.domain_names))
    if len(domains) < 2:
        raise UserError(f"Leaving one domain out needs at least two domains; the data has {examples.domain_names}.")
    classes = tuple(range(len(examples.class_names)))
    groups = _key_groups(examples)
    folds = []
    for held_out in domains:
        kept = [domain for domain in domains if domain != held_out]
        target = np.flatnonzero(examples.domains == held_out)
        fresh = np.isin(groups, groups[target], invert=True)
        seed = derived_seed(config.seed, "deal-domains", held_out) % 2**32
        shares = []
        for site, (_, members) in enumerate(by_domain(examples.domains, kept, config.sites, seed)):
            mask = np.zeros(len(examples), bool)
            mask[members] = True
            train = [_shots(examples, mask & fresh, label, config, site) for label in classes]
            shares.append(SiteShare(np.sort(np.concatenate(train)), {"target": target}))
        folds.append(Fold(examples.domain_names[held_out], classes, (Scope("target", classes),), tuple(shares)))
    return tuple(folds)


def _dirichlet(examples: Examples, config: RunConfig) -> tuple[Fold, ...]:
    """Every class everywhere in skewed proportions; each site is measured on test images of its own mixture.

    A site that got no test image trains and is not measured.
    """
    usable = np.flatnonzero(_in_class_protocol_domains(examples))
    testing = _test_mask(examples, config)
    seed = derived_seed(config.seed, "deal-examples") % 2**32
    dealt = partition(
        config.partition, examples.labels[usable], config.sites, seed, config.alpha, config.classes_per_site
    )
    classes = tuple(range(len(examples.class_names)))
    shares = []
    for site, members in enumerate(dealt):
        mask = np.zeros(len(examples), bool)
        mask[usable[members]] = True
        train = np.sort(np.concatenate([_shots(examples, mask & ~testing, label, config, site) for label in classes]))
        tests = np.flatnonzero(mask & testing)
        if not len(train):
            raise UserError(
                f"Site {site} got no training images and {len(tests)} test images; "
                "give fewer sites, a larger alpha or another seed."
            )
        shares.append(SiteShare(train, {"personal": tests}))
    return (_personal_fold(examples.class_names, tuple(shares)),)


_RULES: dict[str, Callable[[Examples, RunConfig], tuple[Fold, ...]]] = {
    "base-to-novel": _base_to_novel,
    "leave-one-domain-out": _leave_one_domain_out,
    "dirichlet": _dirichlet,
}


# --- pieces ---------------------------------------------------------------------------------------


def _dealt_classes(shuffled: IntArray, sites: int) -> list[IntArray]:
    """Each site's classes: equal parts in order with the remainder at the last, or one each where sites abound."""
    if sites > len(shuffled):
        return [shuffled[site % len(shuffled)][None] for site in range(sites)]
    size = len(shuffled) // sites
    cuts = [site * size for site in range(sites)] + [len(shuffled)]
    return [np.sort(shuffled[begin:end]) for begin, end in pairwise(cuts)]


def _in_class_protocol_domains(examples: Examples) -> BoolArray:
    if not examples.class_protocol_domains:
        return np.ones(len(examples), bool)
    wanted = [examples.domain_names.index(name) for name in examples.class_protocol_domains]
    return np.isin(examples.domains, wanted)


def _key_groups(examples: Examples) -> IntArray:
    """One number for each distinct image content: copies of an image share theirs."""
    _, groups = np.unique(examples.keys, axis=0, return_inverse=True)
    return groups.reshape(-1).astype(np.int64)


def _test_mask(examples: Examples, config: RunConfig) -> BoolArray:
    """Which examples are test images: a fixed part of each class, copies of an image always together."""
    groups = _key_groups(examples)
    rng = generator(config.seed, "test-split")
    mask = np.zeros(len(examples), bool)
    taken = np.zeros(groups.max() + 1, bool)
    for label in range(len(examples.class_names)):
        members = np.unique(groups[examples.labels == label])
        count = min(max(1, round(len(members) * config.test_fraction)), len(members))
        taken[rng.permutation(members)[:count]] = True
    mask[taken[groups]] = True
    return mask


def _shots(
    examples: Examples,
    allowed: BoolArray,
    label: int,
    config: RunConfig,
    site: int = 0,
) -> IntArray:
    """At most `shots` training images of a class, in a random order drawn from the seed; all where shots is 0."""
    members = np.flatnonzero(allowed & (examples.labels == label))
    shuffled = generator(config.seed, "shots", label, site).permutation(members)
    return shuffled[: config.shots] if config.shots else shuffled
