"""What a reader of figures would lose: a source's own splits, and no measured image trained on, not even a copy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data import split as masks
from fedgraft.data.examples import Examples
from fedgraft.methods.plan import Plan

TRAIN, VAL, TEST = 0, 1, 2


@pytest.fixture
def split_examples(examples_of: Any) -> Examples:
    """Six classes in two domains: half for training, a quarter each for validation and testing, with two copies."""
    contents = list(range(120))
    contents[12], contents[13] = 60, 90  # training images with the content of one for validation and one for testing
    examples: Examples = examples_of(classes=6, per_class=20, domains=2, contents=contents)
    splits = np.repeat([TRAIN, VAL, TEST], [60, 30, 30]).astype(np.int8)
    return replace(examples, splits=splits)


def test_the_sources_splits_are_what_trains_and_what_is_measured(split_examples: Examples) -> None:
    assert np.flatnonzero(masks.test_mask(split_examples, RunConfig())).tolist() == list(range(90, 120))
    assert np.flatnonzero(masks.test_mask(split_examples, RunConfig(evaluate_on="val"))).tolist() == list(range(60, 90))
    for evaluate_on in ("test", "val"):
        trains = np.flatnonzero(masks.train_mask(split_examples, RunConfig(evaluate_on=evaluate_on)))
        assert trains.tolist() == [index for index in range(60) if index not in (12, 13)]
    assert np.flatnonzero(masks.overlap_mask(split_examples)).tolist() == [12, 13]


def test_without_splits_every_image_trains_or_is_measured(examples_of: Any) -> None:
    examples = examples_of()
    config = RunConfig(seed=3)
    np.testing.assert_array_equal(masks.train_mask(examples, config), ~masks.test_mask(examples, config))
    assert not masks.overlap_mask(examples).any()


@pytest.mark.parametrize(
    ("kept", "evaluate_on", "said"),
    [
        ((TRAIN, VAL), "test", "evaluate_on is 'test', but 'digits' has no such images; its splits are train and val"),
        ((TRAIN, TEST), "val", "its splits are train and test"),
        (None, "val", "'digits' has no splits of its own"),
    ],
)
def test_a_split_that_the_source_lacks_is_told(
    kept: tuple[int, ...] | None, evaluate_on: Any, said: str, split_examples: Examples
) -> None:
    splits = None if kept is None or split_examples.splits is None else np.resize(kept, 120).astype(np.int8)
    with pytest.raises(UserError, match=said):
        masks.test_mask(replace(split_examples, splits=splits), RunConfig(evaluate_on=evaluate_on))


PROTOCOLS: list[dict[str, Any]] = [
    {"protocol": "base-to-novel"},
    {"protocol": "leave-one-domain-out"},
    {"protocol": "dirichlet", "protocol_options": {"partition": "iid"}},
]


@pytest.mark.parametrize("evaluate_on", ["test", "val"])
@pytest.mark.parametrize("chosen", PROTOCOLS, ids=lambda chosen: chosen["protocol"])
def test_every_protocol_keeps_the_sources_splits(
    chosen: dict[str, Any], evaluate_on: Any, split_examples: Examples
) -> None:
    assert split_examples.splits is not None
    split = Plan.of(RunConfig(sites=2, shots=0, evaluate_on=evaluate_on, **chosen)).split(split_examples)
    tested = [test for fold in split.folds for share in fold.sites for test in share.tests.values()]
    assert set(split_examples.splits[split.trained].tolist()) == {TRAIN}
    assert set(split_examples.splits[np.concatenate(tested)].tolist()) == {VAL if evaluate_on == "val" else TEST}
    assert not {12, 13} & set(split.trained.tolist())
    assert len(np.unique(np.concatenate(tested))) == 30


def test_a_site_keeps_the_splits_of_its_images(split_examples: Examples) -> None:
    names = list(split_examples.class_names)
    config = RunConfig(protocol="own-data", protocol_options={"class_names": names}, shots=0, data="folder:own")
    split = Plan.of(config).split(split_examples)
    assert len(split.trained) == 58
    assert split.folds[0].sites[0].tests["personal"].tolist() == list(range(90, 120))


def test_a_domain_without_images_to_measure_is_named(split_examples: Examples) -> None:
    assert split_examples.splits is not None
    splits = np.where((split_examples.domains == 1) & (split_examples.splits == TEST), VAL, split_examples.splits)
    examples = replace(split_examples, splits=splits.astype(np.int8))
    with pytest.raises(UserError, match="The domain 'domain 1' has no images in the split 'test'"):
        Plan.of(RunConfig(protocol="leave-one-domain-out", sites=1)).split(examples)
