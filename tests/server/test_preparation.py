"""What is said before the first message: how well the backbone knows the classes without any federation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft import RunConfig
from fedgraft.backbones import Backbone
from fedgraft.backbones.feature_store import FeatureStore
from fedgraft.core.errors import UserError
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


def test_a_class_of_which_nothing_is_left_to_train_on_is_named(write_image: Any, tmp_path: Path) -> None:
    """Its prompt would be learnt from other classes alone, and its accuracy would surprise."""
    for label, count in (("cat", 6), ("dog", 6), ("rare bird", 1), ("fish", 6)):
        for number in range(count):
            write_image(tmp_path / "data" / label / f"{number}.png", (number, len(label), 9))
    config = RunConfig(
        method="zeroshot", data=f"folder:{tmp_path / 'data'}", protocol="dirichlet", sites=1, test_fraction=0.2,
        protocol_options={"partition": "iid"},
    )  # fmt: skip
    listener = Listener()
    coordinator = prepare(config, tmp_path / "run", False, listener)
    assert coordinator is not None
    coordinator.directory.unlock()
    assert "No image is left to train on of the class 'rare bird'." in listener.heard


def test_what_was_left_out_is_said_before_the_run(tmp_path: Path, write_image: Any) -> None:
    """Training images that are test images as well, and files that were not read."""
    for number, name in enumerate(("cat", "dog", "fox", "owl")):
        for split, count in (("train", 4), ("test", 2)):
            for image in range(count):
                write_image(tmp_path / "photos" / split / name / f"{image}.png", colour=(number * 50, count, image))
    (tmp_path / "photos" / "train" / "cat" / "2.png").write_bytes(
        (tmp_path / "photos" / "test" / "cat" / "0.png").read_bytes()
    )
    (tmp_path / "photos" / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    listener = Listener()
    config = RunConfig(method="zeroshot", data=f"folder:{tmp_path / 'photos'}", sites=2)
    coordinator = prepare(config, tmp_path / "run", False, listener)
    assert coordinator is not None
    coordinator.directory.unlock()
    assert listener.heard[:2] == [
        "Left out: 1 file is no image: train/cat/Thumbs.db.",
        "Left out of training, because the same image is for validation or testing: 1 training image.",
    ]


@pytest.mark.parametrize("method", ["promptfl", "zeroshot"])
def test_a_class_name_that_is_too_long_is_told_as_that(method: str, tmp_path: Path, write_image: Any) -> None:
    """The advice used to be a context of a negative length."""
    name = " ".join(["long"] * 80)
    (tmp_path / "photos.csv").write_text(f"path,label\n1.png,{name}\n2.png,cat\n3.png,{name}\n4.png,cat\n")
    for number in range(1, 5):
        write_image(tmp_path / f"{number}.png", colour=(number, 0, 0))
    config = RunConfig(
        method=method, data=f"csv:{tmp_path / 'photos.csv'}", protocol="dirichlet", sites=1, test_fraction=0.5,
        protocol_options={"partition": "iid"},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"The class name 'long long .* shorten it"):
        prepare(config, tmp_path / "run", False, Observer())
    assert not (tmp_path / "run").exists()
