"""What is said before the first message: how well the backbone knows the classes without any federation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft import RunConfig
from fedgraft.backbones import Backbone
from fedgraft.backbones.feature_store import FeatureStore
from fedgraft.core.observer import Observer
from fedgraft.data.split import Fold, Scope, SiteShare, Split
from fedgraft.server.preparation import prepare, zero_shot_accuracy


class Listener(Observer):
    """Keeps every notice."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_notice(self, sentence: str) -> None:
        self.heard.append(sentence)


@pytest.mark.parametrize(("backbone", "silent"), [("mini", True), ("random", False)])
def test_zero_shot_at_chance_is_said_before_any_federated_figure(
    backbone: str, silent: bool, random_clip_folder: Path, tmp_path: Path
) -> None:
    listener = Listener()
    name = str(random_clip_folder) if backbone == "random" else backbone
    config = RunConfig(method="promptfl", backbone=name, sites=2, shots=4, method_options={"n_ctx": 2})
    coordinator = prepare(config, tmp_path / "run", False, listener)
    assert coordinator is not None
    coordinator.directory.unlock()
    assert set(coordinator.zero_shot) == {"local", "base", "novel", "base_all"}
    assert (not listener.heard) is silent
    assert silent or "chance is 20.0 %" in listener.heard[0]


def test_scopes_of_a_fold_with_a_name_do_not_take_each_others_figure(
    mini: Backbone, examples_of: Any, tmp_path: Path
) -> None:
    """A protocol of another package may leave a domain out and measure several things of it."""
    examples = examples_of(classes=3, per_class=4)
    store = FeatureStore(tmp_path, mini)
    store.fill(examples.keys, examples.load)
    everything = np.arange(len(examples))
    scopes = (Scope("near", (0, 1, 2)), Scope("far", (0,)))
    tests = {"near": everything, "far": everything[examples.labels == 0]}

    def fold(name: str | None, kept: tuple[Scope, ...]) -> Fold:
        return Fold(name, (0, 1, 2), kept, (SiteShare(everything, {scope.name: tests[scope.name] for scope in kept}),))

    def measured(*folds: Fold) -> dict[str, float]:
        split = Split(examples.class_names, examples.templates, examples.labels, examples.keys, folds)
        return zero_shot_accuracy(split, mini, store, Observer())

    several = measured(fold("photo", scopes), fold("sketch", scopes))
    assert list(several) == ["photo: near", "photo: far", "sketch: near", "sketch: far"]
    assert several["photo: far"] == several["sketch: far"] == 100.0
    assert several["photo: near"] == several["sketch: near"] < 100.0
    assert list(measured(fold("photo", scopes[:1]), fold("sketch", scopes[:1]))) == ["photo", "sketch"]
    assert list(measured(fold(None, scopes))) == ["near", "far"]
