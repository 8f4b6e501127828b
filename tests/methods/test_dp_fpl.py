"""DP-FPL's factored gradients, noised mean and privacy account against separate derivations."""

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.client.training import TrainingData, train
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.core.randomness import keyed_normal, public_key
from fedgraft.methods.adapter import AdapterContext
from fedgraft.methods.dp_fpl import DPFPL
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.reports import write_report
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.privacy import Participation, epsilon
from fedgraft.testing.rounds import round_after
from tests.plain_text import PlainTextTower

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])
NOISELESS = {"noise_multiplier": 0, "local_noise_multiplier": 0}


@pytest.fixture
def clip(random_clip_folder: Path) -> Backbone:
    """A random backbone."""
    return load_backbone(str(random_clip_folder))


def _adapter(backbone: Backbone, seed: int = 4, key: bytes | None = None, **options: Any) -> DPFPL:
    loaded = METHODS.load("dp-fpl")
    made: Any = loaded.adapter(
        Vocabulary(backbone, NAMES, ("a photo of a {}.",)),
        loaded.parse_options({"n_ctx": 5, "rank": 2, **options}),
        torch.Generator().manual_seed(seed),
        AdapterContext(seed=6, site=2, sites=3, round=7, noise_key=None if key is None else lambda: key),
    )
    made.load({"local": 20 * made.local.detach()})
    made.on_training_begin()
    return cast(DPFPL, made)


def _images(backbone: Backbone) -> Tensor:
    return F.normalize(torch.randn(6, backbone.dim, generator=torch.Generator().manual_seed(1)), dim=-1)


def _normal(adapter: DPFPL, purpose: str, shape: tuple[int, int]) -> Tensor:
    """The noise of the first step of round 8 at site 2."""
    parts = [value.detach().numpy().tobytes() for value in (adapter.context, adapter.local)]
    place = (0, 2, 7, hashlib.sha256(b"".join(parts)).digest(), 0)
    drawn = keyed_normal(public_key(6), shape[0] * shape[1], f"dp-fpl {purpose}", *place)
    return torch.from_numpy(drawn.reshape(shape)).float()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_gradients_are_those_of_factors_taken_apart_clipped_noised_and_put_together(
    clip: Backbone, random_clip_folder: Path, noise: float
) -> None:
    adapter, images, bound = _adapter(clip, local_noise_multiplier=noise, local_clipping_norm=0.02), _images(clip), 0.02
    prompt, width = adapter.local.detach()[0], adapter.local.shape[-1]
    basis = torch.linalg.qr(prompt @ _normal(adapter, "start", (width, 2)))[0]
    u = basis.clone().requires_grad_()
    v = torch.linalg.qr(prompt.T @ basis)[0].T.clone().requires_grad_()
    rest = prompt - (u @ v).detach()
    common = adapter.context.detach()[0].clone().requires_grad_()
    features = PlainTextTower(str(random_clip_folder)).encode(common + u @ v + rest, list(NAMES))
    expected = F.cross_entropy(clip.logit_scale * images @ features.T, LABELS)
    expected.backward()  # type: ignore[no-untyped-call]
    loss = adapter.loss(images, LABELS, CLASSES)
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = []
    for factor, purpose in ((u, "u"), (v, "v")):
        slope = cast(Tensor, factor.grad)
        if noise:
            assert slope.norm() > bound
            slope = slope * bound / slope.norm() + noise * bound * _normal(adapter, purpose, tuple(slope.shape))  # type: ignore[arg-type]
        slopes.append(slope)
    with torch.no_grad():
        whole = slopes[0] @ v + u @ slopes[1] - u @ u.T @ slopes[0] @ v
    assert torch.allclose(loss, expected, rtol=1e-4)
    for mine, other in ((adapter.local.grad, whole), (adapter.context.grad, common.grad)):
        assert mine is not None
        assert other is not None
        assert (mine[0] - other).norm() <= 1e-4 * other.norm()


def _round_of_three(clip: Backbone, **options: Any) -> tuple[Any, list[Answer], Any]:
    sites = [_adapter(clip, seed) for seed in range(3)]
    previous = {name: value.numpy().copy() for name, value in _adapter(clip, 9).shared().items()}
    arrays = [{name: value.numpy() for name, value in own.shared().items()} for own in sites]
    answers = [Answer(site, own, n, 0.0) for site, (own, n) in enumerate(zip(arrays, (10, 30, 20), strict=True))]
    loaded = METHODS.load("dp-fpl")
    return loaded.rule_for(loaded.parse_options(options)), answers, previous


def test_three_unequal_sites_count_alike_clipped_and_noised(clip: Backbone) -> None:
    rule, answers, previous = _round_of_three(clip, noise_multiplier=2.0, clipping_norm=0.3)
    now = round_after(previous, 4)
    total = np.zeros(previous["context"].shape)
    for answer in answers:
        update = answer.arrays["context"].astype(float) - previous["context"]
        assert np.linalg.norm(update) > 0.3
        total += update * 0.3 / np.linalg.norm(update)
    after = rule.aggregate(answers, now, {}).arrays["context"]
    noise = 4 * (after - previous["context"] - total / 4)
    assert noise.std() == pytest.approx(2.0 * 0.3, rel=0.25)
    assert np.array_equal(after, rule.aggregate(answers, now, {}).arrays["context"]), "the same round, the same noise"


def test_without_noise_the_mean_of_three_unequal_sites_is_plain(clip: Backbone) -> None:
    rule, answers, previous = _round_of_three(clip, **NOISELESS)
    after = rule.aggregate(answers, round_after(previous, 3), {}).arrays["context"]
    assert np.allclose(after, np.mean([answer.arrays["context"] for answer in answers], axis=0), rtol=1e-4, atol=1e-7)
    assert rule.privacy() is None


def test_another_key_is_another_noise_and_the_same_key_the_same(clip: Backbone) -> None:
    def learnt(key: bytes) -> Tensor:
        adapter = _adapter(clip, key=key)
        data = TrainingData(_images(clip)[:, None], LABELS, CLASSES)
        train(adapter, data, RunConfig(method="dp-fpl", local_epochs=2), np.random.default_rng(0))
        return adapter.local.detach()

    assert torch.equal(learnt(b"a" * 32), learnt(b"a" * 32))
    assert not torch.equal(learnt(b"a" * 32), learnt(b"b" * 32))


def test_the_account_counts_rounds_of_the_shared_and_steps_of_the_personal_prompt() -> None:
    loaded = METHODS.load("dp-fpl")
    rule = loaded.rule_for(loaded.parse_options({"noise_multiplier": 4.0, "local_noise_multiplier": 50.0}))
    rounds = [Participation([0, 1], [0, 1], steps=5), Participation([1, 2], [1, 2], steps=7)]
    promise = rule.privacy()
    assert promise is not None
    account = promise.spent(rounds, 10)
    assert account["epsilon"] == pytest.approx(epsilon(4.0, 2, 1e-5))
    assert account["local"]["releases"] == 2 * 12, "site 1 took both rounds; u and v are noised in every step"
    assert account["local"]["epsilon"] == pytest.approx(epsilon(25.0, 24, 1e-5))


def test_steps_are_counted_as_they_are_trained(clip: Backbone) -> None:
    for examples, drop_last in ((6, False), (6, True), (3, True), (8, False)):
        config = RunConfig(method="dp-fpl", local_epochs=2, batch_size=4, drop_last=drop_last)
        adapter = _adapter(clip)
        images, labels = _images(clip).repeat(2, 1)[:examples, None], LABELS.repeat(2)[:examples]
        train(adapter, TrainingData(images, labels, CLASSES), config, np.random.default_rng(0))
        assert adapter._step + 1 == config.training_steps(examples)


def test_a_run_writes_both_accounts_where_people_look(engine: Engine, tmp_path: Path) -> None:
    config = RunConfig(
        method="dp-fpl", data="digits", sites=2, rounds=2, shots=2, local_epochs=1, eval_every=2,
        method_options={"n_ctx": 2},
    )  # fmt: skip
    privacy = simulate_on(engine, config, tmp_path / "run", False, Observer())["privacy"]
    assert (privacy["mechanism"], privacy["releases"]) == ("dp-fpl", 2)
    assert privacy["local"]["releases"] == 2 * 2 * config.training_steps(10)
    assert f"{privacy['local']['epsilon']:.3g}" in write_report(tmp_path / "run").read_text()


def test_noise_at_the_sites_alone_is_refused() -> None:
    with pytest.raises(UserError, match="local_noise_multiplier needs a noise_multiplier above 0"):
        METHODS.load("dp-fpl").parse_options({"noise_multiplier": 0})
