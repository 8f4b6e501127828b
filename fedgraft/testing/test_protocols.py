"""What every registered protocol must keep: no test image trains, and every result says what it is."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from fedgraft.config.options import Options
from fedgraft.config.registry import PROTOCOLS
from fedgraft.config.run_config import RunConfig
from fedgraft.data.examples import DataSet, Examples, content_key
from fedgraft.data.joined import join
from fedgraft.data.protocols.protocol import Protocol, flat_results
from fedgraft.data.results import Row
from fedgraft.data.split import Fold, Split

CLASSES, DOMAINS, PER_CLASS, WRITERS = 6, 3, 30, 7
CONFIG = RunConfig(sites=4, shots=5, seed=3)


def _examples(first: int = 0, classes: int = CLASSES) -> Examples:
    """Labels, domains and writers in turn; every fifth image is a copy of the one before it."""
    count = classes * PER_CLASS
    contents = [number - (number % 5 == 4) for number in range(count)]
    return Examples(
        class_names=tuple(f"class {number}" for number in range(classes)),
        labels=np.asarray(contents) % classes,
        domain_names=tuple(f"domain {number}" for number in range(DOMAINS)),
        domains=np.arange(count) // classes % DOMAINS,
        keys=np.stack([content_key(str(first + content).encode()) for content in contents]),
        load=lambda index: Image.new("RGB", (4, 4), (index % 256, 0, 0)),
        site_names=tuple(f"writer {number}" for number in range(WRITERS)),
        sites=np.asarray(contents) % WRITERS,
    )


def _examples_for(protocol: Protocol) -> Examples:
    """A table of examples; for a protocol that joins, of two data sets that share some images."""
    if not protocol.joins:
        return _examples()
    return join([DataSet("first", _examples(0, 8)), DataSet("second", _examples(8 * PER_CLASS - 20, 7))])


def _options(protocol: Protocol) -> Options:
    fields = protocol.options.model_fields
    values = {name: field.examples[0] for name, field in fields.items() if field.is_required() and field.examples}
    if protocol.deployed:
        values["class_names"] = list(_examples().class_names)
    parsed: Options = protocol.parse_options(values)
    return parsed


def _split(protocol: Protocol) -> Split:
    return protocol.split(_examples_for(protocol), CONFIG, _options(protocol))


@pytest.fixture(params=list(PROTOCOLS), ids=lambda protocol: str(protocol.name))
def protocol(request: pytest.FixtureRequest) -> Protocol:
    """Each protocol."""
    found: Protocol = request.param
    return found


def _contents(split: Split, positions: np.ndarray) -> set[bytes]:
    return {key.tobytes() for key in split.keys[positions]}


def test_no_image_that_is_tested_trains_not_even_a_copy(protocol: Protocol) -> None:
    split = _split(protocol)
    for fold in split.folds:
        trained = set().union(*(_contents(split, share.train) for share in fold.sites))
        tests = [test for share in fold.sites for test in share.tests.values()]
        assert not trained & set().union(*(_contents(split, test) for test in tests))


def test_every_site_trains_on_images_that_no_other_has(protocol: Protocol) -> None:
    for fold in _split(protocol).folds:
        trained = np.concatenate([share.train for share in fold.sites])
        assert all(len(share.train) for share in fold.sites)
        assert len(np.unique(trained)) == len(trained)


def test_images_are_trained_and_tested_among_classes_that_hold_theirs(protocol: Protocol) -> None:
    split = _split(protocol)
    for fold in split.folds:
        for share in fold.sites:
            assert set(split.labels[share.train]) <= set(fold.classes_of(share)) <= set(fold.train_classes)
            assert set(share.tests) == {scope.name for scope in fold.scopes}
            for scope in fold.scopes:
                candidates = fold.candidates(scope, share)
                assert set(split.labels[share.tests[scope.name]]) <= set(candidates) <= set(scope.classes)
                assert list(candidates) == sorted(candidates)


def test_the_same_configuration_gives_the_same_split(protocol: Protocol) -> None:
    one, other = _split(protocol), _split(protocol)
    for first, second in zip(one.folds, other.folds, strict=True):
        assert first.scopes == second.scopes
        for mine, again in zip(first.sites, second.sites, strict=True):
            assert np.array_equal(mine.train, again.train)


def _rows(fold: Fold) -> Iterator[Row]:
    for server_round in range(3):
        for number, scope in enumerate(fold.scopes):
            sites = {str(site): 50.0 + 10 * server_round + number + site for site in range(4)}
            accuracy = float(np.mean(list(sites.values())))
            yield {"round": server_round, "fold": fold.name, "scope": scope.name, "accuracy": accuracy, "sites": sites}


def test_results_are_of_the_last_round_and_each_says_what_it_is(protocol: Protocol) -> None:
    rows = [row for fold in _split(protocol).folds for row in _rows(fold)]
    last = flat_results(protocol.last_round(rows))
    assert last == flat_results(protocol.last_round([row for row in rows if row["round"] == 2]))
    assert set(last) == set(flat_results(protocol.last_five(rows)))
    for key, value in last.items():
        assert np.isfinite(value)
        assert protocol.metric(key).label
        assert protocol.metric(key).meaning, f"say what the result {key!r} means"
    assert {metric.key for metric in protocol.metrics if metric.always} <= set(last)


def test_what_exports_are_measured_by_is_a_scope(protocol: Protocol) -> None:
    scopes = {scope.kind for fold in _split(protocol).folds for scope in fold.scopes}
    assert protocol.preserved in scopes
    assert set(protocol.colours) <= scopes


def test_figures_show_results_that_there_are(protocol: Protocol) -> None:
    known = {metric.key for metric in protocol.metrics}
    assert protocol.headline_key in known
    assert {key for pair in protocol.tradeoffs for key in pair} <= known


def test_a_server_without_images_knows_the_classes(protocol: Protocol) -> None:
    if protocol.announced is None:
        pytest.skip("one machine deals all images")
    announced = protocol.announced(_options(protocol))
    assert announced.class_names == _examples().class_names
    assert not len(announced.keys)
    assert [fold.scopes for fold in announced.folds] == [fold.scopes for fold in _split(protocol).folds]
