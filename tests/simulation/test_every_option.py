"""T6: every key of the configuration changes something; a key that is parsed and never read would go unnoticed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft import RunConfig
from fedgraft.client.loaded_run import SimulatedRun
from fedgraft.client.site import Site, train_sites
from fedgraft.core.observer import Observer
from fedgraft.data.sources import characters
from fedgraft.server.preparation import prepare
from fedgraft.strategies.answers import Answer
from tests.simulation.conftest import open_once

BASE = {
    "method": "promptfl", "data": "digits", "sites": 2, "rounds": 1, "shots": 4, "local_epochs": 1, "batch_size": 4,
    "optimizer": "sgd", "lr": 0.1, "views": 2, "method_options": {"n_ctx": 2},
}  # fmt: skip
TRAINING = {
    "method": "local", "backbone": None, "seed": 1, "shots": 6, "views": 1, "test_fraction": 0.5, "local_epochs": 2,
    "batch_size": 8, "optimizer": "adam", "lr": 0.2, "momentum": 0.0, "weight_decay": 0.1, "sites": 3,
    "data": "characters", "protocol": "dirichlet", "method_options": {"n_ctx": 3}, "precision": "bfloat16",
    "strategy": "local-dp(noise_multiplier=0.1)", "warmup_epochs": 1,
}  # fmt: skip
TESTED_ELSEWHERE = {
    "schedule": "tests/client/test_schedule.py",
    "step_epochs": "tests/client/test_schedule.py",
    "step_factor": "tests/client/test_schedule.py",
    "warmup_lr": "tests/client/test_schedule.py",
    "augment": "tests/client/test_augmentation.py",
    "drop_last": "tests/client/test_schedule.py",
    "protocol_options": "tests/data/test_protocols.py",
    "data_options": "tests/data/test_folder_source.py",
    "evaluate_on": "tests/data/test_coop_source.py",
    "backbone_options": "fedgraft/testing/test_backbones.py",
    "participation": "tests/server/test_rounds.py",
    "quorum": "tests/server/test_rounds.py",
    "rounds": "tests/simulation/test_guarantees.py",
    "eval_every": "tests/simulation/test_guarantees.py",
    "answer_seconds": "tests/server/test_router.py",
    "resend_seconds": "tests/server/test_sender.py",
    "max_site_images": "tests/server/test_bad_answers.py",
    "max_site_share": "tests/server/test_rounds.py",
    "norm_bound": "tests/server/test_rounds.py",
    "loss": "tests/methods/test_losses.py",
}


def _first_site_trained(settings: dict[str, Any], folder: Path) -> list[np.ndarray]:
    config = RunConfig.build({**BASE, **settings})
    coordinator = prepare(config, folder, False, Observer(), open_examples=open_once)
    assert coordinator is not None
    coordinator.directory.unlock()
    site = Site(SimulatedRun(config, folder), fold=0, site=0)
    answer = train_sites([site], coordinator.initial(), 1)[0]
    assert isinstance(answer, Answer)
    personal = site.state.load(1) or {}
    return [*answer.arrays.values(), *(tensor.numpy() for tensor in personal.values())]


@pytest.fixture(autouse=True, scope="module")
def _few_characters() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(characters, "DRAWINGS_PER_CLASS_AND_FAMILY", 2)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """What the first site trains without a change."""
    return _first_site_trained({}, tmp_path_factory.mktemp("run") / "plain")


def test_every_key_is_covered() -> None:
    assert set(RunConfig.model_fields) == set(TRAINING) | set(TESTED_ELSEWHERE)


def test_the_same_configuration_trains_the_same_prompt(plain: list[np.ndarray], tmp_path: Path) -> None:
    assert _same(plain, _first_site_trained({}, tmp_path / "again"))


@pytest.mark.parametrize("key", TRAINING)
def test_another_value_trains_another_prompt(
    key: str, plain: list[np.ndarray], tmp_path: Path, random_clip_folder: Path
) -> None:
    value = str(random_clip_folder) if key == "backbone" else TRAINING[key]
    assert not _same(plain, _first_site_trained({key: value}, tmp_path / "changed"))


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
