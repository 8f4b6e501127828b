"""T6: every key of the configuration changes something; a key that is parsed and never read would go unnoticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft import RunConfig
from fedgraft.backbones import Backbone
from fedgraft.client.loaded_run import DealtPlace
from fedgraft.client.site import Site, train_sites
from fedgraft.config.registry import METHODS
from fedgraft.core.observer import Observer
from fedgraft.runs.split_file import write_dealt
from fedgraft.server.coordinator import initial_adapter
from fedgraft.simulation.simulate import prepare, zero_shot_accuracy
from fedgraft.strategies.answers import Answer

BASE = {
    "method": "promptfl", "data": "digits", "sites": 2, "rounds": 1, "shots": 4, "local_epochs": 1, "batch_size": 4,
    "optimizer": "sgd", "lr": 0.1, "views": 2, "method_options": {"n_ctx": 2},
}  # fmt: skip
TRAINING = {
    "method": "local", "backbone": None, "seed": 1, "shots": 6, "views": 1, "test_fraction": 0.5, "local_epochs": 2,
    "batch_size": 8, "optimizer": "adam", "lr": 0.2, "momentum": 0.0, "weight_decay": 0.1, "sites": 3,
    "data": "characters", "protocol": "dirichlet", "method_options": {"n_ctx": 3}, "precision": "bfloat16",
    "strategy": "local-dp(noise_multiplier=0.1)",
}  # fmt: skip
TESTED_ELSEWHERE = {
    "domains": "tests/data, reading a folder",
    "alpha": "tests/data, the deal",
    "partition": "tests/data, the deal",
    "classes_per_site": "tests/data, the deal",
    "participation": "tests/strategies",
    "quorum": "tests/strategies",
    "rounds": "tests/simulation/test_guarantees.py",
    "eval_every": "tests/simulation/test_guarantees.py",
    "class_names": "tests/deployment",
    "answer_seconds": "tests/server/test_exchange.py",
    "resend_seconds": "tests/server/test_delivery.py",
}


def _first_site_trained(settings: dict[str, Any], folder: Path) -> list[np.ndarray]:
    config = RunConfig.build({**BASE, **settings})
    data, backbone = prepare(config, Observer())
    adapter = initial_adapter(METHODS.load(config.method), config, data.deal, backbone)
    shared = {name: value.numpy().copy() for name, value in adapter.shared().items()}
    write_dealt(folder, data)
    site = Site(DealtPlace(config, folder), fold=0, site=0)
    answer = train_sites([site], shared, 1)[0]
    assert isinstance(answer, Answer)
    personal = site.state.load(1) or {}
    return [*answer.arrays.values(), *(tensor.numpy() for tensor in personal.values())]


def test_every_key_is_covered() -> None:
    assert set(RunConfig.model_fields) == set(TRAINING) | set(TESTED_ELSEWHERE)


@pytest.mark.parametrize("key", TRAINING)
def test_another_value_trains_another_prompt(key: str, tmp_path: Path, random_clip_folder: Path) -> None:
    value = str(random_clip_folder) if key == "backbone" else TRAINING[key]
    plain = _first_site_trained({}, tmp_path / "plain")
    assert _same(plain, _first_site_trained({}, tmp_path / "again"))
    assert not _same(plain, _first_site_trained({key: value}, tmp_path / "changed"))


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class _Listener(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_notice(self, sentence: str) -> None:
        self.heard.append(sentence)


def test_zero_shot_at_chance_is_said_before_any_federated_figure(random_clip_folder: Path) -> None:
    for backbone, silent in (("mini", True), (str(random_clip_folder), False)):
        data, loaded = prepare(RunConfig.build({**BASE, "backbone": backbone, "views": 1}), Observer())
        listener = _Listener()
        accuracies = zero_shot_accuracy(data, loaded, listener)
        assert set(accuracies) == {"local", "base", "novel"}
        assert (not listener.heard) is silent
        assert silent or "chance is 20.0 %" in listener.heard[0]


def test_the_embedded_backbone_reads_handwriting_it_never_saw(mini: Backbone, tmp_path: Path) -> None:
    """The promise of the model card, with room: 70 % of the digits zero-shot, in at most 10 MB."""
    from fedgraft.backbones.loading import mini_folder
    from tools.mini.evaluate import zero_shot

    assert sum(path.stat().st_size for path in mini_folder().iterdir()) <= 10_000_000
    assert zero_shot(mini, "digits", tmp_path)["all"] >= 70
