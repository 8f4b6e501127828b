"""What a published setting would lose: the learning rate of each epoch, and the batches that an epoch has."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from fedgraft.backbones import Backbone
from fedgraft.client.schedule import learning_rate
from fedgraft.client.training import TrainingData, train
from fedgraft.config.run_config import RunConfig
from fedgraft.methods.adapter import Adapter, AdapterContext
from fedgraft.methods.promptfl import METHOD
from fedgraft.methods.vocabulary import Vocabulary

SGD = {"optimizer": "sgd", "momentum": 0.0, "method": "promptfl"}


def _rates(**settings: Any) -> list[float]:
    config = RunConfig(rounds=5, local_epochs=2, lr=0.002, **settings)
    return [learning_rate(config, epoch) for epoch in range(10)]


def test_the_rate_is_constant_unless_told_otherwise() -> None:
    assert _rates() == [0.002] * 10


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules_are_torchs_over_all_epochs_begun_behind_the_warm_up(schedule: Any, warmup: int) -> None:
    """As CoOp's trainer has it: a constant warm-up does not count among the steps of the schedule behind it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.002)
    theirs = CosineAnnealingLR(optimizer, 10) if schedule == "cosine" else StepLR(optimizer, 4, 0.5)
    expected = [1e-5] * warmup
    for _ in range(10 - warmup):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    found = _rates(schedule=schedule, warmup_epochs=warmup, step_epochs=4, step_factor=0.5)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_warm_up_has_its_own_rate() -> None:
    assert _rates(warmup_epochs=2, warmup_lr=0.1)[:3] == [0.1, 0.1, 0.002]


# --- in training ----------------------------------------------------------------------------------


def _adapter(backbone: Backbone) -> Adapter:
    vocabulary = Vocabulary(backbone, ("red star", "seven"), ("{}",))
    options = METHOD.parse_options({"n_ctx": 2})
    return METHOD.adapter(vocabulary, options, torch.Generator().manual_seed(0), AdapterContext())


def _data(backbone: Backbone, count: int = 10) -> TrainingData:
    features = torch.nn.functional.normalize(torch.randn(count, 1, backbone.dim), dim=-1)
    return TrainingData(features, torch.arange(count) % 2, (0, 1))


def _moved(backbone: Backbone, server_round: int, **settings: Any) -> float:
    adapter, config = _adapter(backbone), RunConfig(**{**SGD, "local_epochs": 1, "rounds": 4, **settings})
    before = adapter.context.detach().clone()
    torch.manual_seed(0)
    train(adapter, _data(backbone), config, np.random.default_rng(0), server_round)
    return float((adapter.context.detach() - before).norm())


def test_a_round_trains_at_the_rate_of_its_own_epochs(mini: Backbone) -> None:
    """Each round builds a new optimizer: a schedule that began again with it would never come down."""
    settings = {"schedule": "cosine", "batch_size": 10, "lr": 0.01}
    first, third = (_moved(mini, number, **settings) for number in (1, 3))
    assert third == pytest.approx(first / 2, rel=1e-3)
    assert _moved(mini, 1, **settings, warmup_epochs=1, warmup_lr=1e-6) == pytest.approx(first / 1e4, rel=0.02)


def _batch_sizes(backbone: Backbone, count: int, **settings: Any) -> list[int]:
    sizes: list[int] = []
    data = _data(backbone, count)

    def drawn(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return data.features[rows, 0]

    config = RunConfig(**{**SGD, "local_epochs": 2, "batch_size": 4, **settings})
    counted = TrainingData(data.features, data.labels, data.classes, drawn)
    loss = train(_adapter(backbone), counted, config, np.random.default_rng(0))
    assert 0 < loss < 50
    return sizes


def test_a_last_batch_that_is_not_full_can_be_left_out(mini: Backbone) -> None:
    assert _batch_sizes(mini, 10) == [4, 4, 2] * 2
    assert _batch_sizes(mini, 10, drop_last=True) == [4, 4] * 2
    assert _batch_sizes(mini, 8, drop_last=True) == [4, 4] * 2


def test_a_site_with_less_than_a_batch_trains_all_the_same(mini: Backbone) -> None:
    assert _batch_sizes(mini, 3, drop_last=True) == [3] * 2
