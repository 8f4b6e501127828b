"""What a published figure would lose: shots that hold no test image, and sites dealt as the protocol says."""

import hashlib
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.config.registry import PROTOCOLS
from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import sorted_into_tables
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DataSet, Examples
from fedgraft.data.joined import join
from fedgraft.data.split import Fold, Split
from fedgraft.methods.plan import Plan

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIMULATED = [protocol.name for protocol in PROTOCOLS if not protocol.deployed]


def suited(protocol: str, examples: Examples) -> Examples:
    """The examples; for a protocol that joins data sets, twice, so that every image has a copy in the other."""
    if not PROTOCOLS.load(protocol).joins:
        return examples
    return join([DataSet("first", examples), DataSet("second", examples)])


def _split(examples: Examples, **chosen: Any) -> Split:
    return Plan.of(RunConfig.build(sorted_into_tables({"sites": 3, **chosen}))).split(examples)


def _fold(examples: Examples, **chosen: Any) -> Fold:
    (fold,) = _split(examples, **chosen).folds
    return fold


def _contents(examples: Examples, positions: np.ndarray) -> set[bytes]:
    return {examples.keys[position].tobytes() for position in positions}


def _digest(split: Split) -> str:
    digest = hashlib.sha256(repr((split.class_names, split.labels.tolist())).encode())
    for fold in split.folds:
        for share in fold.sites:
            tests = {scope: positions.tolist() for scope, positions in share.tests.items()}
            digest.update(repr((fold.name, fold.train_classes, fold.scopes, share.train.tolist(), tests)).encode())
    return digest.hexdigest()


# --- what holds under every protocol --------------------------------------------------------------


@pytest.mark.parametrize("protocol", SIMULATED)
@UNTIMED
@given(data=st.data())
def test_no_test_image_is_ever_among_the_shots(protocol: str, examples_of: Any, data: st.DataObject) -> None:
    """Whatever the sites, shots and seed, and even if the source holds an image several times."""
    classes, per_class = data.draw(st.integers(2, 7)), data.draw(st.integers(6, 16))
    contents = list(range(classes * per_class))
    for copy in data.draw(st.lists(st.integers(0, len(contents) - 1), max_size=20), label="copies"):
        contents[copy] = contents[data.draw(st.integers(0, len(contents) - 1), label="of")]
    examples = suited(protocol, examples_of(classes, per_class, domains=3, contents=contents))
    shots = data.draw(st.integers(0, 6), label="shots")
    sites = data.draw(st.integers(1, 9), label="sites")
    seed = data.draw(st.integers(0, 99), label="seed")
    options = {"alpha": 5.0} if protocol == "dirichlet" else {}
    try:
        split = _split(examples, protocol=protocol, sites=sites, seed=seed, shots=shots, **options)
    except UserError:
        return
    for fold in split.folds:
        _check_fold(fold, examples, sites, shots)


def _check_fold(fold: Fold, examples: Examples, sites: int, shots: int) -> None:
    assert len(fold.sites) == sites
    trained = np.concatenate([share.train for share in fold.sites])
    assert len(np.unique(trained)) == len(trained), "an image is at two sites"
    seen = _contents(examples, trained)
    for share in fold.sites:
        assert len(share.train)
        assert set(examples.labels[share.train].tolist()) <= set(fold.train_classes)
        counts = np.bincount(examples.labels[share.train])
        assert not shots or counts.max() <= shots
        for scope in fold.scopes:
            positions = share.tests[scope.name]
            assert not _contents(examples, positions) & seen
            assert set(examples.labels[positions].tolist()) <= set(scope.classes)


@pytest.mark.parametrize("protocol", SIMULATED)
def test_the_same_configuration_deals_the_same(protocol: str, examples_of: Any) -> None:
    examples = suited(protocol, examples_of(classes=10, domains=3))
    assert _digest(_split(examples, protocol=protocol)) == _digest(_split(examples, protocol=protocol))


DIRICHLET = {"protocol": "dirichlet", "shots": 0, "alpha": 2.0}


@pytest.mark.parametrize(
    ("common", "one", "other"),
    [
        *(({"protocol": protocol}, {"seed": 0}, {"seed": 1}) for protocol in SIMULATED),
        *(({"protocol": protocol}, {"shots": 1}, {"shots": 3}) for protocol in SIMULATED),
        *(({"protocol": protocol}, {"sites": 3}, {"sites": 4}) for protocol in SIMULATED),
        ({}, {"test_fraction": 0.2}, {"test_fraction": 0.5}),
        (DIRICHLET, {"test_fraction": 0.2}, {"test_fraction": 0.5}),
        (DIRICHLET, {"alpha": 1.0}, {"alpha": 50.0}),
        (DIRICHLET, {"partition": "iid"}, {"partition": "dirichlet"}),
        (DIRICHLET, {"partition": "iid"}, {"partition": "pathological"}),
        ({**DIRICHLET, "partition": "pathological"}, {"classes_per_site": 2}, {"classes_per_site": 3}),
        ({**DIRICHLET, "partition": "pathological"}, {"seed": 0}, {"seed": 1}),
    ],
    ids=str,
)
def test_no_option_is_without_effect(
    common: dict[str, Any], one: dict[str, Any], other: dict[str, Any], examples_of: Any
) -> None:
    """Trap T6: a flag that is never passed on."""
    examples = suited(common.get("protocol", "base-to-novel"), examples_of(classes=10, domains=3))
    assert _digest(_split(examples, **{**common, **one})) != _digest(_split(examples, **{**common, **other}))


def _dealt(folder: str) -> list[str]:
    """A line for each source and protocol: what it deals, from data of fewer images. Runs in any interpreter."""
    import hashlib
    from unittest.mock import patch

    from fedgraft.config.registry import PROTOCOLS
    from fedgraft.config.run_config import RunConfig
    from fedgraft.data.sources import characters, shapes
    from fedgraft.data.sources.source import open_source

    lines = []
    few = {family: files[:1] for family, files in characters.FAMILIES.items()}
    fewer = patch.multiple(characters, DRAWINGS_PER_CLASS_AND_FAMILY=2, FAMILIES=few)
    for spec in ("digits", "characters", "shapes:flat,noisy", f"folder:{folder}", "several:digits+characters"):
        with fewer, patch.object(shapes, "IMAGES_PER_CLASS_AND_STYLE", 2):
            examples = open_source(spec, 0)
        for protocol in PROTOCOLS:
            if protocol.deployed or protocol.name == "natural" or protocol.joins != bool(examples.data_sets):
                continue
            if "domain" in protocol.name and len(examples.domain_names) == 1:
                continue
            options = {"partition": "iid"} if "partition" in protocol.options.model_fields else {}
            config = RunConfig(protocol=protocol.name, sites=max(4, len(examples.domain_names)), shots=4)
            split = protocol.split(examples, config, protocol.parse_options(options))
            trained = [[share.train.tolist() for share in fold.sites] for fold in split.folds]
            names = examples.class_names, examples.domain_names, examples.templates
            digest = hashlib.sha256(repr((names, trained, examples.keys.tobytes())).encode()).hexdigest()
            lines.append(f"{spec} {protocol.name} {digest}")
    return lines


@pytest.mark.slow
def test_nothing_depends_on_the_interpreters_hash_seed(tmp_path: Path, write_image: Any) -> None:
    """Trap T1: class names in a set. It made published tables of this lineage unusable."""
    for domain in ("amazon", "dslr", "webcam"):
        for number, name in enumerate(("mug", "bike", "desk_lamp", "calculator")):
            for index in range(8):
                write_image(tmp_path / domain / name / f"{index}.png", (index, number, ord(domain[0])))
    script = f"{inspect.getsource(_dealt)}\nimport sys\nprint(hash('fedgraft'), *_dealt(sys.argv[1]), sep='\\n')"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        here = _dealt(str(tmp_path))
        there = other.communicate()[0].splitlines()
    assert there[0] != str(hash("fedgraft"))
    assert len(here) == 2 + 3 * 4 + 2
    assert there[1:] == here


# --- base-to-novel --------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "base"), [(3, 2), (6, 3), (7, 4)])
def test_the_first_half_of_the_sorted_classes_is_base(classes: int, base: int, examples_of: Any) -> None:
    fold = _fold(examples_of(classes), sites=2)
    scopes = {scope.name: scope.classes for scope in fold.scopes}
    assert fold.train_classes == scopes["local"] == scopes["base"] == tuple(range(base))
    assert scopes["novel"] == tuple(range(base, classes))


@pytest.mark.parametrize(("classes", "sites"), [(6, 1), (2, 2)])
def test_a_federation_without_base_classes_at_other_sites_is_refused(
    classes: int, sites: int, examples_of: Any
) -> None:
    """`base` would be a mean over nothing."""
    with pytest.raises(UserError, match="two sites and two base classes"):
        _fold(examples_of(classes), sites=sites)


@pytest.mark.parametrize("sites", [2, 3, 4, 5])
def test_each_base_class_is_dealt_to_one_site(sites: int, examples_of: Any) -> None:
    examples = examples_of(10)
    owned = [set(examples.labels[share.train].tolist()) for share in _fold(examples, sites=sites, shots=4).sites]
    assert sorted(label for own in owned for label in own) == list(range(5))


def test_ten_thousand_classes_are_dealt(examples_of: Any) -> None:
    fold = Plan.of(RunConfig(sites=3, shots=1)).split(examples_of(10_000, 2)).folds[0]
    assert fold.train_classes == tuple(range(5_000))
    assert sorted(label for share in fold.sites for label in share.train % 10_000) == list(range(5_000))


def test_which_site_owns_a_class_is_drawn_from_the_seed(examples_of: Any) -> None:
    examples = examples_of(20)
    owners = [
        [set(examples.labels[share.train].tolist()) for share in _fold(examples, sites=5, seed=seed).sites]
        for seed in (0, 1)
    ]
    assert owners[0] != owners[1]


def test_sites_that_share_a_class_hold_different_images_of_it(examples_of: Any) -> None:
    examples = examples_of(10, per_class=30)
    shares = _fold(examples, sites=10, shots=8).sites
    trained = np.concatenate([share.train for share in shares])
    assert [len(set(examples.labels[share.train].tolist())) for share in shares] == [1] * 10
    assert len(np.unique(trained)) == len(trained)
    assert np.bincount(examples.labels[trained]).tolist() == [8] * 5


def test_local_and_base_tests_are_together_all_base_test_images(examples_of: Any) -> None:
    examples = examples_of(10, per_class=30)
    for share in _fold(examples, sites=3, shots=4).sites:
        own = set(examples.labels[share.train].tolist())
        local, base = share.tests["local"], share.tests["base"]
        assert set(examples.labels[local].tolist()) == own
        assert set(examples.labels[base].tolist()) == set(range(5)) - own
        everything = np.concatenate([local, base])
        assert np.bincount(examples.labels[everything]).tolist() == [9] * 5


def test_novel_test_images_are_the_same_for_all_sites_and_of_all_novel_classes(examples_of: Any) -> None:
    examples = examples_of(10, per_class=30)
    first, *others = (share.tests["novel"] for share in _fold(examples).sites)
    assert set(examples.labels[first].tolist()) == set(range(5, 10))
    for novel in others:
        np.testing.assert_array_equal(novel, first)


@pytest.mark.parametrize(("shots", "held"), [(1, 1), (5, 5), (1000, 14), (0, 14)])
def test_shots_are_images_of_a_class_and_zero_takes_all(shots: int, held: int, examples_of: Any) -> None:
    examples = examples_of(6, per_class=20)
    for share in _fold(examples, shots=shots, test_fraction=0.3).sites:
        assert np.bincount(examples.labels[share.train]).max() == held


def test_fewer_shots_are_a_part_of_more_shots(examples_of: Any) -> None:
    """Otherwise a curve over shots would compare other images, not fewer."""
    few, many = (_fold(examples_of(), shots=shots).sites[0].train for shots in (2, 6))
    assert set(few.tolist()) < set(many.tolist())


def test_all_base_classes_are_measured_beside_those_that_others_hold(examples_of: Any) -> None:
    """The authors' code of FedPGP and of its successors tests every site on all base images."""
    for share in _fold(examples_of(10)).sites:
        both = np.concatenate([share.tests["local"], share.tests["base"]])
        assert sorted(both.tolist()) == share.tests["base_all"].tolist()


def test_a_run_that_an_earlier_version_began_has_the_results_that_all_its_rounds_have() -> None:
    """It measured no `base_all`, and a run that is resumed today does."""
    protocol = PROTOCOLS.load("base-to-novel")
    rows = [
        {"round": server_round, "scope": scope, "accuracy": 50.0, "fold": None}
        for server_round, scopes in ((1, ("local", "base", "novel")), (2, ("local", "base", "novel", "base_all")))
        for scope in scopes
    ]
    assert "base_all" in protocol.last_round(rows)
    assert protocol.last_five(rows) == {"local": 50.0, "base": 50.0, "novel": 50.0, "hm": 50.0, "hm2": 50.0, "cm": 50.0}


def test_a_source_without_writers_is_refused_by_the_protocol_of_writers(examples_of: Any) -> None:
    with pytest.raises(UserError, match="name no writers"):
        _fold(replace(examples_of(), sites=None), protocol="natural")


# --- leave one domain out -------------------------------------------------------------------------


def test_each_domain_is_left_out_once_and_never_trained_on(examples_of: Any) -> None:
    examples = examples_of(domains=4, per_class=40)
    folds = _split(examples, protocol="leave-one-domain-out", sites=4).folds
    assert [fold.name for fold in folds] == list(examples.domain_names)
    for held_out, fold in enumerate(folds):
        for share in fold.sites:
            assert held_out not in examples.domains[share.train]
            assert len(set(examples.domains[share.train].tolist())) == 1
            np.testing.assert_array_equal(share.tests["target"], np.flatnonzero(examples.domains == held_out))
        trained = {int(domain) for share in fold.sites for domain in examples.domains[share.train]}
        assert trained == set(range(4)) - {held_out}


def test_a_copy_of_a_held_out_image_in_another_domain_is_not_trained_on(examples_of: Any) -> None:
    contents = [position % 60 for position in range(120)]
    examples = examples_of(classes=6, per_class=20, domains=4, contents=contents)
    with pytest.raises(UserError, match="got no training images"):
        _split(examples, protocol="leave-one-domain-out", sites=3)


def test_a_whole_domain_can_be_measured_and_a_part_of_the_others_can_train(examples_of: Any) -> None:
    """As Dassl measures PACS, whose lists have no test images, and as FedCLIP trains on 60 % of each domain."""
    examples = examples_of(classes=6, per_class=20, domains=4)
    examples = replace(examples, splits=(np.arange(120) % 2).astype(np.int8))
    chosen = {"protocol": "leave-one-domain-out", "sites": 3, "shots": 0}
    with pytest.raises(UserError, match="has no such images"):
        _split(examples, **chosen)
    split = _split(examples, **chosen, whole_domain=True, train_fraction=0.6)
    for held_out, fold in enumerate(split.folds):
        for share in fold.sites:
            np.testing.assert_array_equal(share.tests["target"], np.flatnonzero(examples.domains == held_out))
            assert len(share.train) == int(15 * 0.6)
            assert (share.train % 2 == 0).all()
    other = _split(examples, **chosen, whole_domain=True, train_fraction=0.6, seed=1)
    assert other.folds[0].sites[0].train.tolist() != split.folds[0].sites[0].train.tolist()


# --- dirichlet, pathological, iid -----------------------------------------------------------------


@pytest.fixture(params=["dirichlet", "pathological", "iid"])
def skewed(request: pytest.FixtureRequest, examples_of: Any) -> tuple[Examples, Fold]:
    examples = examples_of(6, per_class=40)
    return examples, _fold(examples, **{**DIRICHLET, "sites": 6, "partition": request.param})


def test_every_image_is_dealt_once_to_train_or_to_test(skewed: tuple[Examples, Fold]) -> None:
    examples, fold = skewed
    dealt = np.concatenate([np.concatenate([share.train, share.tests["personal"]]) for share in fold.sites])
    assert sorted(dealt.tolist()) == list(range(len(examples)))


def test_a_site_is_tested_on_the_classes_that_it_holds(examples_of: Any) -> None:
    examples = examples_of(6, per_class=40)
    fold = _fold(examples, **{**DIRICHLET, "sites": 6, "partition": "pathological"})
    for share in fold.sites:
        held = set(examples.labels[share.train].tolist())
        assert len(held) == 2
        assert set(examples.labels[share.tests["personal"]].tolist()) == held


def test_a_site_that_got_no_test_image_trains_all_the_same(examples_of: Any) -> None:
    examples = examples_of(6, per_class=40)
    fold = _fold(examples, **{**DIRICHLET, "sites": 40, "partition": "iid", "test_fraction": 0.1, "shots": 0})
    sizes = [(len(share.train), len(share.tests["personal"])) for share in fold.sites]
    assert min(train for train, _ in sizes) > 0
    assert min(tests for _, tests in sizes) == 0
    assert sum(tests for _, tests in sizes) == 24


# --- a domain for each site -----------------------------------------------------------------------

DOMAINS = {"protocol": "domain-per-site", "shots": 0}


@pytest.mark.parametrize("labels", ["iid", "dirichlet"])
def test_a_site_trains_on_one_domain_and_is_measured_on_it_and_on_the_others(labels: str, examples_of: Any) -> None:
    examples = examples_of(domains=3, per_class=60)
    fold = _fold(examples, **DOMAINS, sites=6, labels=labels, alpha=5.0)
    for site, share in enumerate(fold.sites):
        domain = site % 3
        own = share.tests[f"own: domain {domain}"]
        assert set(examples.domains[share.train]) == set(examples.domains[own]) == {domain}
        assert set(examples.domains[share.tests["others"]]) == {0, 1, 2} - {domain}
        assert all(not len(share.tests[f"own: domain {other}"]) for other in {0, 1, 2} - {domain})
    dealt = np.concatenate(
        [np.concatenate([share.train, share.tests[f"own: domain {n % 3}"]]) for n, share in enumerate(fold.sites)]
    )
    assert sorted(dealt.tolist()) == list(range(len(examples)))


def test_drawn_proportions_within_a_domain_are_uneven(examples_of: Any) -> None:
    examples = examples_of(domains=3, per_class=120)

    def spread(labels: str) -> float:
        shares = _fold(examples, **DOMAINS, sites=6, labels=labels, alpha=0.3).sites
        return float(np.std([np.bincount(examples.labels[share.train], minlength=6) for share in shares]))

    assert spread("dirichlet") > 3 * spread("iid")


# --- writers --------------------------------------------------------------------------------------


def test_a_site_is_a_writer_and_the_seed_chooses_among_them(examples_of: Any) -> None:
    examples = examples_of(per_class=60)
    fold = _fold(examples, protocol="natural", sites=4, shots=0)
    writers = [set(examples.sites[np.concatenate([share.train, share.tests["personal"]])]) for share in fold.sites]
    assert all(len(own) == 1 for own in writers)
    assert len(set.union(*writers)) == 4
    for share, (writer,) in zip(fold.sites, writers, strict=True):
        assert len(share.train) + len(share.tests["personal"]) == (examples.sites == writer).sum()


def test_all_writers_can_be_shared_among_fewer_sites(examples_of: Any) -> None:
    examples = examples_of(per_class=60)
    fold = _fold(examples, protocol="natural", sites=4, shots=0, writers="share")
    dealt = np.concatenate([np.concatenate([share.train, share.tests["personal"]]) for share in fold.sites])
    assert sorted(dealt.tolist()) == list(range(len(examples)))
    held = [set(examples.sites[share.train]) for share in fold.sites]
    assert sorted(map(len, held)) == [2, 2, 2, 3]
    assert len(set.union(*held)) == 9


def test_an_image_whose_writer_is_unknown_is_left_out(examples_of: Any) -> None:
    examples = examples_of(per_class=60)
    examples.sites[::2] = -1
    for share in _fold(examples, protocol="natural", sites=4, shots=0, writers="share").sites:
        assert (np.concatenate([share.train, share.tests["personal"]]) % 2 == 1).all()


# --- what cannot be played ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "chosen", "said"),
    [
        ({"classes": 6}, {"sites": 7}, r"more sites \(7\) than classes \(6\); give at most 6"),
        ({"classes": 6}, {"sites": 6, "shots": 1}, "Site 3 of 6 got no training images.* more shots than 1"),
        ({"per_class": 1}, {"sites": 2}, "left to train on in the base classes 'class 00', 'class 01'"),
        ({"domains": 1}, {"protocol": "leave-one-domain-out"}, "at least two domains"),
        ({"domains": 3}, {"protocol": "leave-one-domain-out", "sites": 1}, "1 site cannot cover 2 domains"),
        ({"domains": 3}, {"protocol": "leave-one-domain-out", "sites": 90}, "of the 90 sites; give at most 20 sites"),
        ({"domains": 1}, {"protocol": "domain-per-site"}, "at least two domains"),
        ({"domains": 3}, {"protocol": "domain-per-site", "sites": 2}, "2 sites cannot cover 3 domains"),
        ({}, {"protocol": "natural", "sites": 10}, "9 writers with training images, too few for 10 sites"),
        ({}, {"protocol": "dirichlet", "sites": 31}, "120 examples are too few for 31 sites; give at most 30"),
        ({}, {"protocol": "dirichlet", "partition": "pathological", "classes_per_site": 9}, "=9"),
        ({}, {"protocol": "dirichlet", "partition": "iid", "sites": 30, "test_fraction": 0.95}, "Site .* no training"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_the_numbers(
    shape: dict[str, int], chosen: dict[str, Any], said: str, examples_of: Any
) -> None:
    with pytest.raises(UserError, match=said):
        _split(examples_of(**shape), **chosen)
