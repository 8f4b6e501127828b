"""Evaluation: the counts of every scope as classified one by one, and no image that goes through a model twice."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedgraft import RunConfig
from fedgraft.backbones import load_backbone
from fedgraft.client import evaluation
from fedgraft.client.evaluation import Model, evaluate_together
from fedgraft.client.loaded_run import SimulatedRun
from fedgraft.client.shared_model import SharedModel
from fedgraft.client.site import Site, evaluate_sites
from fedgraft.config.registry import METHODS
from fedgraft.core.observer import Observer
from fedgraft.data.examples import IntArray
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.server.preparation import prepare

COUNT, NAMES = 12, ("blue circle", "green square", "red triangle", "seven")
LABELS = np.arange(COUNT) % len(NAMES)


@pytest.fixture
def adapter(vocabulary: Vocabulary) -> Adapter:
    """With a context of its own."""
    method = METHODS.load("promptfl")
    return method.adapter(vocabulary, method.parse_options({"n_ctx": 2}), torch.Generator().manual_seed(3))


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Of the embedded backbone."""
    return Vocabulary(load_backbone("mini"), NAMES, ("a {}.",))


class Images:
    """Features of some examples, which count how often each was asked for."""

    def __init__(self, dim: int) -> None:
        self.values = F.normalize(torch.randn(COUNT, dim, generator=torch.Generator().manual_seed(4)), dim=-1)
        self.asked: Counter[int] = Counter()

    def __call__(self, positions: IntArray) -> torch.Tensor:
        self.asked.update(positions.tolist())
        return self.values[torch.from_numpy(positions)]


def _test(positions: list[int], classes: tuple[int, ...], counted: tuple[int, ...] = ()) -> evaluation.TestSet:
    chosen = np.array([position for position in positions if LABELS[position] in classes], np.int64)
    labels = torch.from_numpy(np.searchsorted(classes, LABELS[chosen]))
    return evaluation.TestSet(chosen, labels, classes, counted)


def test_counts_are_those_of_images_one_by_one(adapter: Adapter) -> None:
    images = Images(adapter.vocabulary.backbone.dim)
    tests = {
        "local": _test([9, 1, 0, 4], (0, 1, 2)),
        "base": _test([2, 5, 6, 8, 10], (0, 1, 2)),
        "all": _test(list(range(COUNT)), (0, 1, 2)),
        "novel": _test([3, 7, 11], (1, 3), counted=(0, 1, 3)),
        "elsewhere": evaluation.TestSet(np.empty(0, np.int64), torch.empty(0, dtype=torch.long), (), (0, 1)),
    }
    (found,) = evaluate_together([Model(adapter, images)], [tests])
    for name, test in tests.items():
        counted = test.counted or test.classes
        expected = np.zeros((len(counted), len(counted)), np.int64)
        for position in test.positions:
            cosines = images.values[position] @ adapter.class_features(test.classes).detach().T
            predicted = test.classes[int(cosines.argmax())]
            expected[counted.index(int(LABELS[position])), counted.index(predicted)] += 1
        assert np.array_equal(found[name].confusion, expected), name
    assert found["all"].total == found["local"].total + found["base"].total


def test_an_image_goes_through_a_shared_model_once_whatever_scopes_and_sites_ask(adapter: Adapter) -> None:
    images = Images(adapter.vocabulary.backbone.dim)
    model, whole = Model(adapter, images), _test(list(range(COUNT)), (0, 1, 2))
    sites = [{"local": _test([n, n + 4], (0, 1, 2)), "all": whole, "novel": _test([3, 7], (3,))} for n in range(3)]
    first = list(evaluate_together([model] * 2, sites[:2]))
    (third,) = evaluate_together([model], sites[2:])  # a later message
    assert set(images.asked.values()) == {1}
    (alone,) = evaluate_together([Model(adapter, Images(images.values.shape[1]))], sites[2:])
    assert {name: result.confusion.tolist() for name, result in third.items()} == {
        name: result.confusion.tolist() for name, result in alone.items()
    }
    assert first[0]["all"].confusion.tolist() == third["all"].confusion.tolist()


def test_sites_with_models_of_their_own_share_nothing(adapter: Adapter, vocabulary: Vocabulary) -> None:
    method = METHODS.load("promptfl")
    other = method.adapter(vocabulary, method.parse_options({"n_ctx": 2}), torch.Generator().manual_seed(8))
    images, tests = Images(vocabulary.backbone.dim), {"all": _test(list(range(COUNT)), (0, 1, 2))}
    together = list(evaluate_together([Model(adapter, images), Model(other, images)], [tests, tests]))
    assert {images.asked[position] for position in tests["all"].positions.tolist()} == {2}
    alone = [next(evaluate_together([Model(own, images)], [tests])) for own in (adapter, other)]
    assert [own["all"].confusion.tolist() for own in together] == [own["all"].confusion.tolist() for own in alone]


def test_a_kept_model_is_that_of_equal_arrays_in_the_same_round(adapter: Adapter) -> None:
    arrays = {"context": np.array([1.0, np.nan], np.float32)}
    kept = SharedModel((0, 3), arrays, Model(adapter, Images(2)))
    assert kept.is_of((0, 3), {"context": arrays["context"].copy()})
    assert not kept.is_of((0, 4), arrays)
    assert not kept.is_of((1, 3), arrays)
    assert not kept.is_of((0, 3), {"context": np.array([1.0, 2.0], np.float32)})
    assert not kept.is_of((0, 3), {"context": arrays["context"][:1]})
    assert not kept.is_of((0, 3), {})


@pytest.mark.parametrize(("method", "once"), [("vpt", True), ("pfedmma", False)])
def test_messages_to_single_sites_measure_what_one_to_all_does(method: str, once: bool, tmp_path: Path) -> None:
    config = RunConfig(method=method, data="digits", sites=3, rounds=1, shots=2)
    coordinator = prepare(config, tmp_path / "run", resume=False, observer=Observer())
    coordinator.directory.unlock()
    shared = coordinator.initial()

    def found(run: SimulatedRun, numbers: list[int]) -> dict[int, dict[str, list[list[int]]]]:
        results = evaluate_sites([Site(run, 0, number) for number in numbers], shared, 0)
        return {
            site: {name: result.confusion.tolist() for name, result in own.items()}
            for site, own in results.items()
            if isinstance(own, dict)
        }

    run = SimulatedRun(config, tmp_path / "run")
    apart: dict[int, dict[str, list[list[int]]]] = {}
    for number in range(3):
        apart |= found(run, [number])
        assert (run.shared_model is not None) == once
    assert apart == found(SimulatedRun(config, tmp_path / "run"), [0, 1, 2])
    assert apart[0].keys() == {"local", "base", "novel", "base_all"}
